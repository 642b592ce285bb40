"""``dogmed export``: every format opened as its user would, against the network it was made from."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from dogmed import cli
from dogmed.errors import WeightsError
from dogmed.inference.classifier import Classifier, load
from dogmed.inference.export.files import SUMS, names_in, read_sums, sha256
from dogmed.inference.export.images import task_images
from dogmed.inference.export.model import LIMIT, compare, export_model, open_export
from dogmed.models.weights import save_weights
from dogmed.weights.records import DataRecord, WeightsRecord

TINY = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}
RECORD = WeightsRecord(
    model="dognext_test",
    num_classes=3,
    params=1,
    recipe="finetune",
    init="scratch",
    epochs=3,
    score={"val_auc": 0.7},
    data=DataRecord(
        "pets", 32, 48, "bilinear", (0.5, 0.4, 0.6), (0.25, 0.2, 0.3), "CC BY 4.0", "npz", "multi-class",
        ("cat", "dog", "eel, electric"), channels=3,
    ),
    licence="cc-by-nc-4.0",
    temperature=1.7,
)  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "dropin": {"model": "dognext_atto", "options": {"downsample": "conv", **TINY}},
    "convnext": {"model": "convnextv2_atto", "options": TINY},
    "gaussder": {"model": "gaussderresnet_test", "options": {"dims": [6], "scale_channels": 2}},
    "dognext": {},
}


def make(folder: Path, **changes: Any) -> Path:
    """Weights of a network that says something else for every image."""
    record = dataclasses.replace(RECORD, **changes)
    torch.manual_seed(2)
    model = timm.create_model(record.model, num_classes=record.num_classes, **record.options)
    state = {
        name: value + 0.1 * torch.randn_like(value) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    state |= {name: value.abs() + 0.1 for name, value in state.items() if "running_var" in name}
    path = folder / f"{record.model}.finetune.safetensors"
    save_weights(path, state, record)
    return path


def pictures(classifier: Classifier, count: int = 5) -> np.ndarray:
    side = classifier.size
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def normalised(classifier: Classifier, pixels: np.ndarray) -> torch.Tensor:
    """By numpy, in float64."""
    seen = classifier.seen
    images = (pixels / 255 - np.array(seen.mean)) / np.array(seen.std)
    return torch.from_numpy(images.transpose(0, 3, 1, 2)).float()


def run_card(folder: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Run the code on the card on each picture, which leaves the folder as it was: (N, classes)."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    monkeypatch.chdir(folder)
    assert sorted([*read_sums(folder), SUMS]) == names_in(folder)
    rows = []
    for picture in pixels:
        Image.fromarray(picture).save("../image.png")
        scope: dict[str, Any] = {}
        exec(code, scope)
        rows.append(scope["probabilities"].numpy())
    assert {name: sha256(folder / name) for name in names_in(folder) if name != SUMS} == read_sums(
        folder
    )
    return np.concatenate(rows)


def machine_paths(folder: Path) -> list[str]:
    """Files, and members of archives, that name the folder of a library or of this test."""
    places = [str(Path(timm.__file__).parent).encode(), str(folder.parent).encode()]
    contents = {}
    for file in (path for path in folder.rglob("*") if path.is_file()):
        contents[file.name] = file.read_bytes()
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                contents |= {name: archive.read(name) for name in archive.namelist()}
    return [name for name, content in contents.items() if any(p in content for p in places)]


def export(model: Path, *words: str | Path) -> int:
    return cli.main(["export", str(model), *map(str, words)])


def check_card(
    folder: Path, classifier: Classifier, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = classifier.predict(pixels[:2]).probabilities
    found = run_card(folder, pixels[:2], monkeypatch)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_timm_opens_the_folder(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = make(tmp_path, **MODELS[name]), tmp_path / "out"
    assert export(path, "--format", "timm", "--out", out) == 0
    said = capsys.readouterr().out
    classifier = load(path, device="cpu")
    pixels = pictures(classifier)
    opened = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    with torch.no_grad():
        found = opened(normalised(classifier, pixels))
    torch.testing.assert_close(found, classifier.logits(pixels), atol=LIMIT, rtol=0)
    ours = type(opened).__module__.startswith("dogmed.")
    assert ours == (name in ("gaussder", "dognext")), "a DoGNeXt that timm can hold is timm's"
    assert ("needs dogmed" in said) == ours
    assert re.search(
        r"^proof   largest difference \S+ in logits .* on 16 images of NOISE", said, re.M
    )
    check_card(out, classifier, pixels, monkeypatch)
    again = load(out, device="cpu")
    assert type(again.model) is type(opened) and again.temperature == 1.7
    expected = classifier.predict(pixels).probabilities
    np.testing.assert_allclose(again.predict(pixels).probabilities, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["dognext", "gaussder"])
def test_a_graph_of_pytorch(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = make(tmp_path, **MODELS[name]), tmp_path / "out"
    assert export(path, "--format", "torch-export", "--out", out) == 0
    classifier = load(path, device="cpu")
    pixels = pictures(classifier)
    images = normalised(classifier, pixels)
    opened = torch.export.load(out / "model.pt2").module()
    logits = classifier.logits(pixels)
    for count, laid_out in ((1, torch.contiguous_format), (5, torch.channels_last)):
        found = opened(images[:count].contiguous(memory_format=laid_out))
        torch.testing.assert_close(found, logits[:count], atol=LIMIT, rtol=0)
    assert not any("dog" in str(node.target) for node in opened.graph.nodes)
    assert not machine_paths(out)
    told = json.loads((out / "model.json").read_text())
    assert told["classes"] == ["cat", "dog", "eel, electric"] and told["output"] == "logits"
    assert told["input"]["shape"] == ["batch", 3, 32, 32] and told["temperature"] == 1.7
    check_card(out, classifier, pixels, monkeypatch)


def test_a_graph_of_onnx_with_all_that_belongs_to_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "out"
    words = ("--format", "onnx", "--with-preprocessing", "--cache-dir", tmp_path / "cache")
    assert export(run, *words, "--out", out) == 0
    said = capsys.readouterr().out
    assert re.search(r"in probabilities .* on 16 of the 21 test images of hues$", said, re.M)
    speed = re.search(r"onnxruntime ([\d.]+) ms, torch ([\d.]+) ms, ratio ([\d.]+)", said)
    assert speed is not None and min(map(float, speed.groups())) > 0
    classifier = load(run, device="cpu")
    pixels = pictures(classifier)
    session = onnxruntime.InferenceSession(out / "model.onnx")
    expected = classifier.predict(pixels).probabilities
    for count in (1, 5):
        (found,) = session.run(None, {"image": pixels[:count].transpose(0, 3, 1, 2).copy()})
        np.testing.assert_allclose(found, expected[:count], atol=LIMIT)
    (told,) = onnx.load(out / "model.onnx").metadata_props
    assert not machine_paths(out)
    assert json.loads(told.value) == json.loads((out / "model.json").read_text())
    check_card(out, classifier, pixels, monkeypatch)


@pytest.mark.parametrize("name", ["convnext", "gaussder"])
def test_a_graph_of_onnx(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path, out = make(tmp_path, **MODELS[name]), tmp_path / "out"
    assert export(path, "--format", "onnx", "--out", out) == 0
    classifier = load(path, device="cpu")
    pixels = pictures(classifier)
    images, logits = normalised(classifier, pixels).numpy(), classifier.logits(pixels).numpy()
    session = onnxruntime.InferenceSession(out / "model.onnx")
    for count in (1, 5):
        (found,) = session.run(["logits"], {"image": images[:count]})
        np.testing.assert_allclose(found, logits[:count], atol=LIMIT)
    check_card(out, classifier, pixels, monkeypatch)


def damage(folder: Path, format: str) -> None:
    """Change one weight in a file that stays readable."""
    if format == "timm":
        file = folder / "model.safetensors"
        state = safetensors.torch.load_file(file)
    else:
        file = folder / "models" / "model.pt"
        state = torch.load(file, weights_only=True)
    name = next(name for name in state if name.endswith("head.fc.bias"))
    state[name][0] += 0.01
    if format == "timm":
        safetensors.torch.save_file(state, file, {"format": "pt"})
    else:
        torch.save(state, file)


@pytest.mark.parametrize("format", ["timm", "monai-bundle"])
def test_an_export_that_computes_something_else_is_found_out(tmp_path: Path, format: Any) -> None:
    path = make(tmp_path, **MODELS["dropin"])
    done = export_model(str(path), format, tmp_path / "out")
    classifier = load(path, device="cpu")
    images = task_images(classifier, None, None)
    logits = classifier.logits(images.pixels)
    expected = logits if format == "timm" else torch.from_numpy(classifier.probabilities(logits))
    run = open_export(classifier, format, done.folder, False)
    assert compare(run, expected, images) == done.difference <= LIMIT
    damage(done.folder, format)
    run = open_export(classifier, format, done.folder, False)
    with pytest.raises(WeightsError, match=r"largest difference 0\.0.* where 0\.0001 is allowed"):
        compare(run, expected, images)


def test_what_rounds_too_much_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path, **MODELS["dropin"])
    state = safetensors.torch.load_file(path)
    state["head.fc.weight"] *= 1e5  # so that the last bits of the features make more than the limit
    save_weights(path, state, dataclasses.replace(RECORD, **MODELS["dropin"]))
    before = sorted(tmp_path.rglob("*"))
    assert export(path, "--format", "torch-export", "--out", tmp_path / "new" / "out") == 2
    error = capsys.readouterr().err
    assert "the export does not compute what the network does" in error and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bundle_of_a_grey_task_is_compared_on_grey_noise(tmp_path: Path) -> None:
    """Its preprocessing makes everything grey, and so the network must be asked of grey images."""
    path = make(tmp_path, data=dataclasses.replace(RECORD.data, channels=1))
    noise = task_images(load(path, device="cpu"), None, tmp_path / "cache").pixels
    assert (noise == noise[..., :1]).all() and noise.std() > 50
    assert export(path, "--format", "monai-bundle", "--out", tmp_path / "out") == 0


@pytest.mark.parametrize(
    ("file", "form"),
    [
        ("model.onnx", "an ONNX graph"),
        ("model.pt2", "a graph of torch.export"),
        ("configs/inference.json", "a MONAI bundle"),
    ],
)
def test_what_is_no_model_any_more_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, form: str
) -> None:
    (tmp_path / "out" / file).parent.mkdir(parents=True)
    (tmp_path / "out" / file).touch()
    monkeypatch.chdir(tmp_path)
    for name in ("out", tmp_path / "out", tmp_path / "out" / file):
        with pytest.raises(WeightsError, match=f"{form}: .* give the run .* --format timm") as told:
            load(name)
        assert "\n" not in str(told.value)
    (tmp_path / "out" / file).unlink()
    with pytest.raises(WeightsError, match="no run folder with weights, and no export"):
        load(tmp_path / "out")


def test_given_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, folder = make(tmp_path, **MODELS["convnext"]), tmp_path / "images"
    (folder / "in").mkdir(parents=True)
    for name in ("a.png", "in/b.jpg"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(
            folder / name
        )
    (folder / "notes.txt").write_text("none")
    words = ("--format", "timm", "--images", folder, "--out", tmp_path / "out")
    assert export(path, *words) == 0
    assert "on 2 images given with --images" in capsys.readouterr().out


def test_official_images_at_hand(real_data: Path, tmp_path: Path) -> None:
    data = dataclasses.replace(RECORD.data, name="breastmnist", source="official", kind="binary",
                               size=28, source_size=28, classes=("a", "b"), channels=1)  # fmt: skip
    path = make(tmp_path, data=data, num_classes=2)
    done = export_model(
        str(path), "timm", tmp_path / "out",
        data_dir=real_data / "medmnist", cache_dir=tmp_path / "cache",
    )  # fmt: skip
    assert done.images == "16 of the 156 test images of breastmnist"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--format", "tim"), "timm"),
        (("--format", "timm", "--with-preprocessing"), "--with-preprocessing is for onnx"),
        (("--format", "timm", "--out", "{}"), "is there already and not empty"),
        (("--format", "timm", "--images", "{}/none.png"), "there is no file or folder"),
        (("--format", "timm", "--images", "{}/empty"), "has no image, at or below it"),
    ],
)
def test_wrong_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    path = make(tmp_path)
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    out = () if "--out" in words else ("--out", str(tmp_path / "out"))
    assert export(path, *(word.format(tmp_path) for word in words), *out) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_only_what_was_fine_tuned_is_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path, recipe="imagenet50ep")
    assert export(path, "--format", "timm", "--out", tmp_path / "out") == 2
    assert "was not fine-tuned on a task" in capsys.readouterr().err


def test_missing_onnx_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    assert export(make(tmp_path), "--format", "onnx", "--out", tmp_path / "out") == 2
    assert "needs onnxscript: pip install 'dogmed[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

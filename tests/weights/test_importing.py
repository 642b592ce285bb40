"""``dogmed weights import``: foreign files against timm's own loading of them."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from timm.models.convnext import checkpoint_filter_fn

from dogmed import cli
from dogmed.models import build_model
from dogmed.models.weights import read_weights, save_weights
from dogmed.weights.importing import to_timm_names
from dogmed.weights.records import DataRecord, WeightsRecord, read_record

State = dict[str, torch.Tensor]


def original_names(state: State) -> State:
    """The names and shapes of ConvNeXt V2's own repository, by inverting the known conversion."""
    original = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        if part == "stem":
            name = f"downsample_layers.0.{rest}"
        elif part == "head":
            name = rest if rest.startswith("norm.") else f"head.{rest.removeprefix('fc.')}"
        else:
            _, stage, kind, rest = name.split(".", 3)
            name = f"stages.{stage}.{rest}"
            if kind == "downsample":
                name = f"downsample_layers.{stage}.{rest}"
            name = name.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
            name = name.replace("mlp.grn.weight", "grn.gamma").replace("mlp.grn.bias", "grn.beta")
        if "grn." in name:
            value = value[None, None, None]  # (1, 1, 1, C)
        if "pwconv" in name and name.endswith("weight"):
            value = value.flatten(1)  # conv_mlp has (O, I, 1, 1)
        original[name] = value
    return original


def random_state(name: str, **options: object) -> State:
    """A state whose every tensor is random, so that no two could be mixed up unnoticed."""
    generator = torch.Generator().manual_seed(5)
    state = timm.create_model(name, **options).state_dict()
    return {
        n: v + 0.05 * torch.randn(v.shape, generator=generator) if v.is_floating_point() else v
        for n, v in state.items()
    }


def run(store: Path, *words: str | Path) -> int:
    return cli.main(["weights", "import", *map(str, words), "--weights-dir", str(store)])


def assert_taken(store: Path, model: str, recipe: str, state: State) -> None:
    stored, record, sha256 = read_weights(store / f"{model}.{recipe}.safetensors")
    assert record is not None and record.sha256 == sha256
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[name], state[name]) for name in state)


# ---- ConvNeXt V2's own files --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convnextv2_atto", "convnextv2_tiny"])  # with conv_mlp, without
def test_original_names_are_converted_as_timm_does(name: str) -> None:
    options = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "num_classes": 5}
    network = timm.create_model(name, **options)
    state = random_state(name, **options)
    original = original_names(state)
    assert {n.partition(".")[0] for n in original} == {
        "downsample_layers",
        "stages",
        "norm",
        "head",
    }
    converted = to_timm_names(original, network)
    by_timm = checkpoint_filter_fn({"model": original}, network)
    assert converted.keys() == by_timm.keys() == state.keys()
    for n, value in converted.items():
        assert torch.equal(value, state[n]) and torch.equal(value, by_timm[n]), n


def test_a_file_of_the_convnextv2_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = random_state("convnextv2_atto", num_classes=10)
    file = tmp_path / "convnextv2_atto_1k_224_ema.pt"
    torch.save({"model": original_names(state)}, file)
    store = tmp_path / "store"
    words = (file, "--model", "convnextv2_atto", "--recipe", "imagenet600ep")
    assert run(store, *words, "--accuracy", "0.767", "--epochs", "600") == 0
    out = capsys.readouterr().out
    assert "became timm's" in out
    assert "licence cc-by-nc-4.0 (non-commercial), as ConvNeXt V2's authors publish theirs" in out
    assert "--size 224 --interpolation bicubic --mean 0.485 0.456 0.406 --std 0.229" in out
    assert "proof: --init imagenet600ep gives convnextv2_atto what timm itself loads" in out
    assert_taken(store, "convnextv2_atto", "imagenet600ep", state)
    record = read_record(store / "convnextv2_atto.imagenet600ep.safetensors")
    assert record is not None
    assert (record.num_classes, record.epochs, record.score) == (10, 600, {"val_acc1": 0.767})
    assert record.data.crop_pct == 0.875 and record.licence == "cc-by-nc-4.0"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert record.origin == f"{file.name}, sha256 {digest}"
    assert {p.name for p in store.iterdir()} == {
        f"convnextv2_atto.imagenet600ep{suffix}" for suffix in (".safetensors", ".json")
    }
    by_timm = timm.create_model(
        "convnextv2_atto",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(file), "num_classes": 10},
        num_classes=10,
    )
    model, _ = build_model(
        "convnextv2_atto", 10, init="imagenet600ep", weights_dir=store, drop_path_rate=0.0
    )
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), by_timm.eval()(images))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("stages.2.3.grn.beta"), r"1 missing \(stages.2.blocks.3.mlp.grn.bias\)"),
        (lambda s: s.update({"norms.0.weight": torch.zeros(4)}), r"1 unknown \(norms.0.weight\)"),
        (lambda s: s.update({"decoder.weight": torch.zeros(4, 4)}), r"unknown \(decoder.weight\)"),
        (
            lambda s: s.update({"stages.0.0.pwconv1.weight": torch.zeros(4, 4)}),
            r"1 missing \(stages.0.blocks.0.mlp.fc1.weight\), "
            r"1 unknown \(stages.0.0.pwconv1.weight\)",
        ),
    ],
)
def test_original_files_are_taken_strictly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change, said: str
) -> None:
    state = original_names(random_state("convnextv2_atto", num_classes=10))
    change(state)
    torch.save({"model": state}, tmp_path / "w.pt")
    assert run(tmp_path, tmp_path / "w.pt", "--model", "convnextv2_atto", "--recipe", "x") == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert said.replace("\\", "") in line
    assert [p.name for p in tmp_path.iterdir()] == ["w.pt"]


# ---- timm's files -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["safetensors", "plain", "script", "model", "last"])
@pytest.mark.parametrize("name", ["test_convnext", "dognext_test", "test_vit"])
def test_files_of_timm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, form: str
) -> None:
    state = random_state(name, num_classes=4)
    file = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        safetensors.torch.save_file(state, file)
    else:
        wrapped = {f"module.{n}": v for n, v in state.items()}
        content = {
            "plain": state,
            "script": {"epoch": 3, "args": argparse.Namespace(lr=0.1), "state_dict": wrapped},
            "model": {"model": state},
            "last": {"format": 1, "state": {"model": state, "progress": {"epoch": 1}}},
        }[form]
        torch.save(content, file)
    store = tmp_path / "store"
    words = (file, "--model", name, "--recipe", "mine", "--licence", "apache-2.0")
    assert run(store, *words, "--data", "pets", "--data-licence", "cc0-1.0", "--size", "96") == 0
    assert "proof: " in capsys.readouterr().out
    assert_taken(store, name, "mine", state)
    record = read_record(store / f"{name}.mine.safetensors")
    assert record is not None
    assert (record.data.name, record.data.licence, record.data.size) == ("pets", "cc0-1.0", 96)
    assert (record.num_classes, record.licence, record.init) == (4, "apache-2.0", "unknown")


@pytest.mark.parametrize(("classes", "channels"), [(4, 1), (0, 3)])
def test_channels_and_missing_classifiers_are_seen(
    tmp_path: Path, classes: int, channels: int
) -> None:
    state = random_state("dognext_test", num_classes=classes, in_chans=channels)
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    stated = ("--model", "dognext_test", "--recipe", "mine", "--licence", "mit")
    images = ("--mean", "0.5", "--std", "0.5") if channels == 1 else ()
    assert run(tmp_path, tmp_path / "w.safetensors", *stated, *images) == 0
    assert_taken(tmp_path, "dognext_test", "mine", state)
    record = read_record(tmp_path / "dognext_test.mine.safetensors")
    assert record is not None
    assert (record.num_classes, record.in_chans) == (classes, channels)


def test_half_a_classifier_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = random_state("dognext_test", num_classes=4)
    del state["head.fc.bias"]
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    stated = ("--model", "dognext_test", "--recipe", "mine", "--licence", "mit")
    assert run(tmp_path, tmp_path / "w.safetensors", *stated) == 0
    assert "left out: head.fc.bias, head.fc.weight" in capsys.readouterr().out
    del state["head.fc.weight"]
    assert_taken(tmp_path, "dognext_test", "mine", state)


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema"])
def test_an_average_beside_the_weights_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    plain = random_state("dognext_test", num_classes=4)
    average = {n: v * 0.5 if v.is_floating_point() else v for n, v in plain.items()}
    file = tmp_path / "last.pth.tar"
    torch.save({key.removesuffix("_ema"): plain, key: average}, file)
    stated = (file, "--model", "dognext_test", "--licence", "mit", "--recipe")
    assert run(tmp_path, *stated, "x") == 2
    assert "say which you mean, --take plain or --take average" in capsys.readouterr().err
    for take, state in (("plain", plain), ("average", average)):
        assert run(tmp_path, *stated, take, "--take", take) == 0
        assert_taken(tmp_path, "dognext_test", take, state)
    torch.save({key: average}, file)
    assert run(tmp_path, *stated, "only") == 0
    assert_taken(tmp_path, "dognext_test", "only", average)
    torch.save(plain, file)
    assert run(tmp_path, *stated, "none", "--take", "average") == 2
    assert "holds no average" in capsys.readouterr().err
    alone = tmp_path / "dognext_test.only.safetensors"
    assert run(tmp_path, alone, *stated[1:], "none", "--take", "average") == 2
    assert "no average beside them" in capsys.readouterr().err


def test_a_record_in_the_file_is_kept(tmp_path: Path) -> None:
    data = DataRecord("breastmnist", 64, 28, None, (0.5,) * 3, (0.2,) * 3, "CC BY 4.0")
    record = WeightsRecord(
        "dognext_test", 2, 1, "finetune", "scratch", 3, {"val_auc": 0.9}, data, "apache-2.0",
        options={"kernel_size": 9}, git_commit="abc",
    )  # fmt: skip
    state = random_state("dognext_test", num_classes=2, kernel_size=9)
    save_weights(tmp_path / "best.safetensors", state, record)
    stated = ("--model", "dognext_test", "--recipe", "breast", "--epochs", "4")
    assert run(tmp_path, tmp_path / "best.safetensors", *stated) == 0
    kept = read_record(tmp_path / "dognext_test.breast.safetensors")
    assert kept is not None
    assert (kept.recipe, kept.epochs, kept.git_commit) == ("breast", 4, "abc")
    assert (kept.data, kept.options, kept.score) == (data, record.options, record.score)
    assert_taken(tmp_path, "dognext_test", "breast", state)


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["w.pth", "--model", "dognext_tst"], "(did you mean 'dognext_test'?)"),
        (["w.pth", "--model", "dognext_test"], "does not say under which licence"),
        (["w.pth", "--model", "dognext_atto"], "they are of another size of this architecture"),
        (["w.pth", "--model", "test_resnet"], "no name is the same"),
        (["none.pth", "--model", "dognext_test"], "no such file"),
        (["notes.txt", "--model", "dognext_test"], "damaged, or not written by torch.save"),
        (["code.pth", "--model", "dognext_test"], "needs code to be read"),
        (["w.pth", "--model", "dognext_test", "--recipe", "timm"], "cannot be a name for --init"),
        (["w.pth", "--model", "dognext_test", "--recipe", "a/b"], "cannot be a name for --init"),
        (["w.pth", "--model", "dognext_test", "--recipe", "a.pt"], "cannot be a name for --init"),
        (["w.pth", "--model", "dognext_test", "--mean", "0.5", "--licence", "mit"], "1 values"),
        (["w.pth", "--model", "dognext_test", "--accuracy", "76.7"], "accuracy: "),
        (["--model", "dognext_test"], "--file"),
    ],
)
def test_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(timm.create_model("dognext_test", num_classes=2).state_dict(), "w.pth")
    torch.save(timm.create_model("dognext_test", num_classes=2), "code.pth")
    Path("notes.txt").write_text("notes")
    before = set(tmp_path.iterdir())
    recipe = [] if "--recipe" in words else ["--recipe", "mine"]
    assert run(tmp_path, *words, *recipe) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1
    assert set(tmp_path.iterdir()) == before


def test_nothing_is_overwritten_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, target = tmp_path / "w.pth", tmp_path / "dognext_test.mine.safetensors"
    torch.save(random_state("dognext_test", num_classes=2), file)
    target.write_bytes(b"old")
    stated = (file, "--model", "dognext_test", "--recipe", "mine", "--licence", "mit")
    assert run(tmp_path, *stated) == 2
    assert "--overwrite to replace it" in capsys.readouterr().err
    assert target.read_bytes() == b"old"
    assert run(tmp_path, *stated, "--overwrite") == 0
    assert json.loads(target.with_suffix(".json").read_text())["recipe"] == "mine"


def test_an_import_that_is_not_what_timm_loads_leaves_the_store_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = random_state("dognext_test", num_classes=2)
    other = {n: v + 0.1 if n.startswith("stages") else v for n, v in other.items()}
    torch.save(random_state("dognext_test", num_classes=2), tmp_path / "w.pth")
    monkeypatch.setattr(timm.models, "load_state_dict", lambda *_, **__: other)
    stated = ("--model", "dognext_test", "--recipe", "mine", "--licence", "mit")
    assert run(tmp_path, tmp_path / "w.pth", *stated) == 2
    assert "the outputs are not those of dognext_test" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]

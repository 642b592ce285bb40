"""The classifier against the run that it comes from: same images, same probabilities."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dogmed
from dogmed.errors import ConfigError, DataError, WeightsError
from dogmed.inference.classifier import Classifier, load
from dogmed.metrics import read_predictions
from dogmed.models.weights import read_weights, save_weights


@pytest.fixture(scope="module")
def images(npz: Path) -> np.ndarray:
    return np.load(npz)["test_images"]


def test_predict_gives_what_the_run_has_saved_of_its_test_split(
    classifier: Classifier, run: Path, images: np.ndarray
) -> None:
    saved = read_predictions(run / "predictions_test.csv")
    predicted = classifier.predict(images, raw=True, batch_size=5)
    np.testing.assert_allclose(predicted.probabilities, saved, rtol=0, atol=1e-6)
    assert np.ptp(saved, axis=0).min() > 0.01, "or else a network that says one thing would pass"
    assert set(predicted.warnings) == {""}
    assert (predicted.labels == saved.argmax(1)).all()
    assert predicted.names[0] == (classifier.classes[predicted.labels[0]],)


def test_pictures_decoded_once_are_classified_as_their_files_are(
    classifier: Classifier, images: np.ndarray
) -> None:
    images = [*images[:3], np.zeros((40, 36, 3), np.uint8)]
    pictures = [
        picture for k, image in enumerate(images) for picture in classifier.read(image, f"{k}")
    ]
    for raw in (False, True):
        found = classifier.classify(pictures, raw=raw)
        expected = classifier.predict(images, names=["0", "1", "2", "3"], raw=raw, batch_size=3)
        np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=0, atol=1e-6)
        assert (found.files, found.warnings) == (expected.files, expected.warnings)
        assert found.warnings[0] == "" != found.warnings[3] == classifier.warning(pictures[3])


def test_it_knows_its_task_and_its_temperature(classifier: Classifier, run: Path) -> None:
    report = json.loads((run / "result.json").read_text())
    assert (classifier.task, classifier.kind) == ("hues", "multi-class")
    assert (classifier.classes, classifier.size) == (("0", "1", "2"), 28)
    assert classifier.temperature == report["calibration"]["temperature"] != 1
    assert classifier.notes == ()
    for split in ("val", "test"):
        told = report["calibration"][split]
        assert told["raw"]["ece"] == report[split]["ece"]
    val = report["calibration"]["val"]
    assert val["calibrated"]["nll"] <= val["raw"]["nll"]


def test_calibrated_probabilities_are_the_raw_ones_at_the_temperature(
    classifier: Classifier, images: np.ndarray
) -> None:
    raw = classifier.predict(images, raw=True).probabilities
    scaled = raw ** (1 / classifier.temperature)  # softmax(z / T) from softmax(z)
    expected = scaled / scaled.sum(1, keepdims=True)
    found = classifier.predict(images).probabilities
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_file_a_picture_and_arrays_of_all_types_are_the_same_image(
    classifier: Classifier, images: np.ndarray, tmp_path: Path
) -> None:
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    Image.fromarray(images[0]).save(tmp_path / "b.tif")
    expected = classifier.predict(images[:1]).probabilities
    sources = [
        tmp_path / "a.png", str(tmp_path / "b.tif"), Image.open(tmp_path / "a.png"), images[0],
        images[0].astype(np.uint16) * 257, (images[0] / 255).astype(np.float32), images[0] / 255,
    ]  # fmt: skip
    for source in sources:
        found = classifier.predict(source).probabilities
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    together = classifier.predict(sources)
    assert len(together) == len(sources)
    assert together.files[:3] == (str(tmp_path / "a.png"), str(tmp_path / "b.tif"), "image 2")


def test_grey_arrays_with_and_without_a_channel_are_the_same(classifier: Classifier) -> None:
    grey = np.random.default_rng(1).integers(0, 256, (3, 40, 36), dtype=np.uint8)
    shapes = [grey, grey[..., None], grey[..., None].repeat(3, -1)]
    one, *others = (classifier.predict(array).probabilities for array in shapes)
    for other in others:
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-6)
    np.testing.assert_allclose(classifier.predict(grey[0]).probabilities, one[:1], atol=1e-6)


@pytest.mark.parametrize(
    "array, words",
    [
        (np.zeros((40, 36, 4), np.uint8), "has shape"),
        (np.zeros((2, 40, 36, 4), np.uint8), "no alpha"),
        (np.zeros((2, 3, 40, 36), np.uint8), "channels go last"),
        (np.zeros(7, np.uint8), "has shape"),
        (np.full((40, 36), 255.0), "floats from 255 to 255, expected 0 to 1"),
        (np.full((40, 36), np.nan), "floats from nan"),
        (np.zeros((40, 36), np.int64), "int64 values"),
        (np.zeros((0, 36, 40), np.uint8), "no image"),
        (np.zeros((1, 0, 40), np.uint8), "no pixels"),
        ([object()], "is a object"),
        ([], "no image"),
    ],
)
def test_what_has_no_plain_meaning_is_refused_in_one_line(classifier, array, words) -> None:
    with pytest.raises(DataError, match=words) as error:
        classifier.predict(array)
    assert "\n" not in str(error.value)


def test_an_image_that_cannot_be_read_raises_or_is_told_and_left_out(
    classifier: Classifier, images: np.ndarray, tmp_path: Path
) -> None:
    Image.fromarray(images[0]).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    files = [tmp_path / "bad.png", tmp_path / "good.png"]
    with pytest.raises(DataError, match=r"bad\.png is no image"):
        classifier.predict(files)
    told, done = [], []
    found = classifier.predict(
        files, on_error=lambda name, error: told.append(name), on_progress=done.append, batch_size=1
    )
    assert found.files == (str(files[1]),) and told == [str(files[0])] and done == [1, 2]


def rewrite(run: Path, folder: Path, data: dict | None = None, **facts: object) -> Path:
    """The run's weights with another record."""
    state, record, _ = read_weights(run / "checkpoints" / "best.safetensors")
    assert record is not None
    path = folder / "w.safetensors"
    changed = dataclasses.replace(record.data, **(data or {}))
    save_weights(path, state, dataclasses.replace(record, data=changed, **facts))
    return path


def test_weights_of_before_there_were_temperatures_are_used_at_1(
    run: Path, images: np.ndarray, classifier: Classifier, tmp_path: Path
) -> None:
    old = {"pixels": {}, "sides": None, "channels": None}
    found = load(rewrite(run, tmp_path, old, temperature=None), device="cpu")
    assert found.temperature == 1 and "no temperature" in found.notes[0]
    expected = classifier.predict(images, raw=True).probabilities
    np.testing.assert_allclose(found.predict(images).probabilities, expected, atol=1e-7)


def test_a_network_of_grey_images_sees_colours_as_grey_and_says_so(
    run: Path, images: np.ndarray, tmp_path: Path
) -> None:
    found = load(rewrite(run, tmp_path, {"channels": 1}), device="cpu")
    vivid = np.zeros((40, 36, 3), np.uint8)
    vivid[..., 0] = 200
    grey = np.asarray(Image.fromarray(vivid).convert("L"))
    seen = found.predict([vivid, grey])
    np.testing.assert_allclose(seen.probabilities[0], seen.probabilities[1], atol=1e-6)
    assert "colours were left out" in seen.warnings[0]
    assert "colours" not in seen.warnings[1]


def test_a_side_chosen_after_training_is_reached_as_the_analyses_reach_it(
    run: Path, classifier: Classifier, images: np.ndarray, tmp_path: Path
) -> None:
    """Resized as at training, then on the device, as ``dogmed analyze flops`` tried it."""
    path = rewrite(run, tmp_path, {"size": 20, "trained_size": 28})
    found = load(path, device="cpu")
    pixels = np.stack([next(classifier.read(image, "")).pixels for image in images])
    mean, std = (torch.tensor(v)[:, None, None] for v in (found.seen.mean, found.seen.std))
    seen = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    small = torch.nn.functional.interpolate(seen, (20, 20), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = found.model(small.float()).softmax(1).double().numpy()
    np.testing.assert_allclose(found.predict(images, raw=True).probabilities, expected, atol=1e-5)


def test_multi_label_and_ordinal_heads_decide_as_officially(run: Path, tmp_path: Path) -> None:
    image = np.full((40, 36, 3), 80, np.uint8)
    labelled = load(rewrite(run, tmp_path, {"kind": "multi-label"}), device="cpu").predict(image)
    assert labelled.labels.shape == (1, 3)
    assert labelled.names[0] == tuple(
        str(c) for c in np.flatnonzero(labelled.probabilities[0] > 0.5)
    )
    graded = {"kind": "ordinal", "classes": ("none", "mild", "moderate", "severe")}
    four = load(rewrite(run, tmp_path, graded), device="cpu").predict(image)
    assert four.probabilities.shape == (1, 4)
    assert four.probabilities.sum() == pytest.approx(1, abs=1e-6)


def test_what_is_no_classifier_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    pretrained = rewrite(run, tmp_path, {"name": "imagenet"}, recipe="tiny64")
    with pytest.raises(WeightsError, match=r"was not fine-tuned.*dogmed finetune --init"):
        load(pretrained)
    for name, words in (("nowhere", "no weights 'nowhere'"), (tmp_path / "no", "no weights at")):
        with pytest.raises(WeightsError, match=words):
            load(name, weights_dir=tmp_path / "store")
    with pytest.raises(WeightsError, match="no MLflow store at"):
        load("0" * 32, out=tmp_path)
    with pytest.raises(ConfigError, match="--device gpu"):
        load(run, device="gpu")
    unfinished = tmp_path / "seed0"
    shutil.copytree(run, unfinished)
    (unfinished / "result.json").unlink()
    with pytest.raises(WeightsError, match="has not ended"):
        load(unfinished)


def test_importing_dogmed_is_light_and_load_is_there() -> None:
    code = (
        "import sys, dogmed, dogmed.inference.predict; "
        "assert not {'torch', 'PIL', 'numpy', 'mlflow'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert dogmed.load is load
    with pytest.raises(AttributeError, match="no attribute 'loud'"):
        dogmed.loud  # noqa: B018

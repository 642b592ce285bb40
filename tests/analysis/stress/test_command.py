"""``dogmed stress``: what is measured, what is left behind, and what cannot be asked for."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from dogmed import cli, metrics
from dogmed.analysis.evaluation import Evaluation
from dogmed.analysis.images import TaskImages
from dogmed.analysis.stress.corruptions import corrupt, lower_resolution
from dogmed.analysis.stress.images import StressedImages
from dogmed.analysis.stress.sets import chosen, resolutions
from dogmed.config import recipe
from dogmed.data import Prepared
from dogmed.models.trained import open_trained

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
USUAL = ("--corruptions", "speckle_noise", "brightness_down", "--resolution", "14")


class Done(NamedTuple):
    """What a call left behind."""

    weights: tuple[Path, Path]
    folder: Path
    printed: str
    found: dict[str, Any]
    words: tuple[Any, ...]


def stress(out: Path, cache_dir: Path, *words: object) -> int:
    given = [*map(str, words), "--out", str(out), "--cache-dir", str(cache_dir)]
    given += [] if "--resamples" in words else ["--resamples", "40"]
    given += [] if "--tracking" in words else ["--tracking", "off"]
    return cli.main(["stress", *given])


@pytest.fixture(scope="module")
def done(
    cache_dir: Path,
    write_weights: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Done:
    """Two models under two corruptions and at one lower resolution, normalised by the second."""
    place = tmp_path_factory.mktemp("stress")
    weights = write_weights(place), write_weights(place, "b", seed=1)
    words = (*weights, *USUAL, "--reference", weights[1], "--resamples", 400)
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        assert stress(place / "out", cache_dir, *words) == 0
    (path,) = (place / "out").rglob("stress.json")
    printed = "\n".join(lines)
    return Done(
        weights, path.parent, printed, json.loads(path.read_text()), (place / "out", *words)
    )


def independent(weights: Path, images: np.ndarray) -> np.ndarray:
    """Probabilities of a network that timm builds, of grey images (N, H, W) uint8."""
    model = timm.create_model("dognext_test", num_classes=2).eval()
    model.load_state_dict(load_file(weights))
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    with torch.inference_mode():
        pixels = torch.from_numpy(images.copy()).float()[:, None] / 255
        return model((pixels - mean) / std).softmax(1).numpy()


def test_errors_are_those_of_an_independent_forward_pass(done: Done, prepared: Prepared) -> None:
    images, labels = prepared.images("test"), prepared.labels("test")
    strengths = recipe("stress")["tasks"]["breastmnist"]
    for weights, model in zip(done.weights, done.found["models"], strict=True):
        errors: dict[str, list[float]] = {}
        by_name = {one["name"]: one for one in model["stresses"]}
        assert list(by_name) == ["speckle_noise", "brightness_down", "14 px"]
        for name in ("speckle_noise", "brightness_down"):
            for severity, strength in enumerate(strengths[name]):
                corrupted = np.stack([
                    corrupt(image, name, strength, seed=0, index=k) for k, image in enumerate(images)
                ])  # fmt: skip
                expected = metrics.score("binary", labels, independent(weights, corrupted))
                point = by_name[name]["severities"][severity]
                error = 1 - expected["balanced_accuracy"]
                assert point["strength"] == strength and point["severity"] == severity + 1
                assert point["balanced_error"]["value"] == pytest.approx(error, abs=1e-9)
                assert point["auc"]["value"] == pytest.approx(expected["auc"], abs=1e-9)
                assert f"{100 * error:.2f}" in done.printed
                errors.setdefault(name, []).append(error)
            mean = by_name[name]["mean"]["balanced_error"]
            assert mean["value"] == pytest.approx(np.mean(errors[name]))
            assert mean["low"] <= mean["value"] <= mean["high"]
        assert model["mean"]["mean"]["balanced_error"]["value"] == pytest.approx(
            np.mean([np.mean(of_one) for of_one in errors.values()])
        )
        low = independent(weights, np.stack([lower_resolution(image, 14) for image in images]))
        expected = metrics.score("binary", labels, low)
        assert by_name["14 px"]["mean"]["acc"]["value"] == pytest.approx(expected["acc"])
        clean = metrics.score("binary", labels, independent(weights, images))
        assert model["clean"]["acc"]["value"] == pytest.approx(clean["acc"])
    assert done.found["models"][1]["mean"]["ratio"] == {"value": 1, "low": 1, "high": 1}
    a, b = (model["mean"]["mean"]["balanced_error"]["value"] for model in done.found["models"])
    (pair,) = done.found["pairs"]
    assert pair["differences"]["mean"]["balanced_error"]["value"] == pytest.approx(a - b)


def test_tables_pages_and_pictures_say_the_same(done: Done) -> None:
    assert {path.name for path in done.folder.iterdir() if path.is_file()} == {
        *(f"stress.{kind}" for kind in ("json", "csv", "md", "html", "png", "svg")),
        "stress-examples.png",
    }
    rows = list(csv.DictReader((done.folder / "stress.csv").open()))
    # clean, 2 x 5 severities and their means, one resolution, the mean over the corruptions
    assert len(rows) == 2 * 3 * (1 + 2 * 5 + 2 + 1 + 1)
    model = done.found["models"][0]
    (row,) = [
        row for row in rows
        if (row["model"], row["stress"], row["severity"], row["metric"])
        == (model["title"], "speckle_noise", "mean", "balanced_error")
    ]  # fmt: skip
    assert float(row["value"]) == model["stresses"][0]["mean"]["balanced_error"]["value"]
    assert float(row["ratio"]) == model["stresses"][0]["ratio"]["value"]
    value = f"{100 * float(row['value']):.2f}"
    for name in ("stress.md", "stress.html"):
        text = (done.folder / name).read_text()
        assert value in text and "speckle noise" in text and "Normalised by" in text
    page = (done.folder / "stress.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "") and "<svg" in page
    assert "128 images of test" in done.printed
    assert (
        "oo few resamples" not in page
        and "| model | group | what |" in (done.folder / "stress.md").read_text()
    )


def test_the_picture_has_a_column_on_a_phone_and_four_on_a_desktop(
    done: Done, look_at: Callable[..., dict[int, dict[str, Any]]]
) -> None:
    page = (done.folder / "stress.html").read_text()
    narrow = re.sub(r'<div class="scroll narrowed">.*?</div>', "", page, flags=re.S)
    wide = re.sub(r'<div class="scroll narrow">.*?</div>', "", page, flags=re.S)
    assert page.count("<svg") == 2 and narrow.count("<svg") == wide.count("<svg") == 1
    for text, shown, hidden in ((narrow, 390, 1280), (wide, 1280, 390)):
        seen = look_at(text)
        assert seen[shown]["smallest"] > 8 and seen[hidden]["smallest"] == 0
        for width in seen:
            assert seen[width]["scroll"] <= width and not seen[width]["outside"], seen


def test_the_same_command_continues_and_changes_nothing(
    done: Done, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    predict = Evaluation._predict

    def counted(self: Evaluation, *words: Any) -> Any:
        made.append(self.images.digest("test"))
        return predict(self, *words)

    monkeypatch.setattr(Evaluation, "_predict", counted)
    kept = sorted(done.folder.parents[1].glob("*/predictions/*.npz"))
    assert len(kept) == 2 * (1 + 2 * 5 + 1)
    kept[3].unlink()  # as if the first call had been killed
    kept[7].write_bytes(kept[7].read_bytes()[:-30])
    before = {path.name: path.read_bytes() for path in done.folder.iterdir() if path.is_file()}
    out, *words = done.words
    assert stress(out, cache_dir, *words) == 0
    assert len(made) == 2
    assert before == {
        path.name: path.read_bytes() for path in done.folder.iterdir() if path.is_file()
    }


def test_a_signal_stops_and_says_how_far_it_came(
    make_weights: Callable[..., Path],
    cache_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predict = Evaluation._predict

    def stopped(self: Evaluation, *words: Any) -> Any:
        if self.points.done == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return predict(self, *words)

    monkeypatch.setattr(Evaluation, "_predict", stopped)
    assert stress(tmp_path, cache_dir, make_weights(), *USUAL) == 130
    assert "stopped with 2 of 12 points; the same command continues" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["shot_noise", "motion_blur", "jpeg_compression"])
def test_batches_threads_and_calls_have_no_part_in_the_images(
    name: str, prepared: Prepared, make_weights: Callable[..., Path]
) -> None:
    trained = open_trained(str(make_weights()))
    (what,) = chosen("breastmnist", [name], colour=False)
    base = TaskImages(prepared, trained.record)

    def batches(batch_size: int, workers: int, seed: int = 0) -> torch.Tensor:
        images = StressedImages(base, trained.record.data, what, 4, seed=seed, workers=workers)
        device = torch.device("cpu")
        parts = images.batches("test", side=28, fit="resize", batch_size=batch_size, device=device)
        return torch.cat(list(parts))

    first = batches(128, 1)
    for batch_size, workers in ((7, 3), (1, 1), (500, 2)):
        torch.testing.assert_close(batches(batch_size, workers), first, rtol=0, atol=0)
    assert torch.equal(batches(128, 1, seed=1), first) == (name == "jpeg_compression")
    pixels = corrupt(prepared.images("test")[5], name, what.strengths[3], seed=0, index=5)
    expected = (torch.from_numpy(pixels.copy()).float() / 255)[None] - torch.tensor(MEAN)[
        :, None, None
    ]
    torch.testing.assert_close(first[5], expected / torch.tensor(STD)[:, None, None])


@pytest.mark.parametrize(
    ("kind", "classes", "colour"),
    [
        ("binary", 2, True),
        ("multi-class", 4, False),
        ("multi-label", 3, True),
        ("ordinal", 4, False),
    ],
)
def test_every_kind_of_ones_own_images_grey_or_colour(
    kind: str,
    classes: int,
    colour: bool,
    make_weights: Callable[..., Path],
    cache_dir: Path,
    tmp_path: Path,
) -> None:
    rng, arrays = np.random.default_rng(0), {}
    for split in ("train", "val", "test"):
        shape = (24, 28, 28, 3) if colour else (24, 28, 28)
        arrays[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        width = classes if kind == "multi-label" else 1
        high = 2 if kind == "multi-label" else classes
        arrays[f"{split}_labels"] = (np.arange(24 * width).reshape(24, width) * 7 // 3) % high
    np.savez(tmp_path / "own.npz", **arrays)
    names = tuple(map(str, range(classes)))
    data = {"name": "own", "kind": kind, "source": "npz", "classes": names}
    weights = make_weights(classes=names, data=data)
    words = (
        weights,
        "--task",
        tmp_path / "own.npz",
        "--kind",
        kind,
        "--corruptions",
        "digital",
        "saturate",
    )
    given = words if colour else words[:-1]
    assert stress(tmp_path / "out", cache_dir, *given, "--resamples", 50) == 0
    (path,) = (tmp_path / "out").rglob("stress.json")
    (model,) = json.loads(path.read_text())["models"]
    text = path.with_suffix(".md").read_text()
    assert text.splitlines()[0] == f"# Corrupted images: own, {model['title']}"
    assert "| group | what | 1 |" in text and "| model |" not in text  # one is in the heading
    assert text.count("too few resamples |") and text.count(". Too few resamples: no p") == 3
    (row, *_) = csv.DictReader(path.with_suffix(".csv").open())
    assert row["model"] == model["title"]
    names = ("pixelate", "jpeg_compression", *(("saturate",) if colour else ()))
    assert tuple(one["name"] for one in model["stresses"]) == names
    assert model["kind"] == kind
    assert all(0 <= one["mean"]["balanced_error"]["value"] <= 1 for one in model["stresses"])


def test_sets_are_the_tasks_own_or_what_is_named() -> None:
    facts = recipe("stress")
    own = chosen("dermamnist", [], colour=True)
    assert {one.name for one in own} == set(facts["tasks"]["dermamnist"])
    assert "saturate" in [one.name for one in chosen(None, [], colour=True)]
    assert "saturate" not in [one.name for one in chosen(None, [], colour=False)]
    named = {one.name: one for one in chosen("octmnist", ["noise", "zoom_blur"], colour=False)}
    assert set(named) == {*facts["groups"]["noise"], "zoom_blur"}
    assert named["speckle_noise"].strengths == tuple(facts["tasks"]["octmnist"]["speckle_noise"])
    assert named["shot_noise"].strengths == tuple(facts["generic"]["shot_noise"])
    assert chosen(None, ["dermamnist"], colour=True) == own
    assert [one.strengths for one in resolutions((28, 64, 128), 128)] == [(28,), (64,)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{a}", "--corruptions", "motion_blurr"], "unknown 'motion_blurr' (did you mean 'motion_blur'?)"),
        (["{a}", "--corruptions", "saturate"], "for colour images alone"),
        (["{a}", "--resolution", "28"], "was trained at 28 px: give sides from 1 to 27"),
        (["{a}", "--resolution", "14", "40"], "--resolution 40: "),
        (["{a}", "--resolution", "x"], "--resolution: expected whole numbers from 1"),
        (["{a}", "--reference", "alexnet"], "--reference alexnet: they are of official tasks at 224 px"),
        (["{a}", "--reference", "nothing.like.it"], "no weights 'nothing.like.it'"),
        (["{a}", "--imagenet", "there"], "unknown option --imagenet"),
        (["{a}", "--workers", "0"], "workers"),
        (["{a}", "--seed", "-1"], "seed"),
        ([], "which model?"),
    ],
)  # fmt: skip
def test_wrong_input_is_told_in_one_line_and_leaves_nothing(
    words: list[str],
    said: str,
    make_weights: Callable[..., Path],
    cache_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = str(make_weights())
    assert stress(tmp_path / "out", cache_dir, *(word.format(a=weights) for word in words)) == 2
    told = capsys.readouterr().err.splitlines()
    (error,) = [line for line in told if not line.startswith("note: breastmnist is SYNTHETIC")]
    assert error.startswith("dogmed: ") and said in error
    assert not (tmp_path / "out").exists()

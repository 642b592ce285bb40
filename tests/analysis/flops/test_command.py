"""``dogmed analyze flops``: what is measured, timed and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from dogmed import metrics
from dogmed.analysis.flops import points as flops_points
from dogmed.analysis.flops.ways import pareto
from dogmed.data import Prepared
from dogmed.models.cost import count_macs
from dogmed.weights.records import read_record

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def done(
    analyzed: Callable[..., Any],
    write_weights: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """A model at two strides, each with both kernels, and one resolution; timed."""
    place = tmp_path_factory.mktemp("flops")
    words = ("--strides", "6,8", "--resolutions", 20, "--latency", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flops_points, "LATENCY_SECONDS", 0.02)
        return analyzed("flops", place / "out", write_weights(place), *words)


def images(prepared: Prepared, split: str, side: int) -> torch.Tensor:
    """A split as the network sees it, made without the package: (N, 3, side, side)."""
    pixels = torch.from_numpy(prepared.images(split).copy()).float()[:, None] / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    normalised = (pixels - mean) / std
    if side == normalised.shape[-1]:
        return normalised
    return F.interpolate(normalised, (side, side), mode="bilinear", antialias=True)


def test_the_table_is_what_an_independent_forward_pass_gives(done: Any, prepared: Prepared) -> None:
    found = done.found
    assert (found["chosen_on"], found["told_on"], found["chosen_by"]) == ("val", "test", "auc")
    (model,) = found["models"]
    points = {
        (p["way"], p["stride"], p["kernel_size"], p["px"]): p for p in model["configurations"]
    }
    assert list(points) == [
        ("full", 4, 7, 28), ("stride", 6, 7, 28), ("stride", 8, 7, 28), ("resolution", 4, 7, 20),
        ("stride+kernel", 6, 11, 28), ("stride+kernel", 8, 15, 28),
    ]  # fmt: skip
    for (_, stride, kernel, side), point in points.items():
        options = {"stem_stride": stride, "stem_kernel_size": kernel}
        network = timm.create_model("dognext_test", num_classes=2, **options).eval()
        network.load_state_dict(load_file(done.weights[0]))
        assert point["macs"] == count_macs(network, side)
        assert f"{point['macs'] / 1e6:.3g}" in done.printed  # of GMAC these would be 1e-05
        for split in ("val", "test"):
            with torch.inference_mode():
                probabilities = network(images(prepared, split, side)).softmax(1).numpy()
            expected = metrics.score("binary", prepared.labels(split), probabilities)
            for name in ("acc", "auc"):
                score = point["scores"][split][name]
                assert score["value"] == pytest.approx(expected[name], abs=1e-3)
                assert score["low"] <= score["value"] <= score["high"]
    marks = pareto([(p["macs"], p["scores"]["val"]["auc"]["value"]) for p in points.values()])
    assert [p["front"] for p in points.values()] == marks
    assert "stride+kernel" in done.printed and "1 MAC = 2 FLOPs" in done.printed
    assert {file.name for file in done.folder.iterdir() if file.is_file()} == {
        f"flops.{suffix}" for suffix in ("json", "csv", "md", "png", "svg")
    }
    assert len((done.folder / "flops.csv").read_text().splitlines()) == 7


def test_time_is_measured_where_asked_for(done: Any) -> None:
    for point in done.found["models"][0]["configurations"]:
        seconds = point["latency_seconds"]
        assert seconds["median"] > 0 and seconds["batch"] == 2 and seconds["repeats"] >= 1
    assert done.found["provenance"]["device"] in done.printed


def test_generated_images_are_named_wherever_a_score_is_seen(done: Any) -> None:
    for text in (done.printed, *((done.folder / f"flops.{s}").read_text() for s in ("md", "svg"))):
        assert "breastmnist, SYNTHETIC data" in text


def test_on_imagenets_val_choices_are_told_on_val(
    flops: Callable[..., int],
    imagenet: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, folder = imagenet
    words = ("--imagenet", folder, "--workers", 0, "--budget", "1G")
    assert flops(path, *words, "--strides", 8, "--resolutions", 14) == 0
    told = capsys.readouterr().out
    assert "There is val alone" in told and "val_acc5" in told and "auc" not in told
    assert "finetune --task TASK --model dognext_test --init" in told
    (path,) = (tmp_path / "out").rglob("flops.json")
    found = json.loads(path.read_text())
    assert found["chosen_by"] == "acc" and set(found["choices"][0]["minus_full"]) == {"acc", "acc5"}
    (saved,) = (tmp_path / "out").rglob("*.safetensors")
    record = read_record(saved)
    assert record is not None and set(record.score) == {"val_acc1", "val_acc5"}


@pytest.mark.parametrize(
    ("model", "words", "said"),
    [
        ("dognext_test", ["--budget", "lots"], "--budget lots: expected multiply-accumulates"),
        ("dognext_test", ["--strides", "40"], "--strides 40: images of dognext_test breastmnist"),
        ("dognext_test", ["--strides", "0"], "--strides: expected whole numbers from 1 to 256"),
        ("dognext_test", ["--resolutions", "3"], "--resolutions 3: the first stride of"),
        ("dognext_test", ["--strides", "4", "--resolutions", "20", "--budget", "1K"], "kernel 7, 20 px); give"),
        ("test_resnet", ["--strides", "8"], "has no DoGConv, whose stride could be another"),
        ("test_convnext", [], "dogmed: test_convnext breastmnist (scratch, seed 0) cannot take images of 28"),
        ("dognext_test", ["--task", "pathmnist"], "pathmnist"),
        (None, [], "which model?"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(
    model: str | None,
    words: list[str],
    said: str,
    flops: Callable[..., int],
    make_weights: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = [] if model is None else [make_weights(model=model)]
    assert flops(*models, *words) == 2
    notes, line = capsys.readouterr().err.strip().rpartition("\n")[::2]
    assert said in line and line.startswith("dogmed: ") and "dogmed: " not in notes
    assert not (tmp_path / "out").exists()

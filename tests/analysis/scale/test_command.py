"""``dogmed analyze scale``: what is measured and what is left behind."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from dogmed import metrics
from dogmed.data import Prepared

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def done(
    analyzed: Callable[..., Any],
    write_weights: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """Two models at two sizes, with their own kernels and smaller ones, both ways to fit."""
    place = tmp_path_factory.mktemp("scale")
    weights = write_weights(place), write_weights(place, "b", seed=1)
    words = ("--resolutions", "28,40", "--kernel-sizes", 5, "--resamples", 80)
    return analyzed("scale", place / "out", *weights, *words)


def test_the_table_is_what_an_independent_forward_pass_gives(done: Any, prepared: Prepared) -> None:
    """A resized kernel is that of a network built with this kernel size and the same extent."""
    found, first = done.found, done.found["models"][0]
    pixels = torch.from_numpy(prepared.images("test").copy()).float()[:, None] / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    images = F.interpolate((pixels - mean) / std, (40, 40), mode="bilinear", antialias=True)
    for kernel in (7, 5):
        options = {} if kernel == 7 else {"kernel_size": 5, "extent": 2.0}
        model = timm.create_model("dognext_test", num_classes=2, **options).eval()
        model.load_state_dict(load_file(done.weights[0]))
        with torch.inference_mode():
            probabilities = model(images).softmax(1).numpy()
            middle = model(images[..., 6:34, 6:34]).softmax(1).numpy()
        for fit, p in (("resize", probabilities), ("pad", middle)):
            expected = metrics.score("binary", prepared.labels("test"), p)
            (point,) = [
                point for point in found["points"]
                if (point["model"], point["kernel"], point["fit"], point["side"], point["split"])
                == (first["title"], kernel, fit, 40, "test")
            ]  # fmt: skip
            for name in ("acc", "auc"):
                assert point["scores"][name]["value"] == pytest.approx(expected[name], abs=1e-9)
                assert f"{100 * expected[name]:.2f}" in done.printed
    assert len(found["points"]) == 32  # 2 models, 2 fits, 2 sides, 2 kernel sizes, val and test
    for kept in done.out.rglob("predictions"):
        assert len(list(kept.iterdir())) == 12  # at the size of the training the fits are one
    assert first["own_kernel"] == 7 and first["kernels"] == [7, 5]


def test_every_number_of_the_tables_is_in_the_csv_and_json_files(done: Any) -> None:
    found, folder = done.found, done.folder
    names = {f"scale.{suffix}" for suffix in ("json", "csv", "md", "html", "png", "svg")}
    assert {file.name for file in folder.iterdir() if file.is_file()} == names
    text, page = ((folder / name).read_text() for name in ("scale.md", "scale.html"))
    assert "<svg" in page and "http" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.S)
    rows = list(csv.DictReader((folder / "scale.csv").open()))
    assert len(rows) == 2 * len(found["points"])  # acc and auc
    where = ("model", "kernel", "fit", "side", "split")
    by_place = {(*(row[name] for name in where), row["metric"]): row for row in rows}
    for point in found["points"]:
        for name, score in point["scores"].items():
            row = by_place[(*(str(point[key]) for key in where), name)]
            assert [float(row[key]) for key in ("value", "low", "high")] == list(score.values())
            told = f"{100 * score['value']:.2f}<small>[{100 * score['low']:.2f}, {100 * score['high']:.2f}]"
            assert point["split"] == "val" or (
                f"{100 * score['value']:.2f}" in text and told in page
            )
    assert {row["word"] for row in rows if row["own_kernel"] == "False" and row["split"] == "test"} <= {
        "better", "worse", "noise"
    }  # fmt: skip
    assert "thesis, Table 4.7, vanilla training | DoGNeXt K9 -> 5 | 14.86 | 9.16 |" in text


def test_generated_images_and_the_thesis_are_named_wherever_a_score_is_seen(done: Any) -> None:
    said = "breastmnist, SYNTHETIC data"
    for text in (done.printed, *((done.folder / f"scale.{s}").read_text() for s in ("md", "html"))):
        assert said in text and "Rows of the thesis are as printed, of ImageNet-1K" in text
    assert said in (done.folder / "scale.svg").read_text()


def test_another_request_stands_beside_the_first_and_shares_what_is_kept(
    done: Any, analyze: Callable[..., int]
) -> None:
    def kept() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in done.out.rglob("*.npz")}

    before, tables = kept(), (done.folder / "scale.csv").read_bytes()
    words = ("--resolutions", 28, "--kernel-sizes", 5, "--fit", "resize", "--resamples", 80)
    assert analyze("scale", done.out, *done.weights, *words) == 0
    assert kept() == before and (done.folder / "scale.csv").read_bytes() == tables
    first, second = sorted(path.parent for path in done.out.rglob("scale.json"))
    assert {first.name, second.name} == {
        "resolutions_28_40-kernels_5-resamples_80", "resolutions_28-kernels_5-fit_resize-resamples_80"
    }  # fmt: skip
    assert first.parent == second.parent and first.parent.name.startswith("2-models-")


def test_rescaled_images_and_the_kernels_chosen_on_val(
    scale: Callable[..., int], make_weights: Callable[..., Path], tmp_path: Path
) -> None:
    paths = [make_weights(), make_weights("b", seed=1, options={"kernel_size": 3})]
    assert scale(*paths, "--rescale", "0.71..1.42") == 0
    (path,) = (tmp_path / "out").rglob("rescale.json")
    assert path.parent.name == "rescale_0.71..1.42-resamples_40"
    found = json.loads(path.read_text())
    factors = [2 ** (k / 4) for k in range(-2, 3)]
    assert sorted({point["at"] for point in found["points"]}) == pytest.approx(factors)
    assert {point["fit"] for point in found["points"]} == {"pad"}
    assert found["models"][0]["kernels"] == [9, 7, 5]
    names = [
        (curve["model"], curve["name"]) for curve in found["curves"] if curve["metric"] == "auc"
    ]
    first = found["models"][0]["title"]
    assert names[:4] == [
        (first, "kernel 7 (own)"), (first, "chosen on val"), (first, "kernel 9"), (first, "kernel 5")
    ]  # fmt: skip
    values = {
        (p["model"], p["split"], p["at"], p["kernel"]): p["scores"]["auc"]["value"]
        for p in found["points"]
    }
    for choice in found["choices"]:
        if choice["metric"] == "auc":
            same = {
                k: v for k, v in values.items() if (k[0], k[2]) == (choice["model"], choice["at"])
            }
            on_val = {k[3]: v for k, v in same.items() if k[1] == "val"}
            on_test = {k[3]: v for k, v in same.items() if k[1] == "test"}
            assert on_val[choice["kernel"]] == max(on_val.values())
            assert choice["test"]["value"] == on_test[choice["kernel"]]
            assert choice["flattery"] == max(on_test.values()) - on_test[choice["kernel"]]
    own = [values[first, "test", at, 7] for at in sorted({p["at"] for p in found["points"]})]
    (curve,) = [
        c for c in found["curves"]
        if (c["model"], c["name"], c["metric"]) == (first, "kernel 7 (own)", "auc")
    ]  # fmt: skip
    assert curve["mean"]["value"] == pytest.approx(np.mean(own))
    assert curve["worst_over_at_1"]["value"] == pytest.approx(min(own) / own[2])
    assert curve["mean_minus_own"]["value"] == 0 and curve["mean_minus_own"]["p"] == 1


def test_on_imagenets_val_nothing_is_chosen(
    scale: Callable[..., int],
    imagenet: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, folder = imagenet
    words = ("--imagenet", folder, "--workers", 0, "--kernel-sizes", 5)
    assert scale(path, *words, "--rescale", 0.5, 1, 2) == 0
    told = capsys.readouterr().out
    assert "no kernel size is chosen" in told and "accuracy@5" in told and "AUC" not in told
    (path,) = (tmp_path / "out").rglob("rescale.json")
    found = json.loads(path.read_text())
    assert found["choices"] == [] and len(found["points"]) == 6
    assert [curve["name"] for curve in found["curves"][:2]] == ["kernel 7 (own)", "kernel 5"]

"""``dogmed ablate``: what it trains, compares, writes, repeats and refuses."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from dogmed import config, stats
from dogmed.errors import ConfigError, DogmedError, WeightsError
from dogmed.finetune.ablate.comparison import Agreement, Row, _agreement
from dogmed.finetune.ablate.options import AblateConfig, shared_options
from dogmed.finetune.ablate.study import ablate
from dogmed.finetune.ablate.variants import choose
from dogmed.finetune.executors.base import Job
from dogmed.metrics import read_predictions
from dogmed.models import build_model
from dogmed.models.weights import DataRecord, WeightsRecord, save_weights

TINY = (
    "--task=breastmnist", "--data=synthetic", "--model=dognext_test", "--size=28", "--epochs=1",
    "--batch-size=64", "--optim.lr-base=1e-3", "--tracking=off", "--eval.resamples=0", "--device=cpu",
    "--seeds=2", "--resamples=200", "--variants=strided-d1,k9,no-grn",
)  # fmt: skip


@pytest.fixture(scope="module")
def module_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ablate")


@pytest.fixture(scope="module")
def run(module_dir: Path, make_here: Callable[[], Any]) -> Callable[..., list[str]]:
    """Do an ablation; returns the runs that were started."""

    def go(*flags: str, executor: Any = None) -> list[str]:
        folders = {"out": "runs", "cache-dir": "cache", "weights-dir": "weights"}
        words = [*TINY, *(f"--{name}={module_dir / folder}" for name, folder in folders.items())]
        recipe = config.recipe("finetune/ablate")
        asked = config.parse(AblateConfig, [*words, *flags], prog="dogmed ablate", base=recipe)
        executor = executor or make_here()
        seeds = range(asked.seed, asked.seed + asked.seeds)
        variants = choose(asked.variants)
        code = ablate(shared_options(asked), variants, seeds, executor, resamples=asked.resamples)
        assert code == 0
        return executor.started

    return go


@pytest.fixture(scope="module")
def done(run: Callable[..., list[str]], module_dir: Path) -> Path:
    """The folder of a finished ablation."""
    assert len(run()) == 4 * 2
    return module_dir / "runs/ablation/breastmnist-synthetic/dognext_test-scratch-28"


def test_an_ablation_leaves_a_table_in_three_forms_and_a_picture(done: Path) -> None:
    names = {path.name for path in done.iterdir()}
    assert names == {f"ablation.{suffix}" for suffix in ("md", "csv", "json", "png", "svg")}
    text = (done / "ablation.md").read_text()
    assert text.startswith("# Ablation of dognext_test on breastmnist (SYNTHETIC)\n")
    assert "on breastmnist (SYNTHETIC), 28 px" in (done / "ablation.svg").read_text()
    assert "| no GRN |" in text and "68.83 / 88.50" in text
    assert "as printed, with no seeds or intervals stated" in text
    with Image.open(done / "ablation.png") as image:
        assert min(image.size) > 300
    rows = list(csv.DictReader((done / "ablation.csv").open()))
    assert [row["variant"] for row in rows] == ["dognext", "strided-d1", "k9", "no-grn"]
    assert rows[2]["options"] == "kernel_size=9" and rows[0]["acc_p"] == ""
    assert float(rows[3]["thesis_imagenet_acc1"]) == 68.83


def test_the_figures_are_those_of_the_runs_own_predictions(done: Path, module_dir: Path) -> None:
    rows = json.loads((done / "ablation.json").read_text())["rows"]
    labels = np.load(next((module_dir / "cache").rglob("test_labels.npy")))
    resampled = {}
    for row in rows:
        folders = [module_dir / "runs/finetune" / run["folder"] for run in row["runs"]]
        assert [folder.name for folder in folders] == ["seed0", "seed1"]
        predictions = [read_predictions(folder / "predictions_test.csv") for folder in folders]
        resampled[row["variant"]] = stats.resample("binary", labels, predictions, resamples=200)
    p_values = []
    for row in rows:
        own = stats.estimates(resampled[row["variant"]])["auc"]
        assert (row["auc"], row["auc_sd"], row["auc_low"]) == (own.value, own.sd, own.low)
        if row["variant"] == "dognext":
            assert "auc_difference" not in row
            continue
        d = stats.differences(resampled[row["variant"]], resampled["dognext"])["auc"]
        found = [
            row[f"auc_{key}"] for key in ("difference", "difference_low", "difference_high", "p")
        ]
        assert found == [d.value, d.low, d.high, d.p]
        p_values.append(d.p)
    assert [row["auc_p_holm"] for row in rows[1:]] == pytest.approx(list(stats.holm(p_values)))
    for row in rows[1:]:
        significant = row["auc_p_holm"] < 0.05
        assert (row["auc_verdict"] != "noise") == significant


@pytest.mark.parametrize(
    ("ours", "ranks"),
    [
        ([0.9, 0.7, 0.8, 0.6], [1, 3, 2, 4]),  # the thesis's order
        ([0.9, 0.8, 0.7, 0.6], [1, 2, 3, 4]),  # a pair turned round
        ([0.6, 0.8, 0.8, 0.9], [4, 2, 2, 1]),
        ([0.8, 0.8, 0.8, 0.8], [1, 1, 1, 1]),
    ],
)
def test_the_orders_are_compared_by_kendall(ours: list[float], ranks: list[int]) -> None:
    rows = []
    for value, variant in zip(ours, choose(["strided-d1", "k9", "no-grn"]), strict=True):
        acc = stats.Estimate(value=value, low=0, high=1, seeds=2, sd=0.0, covers="")
        rows.append(Row(variant, "dognext_test", 0, 0, scores={"acc": acc}))
    theirs = [row.variant.thesis.acc1 for row in rows if row.variant.thesis]
    found = _agreement(rows)
    assert [row.rank for row in rows] == ranks
    assert [row.thesis_rank for row in rows] == [1, 3, 2, 4]
    if len(set(ours)) == 1:
        assert found is None  # no order
        return
    test = scipy.stats.kendalltau(ours, theirs)
    assert found == Agreement(test.statistic, test.pvalue, 4)
    assert _agreement(rows[:2]) is None


def test_the_agreement_of_a_study_is_that_of_its_rows(done: Path) -> None:
    found = json.loads((done / "ablation.json").read_text())
    ours, theirs = ([r[key] for r in found["rows"]] for key in ("acc", "thesis_imagenet_acc1"))
    assert [row["thesis_rank"] for row in found["rows"]] == [1, 3, 2, 4]
    assert (found["agreement"] is None) == (len(set(ours)) == 1)
    if found["agreement"]:
        assert found["agreement"]["tau"] == scipy.stats.kendalltau(ours, theirs).statistic


def test_a_second_call_trains_nothing_and_a_smaller_one_compares_what_it_names(
    done: Path, run: Callable[..., list[str]]
) -> None:
    before = {path.name: path.read_bytes() for path in done.iterdir()}
    assert run() == []
    assert {path.name: path.read_bytes() for path in done.iterdir()} == before
    assert run("--variants=k9", "--seeds=1") == []
    rows = json.loads((done / "ablation.json").read_text())["rows"]
    assert [(row["variant"], row["seeds"]) for row in rows] == [("dognext", 1), ("k9", 1)]
    assert (
        "One seed each: the luck of the seed is in no interval"
        in (done / "ablation.md").read_text()
    )
    run()


def test_killed_in_its_first_cell_the_same_command_goes_on(
    done: Path, run: Callable[..., list[str]], make_here: type[Any], module_dir: Path
) -> None:
    """What lies on the disk at the kill is copied: no clean-up reaches the copy."""
    out, left = module_dir / "alive", module_dir / "killed"

    class Killed(make_here):
        def start(self, job: Job) -> None:
            super().start(job)
            shutil.copytree(out, left, ignore=shutil.ignore_patterns("result.json"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(f"--out={out}", "--variants=k9", "--seeds=1", executor=Killed())
    (log,) = (left / "benchmark" / "cells").glob("*.log")
    assert [path.name for path in left.rglob("checkpoints/last.pt")] == ["last.pt"]
    assert len(run(f"--out={left}", "--variants=k9", "--seeds=1")) == 2
    assert "continuing after" in log.read_text()
    rows = json.loads((left / done.relative_to(module_dir / "runs") / "ablation.json").read_text())
    undisturbed = json.loads((done / "ablation.json").read_text())["rows"]
    found = {row["variant"]: row["runs"] for row in rows["rows"]}
    assert found == {
        row["variant"]: row["runs"][:1] for row in undisturbed if row["variant"] in found
    }


def test_damaged_runs_are_named_and_left_out(
    done: Path, run: Callable[..., list[str]], module_dir: Path
) -> None:
    (file,) = (module_dir / "runs/finetune").glob("*/*-k9/seed1/predictions_test.csv")
    text = file.read_text()
    file.write_text("nothing\n")
    try:
        assert run() == []
        rows = json.loads((done / "ablation.json").read_text())["rows"]
        assert {row["variant"]: row["seeds"] for row in rows}["k9"] == 1
        assert "k9: " in (done / "ablation.md").read_text()
    finally:
        file.write_text(text)


def test_a_dry_run_tells_the_networks_and_writes_nothing(
    run: Callable[..., list[str]], module_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = module_dir / "other"
    assert run("--dry-run", f"--out={out}") == []
    printed = capsys.readouterr().out
    for part in ("kernel_size 9", "use_grn False", "its own", "breastmnist dognext_test scratch no-grn seed 1",
                 "dry run: nothing was written"):  # fmt: skip
        assert part in printed, (part, printed)
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "error", "said"),
    [
        (["--model=resnet18"], ConfigError, "expected a DoGNeXt, whose variants are trained"),
        (["--net.order=d1"], ConfigError, "--net.order: the variants say what the networks are"),
        (["--variants=k99"], ConfigError, "did you mean 'k9'"),
        (["--task="], ConfigError, "which task"),
        (["--variants=k9,convnextv2"], ConfigError,
         "--model dognext_test: ConvNeXt V2 is not there in this size .*--variants k9"),
        (["--model=dognext_tets"], ConfigError, "unknown model 'dognext_tets'.*'dognext_test'"),
        (["--variants=k9,dropin-d1"], ConfigError, "variant dropin-d1: dognext_test cannot take 28 px"),
        (["--init=mine"], WeightsError, "variant dognext: no weights 'mine'"),
    ],
)  # fmt: skip
def test_wrong_requests_are_one_line_before_anything_starts(
    run: Callable[..., list[str]],
    module_dir: Path,
    flags: list[str],
    error: type[DogmedError],
    said: str,
) -> None:
    out = module_dir / "refused"
    with pytest.raises(error, match=said) as caught:
        run(f"--out={out}", *flags)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_weights_that_do_not_fit_a_variant_are_refused_and_those_that_do_are_taken(
    run: Callable[..., list[str]], module_dir: Path, tmp_path: Path
) -> None:
    model, _ = build_model("dognext_test", 4)
    data = DataRecord("imagenet", 64, None, "bicubic", (0.5,) * 3, (0.5,) * 3, None)
    record: Any = {"model": "dognext_test", "num_classes": 4, "params": 1, "recipe": "mine",
                   "init": "scratch", "epochs": 1, "score": {}, "licence": None, "data": data}  # fmt: skip
    save_weights(tmp_path / "w.safetensors", model.state_dict(), WeightsRecord(**record))
    out = module_dir / "init"
    with pytest.raises(
        WeightsError, match=r"variant strided-d1: .*\(or leave it out: --variants k9\)"
    ):
        run(f"--init={tmp_path / 'w.safetensors'}", f"--out={out}", "--variants=k9,strided-d1")
    assert not out.exists()
    started = run(
        f"--init={tmp_path / 'w.safetensors'}", f"--out={out}", "--variants=k9", "--seeds=1"
    )
    assert len(started) == 2

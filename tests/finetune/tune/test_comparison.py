"""Tuned options against the usual ones: seed by seed, and in plain words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dogmed import stats
from dogmed.finetune.tune.comparison import difference_of, usual_runs, verdict
from dogmed.finetune.tune.options import TuneConfig, base_of
from dogmed.finetune.tune.worker import Work

Make = Callable[..., TuneConfig]


def test_the_outcome_is_compared_seed_by_seed(
    whole: tuple[TuneConfig, Work], recipe_file: Path
) -> None:
    tuning, _ = whole
    report = json.loads(recipe_file.with_suffix(".json").read_text())
    assert report["search_seed"] == 0
    assert report["seeds"] == [1, 2], "not the seed of the search"
    assert report["epochs"] == 2
    assert report["labels"]["default"] == ""  # the cells of any benchmark
    for side, label in report["labels"].items():
        setup = recipe_file.stem + (f"-{label}" if label else "")
        cells = tuning.out / "finetune" / recipe_file.parent.name / setup
        results = [json.loads((cells / f"seed{k}" / "result.json").read_text()) for k in (1, 2)]
        assert report[side]["acc"] == [result["test"]["acc"] for result in results]
        assert {result["epochs"] for result in results} == {2}
    pairs = zip(report["tuned"]["auc"], report["default"]["auc"], strict=True)
    assert report["difference"]["auc"]["mean"] == pytest.approx(np.mean([a - b for a, b in pairs]))
    assert report["interval_covers"] == "test images and training seeds"
    assert "2 seeds tell little" in report["verdict"]


def test_a_comparison_over_other_epochs_says_so_in_its_label(
    make_tuning: Make, tmp_path: Path
) -> None:
    base = base_of(make_tuning(tmp_path), "breastmnist")
    assert {(run.label, run.epochs) for run in usual_runs(base, 20, 2)} == {("default-20ep", 20)}
    assert [(run.label, run.seed) for run in usual_runs(base, 2, 2)] == [("", 1), ("", 2)]


@pytest.mark.parametrize(
    ("by_seed", "known"), [([0.01], False), ([0.01, 0.01, 0.01], False), ([0.01, 0.02], True)]
)
def test_equal_differences_or_one_alone_give_no_interval(by_seed: list[float], known: bool) -> None:
    found = stats.Difference(value=0.01, low=0.005, high=0.015, p=0.01, covers="")
    difference = difference_of(np.array(by_seed), found)
    assert difference["interval"] == ((0.005, 0.015) if known else None)
    said = verdict({"acc": difference}, len(by_seed))
    assert ("tuning helped" in said and "cannot be told" not in said) == known


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((0.01, 0.03), "ACC +0.0200 [+0.0100, +0.0300]: tuning helped"),
        ((-0.01, 0.05), "it cannot be told whether tuning helped"),
        ((-0.03, -0.01), "tuning did harm"),
        (None, "cannot be told from seeds that all differ alike"),
    ],
)
def test_the_verdict_is_in_plain_words(interval: tuple[float, float] | None, said: str) -> None:
    assert said in verdict({"acc": {"mean": 0.02, "interval": interval}, "auc": None}, 3)

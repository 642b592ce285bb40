"""Which runs are read, left out, told apart and filtered."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dogmed.errors import ConfigError
from dogmed.finetune.report.assembly import Report
from dogmed.finetune.report.page import page

AddRun = Callable[..., Path]
Build = Callable[..., Report]


def test_seeds_that_differ_in_an_option_are_not_averaged(
    add_run: AddRun, out: Path, build: Build
) -> None:
    add_run(seed=0)
    add_run(seed=1, epochs=5)
    report = build(out)
    (where,) = report.sets
    assert [len(group.runs) for group in where.groups] == [1, 1]
    assert [group.setup.variant for group in where.groups] == ["epochs 3", "epochs 5"]
    assert any("differ in epochs" in note for note in report.notes)


def test_broken_and_unfinished_runs_are_counted_and_named(
    add_run: AddRun, out: Path, build: Build
) -> None:
    for seed in range(6):
        add_run(seed=seed)
    root = out / "finetune" / "breastmnist-synthetic" / "dognext_test-scratch-28"
    (root / "seed1" / "result.json").unlink()
    (root / "seed2" / "result.json").write_text('{"task": "brea')
    (root / "seed3" / "predictions_test.csv").write_text("0,0.5,0.5\n")
    result = json.loads((root / "seed4" / "result.json").read_text())
    del result["weights_sha256"], result["trivial_test_acc"]
    (root / "seed4" / "result.json").write_text(json.dumps(result))
    options = yaml.safe_load((root / "seed4" / "config.yaml").read_text())
    for key in ("label", "experiment", "parent_run"):
        del options[key]
    (root / "seed4" / "config.yaml").write_text(yaml.safe_dump(options))
    (root / "seed5" / "metrics.jsonl").unlink()
    (root / "seed0").rename(root / "seed0.old1")
    report = build(out)
    notes = "\n".join(report.notes)
    assert "unfinished: breastmnist-synthetic/dognext_test-scratch-28/seed1 (epoch 3 of 3)" in notes
    assert "damaged, left out: breastmnist-synthetic/dognext_test-scratch-28/seed2" in notes
    assert re.search(
        r"seed3: predictions_test.csv: 1 rows of 2 probabilities, expected \d+ rows", notes
    )
    assert "seed5: metrics.jsonl" in notes
    (group,) = report.sets[0].groups
    assert group.seeds == (3, 4, 5)
    assert "1 unfinished" in " ".join(report.facts) and "1 damaged" in " ".join(report.facts)
    assert page(report)


def test_without_prepared_data_the_scores_stay_and_comparisons_go(
    add_run: AddRun, out: Path, tmp_path: Path, build: Build
) -> None:
    for root in (add_run(), add_run(1.0, model="convnextv2_atto")):
        options = yaml.safe_load((root / "config.yaml").read_text())
        (root / "config.yaml").write_text(
            yaml.safe_dump(options | {"cache_dir": str(tmp_path / "elsewhere")})
        )
    report = build(out)
    assert not report.analysis.comparisons
    assert any("not on this machine" in note for note in report.notes)
    assert report.scores[0].rows[0].cells[0].text != "·"
    assert "Nothing to compare" in page(report)


def test_train_fractions_are_rows_of_their_own_with_a_curve(
    add_run: AddRun, out: Path, build: Build
) -> None:
    for fraction in (0.1, 1.0):
        add_run(2 * fraction + 1, train_fraction=fraction)
    report = build(out)
    assert [g.setup.name for g in report.sets[0].groups] == [
        "dognext_test, scratch", "dognext_test, scratch, 10% of train",
    ]  # fmt: skip
    assert "ACC and training images" in page(report)


def test_filters_keep_what_is_asked_for_and_refuse_what_is_not_there(
    add_run: AddRun, out: Path, build: Build
) -> None:
    add_run()
    add_run(label="tuned")
    add_run(model="convnextv2_atto")
    assert len(build(out, label=["none"], model=["dognext_test"]).sets[0].groups) == 1
    with pytest.raises(ConfigError, match="did you mean 'dognext_test'"):
        build(out, model=["dognext_tset"])
    with pytest.raises(ConfigError, match="of all that"):
        build(out, label=["tuned"], model=["convnextv2_atto"])


def test_a_real_run_is_read_as_it_lies(
    run_tiny: Callable[..., dict[str, Any]], tmp_path: Path, build: Build
) -> None:
    first = run_tiny(eval__resamples=20)
    report = build(tmp_path / "runs")
    (where,) = report.sets
    estimate = report.analysis.of(where, where.groups[0].setup)
    assert estimate["acc"].value == pytest.approx(first["test"]["acc"], abs=1e-12)
    assert estimate["auc"].value == pytest.approx(first["test"]["auc"], abs=1e-12)
    assert not report.notes
    assert "Validation AUC" in page(report)

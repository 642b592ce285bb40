"""The report's numbers against numpy, scikit-learn and statsmodels, and what it says of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import accuracy_score, confusion_matrix, roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from dogmed.data.store import prepare
from dogmed.finetune.report import details
from dogmed.finetune.report.assembly import Report
from dogmed.finetune.report.writing import markdown

AddRun = Callable[..., Path]
Build = Callable[..., Report]
Rows = Callable[[Report, Path, str], list[dict[str, str]]]


def probabilities(root: Path) -> np.ndarray:
    return np.loadtxt(root / "predictions_test.csv", delimiter=",")[:, 1:]


def test_means_deviations_and_pairs_are_those_of_the_stored_predictions(
    add_run: AddRun, out: Path, prepared_cache: Path, tmp_path: Path, build: Build, rows: Rows
) -> None:
    skills = {"dognext_test": 2.5, "convnextv2_atto": 1.0}
    roots = {
        model: [add_run(skill, model=model, seed=seed) for seed in range(3)]
        for model, skill in skills.items()
    }
    y = prepare(
        "breastmnist", size=28, data="synthetic", cache_dir=prepared_cache, samples=64
    ).labels("test")[:, 0]
    report = build(out)
    means = {(r["model"], r["metric"]): r for r in rows(report, tmp_path / "to", "report.csv")}
    for model, folders in roots.items():
        p = [probabilities(root) for root in folders]
        for metric, values in {
            "acc": [accuracy_score(y, q[:, 1] > 0.5) for q in p],
            "auc": [roc_auc_score(y, q[:, 1]) for q in p],
            "brier": [np.mean(((q - np.eye(2)[y]) ** 2).sum(1)) for q in p],
        }.items():
            row = means[model, metric]
            assert float(row["mean"]) == pytest.approx(np.mean(values), abs=1e-12)
            assert float(row["sd"]) == pytest.approx(np.std(values, ddof=1), abs=1e-12)
            assert float(row["low"]) <= float(row["mean"]) <= float(row["high"])
            assert row["seeds"] == "3" and "seeds" in row["covers"]
    pairs = [
        r for r in rows(report, tmp_path / "to", "comparisons.csv") if r["question"] == "model"
    ]
    assert [(r["first"], r["second"]) for r in pairs] == [
        ("dognext_test, scratch", "convnextv2_atto, scratch")
    ] * 2
    difference = float(means["dognext_test", "acc"]["mean"]) - float(
        means["convnextv2_atto", "acc"]["mean"]
    )
    assert float(pairs[0]["difference"]) == pytest.approx(difference, abs=1e-12)
    for seed, told in enumerate(pairs[0]["mcnemar_p"].split()):
        right = [(probabilities(roots[model][seed])[:, 1] > 0.5) == y for model in skills]
        table = [[0, (right[0] & ~right[1]).sum()], [(right[1] & ~right[0]).sum(), 0]]
        exact = np.sum(table) < 25
        assert float(told) == pytest.approx(
            mcnemar(table, exact=exact, correction=True).pvalue, rel=1e-4
        )
    (where,) = report.sets
    confused = details.confusion(where, where.groups[1], y[:, None])
    assert confused is not None
    expected = sum(confusion_matrix(y, probabilities(r)[:, 1] > 0.5) for r in roots["dognext_test"])
    counts = [[int(cell.text) for cell in row.cells] for row in confused.rows]
    assert np.array_equal(counts, expected)


def test_p_values_are_adjusted_within_a_question_over_all_tasks(
    add_run: AddRun, out: Path, build: Build
) -> None:
    for task, skill in (("breastmnist", 3.0), ("pneumoniamnist", 1.2), ("bloodmnist", 1.1)):
        add_run(skill, task=task)
        add_run(1.0, task=task, model="convnextv2_atto")
        add_run(2.0, task=task, init="imagenet50ep")
    found = build(out).analysis.comparisons
    for question, metric in {(c.question, c.metric) for c in found}:
        family = [c for c in found if (c.question, c.metric) == (question, metric)]
        adjusted = multipletests([c.difference.p for c in family], method="holm")[1]
        assert [c.adjusted for c in family] == pytest.approx(adjusted)
        assert {c.family for c in family} == {len(family)}
    trivial = [c for c in found if c.question == "trivial"]
    assert {c.difference.covers for c in trivial} == {"test images"}
    for c in found:
        told = "noise" if c.adjusted >= 0.05 else "better" if c.difference.value > 0 else "worse"
        assert c.verdict == told
    assert {c.question for c in found} == {"model", "init", "trivial"}


def test_models_run_with_other_options_have_no_verdict(
    add_run: AddRun, out: Path, tmp_path: Path, build: Build, rows: Rows
) -> None:
    for task in ("breastmnist", "bloodmnist"):
        add_run(9.0, task=task)
    add_run(0.0, model="convnextv2_atto", epochs=5)
    add_run(0.0, task="bloodmnist", model="convnextv2_atto")
    report = build(out)
    equal, unequal = (
        next(
            c
            for c in report.analysis.comparisons
            if (c.question, c.metric, c.where.task) == ("model", "acc", task)
        )
        for task in ("bloodmnist", "breastmnist")
    )
    assert unequal.unequal == "epochs 3 and 5" and unequal.difference.p < 0.05
    assert unequal.verdict == "unequal" and unequal.family == 0
    assert equal.verdict == "better" and equal.adjusted == equal.difference.p and equal.family == 1
    assert "UNEQUAL: epochs" in markdown(report)
    headline, _ = report.headlines[0]
    told = "dognext_test vs convnextv2_atto: ACC better in 1, not comparable in 1 of 2 comparisons (2 test sets)"
    assert told in headline
    assert headline.endswith("one seed each: the luck of the seed is not in it")
    (row,) = report.winners[0].rows
    assert row.cells[-1].text == "1 better, 1 not comparable of 2"
    cell = row.cells[[one.task for one in report.sets].index("breastmnist")]
    assert (cell.sub, cell.mark, cell.shade) == ("SYNTHETIC", "unequal", 0)
    assert any(note.startswith("One seed each: the luck") for note in report.winners[0].notes)
    pairs = [
        r for r in rows(report, tmp_path / "to", "comparisons.csv") if r["question"] == "model"
    ]
    assert {(r["verdict"], r["p_holm"] == "") for r in pairs if r["unequal"]} == {
        ("not comparable", True)
    }
    assert not report.analysis.ranks


def test_one_seed_has_no_deviation_and_says_so(add_run: AddRun, out: Path, build: Build) -> None:
    add_run()
    add_run(0.5, model="convnextv2_atto")
    report = build(out)
    assert "±" not in report.scores[0].rows[0].cells[0].plain
    assert all("One seed each" in " ".join(table.notes) for table in report.comparisons)
    assert all("the luck of the seed is not in it" in told for told, _ in report.headlines)
    add_run(seed=1)
    add_run(0.5, model="convnextv2_atto", seed=1)
    assert "luck of the seed" not in markdown(build(out))


def test_over_enough_tasks_there_are_ranks_and_a_verdict(
    add_run: AddRun, out: Path, build: Build
) -> None:
    tasks = ["breastmnist", "pneumoniamnist", "octmnist", "dermamnist", "bloodmnist", "retinamnist"]
    for task in tasks:
        for model, skill in (("dognext_test", 3.0), ("convnextv2_atto", 0.5)):
            add_run(skill, task=task, model=model)
    report = build(out)
    ranks = report.analysis.ranks[0]
    assert ranks.ranks == (2.0, 1.0) and len(ranks.tasks) == 6  # convnextv2_atto, dognext_test
    pair = report.analysis.pairs[0]
    scores = [
        [report.analysis.of(one, setup)["acc"].value for one in report.sets]
        for setup in (pair.a, pair.b)
    ]
    assert pair.differences == pytest.approx(np.subtract(*scores))
    assert pair.test.p == pytest.approx(scipy.stats.wilcoxon(*scores, method="exact").pvalue)
    assert pair.family == 1 and pair.adjusted == pair.test.p == 2 / 2**6
    assert pair.verdict == "better" and pair.a.model == "dognext_test"
    told = "SYNTHETIC data: dognext_test vs convnextv2_atto (scratch), ACC: better over 6 tasks taken together"
    assert any(line.startswith(told) and sign == "better" for line, sign in report.headlines)
    table = next(table for table in report.over_tasks if table.key.startswith("tasks_acc"))
    assert table.rows[0].cells[0].text == "better" and table.rows[0].cells[3].text == "21 : 0"

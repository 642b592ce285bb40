"""Ranks and pairs over tasks: what is ranked with what, which way a verdict goes, what is out of reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from dogmed import stats
from dogmed.finetune.report import figures, task_tables
from dogmed.finetune.report.grouping import Group, Setup, TestSet, unequal
from dogmed.finetune.report.over_tasks import Pair, Ranks, over_tasks
from dogmed.finetune.report.reading import Run


def setup(model: str = "a", init: str = "scratch", label: str = "", fraction: float = 1.0) -> Setup:
    return Setup(False, model, init != "scratch", init, label, "", fraction)


def test_set(
    task: str, scores: dict[Setup, float], source: str = "official", **epochs: int
) -> TestSet:
    """A test set whose scores are told; ``epochs`` by model where they are not 3."""
    groups = []
    for one in sorted(scores):
        options: dict[str, Any] = {"epochs": epochs.get(one.model, 3), "data": "d"}
        options["initial weights"] = f"{one.init} of {one.model}"
        run = Run(
            folder="", task=task, kind="binary", classes=("0", "1"), source=source, size=28,
            source_size=28, model=one.model, init=one.init, train_fraction=one.fraction,
            label=one.label, seed=0, test={"acc": scores[one]}, sha256={}, options=options, result={},
        )  # fmt: skip
        groups.append(Group(one, (run,)))
    return TestSet(
        task=task, kind="binary", classes=("0", "1"), source=source, size=28, source_size=28,
        images=100, labels_sha256="", groups=groups,
    )  # fmt: skip


test_set.__test__ = False  # type: ignore[attr-defined]


def analysed(sets: Sequence[TestSet]) -> tuple[list[Ranks], list[Pair], list[str]]:
    """By ACC alone."""

    def score(where: TestSet, one: Setup, metric: str) -> float | None:
        group = where.group(one)
        return group.runs[0].test["acc"] if group and metric == "acc" else None

    return over_tasks(sets, score)


def sets_of(table: dict[Setup, Sequence[float]]) -> list[TestSet]:
    """One test set a position of the scores."""
    count = len(next(iter(table.values())))
    return [
        test_set(f"t{k}", {one: values[k] for one, values in table.items()}) for k in range(count)
    ]


def test_the_verdict_goes_by_the_ranks_and_not_by_the_mean() -> None:
    a, b = setup("a"), setup("b")
    _, (pair,), _ = analysed(sets_of({b: [0.75] * 11 + [-4.5], a: [0.5] * 12}))
    assert (pair.a, pair.b) == (b, a) and np.mean(pair.differences) < 0
    assert pair.test.p == pytest.approx(
        2 * (1 + 11 + 55 + 1) / 2**12
    )  # against: 0, 1, 2 ties, the loss
    assert pair.verdict == "better" and pair.contrary
    row = task_tables.pairs([pair]).rows[0]
    assert [cell.text for cell in row.cells[:4]] == ["better", "12", "+25.00", "66 : 12"]
    assert row.cells[2].sub.startswith("mean −")


def test_shares_of_train_and_labels_are_ranked_by_themselves() -> None:
    rng = np.random.default_rng(0)
    kinds = [("", 1.0), ("tuned", 1.0), ("", 0.1)]
    table = {
        setup(model, label=label, fraction=fraction): rng.random(6)
        for model in "ab"
        for label, fraction in kinds
    }
    ranks, pairs, _ = analysed(sets_of(table))
    assert {(of.options, of.fraction) for of in ranks} == set(kinds)
    for of in ranks:
        assert [s.model for s in of.setups] == ["a", "b"] and sum(of.ranks) == pytest.approx(3)
    names = [task_tables.ranks(of).title for of in ranks]
    assert len(set(names)) == 3 and len({task_tables.ranks(of).key for of in ranks}) == 3
    assert {(p.question, p.family) for p in pairs} == {("model", 3), ("options", 2)}
    for question in ("model", "options"):
        family = [p for p in pairs if p.question == question]
        assert [p.adjusted for p in family] == pytest.approx(stats.holm([p.test.p for p in family]))


@pytest.mark.parametrize(
    ("sources", "counted"), [(("official", "variant"), 3), (("npz", "variant"), 2)]
)
def test_a_task_counts_once(sources: tuple[str, str], counted: int) -> None:
    scores = {setup("a"): 0.5, setup("b"): 0.6}
    sets = [test_set(task, scores) for task in ("t0", "t1")]
    sets += [test_set("t2", scores, source) for source in sources]
    (ranks,), _, (note,) = analysed(sets)
    assert len(ranks.tasks) == counted and len(set(ranks.tasks)) == counted
    assert "a task counts once" in note and "28 px, variant" in note


def test_tasks_with_unequal_options_are_left_out() -> None:
    scores = {setup("a"): 0.5, setup("b"): 0.6}
    sets = [test_set(f"t{k}", scores, **({"b": 50} if k == 0 else {})) for k in range(7)]
    (ranks,), (pair,), _ = analysed(sets)
    assert ranks.tasks == tuple(f"t{k}" for k in range(1, 7)) and len(pair.differences) == 6
    assert "Left out: t0 (UNEQUAL options)." in task_tables.ranks(ranks).notes
    assert not analysed(sets[:6])[1]


def test_a_label_does_not_excuse_longer_training() -> None:
    usual, tuned = setup(), setup(label="tuned")
    one, other = (test_set("t", {s: 0.5}).groups[0] for s in (usual, tuned))
    longer = test_set("t", {tuned: 0.5}, a=50).groups[0]
    assert unequal(one, other) == "" and unequal(one, longer) == "epochs 3 and 50"


def test_without_a_word_of_friedman_there_is_no_diagram() -> None:
    rng = np.random.default_rng(1)
    noise = {setup(model): rng.random(8) for model in "abc"}
    (ranks,), _, _ = analysed(sets_of(noise))
    assert ranks.friedman is not None and ranks.friedman.p_f > 0.05
    assert figures.ranks(ranks, "noise") is None
    assert "does not reject" in task_tables.ranks(ranks).notes[0]
    clear = {setup(model): 0.1 * k + 0.01 * rng.random(8) for k, model in enumerate("abc")}
    (ranks,), _, _ = analysed(sets_of(clear))
    picture = figures.ranks(ranks, "clear")
    assert picture is not None and "CD = " in picture.svg
    assert ranks.width == stats.critical_difference(3, 8)
    assert "Critical difference" in task_tables.ranks(ranks).notes[0]
    (few,), pairs, _ = analysed(sets_of({one: values[:5] for one, values in clear.items()}))
    assert few.friedman is None and not pairs
    assert "Only 5 tasks" in task_tables.ranks(few).notes[0]


@pytest.mark.parametrize(
    ("models", "tasks", "needed"), [("ab", 6, None), ("abc", 6, 7), ("abc", 7, None)]
)
def test_what_no_result_could_have_shown_is_said(
    models: str, tasks: int, needed: int | None
) -> None:
    table = {setup(m): 0.1 * k + 0.01 * np.arange(1, tasks + 1) * k for k, m in enumerate(models)}
    _, pairs, _ = analysed(sets_of(table))
    notes = [note for note in task_tables.pairs(pairs).notes if "could be better" in note]
    assert {pair.verdict for pair in pairs} == ({"noise"} if needed else {"better"})
    assert [f"it takes {needed} tasks" in note for note in notes] == [True] * (needed is not None)

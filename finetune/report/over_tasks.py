"""Setups over the tasks of one field: average ranks, and signed ranks of pairs.

A task counts once, with one test set, however many images it has. What was run with unequal options
is neither ranked nor paired.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from dogmed import stats
from dogmed.finetune.report.grouping import Group, Setup, TestSet, question_of, unequal
from dogmed.finetune.report.verdicts import METRICS, adjust

MIN_TASKS = 6  # with fewer, the exact two-sided Wilcoxon test has no p-value below 0.05

Scores: TypeAlias = dict[Setup, dict[str, tuple[Group, float]]]


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Setups of one share of train and one label, over the tasks that all of them were run on."""

    where: tuple[bool, str]
    """Synthetic or not, and the pixels."""
    fraction: float
    options: str
    metric: str
    setups: tuple[Setup, ...]
    tasks: tuple[str, ...]
    ranks: tuple[float, ...]
    friedman: stats.Friedman | None
    """None with too few tasks, or two setups, which Wilcoxon's test compares."""
    left_out: tuple[str, ...]
    """Setups that were run on fewer tasks, and tasks with unequal options."""

    @property
    def width(self) -> float:
        """The critical difference of two ranks, or 0 where nothing says that any differ."""
        if self.friedman is None or self.friedman.p_f >= stats.ALPHA:
            return 0.0
        return stats.critical_difference(len(self.setups), len(self.tasks))


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two setups that differ in one thing, over the tasks on which their options are equal."""

    question: str
    where: tuple[bool, str]
    metric: str
    a: Setup
    b: Setup
    test: stats.Wilcoxon
    differences: tuple[float, ...]
    """a minus b, one a task."""
    adjusted: float = 1.0
    """p-value after Holm over the family: one question, one metric, all real (or all synthetic) tasks."""
    family: int = 1

    @property
    def verdict(self) -> str:
        """By the signed ranks, of which the p-value is; the mean may point the other way."""
        return stats.verdict(self.adjusted, self.test.plus - self.test.minus)

    @property
    def contrary(self) -> bool:
        """Whether the mean difference contradicts the verdict."""
        ranks = self.test.plus - self.test.minus
        return self.verdict != "noise" and ranks * float(np.mean(self.differences)) < 0


def over_tasks(
    sets: Sequence[TestSet], score: Callable[[TestSet, Setup, str], float | None]
) -> tuple[list[Ranks], list[Pair], list[str]]:
    """Rank and pair what was run on two or more tasks of a field.

    Args:
        sets: of ``grouping.gather``.
        score: of a test set, a setup and a metric.

    Returns:
        Ranks, pairs, and notes on test sets that are not counted.
    """
    ranks, pairs, notes = [], [], []
    for where in dict.fromkeys(one.field for one in sets):
        members, more = _one_a_task([one for one in sets if one.field == where])
        notes += more
        for metric in METRICS if len(members) > 1 else ():
            scores: Scores = defaultdict(dict)
            for one in members:
                for group in one.groups:
                    if (value := score(one, group.setup, metric)) is not None:
                        scores[group.setup][one.task] = group, value
            tasks = [one.task for one in members]
            ranks += _ranks(where, metric, scores, tasks)
            pairs += _pairs(where, metric, scores, tasks)
    families = [(pair.question, pair.metric, pair.where[0]) for pair in pairs]
    adjusted = adjust([pair.test.p for pair in pairs], families)
    pairs = [
        replace(pair, adjusted=p, family=size)
        for pair, (p, size) in zip(pairs, adjusted, strict=True)
    ]
    return ranks, pairs, notes


def _one_a_task(members: Sequence[TestSet]) -> tuple[list[TestSet], list[str]]:
    """Of several test sets of a task take the official one, or none."""
    by_task: dict[str, list[TestSet]] = defaultdict(list)
    for one in members:
        by_task[one.task].append(one)
    kept, notes = [], []
    for task, same in by_task.items():
        chosen = same if len(same) == 1 else [one for one in same if one.source == "official"]
        chosen = chosen if len(chosen) == 1 else []
        kept += chosen
        if len(same) > 1:
            counted = f"the official one of {len(same)} test sets" if chosen else "none of them"
            notes.append(
                f"{task}, {same[0].pixels}: a task counts once over tasks: {counted} is taken "
                f"({'; '.join(one.name for one in same)})"
            )
    return kept, notes


def _ranks(
    where: tuple[bool, str], metric: str, scores: Scores, tasks: Sequence[str]
) -> list[Ranks]:
    """Rank the setups that have most tasks on the tasks they share, each share and label by itself."""
    fields: dict[tuple[float, str], list[Setup]] = defaultdict(list)
    for setup in sorted(scores):
        fields[setup.fraction, setup.options].append(setup)
    found = []
    for (fraction, options), members in fields.items():
        most = max(len(scores[setup]) for setup in members)
        setups = [setup for setup in members if len(scores[setup]) == most]
        shared = [task for task in tasks if all(task in scores[setup] for setup in setups)]
        equal = [task for task in shared if _equal([scores[setup][task][0] for setup in setups])]
        if len(setups) < 2 or len(equal) < 2:
            continue
        table = np.array([[scores[setup][task][1] for setup in setups] for task in equal])
        tested = len(equal) >= MIN_TASKS and len(setups) > 2
        fewer = [f"{setup.name} (fewer tasks)" for setup in members if setup not in setups]
        others = [f"{task} (UNEQUAL options)" for task in shared if task not in equal]
        found.append(Ranks(
            where=where, fraction=fraction, options=options, metric=metric, setups=tuple(setups),
            tasks=tuple(equal), ranks=tuple(map(float, stats.average_ranks(table))),
            friedman=stats.friedman(table) if tested else None, left_out=(*fewer, *others),
        ))  # fmt: skip
    return found


def _equal(groups: Sequence[Group]) -> bool:
    return not any(unequal(a, b) for a, b in itertools.combinations(groups, 2))


def _pairs(
    where: tuple[bool, str], metric: str, scores: Scores, tasks: Sequence[str]
) -> list[Pair]:
    found = []
    for b, a in itertools.combinations(sorted(scores), 2):
        question = question_of(a, b)
        both = [task for task in tasks if task in scores[a] and task in scores[b]]
        equal = [task for task in both if _equal([scores[a][task][0], scores[b][task][0]])]
        if question is None or len(equal) < MIN_TASKS:
            continue
        one, other = ([scores[setup][task][1] for task in equal] for setup in (a, b))
        found.append(Pair(
            question=question, where=where, metric=metric, a=a, b=b, test=stats.wilcoxon(one, other),
            differences=tuple(map(float, np.subtract(one, other))),
        ))  # fmt: skip
    return found

"""Scores with intervals, paired comparisons with adjusted p-values, and models over tasks."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dogmed import stats
from dogmed.finetune.report.grouping import Group, Setup, TestSet, unequal
from dogmed.finetune.report.reading import Labels
from dogmed.metrics import Ints
from dogmed.stats import Difference, Estimate

ALPHA = 0.05
MIN_TASKS = 6  # with fewer, the exact two-sided Wilcoxon test has no p-value below 0.05
METRICS = ("acc", "auc")
WORDS = ("better", "worse", "noise")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two setups on one test set: ``a`` minus ``b``, in one metric."""

    question: str
    """What they differ in: model, init, options, predictions, trivial."""
    where: TestSet
    a: Setup
    b: Setup | None
    """None: always answering the most frequent class."""
    metric: str
    difference: Difference
    adjusted: float = 1.0
    """p-value after Holm over the family: one question, one metric, all real (or all synthetic) test sets."""
    family: int = 1
    mcnemar: tuple[stats.McNemar, ...] = ()
    """One for each common seed."""
    unequal: str = ""

    @property
    def verdict(self) -> str:
        if self.adjusted >= ALPHA:
            return "noise"
        return "better" if self.difference.value > 0 else "worse"


@dataclass(frozen=True, kw_only=True)
class OverTasks:
    """Setups over the tasks of one field that all of them were run on."""

    where: tuple[bool, str]
    metric: str
    setups: tuple[Setup, ...]
    tasks: tuple[str, ...]
    ranks: tuple[float, ...] = ()
    width: float = 0.0
    """The critical difference of the ranks."""
    friedman: stats.Friedman | None = None
    wilcoxon: dict[tuple[Setup, Setup], stats.Wilcoxon] = field(default_factory=dict)
    adjusted: dict[tuple[Setup, Setup], float] = field(default_factory=dict)
    shift: dict[tuple[Setup, Setup], float] = field(default_factory=dict)
    """Mean over tasks of the first minus the second."""

    def verdict(self, a: Setup, b: Setup) -> str:
        if self.adjusted[a, b] >= ALPHA:
            return "noise"
        return "better" if self.shift[a, b] > 0 else "worse"


@dataclass(frozen=True)
class Analysis:
    """All that the report says of chance."""

    estimates: dict[tuple[str, Setup], dict[str, Estimate]]
    """By test set and setup, of every metric."""
    labels: dict[str, Ints]
    """By test set, where they were found."""
    comparisons: list[Comparison]
    over_tasks: list[OverTasks]
    notes: list[str]

    def of(self, where: TestSet, setup: Setup) -> dict[str, Estimate]:
        return self.estimates.get((where.name, setup), {})


def analyse(
    sets: Sequence[TestSet],
    labels: Labels,
    *,
    resamples: int,
    say: Callable[[str], None] = lambda text: None,
) -> Analysis:
    """Evaluate every group on resamples of its test set, and compare those that differ in one thing.

    Args:
        sets: of ``grouping.gather``.
        labels: where labels are found.
        resamples: of each bootstrap.
        say: told each test set before it is resampled.
    """
    result = Analysis({}, {}, [], [], [])
    for where in sets:
        y = labels.of(where.labels_sha256)
        if y is None:
            result.notes.append(
                f"{where.name}: the prepared data are not on this machine (their hash is that of no folder "
                "of --cache-dir), so that nothing is compared; scores are those of the runs"
            )
        else:
            result.labels[where.name] = y
        say(where.name)
        evaluated = {}
        for group in where.groups:
            whole = y is not None and all(run.probabilities is not None for run in group.runs)
            if whole:
                evaluated[group.setup] = resampled = stats.resample(
                    where.kind, y, [run.probabilities for run in group.runs], resamples=resamples
                )
                found = stats.estimates(resampled)
            else:
                found = {}
            result.estimates[where.name, group.setup] = _stored(group) | found
        result.comparisons.extend(_compare(where, evaluated))
        result.comparisons.extend(_against_trivial(where, evaluated, labels))
    result.comparisons[:] = _adjust(result.comparisons)
    result.notes.extend(_coarse(result.comparisons, resamples))
    result.over_tasks.extend(_over_tasks(sets, result))
    return result


def _stored(group: Group) -> dict[str, Estimate]:
    """Estimates from what the runs say of themselves: of several seeds, Student's t over the seeds alone."""
    found = {}
    for name in group.runs[0].test:
        scores = [run.test.get(name) for run in group.runs]
        if not all(isinstance(score, float) for score in scores):
            continue
        summary = stats.summarize(scores)
        intervals = group.runs[0].test.get("intervals_95", {})
        low, high = summary.interval or intervals.get(name) or (np.nan, np.nan)
        covers = "training seeds" if summary.n > 1 else "test images"
        found[name] = Estimate(
            value=summary.mean, low=float(low), high=float(high), seeds=summary.n, sd=summary.sd,
            covers=covers,
        )  # fmt: skip
    return found


def _compare(where: TestSet, evaluated: dict[Setup, stats.Resampled]) -> list[Comparison]:
    found = []
    for b, a in itertools.combinations(sorted(evaluated), 2):
        question = _question(a, b)
        if question is None:
            continue
        differences = stats.differences(evaluated[a], evaluated[b])
        one, other = where.group(a), where.group(b)
        assert one is not None and other is not None
        for metric in METRICS:
            if metric not in differences:
                continue
            found.append(Comparison(
                question=question, where=where, a=a, b=b, metric=metric,
                difference=differences[metric],
                mcnemar=_mcnemar(where, evaluated[a].labels, one, other) if metric == "acc" else (),
                unequal="" if question == "options" else unequal(one, other),
            ))  # fmt: skip
    return found


def _question(a: Setup, b: Setup) -> str | None:
    """The one thing that two setups differ in, or None if they differ in more."""
    if a.theirs or b.theirs:
        return "predictions"
    differ = {
        "model": a.model != b.model,
        "init": a.init != b.init,
        "options": a.options != b.options,
        "fraction": a.fraction != b.fraction,
    }
    names = [name for name, differs in differ.items() if differs]
    return names[0] if len(names) == 1 and names != ["fraction"] else None


def _mcnemar(where: TestSet, labels: Ints, a: Group, b: Group) -> tuple[stats.McNemar, ...]:
    if where.kind == "multi-label":
        return ()
    pairs = [(x, y) for x in a.runs for y in b.runs if x.seed == y.seed]
    return tuple(
        stats.mcnemar(where.kind, labels, x.probabilities, y.probabilities)
        for x, y in pairs
        if x.probabilities is not None and y.probabilities is not None
    )


def _against_trivial(
    where: TestSet, evaluated: dict[Setup, stats.Resampled], labels: Labels
) -> list[Comparison]:
    ours = next((group for group in where.groups if not group.setup.theirs), None)
    train = labels.of(ours.runs[0].sha256["train_labels.npy"]) if ours else None
    if train is None or not evaluated:
        return []
    first = next(iter(evaluated.values()))
    constant = stats.trivial_probabilities(
        where.kind, train, size=len(first.labels), classes=first.classes
    )
    answer = stats.resample(
        where.kind, first.labels, [constant], resamples=first.resamples, seed=first.seed
    )
    return [
        Comparison(
            question="trivial", where=where, a=setup, b=None, metric="acc",
            difference=stats.differences(model, answer)["acc"],
        )
        for setup, model in evaluated.items()
    ]  # fmt: skip


def _adjust(comparisons: list[Comparison]) -> list[Comparison]:
    """Holm's adjustment within each family."""
    families: dict[tuple[str, str, bool], list[int]] = defaultdict(list)
    for number, c in enumerate(comparisons):
        families[c.question, c.metric, c.where.synthetic].append(number)
    result = list(comparisons)
    for members in families.values():
        adjusted = stats.holm([comparisons[k].difference.p for k in members])
        for k, p in zip(members, adjusted, strict=True):
            result[k] = replace(comparisons[k], adjusted=float(p), family=len(members))
    return result


def _coarse(comparisons: Sequence[Comparison], resamples: int) -> list[str]:
    """Say where a bootstrap of single seeds is too coarse for its family to find anything."""
    smallest = 2 / (resamples + 1)
    sizes = [c.family for c in comparisons if c.difference.covers == "test images"]
    if not sizes or smallest * max(sizes) < ALPHA:
        return []
    return [
        f"{resamples} resamples give single-seed comparisons a p-value of {smallest:.2g} at least, which "
        f"Holm's adjustment over {max(sizes)} of them takes above {ALPHA}: nothing there could be better or "
        f"worse; give --resamples {int(2 * max(sizes) / ALPHA) + 1} or more, or run more seeds"
    ]


def _over_tasks(sets: Sequence[TestSet], found: Analysis) -> list[OverTasks]:
    result = []
    for where in dict.fromkeys(one.field for one in sets):
        members = [one for one in sets if one.field == where and not one.number]
        for metric in METRICS:
            scores: dict[Setup, dict[str, float]] = defaultdict(dict)
            for one in members:
                for group in one.groups:
                    if estimate := found.of(one, group.setup).get(metric):
                        scores[group.setup][one.name] = estimate.value
            if len(scores) < 2 or len(members) < 2:
                continue
            result.append(_rank(where, metric, scores, [one.name for one in members]))
    return result


def _rank(
    where: tuple[bool, str], metric: str, scores: dict[Setup, dict[str, float]], tasks: list[str]
) -> OverTasks:
    """Rank the setups that have most tasks on the tasks they share; pairs on the tasks of the pair."""
    most = max(len(of) for of in scores.values())
    setups = tuple(sorted(setup for setup, of in scores.items() if len(of) == most))
    shared = [task for task in tasks if all(task in scores[setup] for setup in setups)]
    wilcoxon, shift = {}, {}
    for b, a in itertools.combinations(sorted(scores), 2):
        both = [task for task in tasks if task in scores[a] and task in scores[b]]
        if _question(a, b) and len(both) >= MIN_TASKS:
            one, other = [scores[a][t] for t in both], [scores[b][t] for t in both]
            wilcoxon[a, b] = stats.wilcoxon(one, other)
            shift[a, b] = float(np.mean(one) - np.mean(other))
    adjusted = stats.holm([test.p for test in wilcoxon.values()]) if wilcoxon else []
    result = OverTasks(
        where=where, metric=metric, setups=setups, tasks=tuple(shared), wilcoxon=wilcoxon,
        adjusted=dict(zip(wilcoxon, map(float, adjusted), strict=True)), shift=shift,
    )  # fmt: skip
    if len(setups) < 2 or not shared:
        return result
    table = np.array([[scores[setup][task] for setup in setups] for task in shared])
    enough = len(shared) >= MIN_TASKS
    return replace(
        result,
        ranks=tuple(map(float, stats.average_ranks(table))),
        width=stats.critical_difference(len(setups), len(shared)) if enough else 0.0,
        friedman=stats.friedman(table) if enough and len(setups) > 2 else None,
    )

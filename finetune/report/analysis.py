"""Scores with intervals, paired comparisons with adjusted p-values, and models over tasks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dogmed import stats
from dogmed.finetune.report.grouping import Group, Setup, TestSet, question_of, unequal
from dogmed.finetune.report.over_tasks import Pair, Ranks, over_tasks
from dogmed.finetune.report.reading import Labels
from dogmed.finetune.report.verdicts import METRICS, adjust
from dogmed.metrics import Ints
from dogmed.stats import Difference, Estimate
from dogmed.stats.compare import IMAGES


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
    family: int = 0
    """Its size; 0 where options are unequal, which no question is asked of."""
    mcnemar: tuple[stats.McNemar, ...] = ()
    """One for each common seed."""
    unequal: str = ""

    @property
    def verdict(self) -> str:
        if self.unequal:
            return "unequal"
        return stats.verdict(self.adjusted, self.difference.value)


@dataclass(frozen=True)
class Analysis:
    """All that the report says of chance."""

    estimates: dict[tuple[str, Setup], dict[str, Estimate]]
    """By test set and setup, of every metric."""
    labels: dict[str, Ints]
    """By test set, where they were found."""
    comparisons: list[Comparison]
    ranks: list[Ranks]
    pairs: list[Pair]
    """Over tasks."""
    notes: list[str]

    def of(self, where: TestSet, setup: Setup) -> dict[str, Estimate]:
        return self.estimates.get((where.name, setup), {})

    def score(self, where: TestSet, setup: Setup, metric: str) -> float | None:
        found = self.of(where, setup).get(metric)
        return None if found is None else found.value


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
    result = Analysis({}, {}, [], [], [], [])
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
    result.notes.extend(_degenerate(result.comparisons))
    ranks, pairs, notes = over_tasks(sets, result.score)
    result.ranks.extend(ranks)
    result.pairs.extend(pairs)
    result.notes.extend(notes)
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
        low, high = stats.within_range(name, low, high)
        covers = "training seeds" if summary.n > 1 else "test images"
        found[name] = Estimate(
            value=summary.mean, low=float(low), high=float(high), seeds=summary.n, sd=summary.sd,
            covers=covers,
        )  # fmt: skip
    return found


def _compare(where: TestSet, evaluated: dict[Setup, stats.Resampled]) -> list[Comparison]:
    found = []
    for b, a in itertools.combinations(sorted(evaluated), 2):
        question = question_of(a, b)
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
                unequal=unequal(one, other),
            ))  # fmt: skip
    return found


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
    answer = stats.trivial_answer(next(iter(evaluated.values())), train)
    return [
        Comparison(
            question="trivial", where=where, a=setup, b=None, metric="acc",
            difference=stats.differences(model, answer)["acc"],
        )
        for setup, model in evaluated.items()
    ]  # fmt: skip


def _adjust(comparisons: list[Comparison]) -> list[Comparison]:
    """Holm's adjustment within each family, to which what is unequal does not belong."""
    asked = [c for c in comparisons if not c.unequal]
    adjusted = iter(
        adjust(
            [c.difference.p for c in asked],
            [(c.question, c.metric, c.where.synthetic) for c in asked],
        )
    )
    result = []
    for c in comparisons:
        if not c.unequal:
            p, size = next(adjusted)
            c = replace(c, adjusted=p, family=size)
        result.append(c)
    return result


def _coarse(comparisons: Sequence[Comparison], resamples: int) -> list[str]:
    """Say where a bootstrap of single seeds is too coarse for its family to find anything."""
    sizes = [c.family for c in comparisons if c.difference.covers == IMAGES]
    if not sizes or resamples >= stats.resamples_for(max(sizes)):
        return []
    least, needed = 2 / (resamples + 1), stats.resamples_for(max(sizes))
    return [
        f"{resamples} resamples give single-seed comparisons a p-value of {least:.2g} at least, which "
        f"Holm's adjustment over {max(sizes)} of them takes above {stats.ALPHA}: nothing there could be "
        f"better or worse; give --resamples {needed} or more, or run more seeds"
    ]


def _degenerate(comparisons: Sequence[Comparison]) -> list[str]:
    """Say where the test images are too few to say anything."""
    few = [c for c in comparisons if c.difference.degenerate]
    if not few:
        return []
    return [
        f"{len(few)} comparisons have no interval and p 1, for their test images are so few that not even all of "
        f"them pointing one way would say anything: {', '.join(dict.fromkeys(c.where.name for c in few))}"
    ]

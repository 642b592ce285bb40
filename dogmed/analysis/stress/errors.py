"""Errors that corruptions cause: with intervals, against the clean score, against a reference and other models.

With E(c, s) the balanced error of a model under corruption c at severity s, and R that of a reference
(Di Salvo, Doerrich, Ledig, arXiv 2406.17536, after Hendrycks and Dietterich, "Benchmarking neural network
robustness to common corruptions and perturbations", 2019):

    BE(c)  = sum_s E(c, s) / sum_s R(c, s)
    rBE(c) = sum_s (E(c, s) - E(clean)) / sum_s (R(c, s) - R(clean))

and BE and rBE are the means over the corruptions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from dogmed import stats
from dogmed.analysis.changes import Change, judge
from dogmed.analysis.evaluation import Score
from dogmed.analysis.stress.command import ALEXNET
from dogmed.analysis.stress.points import ERROR, METRICS, Measured, Subject, benchmark_of, score_of
from dogmed.analysis.stress.sets import PUBLISHED_SIZE, Stress, chosen, published
from dogmed.errors import ConfigError


class Known(NamedTuple):
    """A value, and what resamples of the images make of it: (R,), or the value again."""

    value: float
    replicates: Any

    def minus(self, other: Known) -> Known:
        return Known(self.value - other.value, self.replicates - other.replicates)


@dataclass(frozen=True)
class Row:
    """One stress of one model: all severities, and their mean."""

    subject: Subject
    stress: Stress | None
    """None: the mean over the corruptions."""
    points: tuple[Measured, ...]
    mean: stats.Resampled
    changes: Mapping[str, Change]
    """From the images as they are, by metric."""
    ratio: Score | None
    """BE(c): over the reference's; None without one, or where its error is 0."""
    relative: Score | None
    """rBE(c); None also where the reference is no worse than on the images as they are."""

    def score(self, metric: str) -> Score | None:
        return score_of(self.mean, metric)


@dataclass(frozen=True)
class Told:
    """All that is told of one model."""

    subject: Subject
    clean: Measured
    rows: tuple[Row, ...]
    overall: Row
    """Mean over the corruptions; its ratios are the benchmark's BE and rBE."""
    left_out: tuple[str, ...]
    """Corruptions without rBE."""


@dataclass(frozen=True)
class Reference:
    """Whose errors others are divided by."""

    title: str
    published: bool
    clean: Known
    errors: Mapping[str, Known]
    """By corruption, the mean over the severities."""


def averaged(parts: Sequence[stats.Resampled]) -> stats.Resampled:
    """The mean of scores, on the same resamples of the images."""
    return replace(
        parts[0],
        scores={name: np.mean([part.scores[name] for part in parts], axis=0) for name in METRICS},
        replicates={
            name: np.mean([part.replicates[name] for part in parts], axis=0) for name in METRICS
        },
    )


def reference_of(measured: Sequence[Measured]) -> Reference | None:
    """The reference among the models, or the published one where it is of the same images.

    Raises:
        ConfigError: the published figures are asked for, and are of other images or corruptions.
    """
    subjects = list({id(m.subject): m.subject for m in measured}.values())
    for subject in subjects:
        if subject.reference:
            clean, by_stress = _points(measured, subject)
            errors = {
                s.name: known(averaged(_resampled(by_stress[s]))) for s in subject.corruptions
            }
            return Reference(subject.title, False, known(clean.resampled), errors)
    figures = [found for subject in subjects if (found := published_for(subject)) is not None]
    if len(figures) < len(subjects):
        return None
    constant = {name: Known(value, value) for name, value in figures[0].items()}
    return Reference("MedMNIST-C's AlexNet", True, constant.pop("clean"), constant)


def published_for(subject: Subject) -> dict[str, float] | None:
    """The published figures, where they are of this very test: its images at 224 px, its corruptions.

    Raises:
        ConfigError: they are asked for, and are not.
    """
    images, config, task = subject.images, subject.config, benchmark_of(subject.images)
    figures = published(task)
    same_images = images.prepared.source == "official" and images.size == PUBLISHED_SIZE
    theirs = [] if figures is None else chosen(task, (), colour=True)
    others = [stress.name for stress in subject.corruptions if stress not in theirs]
    if figures is not None and same_images and not others:
        return figures
    if config.reference == ALEXNET:
        why = (
            f"they are of official tasks at {PUBLISHED_SIZE} px, these are {images.title} at "
            f"{images.size} px"
        )
        if figures is not None and same_images:
            why = f"they are of the task's own set, which has no such {', '.join(others)}"
        raise ConfigError(f"--reference {ALEXNET}: {why}; give a model, or leave it out")
    return None


def conclude(measured: Sequence[Measured], reference: Reference | None) -> list[Told]:
    """Compare each model with itself on the images as they are, and with the reference."""
    subjects = {id(m.subject): m.subject for m in measured}.values()
    return [_told(subject, measured, reference) for subject in subjects if subject.told]


def _told(subject: Subject, measured: Sequence[Measured], reference: Reference | None) -> Told:
    clean, by_stress = _points(measured, subject)
    means = {stress: averaged(_resampled(found)) for stress, found in by_stress.items()}
    corrupted = [means[stress] for stress in subject.corruptions]
    changes = _changes({s: (mean, clean.resampled) for s, mean in means.items()})
    ratios: dict[str, Known] = {}
    relatives: dict[str, Known] = {}
    if reference is not None:
        for stress in subject.corruptions:
            mine, base = known(means[stress]), known(clean.resampled)
            theirs = reference.errors[stress.name]
            ratios |= _divided(stress.name, mine, theirs)
            relatives |= _divided(stress.name, mine.minus(base), theirs.minus(reference.clean))
    rows = tuple(
        Row(
            subject, stress, tuple(found), means[stress], changes[stress],
            _interval(ratios.get(stress.name)), _interval(relatives.get(stress.name)),
        )
        for stress, found in by_stress.items()
    )  # fmt: skip
    whole = averaged(corrupted)
    overall = Row(
        subject, None, (), whole, _changes({None: (whole, clean.resampled)})[None],
        _interval(_mean(ratios)), _interval(_mean(relatives)),
    )  # fmt: skip
    names = [stress.name for stress in subject.corruptions]
    left_out = tuple(n for n in names if reference is not None and n not in relatives)
    return Told(subject, clean, rows, overall, left_out)


def compare(a: Told, b: Told) -> dict[str, Mapping[str, Change]]:
    """Scores of one model minus those of another, by the name of the stress and by metric.

    Holm's adjustment is over all of one metric.
    """
    pairs: dict[str, tuple[stats.Resampled, stats.Resampled]] = {
        "clean": (a.clean.resampled, b.clean.resampled)
    }
    others = {row.stress.name: row.mean for row in b.rows if row.stress is not None}
    for row in a.rows:
        if row.stress is not None and row.stress.name in others:
            pairs[row.stress.name] = row.mean, others[row.stress.name]
    pairs["mean"] = a.overall.mean, b.overall.mean
    return _changes(pairs)


def _changes(pairs: Mapping[Any, tuple[stats.Resampled, stats.Resampled]]) -> dict[Any, Any]:
    """First minus second of each pair, by metric; Holm's adjustment over the pairs."""
    found: dict[Any, dict[str, Change]] = {key: {} for key in pairs}
    resamples = min((pair[0].resamples for pair in pairs.values()), default=0)
    for metric in METRICS:
        made = {key: stats.differences(*pair).get(metric) for key, pair in pairs.items()}
        there = {key: d for key, d in made.items() if d is not None}
        changes = judge(list(there.values()), resamples, lower_is_better=metric == ERROR)
        for key, change in zip(there, changes, strict=True):
            found[key][metric] = change
    return found


def known(resampled: stats.Resampled) -> Known:
    """The balanced error of a model."""
    return Known(float(resampled.scores[ERROR].mean()), resampled.replicates[ERROR])


def _divided(name: str, mine: Known, theirs: Known) -> dict[str, Known]:
    """A ratio under its name; nothing where what it would be divided by is not above 0."""
    if not theirs.value > 0:
        return {}
    with np.errstate(divide="ignore", invalid="ignore"):
        return {name: Known(mine.value / theirs.value, mine.replicates / theirs.replicates)}


def _mean(ratios: Mapping[str, Known]) -> Known | None:
    if not ratios:
        return None
    parts = list(ratios.values())
    with np.errstate(invalid="ignore"):
        replicates = np.mean([part.replicates for part in parts], axis=0)
    return Known(float(np.mean([part.value for part in parts])), replicates)


def _interval(found: Known | None) -> Score | None:
    """A ratio with the percentile interval of its defined replicates."""
    if found is None:
        return None
    replicates = np.asarray(found.replicates)
    defined = replicates[np.isfinite(replicates)]
    low, high = np.quantile(defined, [0.025, 0.975]) if defined.size else (found.value,) * 2
    return Score(found.value, float(low), float(high))


def _points(
    measured: Sequence[Measured], subject: Subject
) -> tuple[Measured, dict[Stress, list[Measured]]]:
    """A model's point on the images as they are, and the others by stress, severities ascending."""
    mine = [m for m in measured if m.subject is subject]
    (clean,) = [m for m in mine if m.point.stress is None]
    by_stress: dict[Stress, list[Measured]] = {}
    for m in mine:
        if m.point.stress is not None:
            by_stress.setdefault(m.point.stress, []).append(m)
    return clean, by_stress


def _resampled(measured: Sequence[Measured]) -> list[stats.Resampled]:
    return [m.resampled for m in measured]

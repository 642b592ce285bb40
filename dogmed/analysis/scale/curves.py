"""Curves over the scale of the images, and one number for each (``dogmed analyze scale --rescale``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dogmed import stats
from dogmed.analysis.evaluation import Score
from dogmed.analysis.scale.points import Choice, Measured, Subject, mean_of


@dataclass(frozen=True)
class Curve:
    """One score of one model over the factors, with its own kernels, with others, or with those chosen on val."""

    subject: Subject
    name: str
    metric: str
    points: tuple[Measured, ...]
    """By factor, ascending."""
    mean: stats.Resampled
    """Over the factors."""
    own: bool
    chosen: bool

    @property
    def average(self) -> stats.Estimate:
        """The mean over the factors with its interval."""
        return stats.estimates(self.mean)[self.metric]

    @property
    def worst(self) -> Measured:
        return min(self.points, key=lambda m: m.scores[self.metric].value)

    @property
    def kept(self) -> Score | None:
        """The score at the worst factor as a share of that at 1; the interval is of that factor's share."""
        worst = self.worst
        one = next(m for m in self.points if m.point.at == 1)
        if not one.scores[self.metric].value:
            return None
        a, b = (m.resampled.replicates[self.metric] for m in (worst, one))
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = a / b
        shares = shares[np.isfinite(shares)]
        value = worst.scores[self.metric].value / one.scores[self.metric].value
        if not shares.size:
            return None
        low, high = np.quantile(shares, [0.025, 0.975])
        return Score(value, float(low), float(high))

    def gain(self, other: Curve) -> stats.Difference:
        """The mean over the factors minus that of another curve on the same images."""
        return stats.differences(self.mean, other.mean)[self.metric]


def curves(
    subjects: Sequence[Subject], told: Sequence[Measured], chosen: Sequence[Choice], metric: str
) -> list[Curve]:
    """Draw together the points of each model: own kernels first, those chosen on val, then the others.

    Args:
        subjects: in the order of the tables.
        told: the points of the split to report on, of one way of fitting.
        chosen: as ``choices`` makes them of the same points.
        metric: of them.
    """
    found = []
    for subject in subjects:
        mine = [m for m in told if m.subject is subject]
        of_val = [c.test for c in chosen if c.test.subject is subject and c.metric == metric]
        by_kernel = [
            (kernel, [m for m in mine if m.point.kernel == kernel]) for kernel in subject.kernels
        ]
        by_kernel.sort(key=lambda pair: pair[0] != subject.own)
        for kernel, points in by_kernel:
            own = kernel == subject.own
            name = "its kernels" if kernel is None else f"kernel {kernel}{' (own)' if own else ''}"
            found.append(_curve(subject, name, metric, points, own=own))
            if own and of_val:
                found.append(_curve(subject, "chosen on val", metric, of_val, chosen=True))
    return found


def _curve(
    subject: Subject,
    name: str,
    metric: str,
    points: Sequence[Measured],
    *,
    own: bool = False,
    chosen: bool = False,
) -> Curve:
    ordered = tuple(sorted(points, key=lambda m: m.point.at))
    return Curve(subject, name, metric, ordered, mean_of(ordered), own, chosen)

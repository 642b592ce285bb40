"""What ``dogmed analyze scale`` measures: models at sides and kernel sizes, and what follows from it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from dogmed import stats
from dogmed.analysis.changes import Change, judge
from dogmed.analysis.evaluation import Evaluation, Score, total_stride
from dogmed.analysis.images import Fit, Images
from dogmed.analysis.scale.command import THESIS, THESIS_SIZE, Protocol
from dogmed.errors import ConfigError
from dogmed.models.scaling import nearest_odd, resized_kernels, usual_kernel_size


class Point(NamedTuple):
    """One way to try a model."""

    split: str
    fit: Fit
    side: int
    """Of the resized image, in pixels."""
    at: float
    """Factor of the side that the model was trained at."""
    kernel: int | None
    """Of every DoGConv; None for a model without any."""


@dataclass(frozen=True)
class Subject:
    """A model with its images, and the sides and kernel sizes that it is tried at."""

    title: str
    evaluation: Evaluation
    own: int | None
    """Kernel size that it was trained with; None for a model without DoGConv."""
    kernels: tuple[int | None, ...]
    """Descending, its own among them."""
    sides: dict[Fit, tuple[tuple[float, int], ...]]
    """By fit: factor of the training size, and pixels."""
    by_factor: bool
    """Whether factors were asked for, not resolutions."""
    notes: tuple[str, ...]

    @classmethod
    def settle(cls, title: str, evaluation: Evaluation, protocol: Protocol) -> Subject:
        """Choose what is not given, and refuse what the network cannot take.

        Raises:
            ConfigError: a resolution below the network's stride, or one that it refuses.
        """
        model, size = evaluation.model, evaluation.images.size
        own = usual_kernel_size(model)
        notes = []
        if own is None and protocol.kernel_sizes:
            notes.append(f"{title} has no DoGConv: its kernels stay as they are")
        wanted, merged = _sides(protocol, size)
        notes += [f"{title}: {line}" for line in merged]
        sides: dict[Fit, tuple[tuple[float, int], ...]] = {}
        for fit in protocol.fits:
            refused = _refused(evaluation, [side for _, side in wanted], fit)
            if size in refused:
                raise ConfigError(f"{title}, trained at {size} px, {refused[size]}")
            if refused and protocol.resolutions:
                raise ConfigError(f"--resolutions {min(refused)}: {title} {refused[min(refused)]}")
            for why in dict.fromkeys(refused.values()):
                some = ", ".join(str(side) for side in refused if refused[side] == why)
                notes.append(f"{title}, {fit}: left out {some} px: it {why}")
            sides[fit] = tuple(pair for pair in wanted if pair[1] not in refused)
        kernels: tuple[int | None, ...] = (None,) if own is None else _kernels(protocol, own)
        return cls(title, evaluation, own, kernels, sides, bool(protocol.factors), tuple(notes))

    @property
    def images(self) -> Images:
        return self.evaluation.images

    @property
    def report_split(self) -> str:
        return self.images.splits[-1]

    @property
    def choice_split(self) -> str | None:
        """Where kernels may be chosen; None if there is only the split to report on."""
        return self.images.splits[0] if len(self.images.splits) > 1 else None

    def plan(self, splits: Sequence[str]) -> list[Point]:
        """All points, the smallest images first."""
        return [
            Point(split, fit, side, at, kernel)
            for fit, sides in self.sides.items()
            for at, side in sides
            for kernel in self.kernels
            for split in splits
        ]

    def cost(self, point: Point) -> float:
        return self.evaluation.cost(point.split, point.side, point.fit)

    @property
    def family(self) -> int:
        """How many differences will be adjusted together: other kernel sizes at each size of the images."""
        return (len(self.kernels) - 1) * max(map(len, self.sides.values()))


@dataclass(frozen=True)
class Measured:
    """A point of a model, scored."""

    subject: Subject
    point: Point
    scores: dict[str, Score]
    resampled: stats.Resampled
    channels: np.ndarray | None = None
    """Of a network of several scale channels the one that decides each image: (N,)."""

    @property
    def own(self) -> bool:
        """Whether the kernels are those of the training."""
        return self.point.kernel == self.subject.own


@dataclass(frozen=True)
class KernelChange(Change):
    """A score with other kernels minus that with the model's own, on the same images."""

    of: Measured
    metric: str


@dataclass(frozen=True)
class Choice:
    """The kernel size that is best on val at one side, told on test."""

    metric: str
    val: Measured
    test: Measured
    change: KernelChange | None
    """From the model's own kernels on test; None where they were chosen."""
    best_on_test: Measured
    """What choosing on test would have shown."""

    @property
    def flattery(self) -> float:
        """By how much choosing on test would look better."""
        metric = self.metric
        return self.best_on_test.scores[metric].value - self.test.scores[metric].value


def splits_of(subject: Subject) -> list[str]:
    """What must be evaluated: val only where there is a choice to make on it."""
    choice = subject.choice_split if len(subject.kernels) > 1 else None
    return [*([choice] if choice else []), subject.report_split]


def measure(subject: Subject, point: Point) -> Measured:
    """Try a model at a point, or take what was kept.

    At the size of the training all ways to fit are one thing, which is worked out once.
    """
    evaluation = subject.evaluation
    own = point.kernel == subject.own
    probabilities, channels = evaluation.predicted(
        point.split,
        side=point.side,
        fit="resize" if point.side == subject.images.size else point.fit,
        change=None if own else resized_kernels(evaluation.model, point.kernel),
        changed="" if own else f"k{point.kernel}",
    )
    resampled = evaluation.resampled(point.split, probabilities)
    scores = evaluation.scores(point.split, probabilities, resampled)
    return Measured(subject, point, scores, resampled, channels)


def changes(measured: Iterable[Measured]) -> list[KernelChange]:
    """Compare other kernels with each model's own; Holm's adjustment over a model's points of one fit.

    Args:
        measured: points of one split.
    """
    found = []
    by_family = sorted(measured, key=_family)
    for _, members in groupby(by_family, key=_family):
        family = list(members)
        own = {m.point.side: m for m in family if m.own}
        others = [m for m in family if not m.own]
        for metric in metrics_of(family):
            pairs = [(m, _difference(m, own[m.point.side], metric)) for m in others]
            found += adjusted([(m, d) for m, d in pairs if d is not None], metric)
    return found


def choices(measured: Sequence[Measured]) -> list[Choice]:
    """Choose each model's kernel size at each side on val, by the score that is then told on test.

    Equal ones go to the size nearest to the model's own. Nothing where there is no val, or no choice.
    """
    found = []
    for _, members in groupby(sorted(measured, key=_family), key=_family):
        family = list(members)
        subject = family[0].subject
        if subject.choice_split is None or subject.own is None or len(subject.kernels) < 2:
            continue
        for metric in metrics_of(family):
            found += _chosen(subject, family, metric)
    return found


def _chosen(subject: Subject, family: Sequence[Measured], metric: str) -> list[Choice]:
    sides = sorted({m.point.side for m in family})
    assert subject.choice_split is not None
    by_place = {(m.point.split, m.point.side, m.point.kernel): m for m in family}
    best: list[tuple[Measured, Measured, Measured]] = []
    for side in sides:
        val, test = (
            [by_place[split, side, kernel] for kernel in subject.kernels]
            for split in (subject.choice_split, subject.report_split)
        )

        def rank(m: Measured) -> tuple[float, int]:
            assert subject.own is not None and m.point.kernel is not None
            return m.scores[metric].value, -abs(m.point.kernel - subject.own)

        chosen = max(val, key=rank)
        told = next(m for m in test if m.point.kernel == chosen.point.kernel)
        best.append((chosen, told, max(test, key=rank)))
    pairs = []
    for _, told, _ in best:
        own = by_place[subject.report_split, told.point.side, subject.own]
        difference = None if told.own else _difference(told, own, metric)
        if difference is not None:
            pairs.append((told, difference))
    made = {change.of.point: change for change in adjusted(pairs, metric)}
    return [Choice(metric, val, test, made.get(test.point), on_test) for val, test, on_test in best]


def adjusted(pairs: Sequence[tuple[Measured, stats.Difference]], metric: str) -> list[KernelChange]:
    """Adjust the p-values of one family by Holm."""
    if not pairs:
        return []
    made = judge([difference for _, difference in pairs], pairs[0][0].resampled.resamples)
    return [
        KernelChange(one.difference, one.p_holm, one.family, one.word, m, metric)
        for (m, _), one in zip(pairs, made, strict=True)
    ]


def metrics_of(measured: Sequence[Measured]) -> list[str]:
    """The scores that all points have."""
    return [name for name in measured[0].scores if all(name in m.scores for m in measured)]


def mean_of(measured: Sequence[Measured]) -> stats.Resampled:
    """The mean of scores over points, on the same resamples of the images."""
    first, names = measured[0].resampled, metrics_of(measured)
    parts = [m.resampled for m in measured]
    return replace(
        first,
        scores={name: np.mean([part.scores[name] for part in parts], axis=0) for name in names},
        replicates={
            name: np.mean([part.replicates[name] for part in parts], axis=0) for name in names
        },
        seed_variance=dict.fromkeys(names, 0.0),
    )


def _difference(a: Measured, b: Measured, metric: str) -> stats.Difference | None:
    return stats.differences(a.resampled, b.resampled).get(metric)


def _family(m: Measured) -> tuple[str, str]:
    return m.subject.title, m.point.fit


def _sides(protocol: Protocol, size: int) -> tuple[list[tuple[float, int]], list[str]]:
    """Factors of the training size, and pixels, ascending; and what is to be said of factors of one size."""
    if not protocol.factors:
        pixels = protocol.resolutions or [round(side * size / THESIS_SIZE) for side in THESIS]
        return [(side / size, side) for side in sorted(set(pixels))], []
    kept: dict[int, float] = {}
    lines = []
    for factor in sorted(protocol.factors, key=lambda factor: (factor != 1, factor)):
        side = max(1, round(factor * size))
        if side in kept:
            lines.append(f"×{factor:g} makes {side} px, as ×{kept[side]:g} does, and is left out")
        else:
            kept[side] = factor
    return sorted((factor, side) for side, factor in kept.items()), lines


def _kernels(protocol: Protocol, own: int) -> tuple[int, ...]:
    """Kernel sizes to try, descending: those given, or the usual ones, and the model's own."""
    sizes = {own, *protocol.kernel_sizes}
    if not protocol.kernel_sizes:
        near = [nearest_odd(own * factor) for factor in protocol.factors]
        sizes |= {size for size in near or (own - 2, own - 4) if size >= 3}
    return tuple(sorted(sizes, reverse=True))


def _refused(evaluation: Evaluation, sides: Sequence[int], fit: Fit) -> dict[int, str]:
    """Which sides the network cannot take, and why; unless resized it sees those of its training alone."""
    size, stride = evaluation.images.size, total_stride(evaluation.model)
    smallest = min(stride, size)
    network = copy.deepcopy(evaluation.model).to("meta")
    found = {}
    for side in sides if fit == "resize" else [size]:
        if side < smallest:
            why = f"as at training; its stride is {stride}" if smallest < stride else "its stride"
            found[side] = f"needs {smallest} px or more ({why})"
        elif (reason := _complaint(network, side)) is not None:
            found[side] = f"cannot take images of this size ({reason})"
    return found


@torch.inference_mode()
def _complaint(network: nn.Module, side: int) -> str | None:
    """What a network without storage says of an image of this size; None if it takes it."""
    try:
        network(torch.zeros(1, 3, side, side, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        return str(error).strip().partition("\n")[0]
    return None

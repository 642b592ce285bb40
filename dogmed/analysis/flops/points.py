"""What ``dogmed analyze flops`` measures: a model at strides, kernel sizes and resolutions, and their cost."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch

from dogmed import stats
from dogmed.analysis.evaluation import Evaluation, Score, total_stride
from dogmed.analysis.flops.ways import (
    Configuration,
    Cost,
    change,
    configurations,
    count_cost,
    pareto,
    too_small,
)
from dogmed.analysis.images import Images
from dogmed.errors import ConfigError, DataError

LATENCY_SECONDS = 1.0  # that a configuration's passes are repeated for


class Unit(NamedTuple):
    """What costs are told in."""

    name: str
    macs: float


class Latency(NamedTuple):
    """Seconds of a forward pass, by image of the batch."""

    median: float
    spread: float
    """Between the quartiles of the repeats."""
    batch: int
    repeats: int


@dataclass(frozen=True)
class Subject:
    """A model with its images, and what is tried with it; the first configuration is the full model."""

    title: str
    evaluation: Evaluation
    costs: dict[Configuration, Cost]
    notes: tuple[str, ...]

    @classmethod
    def settle(
        cls,
        title: str,
        evaluation: Evaluation,
        strides: Sequence[int],
        resolutions: Sequence[int],
    ) -> Subject:
        """Choose what is not given, count what each costs, and refuse what the network cannot take.

        Raises:
            ConfigError: strides for a network that does not stride in a DoGConv; strides or resolutions
                that make the image smaller than the total stride, or that the network cannot take.
        """
        model, record = evaluation.model, evaluation.trained.record
        planned = configurations(model, title, record.data.size, strides, resolutions)
        network, stride = copy.deepcopy(model).to("meta"), total_stride(model)
        costs, notes = {}, []
        for one in planned:
            if one.way == "stride+kernel" and one.kernel_size == planned[0].kernel_size:
                notes.append(
                    f"{title}: left out the kernel in proportion to stride {one.stride}: it is its own"
                )
                continue
            found = too_small(one, planned[0], stride) or count_cost(network, one, record.in_chans)
            if isinstance(found, Cost):
                costs[one] = found
                continue
            refused = f"{title} cannot take images of {one.side} px ({found})"
            if one.way == "full":
                raise ConfigError(refused)
            of_side = one.way == "resolution"
            if resolutions if of_side else strides:
                flag = f"--resolutions {one.side}" if of_side else f"--strides {one.stride}"
                raise ConfigError(f"{flag}: {refused}")
            notes.append(f"{title}: left out {one}: {found}")
        return cls(title, evaluation, costs, tuple(notes))

    @property
    def images(self) -> Images:
        return self.evaluation.images

    @property
    def full(self) -> Configuration:
        return next(iter(self.costs))

    @property
    def metric(self) -> str:
        """The score that a configuration is chosen by."""
        return "acc" if self.evaluation.many or len(self.images.splits) == 1 else "auc"

    @property
    def points(self) -> int:
        return len(self.costs) * len(self.images.splits)

    @property
    def work(self) -> float:
        """As ``Evaluation.cost`` counts, of all points."""
        splits = self.images.splits
        return sum(self.evaluation.cost(split, one.side) for one in self.costs for split in splits)


@dataclass(frozen=True)
class Measured:
    """A configuration of a model, scored."""

    configuration: Configuration
    cost: Cost
    scores: dict[str, dict[str, Score]]
    """By split."""
    resampled: dict[str, stats.Resampled] = field(repr=False)
    latency: Latency | None
    front: bool = False
    """Whether no other configuration is as good on val at a lower cost, or better at the same."""


@dataclass(frozen=True)
class Found:
    """A model's configurations."""

    subject: Subject
    measured: tuple[Measured, ...]

    @property
    def full(self) -> Measured:
        return self.measured[0]

    @property
    def chosen_on(self) -> str:
        return self.subject.images.splits[0]

    @property
    def told_on(self) -> str:
        return self.subject.images.splits[-1]

    def value(self, measured: Measured) -> float:
        """What a configuration is chosen by."""
        return measured.scores[self.chosen_on][self.subject.metric].value

    def within(self, budget: int) -> list[Measured]:
        return [m for m in self.measured if m.cost.macs <= budget]

    def best(self, budget: int) -> Measured:
        """The best on val within a budget; of equal ones the cheapest."""
        return max(self.within(budget), key=lambda m: (self.value(m), -m.cost.macs))


def unit_of(found: Sequence[Found]) -> Unit:
    """The unit that a table or a picture of these models can be read in."""
    most = max(m.cost.macs for one in found for m in one.measured)
    return Unit("GMAC", 1e9) if most >= 1e7 else Unit("MMAC", 1e6)


def measure(subject: Subject, latency: int | None) -> Found:
    """Score every configuration on every split, or take what was kept; mark the Pareto front.

    Args:
        subject: the model.
        latency: images at once whose forward pass is timed; None does not.

    Raises:
        DataError: what a configuration is chosen by is not defined on val.
    """
    tried = [_measure(subject, one, latency) for one in subject.costs]
    found = Found(subject, tuple(tried))
    if any(subject.metric not in m.scores[found.chosen_on] for m in tried):
        raise DataError(
            f"{subject.images.name}: {found.chosen_on} has images of one class alone, so that no AUC is "
            "there to choose by"
        )
    marks = pareto([(m.cost.macs, found.value(m)) for m in tried])
    return Found(
        subject,
        tuple(replace(m, front=mark) for m, mark in zip(tried, marks, strict=True)),
    )


def _measure(subject: Subject, one: Configuration, latency: int | None) -> Measured:
    evaluation, own = subject.evaluation, subject.full
    as_it_is = (one.stride, one.kernel_size) == (own.stride, own.kernel_size)
    scores, resampled = {}, {}
    for split in subject.images.splits:
        probabilities = evaluation.probabilities(
            split,
            side=one.side,
            change=None if as_it_is else change(evaluation.model, one),
            changed="" if as_it_is else one.stem,
        )
        resampled[split] = evaluation.resampled(split, probabilities)
        scores[split] = evaluation.scores(split, probabilities, resampled[split])
    seconds = None if latency is None else measure_latency(evaluation, one, latency)
    return Measured(one, subject.costs[one], scores, resampled, seconds)


def measure_latency(evaluation: Evaluation, one: Configuration, batch: int) -> Latency:
    """Time forward passes of random images, five or more, after one that does not count."""
    record, model, device = evaluation.trained.record, evaluation.model, evaluation.device
    images = torch.randn(batch, record.in_chans, one.side, one.side, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    marks: list[float] = []
    with torch.inference_mode(), change(model, one):
        while len(marks) < 6 or marks[-1] - marks[0] < LATENCY_SECONDS:
            model(images)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            marks.append(time.perf_counter())
    low, median, high = np.quantile(np.diff(marks) / batch, [0.25, 0.5, 0.75])
    return Latency(float(median), float(high - low), batch, len(marks) - 1)

"""What ``dogmed stress`` measures: models on the images as they are, corrupted, and of lowered resolution."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import NamedTuple

from dogmed import stats
from dogmed.analysis.evaluation import Evaluation, Score
from dogmed.analysis.images import TaskImages
from dogmed.analysis.stress.command import RESOLUTIONS, StressConfig
from dogmed.analysis.stress.images import StressedImages
from dogmed.analysis.stress.sets import PUBLISHED_SIZE, Stress, chosen, resolutions
from dogmed.errors import ConfigError

ERROR = "balanced_error"
METRICS = (ERROR, "acc", "auc")
SPLIT = "test"


class Point(NamedTuple):
    """One way to try a model."""

    stress: Stress | None
    """None: the images as they are."""
    severity: int
    """From 1 on; 0 of the images as they are."""


@dataclass(frozen=True)
class Subject:
    """A model with its images, and what is done to them."""

    title: str
    evaluation: Evaluation
    images: TaskImages
    stresses: tuple[Stress, ...]
    config: StressConfig
    told: bool
    """Whether tables have it; a reference that is no model of the call is not told."""
    reference: bool
    """Whether errors are normalised by this one."""
    notes: tuple[str, ...]

    @classmethod
    def settle(
        cls,
        title: str,
        evaluation: Evaluation,
        config: StressConfig,
        *,
        told: bool,
        reference: bool,
    ) -> Subject:
        """Choose the corruptions and the resolutions.

        Raises:
            ConfigError: a resolution is none that is lower, or nothing that is named can be done to grey images.
        """
        images = evaluation.images
        assert isinstance(images, TaskImages)
        colour = images.prepared.task.channels == 3
        corruptions = chosen(benchmark_of(images), config.corruptions, colour=colour)
        sides = [int(side) for side in config.resolution]
        if sides and max(sides) >= images.size:
            raise ConfigError(
                f"--resolution {max(sides)}: {title} was trained at {images.size} px: give sides from 1 to "
                f"{images.size - 1}"
            )
        lowered = resolutions(sides or RESOLUTIONS, images.size)
        notes = []
        if images.size != PUBLISHED_SIZE:
            notes.append(
                f"{title}: at {images.size} px lengths are {images.size / PUBLISHED_SIZE:.3g} of the published "
                f"ones, which are for {PUBLISHED_SIZE} px"
            )
        stresses = (*corruptions, *lowered)
        return cls(title, evaluation, images, stresses, config, told, reference, tuple(notes))

    @property
    def corruptions(self) -> list[Stress]:
        return [stress for stress in self.stresses if stress.corrupts]

    @property
    def cost(self) -> float:
        """Of one point."""
        return self.evaluation.cost(SPLIT, self.images.size)

    def plan(self) -> list[Point]:
        """All points, the images as they are first."""
        return [Point(None, 0)] + [
            Point(stress, severity)
            for stress in self.stresses
            for severity in range(1, len(stress.strengths) + 1)
        ]


@dataclass(frozen=True)
class Measured:
    """A point of a model, scored."""

    subject: Subject
    point: Point
    resampled: stats.Resampled

    def score(self, metric: str) -> Score | None:
        return score_of(self.resampled, metric)


def benchmark_of(images: TaskImages) -> str | None:
    """The official task that images are of, or are made after; None of one's own."""
    official = images.prepared.source in ("official", "variant", "synthetic")
    return images.prepared.task.name if official else None


def measure(subject: Subject, point: Point) -> Measured:
    """Try a model at a point, or take what was kept."""
    one, images = subject.evaluation, subject.images
    labels = images.labels(SPLIT)
    if point.stress is None:
        probabilities = one.probabilities(SPLIT, side=images.size)
    else:
        stressed = StressedImages(
            images, one.trained.record.data, point.stress, point.severity,
            seed=subject.config.seed, workers=subject.config.workers,
        )  # fmt: skip
        there = Evaluation(
            one.trained, stressed, one.folder, one.console, device=one.device,
            batch_size=one.batch_size, resamples=one.resamples, points=one.points,
        )  # fmt: skip
        probabilities = there.probabilities(
            SPLIT, side=images.size, change=contextlib.nullcontext(), changed=stressed.key
        )
    found = stats.resample(images.kind, labels, [probabilities], resamples=one.resamples)
    return Measured(subject, point, _with_error(found))


def score_of(resampled: stats.Resampled, metric: str) -> Score | None:
    """A score with its interval; None where it is not defined."""
    found = stats.estimates(resampled).get(metric)
    return None if found is None else Score(found.value, found.low, found.high)


def _with_error(found: stats.Resampled) -> stats.Resampled:
    """The metrics that are told, the balanced error among them."""
    named = {
        "acc": lambda of: of["acc"],
        "auc": lambda of: of["auc"],
        ERROR: lambda of: 1 - of["balanced_accuracy"],
    }
    return replace(
        found,
        scores={name: take(found.scores) for name, take in named.items()},
        replicates={name: take(found.replicates) for name, take in named.items()},
        seed_variance=dict.fromkeys(named, 0.0),
    )

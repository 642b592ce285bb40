"""``dogmed stress``: how much worse a trained model is on corrupted images.

The protocol of MedMNIST-C (Di Salvo, Doerrich, Ledig, arXiv 2406.17536), which is that of ImageNet-C
(Hendrycks, Dietterich 2019) for medical images: corruptions as the images' modality knows them, at five
severities each, made on the fly of the test split; and images of lowered resolution.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le

from dogmed.analysis.subject import (
    Listed,
    TaskConfig,
    open_evaluations,
    open_models,
    read_whole_numbers,
    refuse_no_model,
    refuse_unusable,
    request_name,
    settle_resamples,
)
from dogmed.config import configclass

if TYPE_CHECKING:  # PyTorch: not for --help
    from dogmed.analysis.evaluation import Points
    from dogmed.analysis.stress.points import Subject
    from dogmed.console import Console
    from dogmed.models.trained import Trained

RESOLUTIONS = (28, 64, 128)
ALEXNET = "alexnet"
LARGEST_SIDE = 16_384
LARGEST_SEED = 2**63


@configclass
class StressConfig(TaskConfig):
    """Score trained models on corrupted images of the test split."""

    workers: Annotated[int, Ge(1), Le(1024)] | None = None
    """Threads that corrupt images; None takes as many as there are cores. No influence on the result."""
    corruptions: tuple[str, ...] = ()
    """Corruptions (motion_blur), groups (noise), or the set of an official task (dermamnist) for images of one's
    own; none: the task's own set, and a usual one for one's own images."""
    resolution: Listed = ()
    """Sides in pixels that images are shrunk to and enlarged from again; none: 28, 64 and 128 below the side of
    the training."""
    reference: str | None = None
    """A model to normalise errors by, as MODEL; alexnet: MedMNIST-C's published figures; none: alexnet where they
    are of the same images at 224 px, else no normalisation."""
    seed: Annotated[int, Ge(0), Le(LARGEST_SEED)] = 0
    """Of the corruptions' draws; those of an image depend on it and on the image's place alone."""


def command(**options: Any) -> None:
    """Score the models, write tables and pictures, and print what they say."""
    config = StressConfig(**options)
    sides = read_whole_numbers("--resolution", config.resolution, 1, LARGEST_SIDE)
    refuse_no_model(config.models)
    from dogmed.analysis.stress.sets import refuse_unknown

    refuse_unknown(config.corruptions)
    refuse_unusable(config.out)

    from dogmed.analysis.evaluation import Points, stoppable
    from dogmed.analysis.stress import report
    from dogmed.analysis.stress.points import measure
    from dogmed.console import Console, count

    config = dataclasses.replace(config, resolution=sides)
    console, points = Console(enabled=True), Points()
    subjects = _subjects(config, console, points)
    plan = [(subject, point) for subject in subjects for point in subject.plan()]
    points.total = len(plan)
    points.cost = sum(subject.cost for subject, _ in plan)
    told = [subject for subject in subjects if subject.told]
    console.line(
        f"{count(len(plan), 'point')}: {count(len(told), 'model')}"
        f"{' and a reference' if len(told) < len(subjects) else ''}, "
        f"{count(len(told[0].corruptions), 'corruption')} of {told[0].images.name}; what is done is "
        f"kept below {config.out}"
    )
    with stoppable(console, points):
        measured = [measure(subject, point) for subject, point in plan]
        report.write(config, _request(config, subjects), subjects, measured, console)


def _subjects(config: StressConfig, console: Console, points: Points) -> list[Subject]:
    """Open the models with their images, the reference last unless it is one of them."""
    from dogmed.analysis.stress.errors import published_for
    from dogmed.analysis.stress.points import Subject

    models = open_models(config.models, config.weights_dir, config.out)
    named = len(models)
    marks = [_mark(trained) for trained in models]
    reference = None
    if config.reference not in (None, ALEXNET):
        (trained,) = open_models([str(config.reference)], config.weights_dir, config.out)
        reference = _mark(trained)
        models += [] if reference in marks else [trained]
    subjects = []
    opened = open_evaluations(config, "stress", models, console, points)
    for number, (title, evaluation) in enumerate(opened):
        is_reference = _mark(evaluation.trained) == reference
        subject = Subject.settle(
            title, evaluation, config, told=number < named, reference=is_reference
        )
        for note in subject.notes:
            console.line(f"note: {note}")
        if config.reference == ALEXNET:
            published_for(subject)  # asked for where they are not: said before the work
        subjects.append(subject)
    family = max(len(subject.stresses) for subject in subjects) + 2
    settle_resamples(config.resamples, [s.evaluation for s in subjects], family, console)
    return subjects


def _mark(trained: Trained) -> tuple[str, str]:
    """What tells a model from others: weights may serve with other strides and sizes."""
    return trained.record.sha256, trained.title


def _request(config: StressConfig, subjects: list[Subject]) -> str:
    """What was asked for, a folder's name; "" for the usual."""
    reference = [s.evaluation.trained.record.sha256[:8] for s in subjects if s.reference]
    return request_name({
        "corruptions": config.corruptions,
        "resolution": config.resolution,
        "reference": reference[0] if reference else config.reference,
        "seed": config.seed or None,
        "resamples": config.resamples,
    })  # fmt: skip

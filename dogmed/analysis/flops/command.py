"""``dogmed analyze flops``: what a trained model scores with fewer FLOPs, without training (section 4.5).

Three ways to spend less on an image: a larger stride of the first DoGConv, with its kernels as they are
or resized in proportion, and a lower resolution. Only a DoGConv can resize its kernels; any network takes
images of another size. Cost is counted in multiply-accumulates (MAC), half as many as FLOPs; what the
thesis calls FLOPs, as fvcore counts them, are MACs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dogmed.analysis.subject import (
    Listed,
    SubjectConfig,
    open_evaluations,
    open_models,
    read_whole_numbers,
    refuse_no_model,
    refuse_unusable,
    request_name,
)
from dogmed.config import configclass
from dogmed.errors import ConfigError
from dogmed.options import Count

if TYPE_CHECKING:  # PyTorch: not for --help
    from dogmed.analysis.evaluation import Points
    from dogmed.analysis.flops.points import Subject
    from dogmed.console import Console

LARGEST_SIDE, LARGEST_STRIDE = 16_384, 256
UNITS = {"": 1, "K": 1_000, "M": 1_000_000, "G": 1_000_000_000, "T": 1_000_000_000_000}


@configclass
class FlopsConfig(SubjectConfig):
    """Score trained models at fewer FLOPs: stride and kernel of the first DoGConv, resolution."""

    strides: Listed = ()
    """Of the first DoGConv, with kernels as they are and in proportion; none: 5/4 to twice its own."""
    resolutions: Listed = ()
    """Sides in pixels; none: those that give as many cells as the strides do."""
    budget: str | None = None
    """Multiply-accumulates for one image (300M, 0.3G): save the model that is best on val within them."""
    latency: Count | None = None
    """Measure a forward pass of so many images at once as well: FLOPs are not time."""


def command(**options: Any) -> None:
    """Score the models, write tables and pictures, save what fits the budget, and print what they say."""
    config = FlopsConfig(**options)
    strides = read_whole_numbers("--strides", config.strides, 1, LARGEST_STRIDE)
    resolutions = read_whole_numbers("--resolutions", config.resolutions, 1, LARGEST_SIDE)
    config = dataclasses.replace(config, strides=strides, resolutions=resolutions)
    budget = None if config.budget is None else read_budget(config.budget)
    refuse_no_model(config.models)

    from dogmed.analysis.evaluation import Points, stoppable
    from dogmed.analysis.flops import report
    from dogmed.analysis.flops.choice import check_budget
    from dogmed.analysis.flops.points import measure
    from dogmed.console import Console, count

    console, points = Console(enabled=True), Points()
    subjects = _subjects(config, strides, resolutions, console, points)
    if budget is not None:
        for line in check_budget(subjects, budget, str(config.budget)):
            console.line(line)
    points.total = sum(subject.points for subject in subjects)
    points.cost = sum(subject.work for subject in subjects)
    console.line(
        f"{count(points.total, 'point')}: {count(len(subjects), 'model')} on {subjects[0].images.name}; "
        f"what is done is kept below {config.out}"
    )
    with stoppable(console, points):
        measured = [measure(subject, config.latency) for subject in subjects]
        report.write(config, budget, measured, console)


def read_budget(text: str) -> int:
    """Read a number of multiply-accumulates: ``300M``, ``0.3G``, ``3e8``.

    Raises:
        ConfigError: it is none.
    """
    pattern = r"(\d+(?:\.\d+)?(?:e\+?\d{1,2})?)\s*([KMGT]?)(?:MACS?)?"
    found = re.fullmatch(pattern, text.strip(), re.IGNORECASE)
    macs = round(float(found[1]) * UNITS[found[2].upper()]) if found else 0
    if macs < 1:
        raise ConfigError(
            f"--budget {text}: expected multiply-accumulates (MAC, half as many as FLOPs) of a forward pass "
            "of one image, for example 300M or 0.3G"
        )
    return macs


def macs_name(macs: int) -> str:
    """A number of multiply-accumulates as ``read_budget`` reads it: ``300M``."""
    unit = next(name for name, size in reversed(UNITS.items()) if macs >= size)
    return f"{macs / UNITS[unit]:.12g}{unit}"


def request_of(config: FlopsConfig, budget: int | None) -> str:
    """What was asked for, a folder's name; "" for the usual."""
    return request_name(
        {
            "strides": config.strides,
            "resolutions": config.resolutions,
            "budget": None if budget is None else macs_name(budget),
            "latency": config.latency,
            "resamples": config.resamples,
        }
    )


def _subjects(
    config: FlopsConfig,
    strides: Sequence[int],
    resolutions: Sequence[int],
    console: Console,
    points: Points,
) -> list[Subject]:
    """Open the models with their images, and settle what is tried with each."""
    from dogmed.analysis.flops.points import Subject

    refuse_unusable(config.out)
    models = open_models(config.models, config.weights_dir, config.out)
    subjects: list[Subject] = []
    for title, evaluation in open_evaluations(config, "flops", models, console, points):
        subjects.append(Subject.settle(title, evaluation, strides, resolutions))
        for note in subjects[-1].notes:
            console.line(f"note: {note}")
    return subjects

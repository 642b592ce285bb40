"""``dogmed analyze scale``: trained models at many resolutions and kernel sizes (thesis, section 4.4).

Two protocols. With ``--resolutions`` the experiment of Tables 4.6 to 4.10: accuracy at nine resolutions,
for DoGNeXt with kernels of several sizes, sampled from the same functions over the same extent. With
``--rescale`` that of the literature on scale generalisation (Jansson and Lindeberg, "Scale-invariant
scale-channel networks", 2022): trained at one scale, tested on copies of the test set at each of many.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dogmed.analysis.subject import (
    Listed,
    SubjectConfig,
    open_evaluations,
    open_models,
    read_whole_numbers,
    refuse_no_model,
    refuse_unusable,
    request_name,
    settle_resamples,
    split_listed,
)
from dogmed.config import configclass
from dogmed.errors import ConfigError

if TYPE_CHECKING:  # PyTorch: not for --help
    from dogmed.analysis.evaluation import Points
    from dogmed.analysis.images import Fit
    from dogmed.analysis.scale.points import Subject
    from dogmed.console import Console

THESIS = (64, 96, 128, 156, 192, 224, 312, 384, 448)
THESIS_SIZE = 224  # pixels that its networks were trained at
STEPS = 4  # factors of a range to a doubling, as in the rescaled data sets of the literature
ROUNDED = 1.01  # 0.71..1.41 means the square roots
WIDEST = 16.0  # factor
LARGEST_SIDE, LARGEST_KERNEL = 16_384, 99


@configclass
class ScaleConfig(SubjectConfig):
    """Score trained models at many resolutions and kernel sizes."""

    resolutions: Listed = ()
    """Sides in pixels; none: 64 to 448 as in the thesis, in proportion to the size of the model's training."""
    kernel_sizes: Listed = ()
    """Odd sizes of the DoG kernels, besides the model's own; none: the next two smaller ones, or with
    --rescale those nearest to own times factor."""
    fit: Literal["resize", "pad", "mirror", "both"] | None = None
    """resize: the network sees the resized image; pad: it sees the size of its training, with black around
    or the middle cut out; mirror: as pad, with mirror images around; None is resize and pad, with
    --rescale pad."""
    rescale: Listed = ()
    """Rescale the images by factors in place of --resolutions: 0.5..2 (in steps of 2^(1/4)), or 0.5 0.71 1 2."""


@dataclass(frozen=True)
class Protocol:
    """What is varied, as asked for."""

    name: Literal["scale", "rescale"]
    fits: tuple[Fit, ...]
    factors: tuple[float, ...]
    """Of the side; empty for ``resolutions``."""
    resolutions: tuple[int, ...]
    """In pixels; empty for the thesis's."""
    kernel_sizes: tuple[int, ...]
    """Besides each model's own; empty for the usual ones."""
    request: str = ""
    """What was asked for, a folder's name; "" for the usual."""


def command(**options: Any) -> None:
    """Score the models, write tables and pictures, and print what they say."""
    config = ScaleConfig(**options)
    protocol = read_protocol(config)
    refuse_no_model(config.models)

    from dogmed.analysis.evaluation import Points, stoppable
    from dogmed.analysis.scale import report
    from dogmed.analysis.scale.points import measure, splits_of
    from dogmed.console import Console, count

    config = dataclasses.replace(
        config,
        resolutions=protocol.resolutions,
        kernel_sizes=protocol.kernel_sizes,
        rescale=tuple(split_listed(config.rescale)),
    )
    console = Console(enabled=True)
    points = Points()
    subjects = _subjects(config, protocol, console, points)
    plan = [(subject, point) for subject in subjects for point in subject.plan(splits_of(subject))]
    points.total = len(plan)
    points.cost = sum(subject.cost(point) for subject, point in plan)
    kernels = sorted({point.kernel or 0 for _, point in plan} - {0})
    console.line(
        f"{count(len(plan), 'point')}: {count(len(subjects), 'model')}"
        f"{', kernel sizes ' + ' '.join(map(str, kernels)) if kernels else ''}, on "
        f"{subjects[0].images.name}; what is done is kept below {config.out}"
    )
    with stoppable(console, points):
        measured = [measure(subject, point) for subject, point in plan]
        report.write(config, protocol, subjects, measured, console)


def read_protocol(config: ScaleConfig) -> Protocol:
    """Make sure that the options go together.

    Raises:
        ConfigError: they do not, a kernel size is even, or a number cannot be read.
    """
    resolutions = read_whole_numbers("--resolutions", config.resolutions, 1, LARGEST_SIDE)
    kernels = read_whole_numbers("--kernel-sizes", config.kernel_sizes, 1, LARGEST_KERNEL)[::-1]
    if even := [size for size in kernels if size % 2 == 0]:
        raise ConfigError(
            f"--kernel-sizes {' '.join(map(str, even))}: expected odd sizes, whose middle is a pixel"
        )
    asked: dict[str, object] = {"resolutions": resolutions, "kernels": kernels}
    if not config.rescale:
        fits: tuple[Fit, ...] = ("resize", "pad")
        if config.fit is not None and config.fit != "both":
            fits = (config.fit,)
        asked |= {"fit": fits if len(fits) == 1 else (), "resamples": config.resamples}
        return Protocol("scale", fits, (), resolutions, kernels, request_name(asked))
    if resolutions:
        raise ConfigError("--resolutions and --rescale: give one; factors times the training size")
    if config.fit == "both":
        raise ConfigError(
            "--fit both with --rescale: give pad (the usual protocol), mirror or resize"
        )
    factors = read_factors(config.rescale)
    fit = config.fit or "pad"
    asked |= {"rescale": _factors_name(config.rescale, factors), "resamples": config.resamples}
    asked["fit"] = fit if fit != "pad" else ()
    return Protocol("rescale", (fit,), factors, (), kernels, request_name(asked))


def read_factors(given: Sequence[str | float]) -> tuple[float, ...]:
    """Read ``LOW..HIGH``, the powers of 2^(1/4) in that range, or single factors; 1 is one of them.

    Raises:
        ConfigError: it is neither, or not from 1/16 to 16.
    """
    parts = split_listed(given)
    text = " ".join(parts)
    low_text, dots, high_text = text.partition("..")
    wrong = ConfigError(
        f"--rescale {text}: expected LOW..HIGH (0.5..2) or factors apart by spaces or commas (0.5 0.71 1 2), "
        f"from {1 / WIDEST:g} to {WIDEST:g}; models go before it"
    )
    try:
        found = [float(part) for part in ((low_text, high_text) if dots else parts)]
    except ValueError:
        raise wrong from None
    if not found or not all(1 / WIDEST <= factor <= WIDEST for factor in found):
        raise wrong
    if dots:
        low, high = found
        if low > high:
            raise ConfigError(
                f"--rescale {text}: expected the smaller factor first: {high:g}..{low:g}"
            )
        if not low <= 1 <= high or low == high:
            raise ConfigError(
                f"--rescale {text}: expected a range around 1, the scale of the training"
            )
        powers = [2 ** (k / STEPS) for k in range(-100, 101)]
        found = [power for power in powers if low / ROUNDED <= power <= high * ROUNDED]
    return tuple(sorted({*found, 1.0}))


def _factors_name(given: Sequence[str | float], factors: Sequence[float]) -> tuple[str, ...]:
    """Factors as a folder's name has them: a range as it was given, others ascending."""
    ranges = tuple(part for part in split_listed(given) if ".." in part)
    return ranges or tuple(f"{factor:g}" for factor in factors)


def _subjects(
    config: ScaleConfig, protocol: Protocol, console: Console, points: Points
) -> list[Subject]:
    """Open the models with their images, and settle what each is tried at, and how many resamples are drawn."""
    from dogmed.analysis.scale.points import Subject
    from dogmed.models.trained import dog_layers

    refuse_unusable(config.out)
    models = open_models(config.models, config.weights_dir, config.out)
    if protocol.kernel_sizes and not any(dog_layers(trained.model) for trained in models):
        raise ConfigError(
            f"--kernel-sizes: {models[0].title} has no DoGConv, and only their kernels can be resized; "
            "leave it out, or give a dognext_* model"
        )
    subjects: list[Subject] = []
    for title, evaluation in open_evaluations(config, "scale", models, console, points):
        subjects.append(Subject.settle(title, evaluation, protocol))
        for note in subjects[-1].notes:
            console.line(f"note: {note}")
    family = max(subject.family for subject in subjects)
    settle_resamples(config.resamples, [s.evaluation for s in subjects], family, console)
    return subjects

"""Choosing a configuration for a budget, and saving it as a model that is ready to use."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dogmed import stats
from dogmed.analysis.flops.command import macs_name
from dogmed.analysis.flops.points import Found, Measured, Subject
from dogmed.analysis.flops.ways import Configuration
from dogmed.analysis.subject import SubjectConfig
from dogmed.data.tasks import OFFICIAL_SIZES, official_file, official_tasks
from dogmed.errors import ConfigError
from dogmed.models.trained import Trained
from dogmed.models.weights import save_weights
from dogmed.weights.records import SUFFIX, WeightsRecord


def check_budget(subjects: Sequence[Subject], budget: int, text: str) -> list[str]:
    """Tell, before anything is scored, what a budget leaves to choose from; returns notes.

    Args:
        subjects: the models.
        budget: multiply-accumulates.
        text: the budget as it was given.

    Raises:
        ConfigError: a model has no configuration within it.
    """
    notes = []
    for subject in subjects:
        one, cost = min(subject.costs.items(), key=lambda item: item[1].macs)
        if cost.macs > budget:
            step = 10 ** max(0, len(str(cost.macs)) - 3)
            raise ConfigError(
                f"--budget {text}: {subject.title} needs {macs_name(-(-cost.macs // step) * step)} at least "
                f"({one}); give more, or larger --strides or lower --resolutions"
            )
        most = max(cost.macs for cost in subject.costs.values())
        if budget >= most:
            notes.append(
                f"note: --budget {text} is above all that is tried with {subject.title}, {macs_text(most)} at "
                "most: it excludes nothing"
            )
    return notes


def macs_text(macs: int) -> str:
    """Multiply-accumulates for reading: ``272.9 MMAC``."""
    millions = macs / 1e6
    return f"{millions:,.1f} MMAC" if millions >= 1 else f"{millions:.3g} MMAC"


@dataclass(frozen=True)
class Choice:
    """The best configuration on val within a budget, told on test."""

    found: Found
    budget: int
    chosen: Measured
    differences: dict[str, stats.Difference]
    """By score: of the choice minus that of the full model, on the images told on."""
    path: Path
    """Of the weights file."""


def choose(found: Found, budget: int, folder: Path) -> Choice:
    """Choose the configuration with the best score on val within a budget, and save it.

    Args:
        found: the model's configurations.
        budget: multiply-accumulates.
        folder: where the weights file goes.

    Raises:
        WeightsError: the file cannot be written.
    """
    chosen, told = found.best(budget), found.told_on
    compared = stats.differences(chosen.resampled[told], found.full.resampled[told])
    evaluation = found.subject.evaluation
    record = evaluation.trained.record
    path = folder / f"{record.model}.{record.recipe}-{macs_name(budget)}{SUFFIX}"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, evaluation.model.state_dict(), _record(found, chosen))
    differences = {name: compared[name] for name in chosen.scores[told] if name in compared}
    return Choice(found, budget, chosen, differences, path)


def finetune_command(choice: Choice, config: SubjectConfig) -> str:
    """The command that trains the saved model further, on the images and at the size it was chosen with.

    An official task is enlarged to a size at which it is not published; below all sizes there is none,
    and the command tries the model as it is.
    """
    record = choice.found.subject.evaluation.trained.record
    side, path = choice.chosen.configuration.side, str(choice.path)
    seen, official = record.data, official_tasks()
    task = config.task or (seen.name if seen.name in official else "TASK")
    words = ["dogmed", "finetune", "--task", task, "--model", record.model, "--init", path]
    words += ["--size", str(side)]
    if config.data == "synthetic" or (config.data is None and seen.source == "synthetic"):
        words += ["--data", "synthetic"] if task in official else []
    elif task in official:
        there = [size for size in OFFICIAL_SIZES if size <= side and _is_there(task, size, config)]
        if not there:
            return shlex.join(["dogmed", "analyze", "flops", path])
        words += [] if side in there else ["--upsample-from", str(max(there))]
    for flag, value in (("--data-dir", config.data_dir), ("--kind", config.kind)):
        words += [] if value is None else [flag, str(value)]
    return shlex.join(words)


def _is_there(task: str, size: int, config: SubjectConfig) -> bool:
    """Whether the official file is in ``--data-dir``, or can be downloaded."""
    folder = config.data_dir
    return folder is None or (folder / official_file(task, size).name).is_file()


def _record(found: Found, chosen: Measured) -> WeightsRecord:
    """The record of the choice: the same weights, with the options and the size to use them with."""
    trained, one = found.subject.evaluation.trained, chosen.configuration
    record = trained.record
    data = record.data
    trained_size = data.trained_size or data.size
    if one.side != trained_size:
        data = dataclasses.replace(
            data,
            size=one.side,
            trained_size=trained_size,
            interpolation=data.interpolation or "bilinear",
        )
    scores = chosen.scores[found.chosen_on]
    names = {"acc": "acc1"} if found.subject.evaluation.many else {}
    return dataclasses.replace(
        record,
        options=_options(trained, found.full.configuration, one),
        data=data,
        temperature=None,  # the one there was fitted to other outputs
        score={f"val_{names.get(name, name)}": score.value for name, score in scores.items()},
        origin=(
            f"{trained.path.name} used with {one}, chosen on {found.chosen_on} by {found.subject.metric}; "
            f"sha256 of its tensors {record.sha256}"
        ),
    )


def _options(trained: Trained, full: Configuration, one: Configuration) -> dict[str, object]:
    options = dict(trained.record.options)
    if one.stride != full.stride:
        options["stem_stride"] = one.stride
    if one.kernel_size != full.kernel_size:
        options["stem_kernel_size"] = one.kernel_size
    return options

"""Choosing a configuration for a budget, and saving it as a model that is ready to use."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from dogmed import stats
from dogmed.analysis.flops_points import Found, Measured
from dogmed.analysis.flops_ways import Configuration
from dogmed.models.trained import Trained
from dogmed.models.weights import save_weights
from dogmed.weights.records import SUFFIX, WeightsRecord


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


def choose(found: Found, budget: int) -> Choice:
    """Choose the configuration with the best score on val within a budget, and save it.

    Raises:
        WeightsError: the file cannot be written.
    """
    chosen, told = found.best(budget), found.told_on
    compared = stats.differences(chosen.resampled[told], found.full.resampled[told])
    evaluation = found.subject.evaluation
    record = evaluation.trained.record
    path = evaluation.folder / f"{record.model}.{record.recipe}-{budget / 1e6:g}M{SUFFIX}"
    save_weights(path, evaluation.model.state_dict(), _record(found, chosen))
    differences = {name: compared[name] for name in chosen.scores[told] if name in compared}
    return Choice(found, budget, chosen, differences, path)


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

"""Published numbers to stand a result beside, each with its source, the pixels it was trained on, and
what its epochs were selected on. Scores are in percent, as printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from dogmed.errors import ConfigError, nearest
from dogmed.yamlfile import parse_yaml

MEDMNIST = ("thesis", "medmnist_plus", "swin_t", "trivial")  # files of MedMNIST scores
TRUE_224 = "true 224"
UPSAMPLED_28 = "28 upsampled"
NOT_STATED = "not stated"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One published model's scores on MedMNIST test images, by metric and task, in percent."""

    model: str
    init: str
    source: str
    pixels: str  # TRUE_224, UPSAMPLED_28, or none
    selected_on: str  # what the epoch was chosen by, or NOT_STATED
    seeds: int | str
    test_n: Mapping[str, int]  # by task; 12 tasks or fewer
    scores: Mapping[str, Mapping[str, float]]  # {"acc": {"pathmnist": 96.29, ...}, ...}
    sd: Mapping[str, Mapping[str, float]]  # over seeds, as ``scores``, where it was published
    mean: Mapping[str, float]  # over the 12 tasks, as published; empty where it was not
    which: Mapping[str, str]  # the model behind each task's score, where they differ
    note: str

    @property
    def label(self) -> str:
        """What must stand beside the scores: ``28 upsampled, selected on val AUC``."""
        if self.selected_on == NOT_STATED:
            return f"{self.pixels}, selection not stated"
        return f"{self.pixels}, selected on {self.selected_on}"


@dataclass(frozen=True, kw_only=True)
class Table:
    """One of the thesis's ImageNet-1K tables: accuracy in percent, one row a model; None: no entry."""

    number: str
    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float | None, ...]]


@cache
def medmnist_references(name: str) -> tuple[Reference, ...]:
    """Read the published MedMNIST scores of one source, one of ``MEDMNIST``.

    Raises:
        ConfigError: there is no such source.
    """
    if name not in MEDMNIST:
        raise ConfigError(
            f"no reference '{name}': expected one of {', '.join(MEDMNIST)}{nearest(name, MEDMNIST)}"
        )
    values = _read(name)
    metrics = values["metrics"]
    return tuple(
        Reference(
            model=row["model"],
            init=row["init"],
            source=values["source"],
            pixels=row["pixels"],
            selected_on=row["selected_on"],
            seeds=values["seeds"],
            test_n=values["test_n"],
            scores={metric: row[metric] for metric in metrics if metric in row},
            sd={metric: row[f"{metric}_sd"] for metric in metrics if f"{metric}_sd" in row},
            mean=row.get("mean", {}),
            which=row.get("which", {}),
            note=row.get("note", ""),
        )
        for row in values["rows"]
    )


@cache
def imagenet_tables() -> Mapping[str, Table]:
    """Read the thesis's ImageNet-1K tables by their numbers, ``"4.2"`` to ``"4.10"``."""
    return {
        number: Table(
            number=number,
            title=table["title"],
            columns=tuple(table["columns"]),
            rows={model: tuple(row) for model, row in table["rows"].items()},
        )
        for number, table in _read("imagenet")["tables"].items()
    }


def _read(name: str) -> dict[str, Any]:
    file = resources.files(__package__).joinpath(f"{name}.yaml")
    return parse_yaml(file.read_text(encoding="utf-8"), f"reference {name}")

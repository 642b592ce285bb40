"""What an array of labels means: its kind, its classes, and whether it fits a task."""

from __future__ import annotations

from typing import cast

import numpy as np

from dogmed.data.tasks import KINDS, SPLITS, Kind, Task
from dogmed.errors import ConfigError, DataError, nearest


def check_kind(kind: str | None) -> Kind | None:
    """``kind`` itself when it is one of the four (or None); ConfigError otherwise."""
    if kind is not None and kind not in KINDS:
        raise ConfigError(
            f"unknown kind '{kind}'{nearest(kind, KINDS)}; expected one of {', '.join(KINDS)}"
        )
    return cast("Kind | None", kind)


def infer_kind(labels: dict[str, np.ndarray], where: str) -> Kind:
    """The kind that the labels of all splits, each (N, L), speak for.

    Several columns of 0/1 are multi-label; one column with two values is binary and with more is
    multi-class. Ordinal is never inferred: numbers alone do not say that their order matters.
    """
    stacked = np.concatenate(list(labels.values()))
    values = np.unique(stacked)
    if stacked.shape[1] > 1:
        if not np.isin(values, (0, 1)).all():
            raise DataError(
                f"{where}: labels with {stacked.shape[1]} columns are read as multi-label "
                "and must be "
                f"0 or 1, found {_some(values)}"
            )
        return "multi-label"
    if len(values) < 2:
        raise DataError(f"{where}: all labels are {_some(values)}; at least two classes are needed")
    return "binary" if len(values) == 2 else "multi-class"


def count_classes(labels: dict[str, np.ndarray], kind: Kind, where: str) -> int:
    """Number of classes of the user's own labels, which must be 0..C-1 (multi-label: 0/1)."""
    stacked = np.concatenate(list(labels.values()))
    values = np.unique(stacked)
    if kind == "multi-label":
        if not np.isin(values, (0, 1)).all():
            raise DataError(f"{where}: multi-label labels must be 0 or 1, found {_some(values)}")
        return stacked.shape[1]
    if stacked.shape[1] != 1:
        raise DataError(
            f"{where}: labels have {stacked.shape[1]} columns, but a {kind} task has one; "
            f"use --kind multi-label or keep one column"
        )
    classes = len(values)
    if classes < 2 or values[0] != 0 or values[-1] != classes - 1:
        raise DataError(
            f"{where}: labels must be 0..C-1 without gaps, found {_some(values)}; "
            f"renumber them, e.g. numpy.unique(labels, return_inverse=True)[1]"
        )
    if kind == "binary" and classes != 2:
        raise DataError(f"{where}: a binary task has labels 0 and 1, found {_some(values)}")
    return classes


def check_labels(labels: np.ndarray, task: Task, where: str) -> None:
    """Raise DataError unless ``labels`` (N, L) lie within the task's classes."""
    if labels.shape[1] != task.label_width:
        raise DataError(
            f"{where}: labels have {labels.shape[1]} columns, {task.name} has {task.label_width}"
        )
    highest = 1 if task.kind == "multi-label" else task.num_classes - 1
    wrong = np.flatnonzero((labels < 0).any(axis=1) | (labels > highest).any(axis=1))
    if len(wrong):
        raise DataError(
            f"{where}: label {labels[wrong[0]].tolist()} of image {wrong[0]} is outside "
            f"0..{highest} "
            f"of {task.name} ({len(wrong)} such); correct the labels or choose another --task"
        )


def class_counts(labels: np.ndarray, task: Task) -> list[int]:
    """Images per class, or positives per label of a multi-label task."""
    if task.kind == "multi-label":
        return [int(n) for n in labels.sum(axis=0)]
    return [int(n) for n in np.bincount(labels[:, 0], minlength=task.num_classes)]


def missing_classes(counts: dict[str, list[int]], task: Task) -> list[str]:
    """One line per split in which a class has no image."""
    lines = []
    for split in SPLITS:
        absent = [task.classes[i] for i, n in enumerate(counts[split]) if n == 0]
        if absent:
            what = "positive image" if task.kind == "multi-label" else "image"
            lines.append(f"warning: {task.name}: no {what} of {_some(absent)} in {split}")
    return lines


def _some(values: np.ndarray | list[str]) -> str:
    shown = ", ".join(str(v) for v in list(values)[:6])
    return shown + (f", ... ({len(values)} values)" if len(values) > 6 else "")

"""Parts of a training set, drawn by seed: images a class, or random classes (thesis, Table 4.4).

A part is an ``ImageSet`` itself. What was drawn is saved with the run as a list of names, so that
it can be used again, or elsewhere, without relying on the seed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dogmed.errors import ConfigError, DataError, nearest
from dogmed.pretrain.images import ImageSet
from dogmed.pretrain.names import shuffled

_CLASSES, _IMAGES = 0, 1  # what a draw is for: part of its key


def draw(images: ImageSet, *, per_class: int | None, classes: int | None, seed: int) -> ImageSet:
    """Draw a part of ``images``; a smaller draw of the same seed is a part of a larger one.

    Args:
        images: a whole split.
        per_class: images of each class; None takes all.
        classes: number of classes; None takes all.
        seed: decides both draws, on every platform alike.

    Raises:
        ConfigError: more is asked for than there is, or less than one image or two classes.
    """
    if classes is not None and not 2 <= classes <= len(images.classes):
        raise ConfigError(
            f"{classes} classes are asked for, expected 2 to {len(images.classes)}, as many as the "
            "data has"
        )
    kept = np.arange(len(images.classes))
    if classes is not None:
        kept = np.sort(shuffled(len(kept), seed, _CLASSES)[:classes])
    by_class = np.argsort(images.labels, kind="stable")
    ends = np.cumsum(np.bincount(images.labels, minlength=len(images.classes)))
    rows = [by_class[(ends[label - 1] if label else 0) : ends[label]] for label in kept]
    if per_class is not None:
        fewest = min(range(len(rows)), key=lambda i: len(rows[i]))
        if not 1 <= per_class <= len(rows[fewest]):
            raise ConfigError(
                f"{per_class} images a class are asked for, expected 1 to {len(rows[fewest])}, as "
                f"many as class {images.classes[kept[fewest]]} has"
            )
        rows = [
            row[shuffled(len(row), seed, _IMAGES, int(label))[:per_class]]
            for label, row in zip(kept, rows, strict=True)
        ]
    return images.take(np.sort(np.concatenate(rows)), tuple(images.classes[k] for k in kept))


def of_classes(images: ImageSet, names: Sequence[str]) -> ImageSet:
    """The images of the classes ``names``, labelled in their order: val for a drawn train."""
    wanted = np.isin(np.array(images.classes), np.array(names))
    return images.take(np.flatnonzero(wanted[images.labels]), tuple(names))


def write_list(path: Path, images: ImageSet) -> None:
    """Save the images' names, one a line, in one step."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(f"{images.name(i)}\n" for i in range(len(images)))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_list(path: Path, images: ImageSet) -> ImageSet:
    """The images of a whole split that a saved list names, and their classes.

    Raises:
        DataError: the list cannot be read, is empty, or names what the split does not have.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{path}: the list cannot be read ({error.strerror})") from error
    lines = text.removesuffix("\n").split("\n") if text else []
    known = {images.name(i): i for i in range(len(images))}
    unknown = [name for name in lines if name not in known]
    if unknown:
        raise DataError(
            f"{path}: {len(unknown)} of {len(lines)} images are not in {images.split} of "
            f"{images.root}, the first is {unknown[0]}{nearest(unknown[0], list(known)[:10_000])}"
        )
    if not lines:
        raise DataError(f"{path}: the list is empty")
    indices = np.unique([known[name] for name in lines])
    classes = sorted(set(images.labels[indices].tolist()))
    return images.take(indices, tuple(images.classes[label] for label in classes))

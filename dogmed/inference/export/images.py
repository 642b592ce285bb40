"""The images on which an export is compared with its original."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dogmed.console import count
from dogmed.data.progress import Quiet
from dogmed.data.store import plan, prepare
from dogmed.data.tasks import official_tasks
from dogmed.errors import DogmedError
from dogmed.inference.classifier import Classifier
from dogmed.inference.likeness import channels
from dogmed.inference.reading.inputs import find_images
from dogmed.runs import task_of_weights

COUNT = 16
"""As many are compared as this, or as there are."""


class Images(NamedTuple):
    """Pictures as the network saw them at training, and what they are, for people."""

    pixels: np.ndarray  # (N, S, S, 3) uint8
    said: str


def given_images(classifier: Classifier, paths: Sequence[Path]) -> Images:
    """Read the first images of files and folders.

    Args:
        classifier: decides how they are prepared.
        paths: of images, or of folders that are searched for them.

    Raises:
        DataError: there is none, or one cannot be read.
    """
    files = find_images(paths).files
    pictures = [p for file in files[:COUNT] for p in classifier.read(file, str(file))][:COUNT]
    pixels = np.stack([_rgb(picture.pixels) for picture in pictures])
    return Images(pixels, f"{count(len(pixels), 'image')} given with --images")


def task_images(classifier: Classifier, data_dir: Path | None, cache_dir: Path | None) -> Images:
    """Take test images of the task that the network was trained on, else noise; nothing is downloaded.

    Args:
        classifier: whose task it is.
        data_dir: with official files.
        cache_dir: where arrays are prepared; None is the user's.

    Raises:
        DogmedError: ``data_dir`` is given, and has no such file.
    """
    seen = classifier.seen
    side = seen.trained_size or seen.size
    official = seen.name in official_tasks()
    enlarged = official and seen.source_size is not None and seen.source_size < side
    request: dict[str, Any] = {
        "size": side,
        "data_dir": data_dir if official else None,
        "cache_dir": cache_dir,
        "kind": None if official else seen.kind,
        "upsample_from": seen.source_size if enlarged else None,
    }
    grey = channels(seen) == 1
    if seen.source == "synthetic":
        return _noise(side, grey, "the task's images were generated")
    task = seen.name if official else task_of_weights(classifier.trained.path) or seen.name
    try:
        if plan(task, **request).action == "download":
            return _noise(
                side, grey, f"{seen.name} is not on this machine, --data-dir names its folder"
            )
        split = prepare(task, **request, progress=Quiet()).images("test")
    except DogmedError:
        if data_dir is not None:
            raise
        return _noise(
            side, grey, f"the images of {seen.name} are not at hand, --images names others"
        )
    chosen = np.unique(np.linspace(0, len(split) - 1, min(COUNT, len(split))).astype(np.int64))
    pixels = np.stack([_rgb(split[index]) for index in chosen])
    return Images(pixels, f"{len(chosen)} of the {len(split)} test images of {seen.name}")


def _noise(side: int, grey: bool, why: str) -> Images:
    """Noise of as many channels as the task has, and as the preprocessing in an export leaves it."""
    shape = (COUNT, side, side, 1 if grey else 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels = np.broadcast_to(pixels, (*shape[:3], 3)).copy()
    return Images(pixels, f"{COUNT} images of NOISE ({why})")


def _rgb(image: np.ndarray) -> np.ndarray:
    """(S, S), or (S, S, 3), -> (S, S, 3)"""
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image

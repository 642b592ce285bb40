"""Synthetic images in MedMNIST's format, for tests and offline trials. Not medical data.

Every class is a texture: a grating of its own wavelength and (unsigned, so that a flip keeps the
class) orientation, with a faint tint in colour tasks, at random phase and contrast, mixed with
another class's texture, uneven light and noise, so that some images cannot be told. A
multi-label image carries one patch per positive label; an ordinal image has more spots the higher
its grade. Phase and noise make raw pixels useless to a linear classifier, while a small network
learns the textures step by step.

Everything is drawn per image from (seed, split, index), so the same images come out whatever the
chunking. Class balance follows the official training labels, for all three splits; each count's
source is stated beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dogmed.data.tasks import SPLITS, Task, official_samples
from dogmed.errors import ConfigError

DEFAULT_SAMPLES = 512  # training images; a quarter of that for val and for test
GENERATOR = 1  # raised whenever the same seed gives other images
_CHUNK = 32
_GRID = 28  # the noise has this resolution at every size, so that no size is easier

_FILE = "counted in the official file"
_PUBLIC = "counts of the official training labels as published in open-source code using the files"
_SUM = "counts that add up to the official number of training images, not compared with the file"

# Images per class (chest: positives per label) in the official training split, and where from.
BALANCE: dict[str, tuple[tuple[int, ...], str]] = {
    "pathmnist": ((9366, 9509, 10360, 10401, 8006, 12182, 7886, 9401, 12885), _PUBLIC),
    "chestmnist": (
        (7996, 1950, 9261, 13914, 3988, 4375, 978, 3705, 3263, 1690, 1799, 1158, 2279, 144),
        _PUBLIC,
    ),
    "dermamnist": ((228, 359, 769, 80, 779, 4693, 99), _PUBLIC),
    "octmnist": (
        (33484, 10213, 7754, 46026),
        "nine tenths of the class counts of the source's training set (37205, 11348, 8616, 51140), "
        "which add up to the official number",
    ),
    "pneumoniamnist": ((1214, 3494), _PUBLIC),
    "retinamnist": ((486, 128, 206, 194, 66), _PUBLIC),
    "breastmnist": ((147, 399), _FILE),
    "bloodmnist": ((852, 2181, 1085, 2026, 849, 993, 2330, 1643), _PUBLIC),
    "tissuemnist": ((53075, 7814, 5866, 15406, 11789, 7705, 39203, 24608), _SUM),
    "organamnist": ((1956, 1390, 1357, 1474, 3963, 3817, 6164, 3919, 3929, 3031, 3561), _SUM),
    "organcmnist": (
        (1956, 1390, 1357, 1474, 3963, 3817, 6164, 3919, 3929, 3031, 3561),
        "counts of OrganAMNIST, the same scans in axial slices; OrganCMNIST's own are not at hand",
    ),
    "organsmnist": ((1148, 630, 614, 721, 1132, 1119, 3464, 741, 803, 2004, 1556), _SUM),
}


class Synthetic:
    """A generator of one official task's look-alike; a reader like an npz file.

    ``size`` is in pixels; ``samples`` the number of training images (val and test get a quarter
    each). Raises ConfigError when there are too few samples to show every class.
    """

    def __init__(self, task: Task, size: int, *, seed: int = 0, samples: int | None = None):
        self.task, self.size, self.seed = task, size, seed
        train = DEFAULT_SAMPLES if samples is None else samples
        least = 8 * task.num_classes
        if train < least:
            raise ConfigError(
                f"samples is {train}, {task.name} needs at least {least} to show each of its "
                f"{task.num_classes} classes in every split"
            )
        self.samples = {"train": train, "val": train // 4, "test": train // 4}

    def facts(self) -> dict[str, Any]:
        """What the manifest says about the generation."""
        counts, source = BALANCE[self.task.name]
        return {
            "generator": GENERATOR,
            "seed": self.seed,
            "samples": self.samples["train"],
            "balance": list(counts),
            "balance_source": source,
        }

    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return (self.size, self.size), (self.size, self.size)

    def labels(self, split: str) -> np.ndarray:
        """(N, L) int64 in the official proportions; every class (label) occurs in every split."""
        rng = np.random.default_rng((self.seed, SPLITS.index(split)))
        n, counts = self.samples[split], np.array(BALANCE[self.task.name][0], dtype=np.float64)
        if self.task.kind != "multi-label":
            per_class = _apportion(counts / counts.sum(), n)
            return rng.permutation(np.repeat(np.arange(len(counts)), per_class))[:, None]
        prevalence = counts / official_samples(self.task.name)["train"]
        labels = np.zeros((n, len(counts)), dtype=np.int64)
        for column, share in enumerate(prevalence):  # drawn independently, at least one positive
            positives = max(1, round(share * n))
            labels[rng.permutation(n)[:positives], column] = 1
        return labels

    def images(self, split: str) -> Iterator[np.ndarray]:
        """Pieces of (n, size, size) or (n, size, size, 3) uint8."""
        labels = self.labels(split)
        canvas = _Canvas(self.size)
        for start in range(0, len(labels), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(labels)))
            yield np.stack([self._image(canvas, split, i, labels[i]) for i in rows])

    def _image(self, canvas: _Canvas, split: str, index: int, label: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng((self.seed, SPLITS.index(split), index))
        classes = self.task.num_classes
        shape = canvas.background(rng)
        if self.task.kind == "multi-label":
            for column in np.flatnonzero(label):
                shape += canvas.patch(rng, int(column), classes)
        elif self.task.kind == "ordinal":
            shape += canvas.spots(rng, 1 + 3 * int(label[0]) + int(rng.integers(0, 3)))
        else:
            shape += canvas.grating(rng, int(label[0]), classes)
        if self.task.channels == 1:
            return _bytes(shape)
        tint = _tint(0 if self.task.kind == "ordinal" else int(label[0]), classes)
        tint = tint + rng.normal(0, 0.15, 3)  # the tint alone does not tell the classes apart
        return _bytes(shape[..., None] * 0.8 + tint)


class _Canvas:
    """Coordinates and the enlarging matrix of one image size."""

    def __init__(self, size: int):
        self.y, self.x = np.meshgrid(*[np.linspace(-1, 1, size)] * 2, indexing="ij")
        at = np.linspace(0, _GRID - 1, size)
        self.up = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(_GRID)))  # (size, 28), bilinear

    def background(self, rng: np.random.Generator) -> np.ndarray:
        """Uneven light and noise, of standard deviation about 0.3."""
        noise = self.up @ rng.normal(0, 0.3, (_GRID, _GRID)) @ self.up.T
        slope = rng.normal(0, 0.2, 3)
        return noise + slope[0] * self.x + slope[1] * self.y + slope[2]

    def grating(self, rng: np.random.Generator, which: int, classes: int) -> np.ndarray:
        """The class's texture over the whole image, under a weaker one of another class."""
        contrast, share = rng.uniform(0.5, 1.0), rng.uniform(0, 0.6)
        other = (which + int(rng.integers(1, classes))) % classes
        own = self._wave(rng, which, classes)
        return contrast * (own + share * self._wave(rng, other, classes))

    def patch(self, rng: np.random.Generator, which: int, classes: int) -> np.ndarray:
        """The label's texture within a soft round window at a random place."""
        cy, cx = rng.uniform(-0.6, 0.6, 2)
        window = np.exp(-((self.y - cy) ** 2 + (self.x - cx) ** 2) / (2 * 0.35**2))
        return rng.uniform(0.7, 1.1) * window * self._wave(rng, which, classes)

    def spots(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """``count`` bright spots at random places."""
        image = np.zeros_like(self.x)
        for cy, cx in rng.uniform(-0.85, 0.85, (count, 2)):
            image += 1.2 * np.exp(-((self.y - cy) ** 2 + (self.x - cx) ** 2) / (2 * 0.07**2))
        return image

    def _wave(self, rng: np.random.Generator, which: int, classes: int) -> np.ndarray:
        steps = max(1, (classes - 1) // 2)
        angle = np.pi / 2 * (which // 2) / steps + rng.normal(0, 0.06)  # 0 .. 90 degrees
        cycles = (2.5, 5.0)[which % 2] * rng.uniform(0.93, 1.07)  # across the image
        along = np.cos(angle) * self.x + np.sin(angle) * self.y
        return np.cos(np.pi * cycles * along + rng.uniform(0, 2 * np.pi))


def _tint(which: int, classes: int) -> np.ndarray:
    """A faint colour per class."""
    hue = 2 * np.pi * which / classes
    return 0.1 * np.cos(hue + np.array([0, 2, 4]) * np.pi / 3)


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.clip(128 + 64 * image, 0, 255).astype(np.uint8)


def _apportion(shares: np.ndarray, n: int) -> np.ndarray:
    """``n`` split by ``shares`` with the largest remainders, at least one each."""
    exact = shares * n
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: n - counts.sum()]] += 1
    while (counts == 0).any():
        counts[np.argmax(counts)] -= 1
        counts[np.flatnonzero(counts == 0)[0]] += 1
    return counts

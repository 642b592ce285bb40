"""A task's images, corrupted as they are read: no file of them is written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from dogmed.analysis.images import Fit, TaskImages
from dogmed.analysis.stress.corruptions import VERSION, Pixels, corrupt, lower_resolution
from dogmed.analysis.stress.sets import Stress
from dogmed.data.loader import Batches, ahead
from dogmed.weights.records import DataRecord

AHEAD = 2  # batches that are corrupted while the network is at work


class StressedImages:
    """A task's images under one stress at one severity, for ``Evaluation``.

    Args:
        base: the images as they are, already of the side that the network was trained at.
        seen: of the model, for the normalisation.
        stress: what is done to them.
        severity: from 1 on.
        seed: of all draws.
        workers: threads that corrupt; None takes as many as there are cores.
    """

    def __init__(
        self,
        base: TaskImages,
        seen: DataRecord,
        stress: Stress,
        severity: int,
        *,
        seed: int,
        workers: int | None,
    ):
        self._base, self._seen, self._stress = base, seen, stress
        self._severity, self._seed = severity, seed
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self._workers = max(1, (cores or 1) if workers is None else workers)
        self.name, self.title, self.kind = base.name, base.title, base.kind
        self.classes, self.size, self.splits = base.classes, base.size, base.splits

    @property
    def key(self) -> str:
        """A name for what is done, a part of a file's name."""
        mark = hashlib.sha256(self._facts().encode()).hexdigest()[:8]
        return f"{self._stress.name.replace(' ', '')}-{self._severity}-{mark}"

    def labels(self, split: str) -> np.ndarray:
        return self._base.labels(split)

    def digest(self, split: str) -> str:
        return f"{self._base.digest(split)}+{self._facts()}"

    def batches(
        self, split: str, *, side: int, fit: Fit, batch_size: int, device: torch.device
    ) -> Iterator[Tensor]:
        assert side == self.size, "images are corrupted at the size of the training"
        labels, done = self.labels(split), 0
        corrupted = ahead(self._pixels(split, batch_size), AHEAD)
        with contextlib.closing(corrupted):  # type: ignore[type-var]
            for pixels in corrupted:
                (batch,) = Batches(
                    pixels,
                    labels[done : done + len(pixels)],
                    batch_size=len(pixels),
                    device=device,
                    train=False,
                    mean=self._seen.mean,
                    std=self._seen.std,
                    cache="device",
                )
                done += len(pixels)
                yield batch["image"]

    def image(self, split: str, index: int) -> Pixels:
        """One corrupted image: (H, H) or (H, H, 3) uint8."""
        pixels = np.asarray(self._base.prepared.images(split)[index])
        strength = self._stress.strengths[self._severity - 1]
        if not self._stress.corrupts:
            return lower_resolution(pixels, strength)
        return corrupt(pixels, self._stress.name, strength, seed=self._seed, index=index)

    def _pixels(self, split: str, batch_size: int) -> Iterator[Pixels]:
        count = len(self.labels(split))
        with ThreadPoolExecutor(self._workers) as pool:
            for start in range(0, count, batch_size):
                rows = range(start, min(start + batch_size, count))
                yield np.stack(list(pool.map(lambda index: self.image(split, index), rows)))

    def _facts(self) -> str:
        """What the corrupted images depend on besides the images."""
        strength = self._stress.strengths[self._severity - 1]
        return json.dumps([VERSION, self._stress.name, strength, self._seed])

"""Images to try a trained model on, at any size: a task's arrays, or ImageNet's val.

Two ways to make the things in an image smaller or larger (``Fit``):

- ``resize``: the network sees an image of another size, as in the thesis's Tables 4.6 to 4.10;
- ``pad``: the network sees an image of the size it was trained at, in whose middle the resized one
  stands on black, or of which, where it is larger, the middle is cut out. This is how the literature on
  scale generalisation makes rescaled test sets.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dogmed.data.loader import Batches
from dogmed.data.prepared import Prepared
from dogmed.errors import ConfigError, DataError, nearest
from dogmed.pretrain.images import ImageSet, open_images
from dogmed.pretrain.loader import ImageBatches
from dogmed.pretrain.subset import of_classes
from dogmed.pretrain.transforms import eval_transform
from dogmed.weights.records import DataRecord, WeightsRecord

Fit = Literal["resize", "pad"]


class Images(Protocol):
    """Labelled images that can be had at any size, normalised for one model."""

    name: str
    """In titles."""
    kind: str
    classes: tuple[str, ...]
    size: int
    """Side in pixels that the model was trained at."""
    splits: tuple[str, ...]
    """Those there are; the last is the one to report on."""

    def labels(self, split: str) -> np.ndarray:
        """The labels of a split: (N, L) int64."""

    def digest(self, split: str) -> str:
        """Hash that tells these images and labels from others."""

    def batches(
        self, split: str, *, side: int, fit: Fit, batch_size: int, device: torch.device
    ) -> Iterator[Tensor]:
        """A split's images in order, resized to ``side``: (B, 3, H, H), on the device.

        H is ``side`` under ``resize`` and ``size`` under ``pad``.
        """


class TaskImages:
    """A task's val and test, resized from the side that the model was trained at.

    The resizing is bilinear with antialiasing, on the device, in float32.
    """

    def __init__(self, prepared: Prepared, record: WeightsRecord):
        self.prepared, self._seen = prepared, record.data
        task = prepared.task
        self.name, self.classes = task.name, task.classes
        self.kind: str = task.kind
        if prepared.source in ("variant", "synthetic"):
            self.name += f"-{prepared.source}"
        self.size = prepared.size
        self.splits: tuple[str, ...] = ("val", "test")

    def labels(self, split: str) -> np.ndarray:
        return self.prepared.labels(split)

    def digest(self, split: str) -> str:
        files = self.prepared.manifest["files"]
        return "+".join(
            files[f"{split}_{what}.npy"]["sha256"][:16] for what in ("images", "labels")
        )

    def batches(
        self, split: str, *, side: int, fit: Fit, batch_size: int, device: torch.device
    ) -> Iterator[Tensor]:
        batches = Batches(
            self.prepared.images(split),
            self.prepared.labels(split),
            batch_size=batch_size,
            device=device,
            train=False,
            mean=self._seen.mean,
            std=self._seen.std,
        )
        black = _black(self._seen, device)
        for batch in batches:
            images = batch["image"]
            if side != self.size:
                images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
            yield _fitted(images, self.size if fit == "pad" else side, black)


class ImageNetVal:
    """ImageNet's val, decoded at each size as at pretraining: resized, then a centre crop.

    Args:
        images: labelled with the model's outputs.
        record: of the model.
        workers: processes that decode.
    """

    def __init__(self, images: ImageSet, record: WeightsRecord, workers: int):
        self._images, self._seen, self._workers = images, record.data, workers
        self.name, self.kind, self.classes = images.root.name, "multi-class", images.classes
        self.size = record.data.trained_size or record.data.size
        self.splits: tuple[str, ...] = ("val",)

    @classmethod
    def open(
        cls, root: Path, record: WeightsRecord, *, cache_dir: Path | None, workers: int | None
    ) -> ImageNetVal:
        """Open the val split below ``root`` and find its classes among the model's outputs by name.

        Raises:
            ConfigError: a model that was not pretrained on classes with names.
            DataError: nothing usable is there, or classes that the model does not have.
        """
        val = open_images(root, "val", cache_dir=cache_dir)
        known = record.data.classes or (
            val.classes if record.num_classes == len(val.classes) else ()
        )
        if record.num_classes != len(known):
            raise ConfigError(
                f"{record.model} has {record.num_classes} outputs, and its record names no classes for "
                f"them: --imagenet {root} with its {len(val.classes)} cannot be told apart by them"
            )
        strange = sorted(set(val.classes) - set(known))
        if strange:
            raise DataError(
                f"{root}: {len(strange)} of its {len(val.classes)} classes are none of the model's "
                f"{len(known)}, {strange[0]} for one{nearest(strange[0], known)}"
            )
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return cls(of_classes(val, known), record, (cores or 1) if workers is None else workers)

    def labels(self, split: str) -> np.ndarray:
        return self._images.labels[:, None]

    def digest(self, split: str) -> str:
        digest = hashlib.sha256(self._images.labels.astype("<i8").tobytes())
        for i in range(len(self._images)):
            digest.update(self._images.name(i).encode("utf-8", "surrogateescape") + b"\0")
        return digest.hexdigest()[:32]

    def batches(
        self, split: str, *, side: int, fit: Fit, batch_size: int, device: torch.device
    ) -> Iterator[Tensor]:
        seen = self._seen
        loader = ImageBatches(
            self._images,
            eval_transform(
                side,
                mean=seen.mean,
                std=seen.std,
                crop_pct=seen.crop_pct or 0.875,
                interpolation="bicubic",
            ),
            batch_size=batch_size,
            micro_batch=None,
            device=device,
            train=False,
            seed=0,
            workers=self._workers,
            max_bad_share=0.0,
        )
        black = _black(seen, device)
        try:
            for batch in loader:
                for part in batch:
                    yield _fitted(part["image"], self.size if fit == "pad" else side, black)
        finally:
            loader.close()


def _black(seen: DataRecord, device: torch.device) -> Tensor:
    """What a black pixel becomes: (1, 3, 1, 1)."""
    values = [-mean / std for mean, std in zip(seen.mean, seen.std, strict=True)]
    return torch.tensor(values, dtype=torch.float32, device=device)[None, :, None, None]


def _fitted(images: Tensor, side: int, black: Tensor) -> Tensor:
    """Put images in the middle of a black square, or cut their middle out: (B, 3, side, side)."""
    have = images.shape[-1]
    if have < side:
        start = (side - have) // 2
        whole = black.expand(len(images), -1, side, side).contiguous()
        whole[..., start : start + have, start : start + have] = images
        images = whole
    elif have > side:
        start = (have - side) // 2
        images = images[..., start : start + side, start : start + side]
    return images.contiguous(memory_format=torch.channels_last)

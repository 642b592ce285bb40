"""Images to try a trained model on, at any size: a task's arrays, or ImageNet's val.

Three ways to make the things in an image smaller or larger (``Fit``):

- ``resize``: the network sees an image of another size, as in the thesis's Tables 4.6 to 4.10;
- ``pad``: the network sees an image of the size it was trained at, in whose middle the resized one
  stands on black, or of which, where it is larger, the middle is cut out;
- ``mirror``: the same with the image's own mirror images in place of black.

The last two are how the literature on scale generalisation makes rescaled test sets, ``pad`` of things on a
black ground, ``mirror`` of pictures that fill their frame.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dogmed.data.loader import Batches
from dogmed.data.prepared import Prepared
from dogmed.data.progress import Progress
from dogmed.data.store import prepare
from dogmed.data.tasks import OFFICIAL_SIZES, Task, official_file, official_tasks
from dogmed.errors import ConfigError, DataError, nearest
from dogmed.models.trained import Trained
from dogmed.pretrain.images import ImageSet, open_images
from dogmed.pretrain.loader import ImageBatches
from dogmed.pretrain.subset import of_classes
from dogmed.pretrain.transforms import eval_transform
from dogmed.weights.records import DataRecord, WeightsRecord

Fit = Literal["resize", "pad", "mirror"]


class Images(Protocol):
    """Labelled images that can be had at any size, normalised for one model."""

    name: str
    """In the names of folders."""
    title: str
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

        H is ``side`` under ``resize`` and else ``size``.
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
        synthetic = prepared.source == "synthetic"
        self.title = f"{task.name}, SYNTHETIC data" if synthetic else self.name
        self.size = prepared.size
        self.splits: tuple[str, ...] = ("val", "test")

    @classmethod
    def open(
        cls,
        name: str,
        trained: Trained,
        *,
        data: Literal["official", "synthetic"] | None,
        data_dir: Path | None,
        cache_dir: Path | None,
        kind: str | None,
        progress: Progress,
    ) -> TaskImages:
        """Have a task's images ready at the size, and official ones from the files, of a model's training.

        Args:
            name: of an official task, or the path of one's own.
            trained: the model; that its classes have other names than those of one's own task is told.
            data: of an official task; None is what the model was trained on.
            data_dir: with official files.
            cache_dir: as ``prepare`` takes it.
            kind: of one's own task.
            progress: of downloads, and for notes.

        Raises:
            ConfigError: there is no official file of that size.
            DataError: the images cannot be read, or are of other classes.
        """
        seen, official = trained.record.data, official_tasks().get(name.lower())
        size, source_size = seen.trained_size or seen.size, None
        if official is not None:
            refuse_other_classes(trained, official)
            data = data or ("synthetic" if seen.source == "synthetic" else "official")
            if seen.source in ("official", "variant") and (seen.source_size or size) < size:
                source_size = seen.source_size
        if official is not None and data == "official":
            _refuse_unpublished(trained, official, source_size or size, data_dir)
        prepared = prepare(
            name,
            size=size,
            data=data or "official",
            data_dir=data_dir,
            cache_dir=cache_dir,
            kind=kind,
            upsample_from=source_size,
            progress=progress,
        )
        refuse_other_classes(trained, prepared.task)
        if seen.classes and seen.classes != prepared.task.classes:
            pairs = list(zip(seen.classes, prepared.task.classes, strict=True))
            progress.note(
                f"note: the classes of {prepared.task.name} have other names than those of {trained.title}; "
                f"they are matched by number: {', '.join(f'{a} = {b}' for a, b in pairs[:3])}"
                + (", ..." if len(pairs) > 3 else "")
            )
        return cls(prepared, trained.record)

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
        around = None if fit == "mirror" else _black(self._seen, device)
        for batch in batches:
            images = batch["image"]
            if side != self.size:
                images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
            yield _fitted(images, side if fit == "resize" else self.size, around)


class ImageNetVal:
    """ImageNet's val, decoded at each size as at pretraining: resized, then a centre crop.

    Args:
        images: labelled with the model's outputs.
        record: of the model.
        workers: processes that decode.
    """

    def __init__(self, images: ImageSet, record: WeightsRecord, workers: int):
        self._images, self._seen, self._workers = images, record.data, workers
        self.name = self.title = images.root.name
        self.kind, self.classes = "multi-class", images.classes
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
        around = None if fit == "mirror" else _black(seen, device)
        try:
            for batch in loader:
                for part in batch:
                    yield _fitted(part["image"], side if fit == "resize" else self.size, around)
        finally:
            loader.close()


def _black(seen: DataRecord, device: torch.device) -> Tensor:
    """What a black pixel becomes: (1, 3, 1, 1)."""
    values = [-mean / std for mean, std in zip(seen.mean, seen.std, strict=True)]
    return torch.tensor(values, dtype=torch.float32, device=device)[None, :, None, None]


def _fitted(images: Tensor, side: int, around: Tensor | None) -> Tensor:
    """Put images in the middle of a larger square, or cut their middle out: (B, 3, side, side).

    Args:
        images: (B, 3, H, H).
        side: of the square.
        around: the pixel that fills it; None goes on with the image's mirror images, edge pixels repeated.
    """
    have = images.shape[-1]
    if have < side and around is None:
        cell = (torch.arange(side, device=images.device) - (side - have) // 2) % (2 * have)
        cell = torch.minimum(cell, 2 * have - 1 - cell)
        images = images[..., cell, :][..., cell]
    elif around is not None and have < side:
        start = (side - have) // 2
        whole = around.expand(len(images), -1, side, side).contiguous()
        whole[..., start : start + have, start : start + have] = images
        images = whole
    elif have > side:
        start = (have - side) // 2
        images = images[..., start : start + side, start : start + side]
    return images.contiguous(memory_format=torch.channels_last)


def refuse_other_classes(trained: Trained, task: Task) -> None:
    """Make sure that a model's outputs can be told for the classes of a task.

    Names may differ, unless both are known: those of two official tasks, or the same in another order.

    Raises:
        DataError: they cannot.
    """
    record, seen = trained.record, trained.record.data
    counts = {len(seen.classes)}
    if not seen.classes:  # an ordinal head may have an output fewer than there are classes
        counts = {record.num_classes, record.num_classes + (task.kind == "ordinal")}
    both_official = task.official and seen.source in ("official", "variant", "synthetic")
    renamed = bool(seen.classes) and seen.classes != task.classes
    if seen.kind == task.kind and len(task.classes) in counts and not (renamed and both_official):
        if renamed and set(seen.classes) == set(task.classes):
            raise DataError(
                f"{task.name} has the classes of {trained.title} in another order, {_some(task.classes)} in "
                f"place of {_some(seen.classes)}: number them as the model does"
            )
        return
    mend = "give the task it was trained on"
    if record.recipe != "finetune":
        mend = (
            f"it was pretrained on {seen.name}: fine-tune it first (dogmed finetune --task {task.name} --model "
            f"{record.model} --init {trained.path}), or analyze it with --imagenet FOLDER"
        )
    raise DataError(
        f"{trained.title} tells {_some(seen.classes)} ({seen.kind or 'of no known kind'}) apart, and "
        f"{task.name} has {_some(task.classes)} ({task.kind}): {mend}"
    )


def _refuse_unpublished(trained: Trained, task: Task, size: int, data_dir: Path | None) -> None:
    """Make sure that there are official files of the size that a model was trained on."""
    if size not in OFFICIAL_SIZES:
        raise ConfigError(
            f"{trained.title} was trained at {size} px, and {task.name} is published at "
            f"{', '.join(map(str, OFFICIAL_SIZES))} px: give the images as a folder or an .npz file of your "
            "own (--task), which is resized as needed"
        )
    file = official_file(task.name, size).name
    if data_dir is not None and data_dir.is_dir() and not (data_dir / file).is_file():
        raise DataError(
            f"{data_dir} has no {file}, which {trained.title} needs, trained at {size} px; leave --data-dir "
            "out to download it"
        )


def _some(classes: Sequence[str]) -> str:
    if not classes:
        return "classes without names"
    first = ", ".join(classes[:3])
    return f"{len(classes)} classes ({first}{', ...' if len(classes) > 3 else ''})"

"""A trained network as something to ask: images in, probabilities out, as on the test split of its training."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from dogmed import metrics
from dogmed.data.loader import Batches
from dogmed.distributed import open_device
from dogmed.errors import ConfigError, DataError, WeightsError, nearest, printable
from dogmed.inference.likeness import channels, unlike
from dogmed.inference.reading.pictures import Picture, Source, read
from dogmed.models.locate import open_model
from dogmed.models.trained import Trained
from dogmed.objective import Objective

_THREADS = 4  # PIL decodes outside the GIL
_NAMED = 20  # classes in a message


@dataclass(frozen=True)
class Predictions:
    """What a network says of images, in their order; those that could not be read are not among them."""

    files: tuple[str, ...]
    """The images' names."""
    probabilities: np.ndarray
    """(N, C) float64; of multi-label tasks each column is a label of its own."""
    warnings: tuple[str, ...]
    """What makes an image unlike the training images, "" for nothing."""
    kind: str
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def labels(self) -> np.ndarray:
        """The official decisions: (N,) class indices, or (N, C) zeros and ones if multi-label."""
        return metrics.decide(self.kind, self.probabilities)

    @property
    def names(self) -> list[tuple[str, ...]]:
        """The names of the classes decided for: one an image, any number if multi-label."""
        if self.kind == "multi-label":
            return [tuple(self.classes[c] for c in np.flatnonzero(row)) for row in self.labels]
        return [(self.classes[label],) for label in self.labels]

    def rows(self) -> list[dict[str, Any]]:
        """A mapping an image, as JSON holds it: file, predicted, probabilities by class, and warning."""
        found = zip(self.files, self.names, self.probabilities, self.warnings, strict=True)
        return [
            {
                "file": file,
                "predicted": list(names),
                "probabilities": dict(zip(self.classes, map(float, values), strict=True)),
                "warning": warning,
            }
            for file, names, values, warning in found
        ]


class Classifier:
    """A fine-tuned network that classifies images; made by ``dogmed.load``.

    Args:
        trained: the network.
        device: that it is moved to.

    Raises:
        WeightsError: it was not fine-tuned on a task, or its classes are not known.
    """

    def __init__(self, trained: Trained, device: torch.device):
        seen = trained.record.data
        if trained.record.recipe != "finetune" or not (seen.kind and seen.classes):
            raise WeightsError(
                f"{trained.path} was not fine-tuned on a task with classes (recipe {trained.record.recipe}, "
                f"data {seen.name}): dogmed finetune --init {trained.path} makes a classifier of it"
            )
        self.trained, self.device, self.seen = trained, device, seen
        self.model = trained.model.to(device).to(memory_format=torch.channels_last)
        self.task, self.kind, self.classes, self.size = (
            seen.name, seen.kind, seen.classes, seen.size,
        )  # fmt: skip
        self.objective = Objective.of_outputs(
            seen.kind, len(seen.classes), trained.record.num_classes
        )
        self.temperature = trained.record.temperature or 1.0
        self.notes: tuple[str, ...] = ()
        """What should be said of the model."""
        if trained.record.temperature is None:
            self.notes += ("no temperature was fitted to this network: probabilities are raw",)
        if seen.source == "synthetic":
            self.notes += ("it was trained on SYNTHETIC images, and says nothing about real ones",)

    def predict(
        self,
        images: Source | Iterable[Source],
        *,
        names: Iterable[str] | None = None,
        batch_size: int = 64,
        raw: bool = False,
        on_error: Callable[[str, DataError], object] | None = None,
        on_progress: Callable[[int], object] | None = None,
    ) -> Predictions:
        """Classify images.

        Args:
            images: files, PIL images and arrays: one or many. An array is (H, W), (H, W, 1 or 3), or
                (N, H, W), (N, H, W, 1 or 3) for many; black is 0, and white 255 in uint8, 65535 in
                uint16, 1.0 in floats.
            names: that the images go by; None takes their paths or their numbers.
            batch_size: images at once; no influence on the result beyond rounding.
            raw: the probabilities of training, at temperature 1.
            on_error: told of an image that cannot be read, which is then left out; None raises.
            on_progress: told how many of ``images`` are done.

        Raises:
            DataError: an image cannot be read, or there is none.
            ConfigError: too many images at once for the device's memory.
        """
        parts, done = list[Predictions](), 0
        for count, chunk in self._chunks(_named(images, names), batch_size, on_error):
            for start in range(0, len(chunk), batch_size):  # a file may have many pages
                parts.append(self.classify(chunk[start : start + batch_size], raw=raw))
            done += count
            if on_progress is not None:
                on_progress(done)
        if not parts:
            raise DataError("no image could be read" if done else "there is no image to classify")
        return _joined(parts)

    def classify(self, pictures: Sequence[Picture], *, raw: bool = False) -> Predictions:
        """Classify pictures that are decoded already, all at once.

        Args:
            pictures: at least one, as ``read`` gives them.
            raw: the probabilities of training, at temperature 1.

        Raises:
            ConfigError: they are too many for the device's memory.
        """
        logits = self.logits(np.stack([picture.pixels for picture in pictures]))
        return Predictions(
            files=tuple(picture.name for picture in pictures),
            probabilities=self.probabilities(logits, raw=raw),
            warnings=tuple(self.warning(picture) for picture in pictures),
            kind=self.kind,
            classes=self.classes,
        )

    def introduction(self, *, raw: bool = False) -> str:
        """What it tells apart, of what size, and how sure it says it is; ``raw`` for temperature 1."""
        calibrated = not raw and self.trained.record.temperature is not None
        sure = f"temperature {self.temperature:.3f}" if calibrated else "raw probabilities"
        return f"{self.kind}, {len(self.classes)} classes, {self.size} px, {sure}"

    def label(self, name: str) -> int:
        """The number of a class.

        Raises:
            ConfigError: there is no such class.
        """
        if name not in self.classes:
            there = "; ".join(self.classes[:_NAMED]) + "; ..." * (len(self.classes) > _NAMED)
            raise ConfigError(
                f"class {name}: {self.task} has no such class{nearest(name, self.classes)}; there are {there}"
            )
        return self.classes.index(name)

    def warning(self, picture: Picture) -> str:
        """What makes a picture unlike the training images, and what was done to it; "" for nothing."""
        return "; ".join([*picture.notes, *unlike(picture, self.seen)])

    def probabilities(self, logits: torch.Tensor, *, raw: bool = False) -> np.ndarray:
        """Turn logits (N, num_outputs) into float32 values in float64, (N, C), as all scores take them."""
        found = self.objective.probabilities(logits / (1.0 if raw else self.temperature))
        return found.double().cpu().numpy()

    @torch.inference_mode()
    def logits(self, pixels: np.ndarray) -> torch.Tensor:
        """The network's outputs (N, num_outputs), on the CPU, for pictures (N, H, W[, 3]) uint8 at once.

        Raises:
            ConfigError: they are too many for the device's memory.
        """
        try:
            (batch,) = Batches(
                pixels,
                np.zeros((len(pixels), 1), dtype=np.int64),
                batch_size=len(pixels),
                device=self.device,
                train=False,
                mean=self.seen.mean,
                std=self.seen.std,
                cache="disk",
            )
            images = batch["image"]
            if images.shape[-1] != self.size:  # chosen after the training, which resized so
                side = (self.size, self.size)
                images = F.interpolate(images, side, mode="bilinear", antialias=True)
            return self.model(images.contiguous(memory_format=torch.channels_last)).float().cpu()
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"{len(pixels)} images of {self.size} px at once are too many for the device's memory: "
                "give a smaller --batch-size"
            ) from error

    def read(self, source: Source, name: str) -> Iterator[Picture]:
        """Decode an image as the network is to see it; ``DataError`` as ``predict``."""
        side = self.seen.trained_size or self.size
        return read(source, name, size=side, grey=channels(self.seen) == 1)

    def _chunks(
        self,
        named: Iterator[tuple[str, Source]],
        batch_size: int,
        on_error: Callable[[str, DataError], object] | None,
    ) -> Iterator[tuple[int, list[Picture]]]:
        """How many images were taken, and the pictures they gave."""

        def decode(item: tuple[str, Source]) -> list[Picture] | DataError:
            name, source = item
            try:
                return list(self.read(source, name))
            except DataError as error:
                return error

        with ThreadPoolExecutor(_THREADS) as pool:
            while chunk := list(itertools.islice(named, batch_size)):
                pictures: list[Picture] = []
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # Pillow's, of what is decided in ``read``
                    for (name, _), found in zip(chunk, pool.map(decode, chunk), strict=True):
                        if not isinstance(found, DataError):
                            pictures += found
                        elif on_error is None:
                            raise found
                        else:
                            on_error(name, found)
                yield len(chunk), pictures


def load(
    model: str | os.PathLike[str],
    *,
    device: str = "auto",
    weights_dir: str | Path | None = None,
    out: str | Path | None = None,
) -> Classifier:
    """Open a fine-tuned network.

    Args:
        model: folder of a finished run or of an export to timm, .safetensors file, name of the store, or id of
            an MLflow run.
        device: auto, cpu, cuda or cuda:N.
        weights_dir: the store; None is the user's.
        out: where the runs are, for an MLflow run's id; None is ``dogmed-runs``.

    Raises:
        WeightsError: there is no such model, or it is no classifier.
        ConfigError: there is no such device.
    """
    trained = open_model(os.fspath(model), weights_dir, out)
    return Classifier(trained, open_device(device))


def _joined(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of one network, one after the other."""
    return replace(
        parts[0],
        files=tuple(itertools.chain.from_iterable(part.files for part in parts)),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        warnings=tuple(itertools.chain.from_iterable(part.warnings for part in parts)),
    )


def _named(
    images: Source | Iterable[Source], names: Iterable[str] | None
) -> Iterator[tuple[str, Source]]:
    """Pair the images with their names."""
    many = _many(images)
    if names is not None:
        return zip(names, many, strict=True)
    return (
        (printable(image) if isinstance(image, str | os.PathLike) else f"image {number}", image)
        for number, image in enumerate(many)
    )


def _many(images: Source | Iterable[Source]) -> Iterable[Source]:
    if isinstance(images, np.ndarray):
        if images.ndim not in (2, 3, 4) or (images.ndim == 3 and images.shape[2] in (2, 4)):
            raise DataError(
                f"the array has shape {images.shape}, expected (H, W), (H, W, 1 or 3), (N, H, W) or "
                "(N, H, W, 1 or 3)"
            )
        one = images.ndim == 2 or (images.ndim == 3 and images.shape[2] in (1, 3))
        return [images] if one else images
    if isinstance(images, str | os.PathLike | bytes | Image.Image):
        return [images]
    return images

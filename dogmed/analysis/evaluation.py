"""Trying one model on one set of images in many ways; what was done is kept, so that a stop costs little."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dogmed import stats
from dogmed.analysis.images import Fit, Images
from dogmed.checkpoint import atomic_path
from dogmed.console import Console, duration
from dogmed.errors import ConfigError
from dogmed.models.trained import Trained
from dogmed.objective import Objective

MANY_CLASSES = 100
"""Beyond it accuracy@1 and @5 are told, as is usual for ImageNet, and AUC is not worked out."""


class Score(NamedTuple):
    """A share, with its 95% interval over the images."""

    value: float
    low: float
    high: float


class Evaluation:
    """One model on one set of images.

    Args:
        trained: the model; it is moved to the device.
        images: what it is tried on.
        folder: probabilities are kept in ``predictions`` below it; those of other weights or images are
            made anew.
        console: told of every point that was worked out.
        device: where to compute.
        batch_size: images at once.
        resamples: of the bootstrap behind the intervals.
        points: how many there will be, for the time left; None does not tell.
    """

    def __init__(
        self,
        trained: Trained,
        images: Images,
        folder: Path,
        console: Console,
        *,
        device: torch.device,
        batch_size: int,
        resamples: int,
        points: int | None = None,
    ):
        self.trained, self.images, self.folder = trained, images, folder
        self.console, self.device, self.batch_size = console, device, batch_size
        self.model = trained.model.to(device).to(memory_format=torch.channels_last)
        self.objective = _objective(trained, images)
        self.resamples, self.points, self.done = resamples, points, 0
        self._spent: list[float] = []

    def probabilities(
        self,
        split: str,
        *,
        side: int,
        fit: Fit = "resize",
        change: contextlib.AbstractContextManager[Any] | None = None,
        changed: str = "",
    ) -> np.ndarray:
        """Classify a split, or read what was kept of an earlier time: (N, classes) float32.

        Args:
            split: of the images.
            side: that they are resized to.
            fit: what of them the network sees.
            change: entered for the time, what makes the network another one (other kernels, say).
            changed: name of that change, a part of a file's name; "" for none.

        Raises:
            ConfigError: the network cannot take images of this size.
        """
        assert (change is None) == (not changed)
        key = "-".join([split, f"{side}px", fit, *([changed] if changed else [])])
        assert re.fullmatch(r"[\w.+-]+", key), key
        path, made_of = self.folder / "predictions" / f"{key}.npz", self._made_of(split)
        found = _read(path, made_of, len(self.images.labels(split)))
        self.done += 1
        if found is not None:
            return found
        began = time.monotonic()
        with change or contextlib.nullcontext():
            found = self._predict(split, side, fit)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, probabilities=found, made_of=np.array(made_of))
        self._spent.append(time.monotonic() - began)
        self._tell(key)
        return found

    def scores(self, split: str, probabilities: np.ndarray) -> dict[str, Score]:
        """Score probabilities: ``acc`` and ``auc`` with bootstrap intervals over the images.

        Of many classes ``acc`` and ``acc5``, the accuracies @1 and @5, with Wilson's intervals.
        """
        labels = self.images.labels(split)
        if self.many:
            ranked = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
            hit = ranked == labels
            return {"acc": _share(hit[:, 0]), "acc5": _share(hit.any(1))}
        found = stats.estimates(self.resampled(split, probabilities))
        return {
            name: Score(found[name].value, found[name].low, found[name].high)
            for name in ("acc", "auc")
            if name in found
        }

    def resampled(self, split: str, probabilities: np.ndarray) -> stats.Resampled:
        """Make probabilities ready for ``stats.differences`` with others of the same split."""
        labels = self.images.labels(split)
        return stats.resample(self.images.kind, labels, [probabilities], resamples=self.resamples)

    @property
    def many(self) -> bool:
        """Whether there are so many classes that accuracy@1 and @5 are what is told."""
        return self.images.kind == "multi-class" and len(self.images.classes) > MANY_CLASSES

    @torch.inference_mode()
    def _predict(self, split: str, side: int, fit: Fit) -> np.ndarray:
        parts = []
        batches = self.images.batches(
            split, side=side, fit=fit, batch_size=self.batch_size, device=self.device
        )
        with contextlib.closing(batches):  # type: ignore[type-var]
            for batch in batches:
                try:
                    logits = self.model(batch)
                except torch.OutOfMemoryError as error:
                    raise ConfigError(
                        f"--batch-size {self.batch_size}: too many images of {side} px at once for "
                        "the device's memory; give fewer"
                    ) from error
                except (RuntimeError, AssertionError, ValueError) as error:
                    reason = str(error).strip().partition("\n")[0]
                    raise ConfigError(
                        f"{self.trained.title} cannot take images of {batch.shape[-1]} px ({reason})"
                    ) from error
                parts.append(self.objective.probabilities(logits).cpu().numpy())
        return np.concatenate(parts)

    def _made_of(self, split: str) -> str:
        """What the probabilities depend on besides the key."""
        facts = (self.trained.record.sha256, self.images.digest(split), str(self.images.size))
        return hashlib.sha256("\0".join(facts).encode()).hexdigest()

    def _tell(self, key: str) -> None:
        count = f"{self.done} of {self.points}" if self.points else str(self.done)
        left = ""
        if self.points and self.done < self.points:
            rest = (self.points - self.done) * sum(self._spent) / len(self._spent)
            left = f"   left about {duration(rest)}"
        self.console.line(
            f"{count:>10}  {self.trained.title}  {key}  {duration(self._spent[-1])}{left}"
        )


def _share(hits: np.ndarray) -> Score:
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(int(hits.sum()), len(hits), method="wilson")
    return Score(float(hits.mean()), float(low), float(high))


def _objective(trained: Trained, images: Images) -> Objective:
    """The probabilities that the outputs stand for; an ordinal head has an output fewer than classes."""
    fewer = images.kind == "ordinal" and trained.record.num_classes == len(images.classes) - 1
    ordinal = "continuation-ratio" if fewer else "cross-entropy"
    return Objective(images.kind, len(images.classes), ordinal=ordinal)


def _read(path: Path, made_of: str, count: int) -> np.ndarray | None:
    """Kept probabilities; None if there are none, or not these, or the file is damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as kept:
            found, of = kept["probabilities"], str(kept["made_of"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return found if of == made_of and len(found) == count else None

"""Trying one model on one set of images in many ways; what was done is kept, so that a stop costs little."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dogmed import stats
from dogmed.analysis.images import Fit, Images
from dogmed.checkpoint import atomic_path
from dogmed.console import Console, Stopper, count, duration
from dogmed.errors import ConfigError, Interrupted
from dogmed.models.gaussderresnet import GaussDerResNet
from dogmed.models.trained import Trained
from dogmed.objective import Objective
from dogmed.stats.bootstrap import replicates_of

MANY_CLASSES = 100
"""Beyond it accuracy@1 and @5 are told, as is usual for ImageNet, and AUC is not worked out."""


class Score(NamedTuple):
    """A share, with its 95% interval over the images."""

    value: float
    low: float
    high: float


class Points:
    """How far an analysis has come, all its models together.

    Args:
        total: how many points there will be; None does not tell what is left.
        cost: of all of them, as ``Evaluation.cost`` counts; None takes them to last equally long.
    """

    def __init__(self, total: int | None = None, cost: float | None = None):
        self.total, self.cost, self.done = total, cost, 0
        self._passed = self._worked = self._seconds = 0.0

    def did(self, cost: float, seconds: float | None) -> None:
        """Count a point, with the seconds that it took unless it was kept of an earlier time."""
        cost = 1.0 if self.cost is None else cost
        self.done += 1
        self._passed += cost
        if seconds is not None:
            self._worked, self._seconds = self._worked + cost, self._seconds + seconds

    @property
    def left(self) -> float | None:
        """Seconds, by the pace so far; None if that cannot be told."""
        whole = self.total if self.cost is None else self.cost
        if whole is None or not self._worked or self.done == self.total:
            return None
        return max(0.0, whole - self._passed) * self._seconds / self._worked


@contextlib.contextmanager
def stoppable(console: Console, points: Points) -> Iterator[None]:
    """Let a signal end an analysis, and say how far it came.

    Raises:
        Interrupted: SIGINT or SIGTERM came.
    """
    try:
        with Stopper(console):
            yield
    except Interrupted as stop:
        raise Interrupted(
            f"stopped with {points.done} of {count(points.total or 0, 'point')}; the same command continues",
            stop.exit_code - 128,
        ) from None


class Predicted(NamedTuple):
    """What a model makes of a split."""

    probabilities: np.ndarray
    """(N, classes) float32."""
    channels: np.ndarray | None
    """Of a network of several scale channels the one that gives the highest score: (N,) int64."""


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
        points: shared by all models of an analysis, or how many this one will have.
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
        points: Points | int | None = None,
    ):
        self.trained, self.images, self.folder = trained, images, folder
        self.console, self.device, self.batch_size = console, device, batch_size
        self.model = trained.model.to(device).to(memory_format=torch.channels_last)
        outputs = trained.record.num_classes
        self.objective = Objective.of_outputs(images.kind, len(images.classes), outputs)
        self.resamples = resamples
        self.points = points if isinstance(points, Points) else Points(points)

    def predicted(
        self,
        split: str,
        *,
        side: int,
        fit: Fit = "resize",
        change: contextlib.AbstractContextManager[Any] | None = None,
        changed: str = "",
    ) -> Predicted:
        """Classify a split, or read what was kept of an earlier time.

        Args:
            split: of the images.
            side: that they are resized to.
            fit: what of them the network sees.
            change: entered for the time, what makes the network another one (other kernels, say).
            changed: name of that change, a part of a file's name; "" for none.

        Raises:
            ConfigError: the device's memory is too small for so many images at once.
        """
        assert (change is None) == (not changed)
        key = "-".join([split, f"{side}px", fit, *([changed] if changed else [])])
        assert re.fullmatch(r"[\w.+-]+", key), key
        path, made_of = self.folder / "predictions" / f"{key}.npz", self._made_of(split)
        found = _read(path, made_of, len(self.images.labels(split)))
        if found is not None and (found.channels is None) is not decides(self.model):
            self.points.did(self.cost(split, side, fit), None)
            return found
        began = time.monotonic()
        with change or contextlib.nullcontext():
            found = self._predict(split, side, fit)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: array for name, array in found._asdict().items() if array is not None}
        own = path.with_name(
            f"{path.stem}.{os.getpid()}.npz"
        )  # another call may be at the same point
        with atomic_path(own) as temporary, temporary.open("wb") as file:
            np.savez(file, made_of=np.array(made_of), **kept)
        own.replace(path)
        seconds = time.monotonic() - began
        self.points.did(self.cost(split, side, fit), seconds)
        self._tell(key, seconds)
        return found

    def probabilities(self, split: str, **point: Any) -> np.ndarray:
        """The probabilities of ``predicted``: (N, classes) float32."""
        return self.predicted(split, **point).probabilities

    def cost(self, split: str, side: int, fit: Fit = "resize") -> float:
        """What a point costs beside others of this model: the pixels that the network sees."""
        seen = side if fit == "resize" else self.images.size
        return float(len(self.images.labels(split)) * seen**2)

    def scores(
        self, split: str, probabilities: np.ndarray, resampled: stats.Resampled | None = None
    ) -> dict[str, Score]:
        """Score probabilities: ``acc`` and ``auc`` with bootstrap intervals over the images.

        Of many classes ``acc`` and ``acc5``, the accuracies @1 and @5, with Wilson's intervals.

        Args:
            split: of the images.
            probabilities: (N, classes).
            resampled: what ``resampled`` made of them, if it is there already.
        """
        labels = self.images.labels(split)
        if self.many:
            return {name: _share(hits) for name, hits in _hits(labels, probabilities).items()}
        found = stats.estimates(resampled or self.resampled(split, probabilities))
        return {
            name: Score(found[name].value, found[name].low, found[name].high)
            for name in ("acc", "auc")
            if name in found
        }

    def resampled(self, split: str, probabilities: np.ndarray) -> stats.Resampled:
        """Make probabilities ready for ``stats.differences`` with others of the same split.

        Of many classes they know ``acc`` and ``acc5`` alone.
        """
        labels = self.images.labels(split)
        if self.many:
            return _resampled_hits(labels, probabilities, self.resamples)
        return stats.resample(self.images.kind, labels, [probabilities], resamples=self.resamples)

    @property
    def many(self) -> bool:
        """Whether there are so many classes that accuracy@1 and @5 are what is told."""
        return self.images.kind == "multi-class" and len(self.images.classes) > MANY_CLASSES

    @torch.inference_mode()
    def _predict(self, split: str, side: int, fit: Fit) -> Predicted:
        parts, channels = [], []
        batches = self.images.batches(
            split, side=side, fit=fit, batch_size=self.batch_size, device=self.device
        )
        with contextlib.closing(batches):  # type: ignore[type-var]
            for batch in batches:
                try:
                    logits, channel = classified(self.model, batch)
                except torch.OutOfMemoryError as error:
                    raise ConfigError(
                        f"--batch-size {self.batch_size}: too many images of {side} px at once for "
                        "the device's memory; give fewer"
                    ) from error
                parts.append(self.objective.probabilities(logits).cpu().numpy())
                channels += [] if channel is None else [channel.cpu().numpy()]
        return Predicted(np.concatenate(parts), np.concatenate(channels) if channels else None)

    def _made_of(self, split: str) -> str:
        """What the probabilities depend on besides the key."""
        record, seen = self.trained.record, self.trained.record.data
        facts = {
            "weights": [record.sha256, record.model, record.options],
            "images": [self.images.digest(split), self.images.size],
            "seen": [seen.mean, seen.std, seen.crop_pct],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _tell(self, key: str, seconds: float) -> None:
        done, total = self.points.done, self.points.total
        count = f"{done} of {total}" if total else str(done)
        left = self.points.left
        more = "" if left is None else f"   left about {duration(left)}"
        self.console.line(f"{count:>10}  {self.trained.title}  {key}  {duration(seconds)}{more}")


def decides(model: nn.Module) -> bool:
    """Whether one of several scale channels decides: a GaussDerResNet that takes the largest score."""
    several = isinstance(model, GaussDerResNet) and len(model.channel_scales) > 1
    return several and model.pooling == "max"


def classified(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the logits, (B, C), and of a network that takes the best of scale channels which it was, (B,)."""
    if not decides(model):
        return model(images), None
    assert isinstance(model, GaussDerResNet)
    features = model.forward_features(images)
    scores = model.forward_channels(features).amax(2)  # (S, B), of each channel's best class
    return model.forward_head(features), scores.argmax(0)


def total_stride(model: nn.Module) -> int:
    """Pixels to a cell of the last feature map, along each axis; 1 of a network that does not tell."""
    info: Any = getattr(model, "feature_info", None) or [{}]
    return int(info[-1].get("reduction", 1))


def _hits(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Whether the label is the likeliest class, and among the five likeliest: (N,) each."""
    ranked = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    hit = ranked == labels
    return {"acc": hit[:, 0], "acc5": hit.any(1)}


def _resampled_hits(
    labels: np.ndarray, probabilities: np.ndarray, resamples: int
) -> stats.Resampled:
    """As ``stats.resample`` of one run, but for the accuracies @1 and @5 alone."""
    hits = _hits(labels, probabilities)

    def shares(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {name: hit @ weights / len(hit) for name, hit in hits.items()}

    return stats.Resampled(
        kind="multi-class",
        labels=labels,
        classes=probabilities.shape[1],
        seed=0,
        scores={name: np.array([hit.mean()]) for name, hit in hits.items()},
        replicates=replicates_of([shares], len(labels), resamples, 0)[0],
        seed_variance=dict.fromkeys(hits, 0.0),
    )


def _share(hits: np.ndarray) -> Score:
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(int(hits.sum()), len(hits), method="wilson")
    return Score(float(hits.mean()), float(low), float(high))


_DAMAGED = (
    OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error,
    NotImplementedError, RuntimeError,  # a flipped bit may ask for another format, or a password
)  # fmt: skip


def _read(path: Path, made_of: str, count: int) -> Predicted | None:
    """Kept predictions; None if there are none, or not these, or the file is damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as kept:
            found, of = kept["probabilities"], str(kept["made_of"])
            channels = kept.get("channels")
    except _DAMAGED:
        return None
    sound = found.dtype == np.float32 and found.ndim == 2 and np.isfinite(found).all()
    return Predicted(found, channels) if of == made_of and sound and len(found) == count else None

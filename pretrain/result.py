"""What a run shows and leaves behind: its pace, its epochs in words, weights in the store."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dogmed import config as configuration
from dogmed.console import Console, duration
from dogmed.data.progress import human
from dogmed.errors import ConfigError, WeightsError
from dogmed.models.weights import read_weights, save_weights, verify
from dogmed.options import settled
from dogmed.pretrain.build import Network
from dogmed.pretrain.config import PretrainConfig
from dogmed.pretrain.folder import PretrainFolder
from dogmed.pretrain.images import ImageSet
from dogmed.pretrain.loop import Loop
from dogmed.weights.records import (
    DataRecord,
    WeightsRecord,
    default_weights_dir,
    read_record,
    weights_path,
)

LINE_SECONDS = 60  # without a terminal, a long epoch says how it goes this often
ELSEWHERE = frozenset(
    {
        "data",
        "cache_dir",
        "weights_dir",
        "overwrite_weights",
        "out",
        "device",
        "dry_run",
        "resume",
        "tracking",
        "record",
    }
)  # options that say nothing of the training, or stand in the record under names of their own


@dataclass(frozen=True)
class Store:
    """Where a run's weights go.

    Args:
        path: the file that ``--init RECIPE`` reads.
        final: the run's own copy.
        overwrite: whether other weights there may be replaced.
    """

    path: Path
    final: Path
    overwrite: bool

    @classmethod
    def of(cls, config: PretrainConfig, folder: PretrainFolder) -> Store:
        """The place for the model and recipe of a run."""
        home = config.weights_dir.expanduser() if config.weights_dir else default_weights_dir()
        path = weights_path(home, config.model, config.recipe)
        return cls(path, folder.final, config.overwrite_weights)

    def refuse_unwritable(self, parameters: int, averaged: bool) -> None:
        """Make sure, before anything is computed or made, that the weights will have a place.

        Args:
            parameters: of the model.
            averaged: whether checkpoints hold an average of the weights too.

        Raises:
            ConfigError: a folder cannot be written, or the disk is too full.
        """
        # weights; for the last checkpoint also two moments, and twice while it is replaced
        copies = 2 * (3 + averaged) + 2
        need = {self.path.parent: 4 * parameters, self.final.parent: copies * 4 * parameters}
        for folder, size in need.items():
            there = next(place for place in (folder, *folder.parents) if place.exists())
            if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
                raise ConfigError(f"cannot write to {folder}: {there} is no folder to write to")
            free = shutil.disk_usage(there).free
            if free < size:
                raise ConfigError(
                    f"{folder} has {human(free)} free, and the checkpoints of this model take "
                    f"{human(size)}: free some space, or give another --out or --weights-dir"
                )

    def refuse_other(self, *, begin: bool) -> None:
        """Make sure that nobody's weights would be replaced unasked.

        Args:
            begin: the run starts from nothing: even weights of its own would be an earlier run's.

        Raises:
            ConfigError: other weights are there.
        """
        other = self.path.exists() if begin else self._holds_other()
        if other and not self.overwrite:
            raise ConfigError(
                f"{self.path} holds weights of another run: give another --weights-dir, move the file "
                "away, or replace it with --overwrite-weights"
            )

    def publish(self) -> str:
        """Copy the run's weights into the store; returns a line that says what was done."""
        if self.path.is_file() and not self._holds_other():
            with contextlib.suppress(WeightsError):  # damaged: they are written again
                verify(self.path)
                return f"weights {self.path}"
        elif self.path.is_file() and not self.overwrite:
            return (
                f"weights stay in {self.final}: {self.path} holds those of another run "
                "(--overwrite-weights replaces them)"
            )
        state, record, _ = read_weights(self.final)
        assert record is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(self.path, state, record)
        return f"weights {self.path}"

    def _holds_other(self) -> bool:
        if not self.path.exists():
            return False
        try:
            theirs, ours = read_record(self.path), read_record(self.final)
        except WeightsError:
            return True
        return theirs is None or ours is None or theirs.sha256 != ours.sha256


class Pace:
    """How fast a run goes: a bar on a terminal, a line a minute elsewhere.

    Args:
        console: where to.
        loop: whose steps are counted.
        epochs: of the whole run.
    """

    def __init__(self, console: Console, loop: Loop, epochs: int):
        self.console, self.loop, self.epochs = console, loop, epochs
        self.batches = loop.train_batches
        self.steps = 0
        self.started = self.told = time.monotonic()
        self.waited = self.batches.wait_seconds

    def step(self, step: int, steps: int) -> None:
        """Count one step more; the first starts the clock, since it also warms up."""
        now, epoch = time.monotonic(), self.loop.progress.epoch
        if self.steps == 0:
            self.started, self.waited = now, self.batches.wait_seconds
        self.steps += 1
        if not self.console.enabled or self.steps == 1:
            return
        seconds = (now - self.started) / (self.steps - 1)
        share = (self.batches.wait_seconds - self.waited) / max(now - self.started, 1e-9)
        left = seconds * ((self.epochs - epoch) * steps - step)
        note = f"data wait {min(share, 1):.0%}, left {duration(left)}"
        self.console.step(epoch + 1, self.epochs, step, steps, self.batches.batch_size, note)
        if not self.console.is_terminal and now - self.told > LINE_SECONDS:
            self.told = now
            pace = self.batches.batch_size / max(seconds, 1e-9)
            self.console.line(
                f"epoch {epoch + 1}/{self.epochs} step {step}/{steps}  {pace:,.0f} img/s  {note}"
            )


def weights_record(
    config: PretrainConfig,
    network: Network,
    train: ImageSet,
    *,
    parameters: int,
    epochs: int,
    score: dict[str, float],
    facts: dict[str, Any],
) -> WeightsRecord:
    """Say what weights of a run are.

    Args:
        config: options of the run.
        network: the model as built.
        train: the images trained on.
        parameters: of the model.
        epochs: trained up to these weights.
        score: figures on val, as shares.
        facts: as ``dogmed.provenance.provenance`` gives them.
    """
    training = settled(configuration.to_dict(config))
    return WeightsRecord(
        model=config.model,
        num_classes=len(train.classes),
        params=parameters,
        recipe=config.recipe,
        init="scratch",
        epochs=epochs,
        score=score,
        data=DataRecord(
            name=config.record.data,
            size=config.size,
            source_size=None,
            interpolation="bicubic",
            mean=network.mean,
            std=network.std,
            licence=config.record.data_licence,
            kind="multi-class",
            classes=train.classes,
            images=len(train),
            crop_pct=config.eval.crop_pct,
        ),
        licence=config.record.licence,
        options=network.options,
        training={name: value for name, value in training.items() if name not in ELSEWHERE},
        seed=config.seed,
        git_commit=facts["git_commit"],
        versions=facts["versions"],
    )


def scores(row: dict[str, Any], *, averaged: bool = False) -> dict[str, float]:
    """An epoch's figures on val: of the network, or of its moving average."""
    return {
        name: row[f"{'ema' if averaged else 'val'}_{name}"] for name in ("acc1", "acc5", "loss")
    }


def curves(row: dict[str, Any]) -> dict[str, Any]:
    """An epoch's figures, without its number."""
    return {name: value for name, value in row.items() if name != "epoch"}


def epoch_line(row: dict[str, Any], improved: bool) -> str:
    """What the terminal says of one epoch; ``*`` marks the best so far."""
    average = f"average {row['ema_acc1']:.4f}  " if "ema_acc1" in row else ""
    return (
        f"train loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
        f"acc@1 {row['val_acc1']:.4f}{'*' if improved else ' '} acc@5 {row['val_acc5']:.4f}  {average}"
        f"lr {row['lr']:.2e}  {row['images_per_second']:,.0f} img/s  "
        f"data wait {row['data_wait']:.0%}"
    )


def summary(report: dict[str, Any]) -> str:
    """The result in two lines, for a person, and one more if images were skipped."""
    val, picked = report["val"], "picked on the same images"
    if report["selected_on"] == "last":
        picked = f"the last; the best on val was {report['best_epoch']}"
    elif report["selected_on"] == "ema":
        picked = "the moving average"
    bad, skipped = report["data"]["unreadable"], ""
    if bad:
        skipped = f"skipped {', '.join(bad[:3])}{', ...' * (len(bad) > 3)}: unreadable\n"
    return skipped + (
        f"val     acc@1 {val['acc1']:.4f}, acc@5 {val['acc5']:.4f}   "
        f"(n = {report['data']['val_images']}, {report['data']['classes']} classes; "
        f"epoch {report['epoch']} of {report['epochs']}, {picked})\n"
        f"time    {duration(report['seconds'])}, {report['images_per_second']:,.0f} img/s, "
        f"waiting for data {report['data_wait']:.0%}"
    )

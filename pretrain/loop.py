"""The training loop, whole: micro-batches, processes, the scale of each step, validation, exact resume.

Plain PyTorch. Nothing random is carried from step to step: what a step draws (its scale, its drop paths)
follows from the seed and its number, and what an image draws from the seed, the epoch and its place in the
data. So a checkpoint holds no generator, and a run goes on from (epoch, step) on any number of processes:
on a CPU with the same number bit for bit, with another up to rounding and other drop paths.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dogmed import checkpoint
from dogmed.distributed import World
from dogmed.errors import DogmedError, TrainingError
from dogmed.loops import AGREE_STEPS, LOSS_CHECK_STEPS, stopped
from dogmed.models.scaling import BatchScale, Draw, TwoSpeeds, downsample, resized_kernels
from dogmed.pretrain.loader import ImageBatches


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs to know of the configuration."""

    epochs: int
    seed: int
    label_smoothing: float
    clip_grad: float | None = None
    save_minutes: float = 15.0
    ema_decay: float | None = None
    ema_warmup: bool = True


@dataclass
class Progress:
    """How far a run has come; saved with every checkpoint."""

    epoch: int = 0
    """Epochs completed, validation included."""
    step: int = 0
    """Steps completed of the epoch under way."""
    best_epoch: int = 0
    """The one with the highest accuracy@1 on val."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The line of every completed epoch, as in ``metrics.jsonl``."""
    epoch_seconds: float = 0.0
    """Time spent training in the epoch under way."""
    wait_seconds: float = 0.0
    """Of these, waiting for images."""


class Loop:
    """Train ``model``, validate each epoch, and keep the state from which to continue.

    Args:
        model: the bare network, on the world's device.
        compiled: the same network compiled, or itself.
        optimizer: over the model's parameters.
        scheduler: a timm scheduler, advanced by ``step_update`` after every step.
        batches: the loaders of ``train`` and ``val``.
        world: the processes that take part.
        settings: epochs, seed, loss, clipping, saving.
        scale: the random scale of each step; None for whole images always.
    """

    def __init__(
        self,
        model: nn.Module,
        compiled: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        batches: dict[str, ImageBatches],
        world: World,
        settings: LoopSettings,
        scale: BatchScale | None,
    ):
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.train_batches, self.val_batches = batches["train"], batches["val"]
        self.world, self.settings, self.scale = world, settings, scale
        network: nn.Module = TwoSpeeds(model, compiled)
        if world.size > 1:
            network = DistributedDataParallel(
                network,
                device_ids=[world.device.index] if world.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )
        self.network = network
        self.average: ModelEmaV3 | None = None
        if settings.ema_decay is not None:
            decay, warmup = settings.ema_decay, settings.ema_warmup
            self.average = ModelEmaV3(model, decay=decay, use_warmup=warmup)
        self.progress = Progress()
        self.extra_state: dict[str, Any] = {}  # what the caller wants saved with every checkpoint
        self.lr = float("nan")  # of the last step taken
        self.saved = "none"  # the last good state, for messages
        steps = len(self.train_batches)
        self.losses = torch.zeros(steps, dtype=torch.float64, device=world.device)
        """Of this epoch's steps, each summed over this process's images."""
        self._unchecked: list[tuple[int, float]] = []  # (step, learning rate)
        self._clock = {"saved": 0.0, "lap": 0.0, "waited": 0.0}
        self.autocast = torch.autocast(
            world.device.type, torch.bfloat16, enabled=world.device.type == "cuda"
        )

    # ---- one step -----------------------------------------------------------------------------

    def train_step(self, micro_batches: list[dict[str, Tensor]]) -> None:
        """One step of the optimizer over this process's share of a batch; nothing in it waits for CUDA.

        The loss is the mean over the global batch, written as this process's share of it:
        DistributedDataParallel averages gradients over processes, so each scales its sum by their
        number. Gradients are exchanged once a step, with the last micro-batch.
        """
        world, step = self.world, self.progress.step
        number = self.progress.epoch * len(self.train_batches) + step
        draw = self.scale.draw(number) if self.scale else Draw()
        share = world.size / self.train_batches.batch_size
        self.optimizer.zero_grad(set_to_none=True)
        for i, batch in enumerate(micro_batches):
            torch.manual_seed(_seed(self.settings.seed, number, world.rank, i))
            last = i + 1 == len(micro_batches)
            sync = contextlib.nullcontext() if last or world.size == 1 else self.network.no_sync()
            with sync, resized_kernels(self.model, draw.kernel_size):
                images = downsample(batch["image"], draw.factor)
                with self.autocast:
                    logits = self.network(images, draw == Draw())
                loss = F.cross_entropy(
                    logits.float(),
                    batch["label"],
                    label_smoothing=self.settings.label_smoothing,
                    reduction="sum",
                )
                (loss * share).backward()
            self.losses[step] += loss.detach()
        if self.settings.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad)
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model, number + 1)
        self._unchecked.append((step, self.lr))
        self.progress.step += 1
        self.scheduler.step_update(number + 1)

    # ---- the course of a run ------------------------------------------------------------------

    def run(
        self,
        last: Path,
        *,
        on_step: Callable[[int, int], None],
        on_epoch: Callable[[dict[str, Any], bool], None],
        on_best: Callable[[], None],
        stop_requested: Callable[[], int | None],
    ) -> None:
        """Train to the end, from wherever ``progress`` stands.

        Args:
            last: the checkpoint to keep up to date.
            on_step: told (step, steps of the epoch) after every step.
            on_epoch: given the epoch's line of ``metrics.jsonl`` and whether it is the best so far,
                before the checkpoint is written.
            on_best: called after the checkpoint of an epoch that is the best so far.
            stop_requested: the number of a signal that asks to stop, or None.

        Raises:
            TrainingError: the loss is not finite, or the device's memory does not suffice.
            Interrupted: a stop was requested; the state is saved and the run can be continued.
        """
        progress, steps = self.progress, len(self.train_batches)
        self._clock["saved"] = time.monotonic()
        while progress.epoch < self.settings.epochs:
            self._train_epoch(last, on_step, stop_requested)
            row = self._close_epoch()
            best = max((r["val_acc1"] for r in progress.rows), default=-math.inf)
            improved = row["val_acc1"] > best
            progress.rows.append(row)
            if improved:
                progress.best_epoch = progress.epoch
            on_epoch(row, improved)
            self.save(last)
            if improved:
                on_best()
            signal_number = stop_requested()
            stop = self.world.any(signal_number is not None)
            if stop and progress.epoch < self.settings.epochs:
                raise stopped(progress.epoch, progress.step, steps, signal_number)

    def _train_epoch(
        self,
        last: Path,
        on_step: Callable[[int, int], None],
        stop_requested: Callable[[], int | None],
    ) -> None:
        progress, batches = self.progress, self.train_batches
        steps = len(batches)
        self.network.train()
        batches.set_epoch(progress.epoch, start_step=progress.step)
        self._clock |= {"lap": time.monotonic(), "waited": batches.wait_seconds}
        for micro_batches in batches:
            with _enough_memory("--micro-batch (the batch stays what it is)"):
                self.train_step(micro_batches)
            on_step(progress.step, steps)
            alone, at_end = self.world.size == 1, progress.step == steps
            often = alone and self.world.device.type == "cpu"
            if often or at_end or progress.step % LOSS_CHECK_STEPS == 0:
                self.check_losses()
            if at_end or not (alone or progress.step % AGREE_STEPS == 0):
                continue
            signal_number = stop_requested()
            stop = self.world.any(signal_number is not None)
            due = 0 < self.settings.save_minutes * 60 < time.monotonic() - self._clock["saved"]
            if stop or self.world.any(due):
                self.save(last)
            if stop:
                raise stopped(progress.epoch, progress.step, steps, signal_number)
        self._count_time()

    def _count_time(self) -> None:
        now, waited = time.monotonic(), self.train_batches.wait_seconds
        self.progress.epoch_seconds += now - self._clock["lap"]
        self.progress.wait_seconds += waited - self._clock["waited"]
        self._clock |= {"lap": now, "waited": waited}

    def check_losses(self) -> None:
        """Make sure that the losses of the steps since the last check are finite (all take part).

        Raises:
            TrainingError: one is not.
        """
        if not self._unchecked:
            return
        first = self._unchecked[0][0]
        losses = self.world.sum(self.losses[first : self.progress.step].clone())
        bad = torch.isfinite(losses).logical_not().nonzero()
        if len(bad):
            step, lr = self._unchecked[int(bad[0])]
            raise TrainingError(
                f"the loss is not finite in epoch {self.progress.epoch + 1}, step {step + 1} of "
                f"{len(self.losses)}, at learning rate {lr:.3g}; last good checkpoint: {self.saved}. "
                "Lower --optim.lr-base or set --optim.clip-grad 1, and start over with --resume never"
            )
        self._unchecked.clear()

    def _close_epoch(self) -> dict[str, Any]:
        """Validate, and count the epoch as done; returns its line."""
        progress, started = self.progress, time.monotonic()
        images = len(self.train_batches) * self.train_batches.batch_size
        train_loss = float(self.world.sum(self.losses.sum())) / images
        scores = {f"val_{name}": score for name, score in self.evaluate(self.model).items()}
        if self.average is not None:
            averaged = self.evaluate(self.average.module)
            scores |= {f"ema_{name}": score for name, score in averaged.items()}
        seconds, waited = progress.epoch_seconds, progress.wait_seconds
        progress.epoch += 1
        progress.step, progress.epoch_seconds, progress.wait_seconds = 0, 0.0, 0.0
        self.losses.zero_()
        return {
            "epoch": progress.epoch,
            "train_loss": train_loss,
            **scores,
            "lr": self.lr,
            "epoch_seconds": round(seconds + time.monotonic() - started, 3),
            "images_per_second": round(images / max(seconds, 1e-9), 1),
            "data_wait": round(min(1.0, waited / max(seconds, 1e-9)), 4),
        }

    # ---- evaluation ---------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Score ``model`` on val in float32: cross-entropy (not smoothed), accuracy@1 and @5 as shares.

        Raises:
            TrainingError: an output is not finite, or val has no readable image.
        """
        self.world.share_buffers(model)
        sums = torch.zeros(4, dtype=torch.float64, device=self.world.device)
        model.eval()
        self.val_batches.set_epoch(0)
        for batch in (batch for batches in self.val_batches for batch in batches):
            with _enough_memory("--eval.batch-size"):
                logits, labels = model(batch["image"]).float(), batch["label"]
            found = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]  # (B, 5)
            sums[0] += F.cross_entropy(logits, labels, reduction="sum")
            sums[1] += found[:, 0].sum()
            sums[2] += found.sum()
            sums[3] += len(labels)
        loss, first, fifth, count = self.world.sum(sums).tolist()
        if not count or not math.isfinite(loss):
            raise TrainingError(
                f"the model's outputs on val are not finite after epoch {self.progress.epoch + 1}; last "
                f"good checkpoint: {self.saved}. Lower --optim.lr-base"
                if count
                else "val has no readable image"
            )
        return {"loss": loss / count, "acc1": first / count, "acc5": fifth / count}

    # ---- state --------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write everything that the rest of the run depends on (all processes take part).

        Raises:
            TrainingError: a loss or a parameter is not finite; the file is as it was.
            DogmedError: the file cannot be written.
        """
        self.check_losses()
        if self.progress.step:
            self._count_time()
        finite = torch.stack([p.detach().isfinite().all() for p in self.model.parameters()]).all()
        if not finite:
            raise TrainingError(
                f"a parameter is not finite after epoch {self.progress.epoch}, step "
                f"{self.progress.step}, at learning rate {self.lr:.3g}; last good checkpoint: "
                f"{self.saved}. Lower --optim.lr-base or set --optim.clip-grad 1"
            )
        losses = self.world.sum(self.losses.clone()).cpu()
        problem = None
        if self.world.is_main:
            try:
                checkpoint.save(path, self._state(losses))
            except DogmedError as error:
                problem = str(error)
        if problem := self.world.broadcast(problem):
            raise DogmedError(problem)
        self.saved = f"{path} (epoch {self.progress.epoch}, step {self.progress.step})"
        self._clock["saved"] = self._clock["lap"] = time.monotonic()

    def _state(self, losses: Tensor) -> dict[str, Any]:
        return {
            "progress": asdict(self.progress),
            "lr": self.lr,
            "losses": losses,  # of all processes together
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            **self.extra_state,
        }

    def load(self, state: dict[str, Any], path: Path) -> None:
        """Take up a saved state, from whatever number of processes.

        Args:
            state: as ``dogmed.checkpoint.load`` returns it.
            path: where it was, for messages.
        """
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.progress = Progress(**state["progress"])
        self.lr = state["lr"]
        self.losses.copy_(state["losses"] if self.world.is_main else torch.zeros_like(self.losses))
        self.saved = f"{path} (epoch {self.progress.epoch}, step {self.progress.step})"


@contextlib.contextmanager
def _enough_memory(flag: str) -> Iterator[None]:
    """Tell in one line that the device's memory does not suffice, and which flag to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(f"not enough memory on the device: give a smaller {flag}") from error


def _seed(seed: int, step: int, rank: int, micro_batch: int) -> int:
    """A seed of its own for what a micro-batch draws (drop path)."""
    sequence = np.random.SeedSequence((seed, step, rank, micro_batch))
    return int(sequence.generate_state(1, np.uint64)[0])

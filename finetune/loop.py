"""The training loop, whole: MONAI's engines, the epoch, selection on val, checkpoints, exact resume.

MONAI's ``SupervisedTrainer`` and ``SupervisedEvaluator`` run the steps; what they leave open is here:
per-step schedule, loss weighting over processes, a state that is saved within an epoch too, so that a
run continued after any interruption goes through the same numbers as one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.utils.enums import CommonKeys
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dogmed import checkpoint, metrics
from dogmed.data.loader import Batches
from dogmed.distributed import World
from dogmed.errors import TrainingError
from dogmed.loops import AGREE_STEPS, LOSS_CHECK_STEPS, stopped
from dogmed.models.scaling import BatchScale, Draw, TwoSpeeds, downsample, resized_kernels
from dogmed.objective import Objective


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs to know of the configuration."""

    epochs: int
    select: str = "auc"
    clip_grad: float | None = None
    save_minutes: float = 10.0
    scale: BatchScale | None = None
    """The random scale of each step of training; None for whole images always."""


@dataclass
class Progress:
    """How far a run has come; saved with every checkpoint."""

    epoch: int = 0
    """Epochs completed, validation included."""
    step: int = 0
    """Steps completed of the epoch under way."""
    best_epoch: int = 0
    best_value: float = -math.inf
    """What the epoch was picked by; larger is better, so a loss is negated."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The line of every completed epoch, as in ``metrics.jsonl``."""
    best_scores: dict[str, float | None] = field(default_factory=dict)
    """val_loss, val_acc and val_auc of the best epoch."""
    epoch_seconds: float = 0.0
    """Time spent training in the epoch under way."""


@dataclass
class Prediction:
    """A model's output on one split, in the split's order."""

    logits: torch.Tensor
    labels: torch.Tensor


class Loop:
    """Train ``model`` and keep the epoch that is best on val.

    Args:
        model: the bare network, on the world's device.
        compiled: the same network compiled, or itself.
        optimizer: over the model's parameters.
        scheduler: a timm scheduler, advanced by ``step_update`` after every step.
        objective: loss and probabilities of the task.
        batches: the loaders of ``train`` and ``val``.
        world: the processes that take part.
        settings: epochs, selection, clipping, saving, scale.
    """

    def __init__(
        self,
        model: nn.Module,
        compiled: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        objective: Objective,
        batches: dict[str, Batches],
        world: World,
        settings: LoopSettings,
    ):
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.objective, self.world, self.settings = objective, world, settings
        self.train_batches, self.val_batches = batches["train"], batches["val"]
        self.network: nn.Module = TwoSpeeds(model, compiled)
        if world.size > 1:
            ids = [world.device.index] if world.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.network, device_ids=ids)
        self.progress = Progress()
        self.extra_state: dict[str, Any] = {}  # what the caller wants saved with every checkpoint
        self.lr = float("nan")  # of the last step taken
        self.losses = torch.zeros(
            len(self.train_batches), dtype=torch.float64, device=world.device
        )  # of this epoch's steps, each summed over this process's images
        self.autocast = torch.autocast(
            world.device.type, torch.bfloat16, enabled=world.device.type == "cuda"
        )
        self.trainer = self._build_trainer()

    def _build_trainer(self) -> SupervisedTrainer:
        trainer = SupervisedTrainer(
            device=self.world.device,
            max_epochs=self.settings.epochs,
            train_data_loader=self.train_batches,
            network=self.network,
            optimizer=self.optimizer,
            loss_function=self.objective.loss,
            # MONAI's own step fires four events and sets every module's mode, half of a small
            # step's cost, and under bfloat16 insists on a gradient scaler
            iteration_update=self._train_step,
            decollate=False,  # MONAI's default copies every sample to the host, every step
        )
        trainer.logger.setLevel("CRITICAL")  # errors are told once, by whoever catches them
        return trainer

    def _train_step(self, trainer: Any, batch: dict[str, torch.Tensor]) -> None:
        """One step of the optimizer; nothing in it waits for the device.

        The loss is the mean over the global batch, written as this process's share of it:
        DistributedDataParallel averages gradients over processes, so each scales its sum by their
        number; a last batch that does not divide evenly is then weighted as one process would.
        """
        step, scale = self.progress.step, self.settings.scale
        number = self.progress.epoch * len(self.train_batches) + step
        draw = scale.draw(number) if scale else Draw()
        self.optimizer.zero_grad(set_to_none=True)
        with resized_kernels(self.model, draw.kernel_size):
            images = downsample(batch["image"], draw.factor)
            with self.autocast:
                logits = self.network(images, draw == Draw()).float()
            total = self.objective.loss(logits, batch["label"], reduction="none").sum()
            (total * (self.world.size / self._images_in(step))).backward()
        if self.settings.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad)
        self.optimizer.step()
        self.losses[step] = total.detach()

    def _images_in(self, step: int) -> int:
        """Images of the global batch of one step of the epoch."""
        batches = self.train_batches
        return min(batches.batch_size, len(batches.index) - step * batches.batch_size)

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
            TrainingError: the loss is not finite.
            Interrupted: a stop was requested; the state is saved and the run can be continued.
        """
        progress, trainer, steps = self.progress, self.trainer, len(self.train_batches)
        if progress.epoch >= self.settings.epochs:
            return
        trainer.state.epoch = progress.epoch
        trainer.state.iteration = progress.epoch * steps + progress.step
        clock = {"saved": time.monotonic(), "lap": time.monotonic()}

        def start_epoch() -> None:
            self.network.train()
            self.train_batches.set_epoch(progress.epoch, start_step=progress.step)
            clock["lap"] = time.monotonic()

        def count_time() -> None:
            now = time.monotonic()
            progress.epoch_seconds += now - clock["lap"]
            clock["lap"] = now

        def after_step() -> None:
            self.lr = self.optimizer.param_groups[0]["lr"]
            progress.step += 1
            self._check_loss(progress.step == steps)
            self.scheduler.step_update(trainer.state.iteration)
            on_step(progress.step, steps)
            if progress.step == steps or not self._agreed_moment():
                return
            signal_number = stop_requested()
            stop = self.world.any(signal_number is not None)
            due = 0 < self.settings.save_minutes * 60 < time.monotonic() - clock["saved"]
            if stop or self.world.any(due):
                count_time()
                self.save(last)
                clock["saved"] = clock["lap"] = time.monotonic()
            if stop:
                raise stopped(progress.epoch, progress.step, steps, signal_number)

        def end_epoch() -> None:
            count_time()
            row, value = self._close_epoch()
            progress.rows.append(row)
            improved = value > progress.best_value
            on_epoch(row, improved)
            if improved:
                progress.best_epoch, progress.best_value = progress.epoch, value
                progress.best_scores = {k: row[k] for k in ("val_loss", "val_acc", "val_auc")}
            self.save(last)
            clock["saved"] = time.monotonic()
            if improved:
                on_best()
            signal_number = stop_requested()
            if self.world.any(signal_number is not None) and progress.epoch < self.settings.epochs:
                raise stopped(progress.epoch, progress.step, steps, signal_number)

        trainer.add_event_handler(Events.EPOCH_STARTED, start_epoch)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, after_step)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, end_epoch)
        trainer.run()

    def _agreed_moment(self) -> bool:
        return self.world.size == 1 or self.progress.step % AGREE_STEPS == 0

    def _check_loss(self, last_step: bool) -> None:
        on_cpu, step = self.world.device.type == "cpu", self.progress.step
        if on_cpu and step and math.isfinite(self.losses[step - 1].item()):
            return
        if not (on_cpu or last_step or step % LOSS_CHECK_STEPS == 0):
            return
        bad = torch.isfinite(self.losses[:step]).logical_not().nonzero()
        if len(bad):
            raise TrainingError(
                f"the loss is not finite in epoch {self.progress.epoch + 1}, step {int(bad[0]) + 1} "
                f"of {len(self.losses)}, at learning rate {self.lr:.3g}. Lower --optim.lr-base or "
                "set --optim.clip-grad 1, and start over with --resume never"
            )

    def _close_epoch(self) -> tuple[dict[str, Any], float]:
        progress, batches = self.progress, self.train_batches
        count = min(len(batches.index), len(batches) * batches.batch_size)
        train_loss = float(self.world.sum(self.losses.sum())) / count
        train_seconds, started = progress.epoch_seconds, time.monotonic()
        prediction = self.predict(self.val_batches)
        val_loss = self.loss_of(prediction)
        scores = metrics.score(self.objective.kind, *self.probabilities_of(prediction))
        val_seconds = time.monotonic() - started
        progress.epoch += 1
        progress.step = 0
        progress.epoch_seconds = 0.0
        row = {
            "epoch": progress.epoch,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "val_acc": scores["acc"],
            "val_auc": scores["auc"],
            "lr": self.lr,
            "epoch_seconds": round(train_seconds + val_seconds, 3),
            "images_per_second": round(count / max(train_seconds, 1e-9), 1),
        }
        value = {"loss": -val_loss, "last": progress.epoch}.get(self.settings.select)
        if value is None:
            value = scores[self.settings.select]
        return row, -math.inf if value is None or math.isnan(value) else value

    # ---- evaluation ---------------------------------------------------------------------------

    def predict(self, batches: Batches) -> Prediction:
        """Run the model over a split; every process ends up with all of it, on the CPU.

        Raises:
            TrainingError: an output is not finite.
        """
        device = self.world.device
        self.world.share_buffers(self.model)
        evaluator = SupervisedEvaluator(
            device=device,
            val_data_loader=batches,
            network=self.model,
            prepare_batch=_prepare_batch,
            decollate=False,  # and float32: bfloat16 would tie scores that differ
        )
        evaluator.logger.setLevel("CRITICAL")
        logits = torch.zeros(len(batches.index), self.objective.num_outputs, device=device)

        @evaluator.on(Events.ITERATION_COMPLETED)
        def collect() -> None:
            index = evaluator.state.batch["index"].to(device, non_blocking=True)
            logits[index] = evaluator.state.output[CommonKeys.PRED].float()

        evaluator.run()
        self.world.sum(logits)
        if not torch.isfinite(logits).all():
            raise TrainingError("the model's outputs are not finite; lower --optim.lr-base")
        return Prediction(logits.cpu(), batches.labels.cpu())

    def loss_of(self, prediction: Prediction) -> float:
        """Mean loss of a split, as in training but without drop path and flips."""
        return float(self.objective.loss(prediction.logits, prediction.labels))

    def probabilities_of(self, prediction: Prediction) -> tuple[Any, Any]:
        """Labels and probabilities as arrays, for ``dogmed.metrics``."""
        probabilities = self.objective.probabilities(prediction.logits)
        return prediction.labels.numpy(), probabilities.double().numpy()

    # ---- state --------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write everything that the rest of the run depends on (all processes take part)."""
        self._check_loss(last_step=True)
        mine = {"rng": checkpoint.rng_state(), "losses": self.losses[: self.progress.step].cpu()}
        ranks = self.world.gather(mine)
        if not self.world.is_main:
            return
        checkpoint.save(
            path,
            {
                "progress": asdict(self.progress),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "ranks": ranks,
                **self.extra_state,
            },
        )

    def load(self, state: dict[str, Any]) -> None:
        """Take up a saved state; random number generators come last, so nothing draws after them.

        Raises:
            TrainingError: the state was saved by another number of processes.
        """
        if len(state["ranks"]) != self.world.size:
            raise TrainingError(
                f"the checkpoint was saved by {len(state['ranks'])} process(es) and cannot be continued "
                f"by {self.world.size}; start as many as before, or give --resume never"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.progress = Progress(**state["progress"])
        mine = state["ranks"][self.world.rank]
        self.losses[: self.progress.step] = mine["losses"].to(self.world.device)
        checkpoint.set_rng_state(mine["rng"])


def _prepare_batch(batch: Any, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Hand MONAI's engine the batch as it is: it lies on the device, normalised, already."""
    return batch["image"], batch["label"]

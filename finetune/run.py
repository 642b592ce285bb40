"""``dogmed finetune``: one model on one task, from the options to ``result.json``."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from dogmed import checkpoint, metrics, optim, tracking
from dogmed import config as configuration
from dogmed.data.loader import Batches, stratified_fraction
from dogmed.data.progress import Console as DataConsole
from dogmed.data.progress import Quiet
from dogmed.data.store import Prepared, prepare
from dogmed.distributed import World, join
from dogmed.errors import ConfigError, Interrupted
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.console import Console, Stopper, duration
from dogmed.finetune.folder import RunFolder, write_atomic
from dogmed.finetune.loop import Loop, LoopSettings
from dogmed.finetune.result import draw, peak_memory, provenance, score_split
from dogmed.models import build_model
from dogmed.models.cost import count_macs, count_parameters
from dogmed.models.weights import WeightsRecord, save_weights
from dogmed.objective import Objective


def finetune(config: FinetuneConfig) -> dict[str, Any] | None:
    """Train on train, select on val, score test once; everything is kept in the run's folder.

    A run that was interrupted is continued, one that is finished is left alone and its result returned.

    Returns:
        The contents of ``result.json``; None for a dry run.

    Raises:
        DogmedError: an option, the data or the weights cannot be used, or training failed.
        Interrupted: a signal stopped the run; calling again continues it.
    """
    if not config.task:
        raise ConfigError("which task? for example --task breastmnist; dogmed data list shows all")
    if config.dry_run:
        from dogmed.finetune.plan import describe

        print(describe(config))
        return None
    with join(config.device) as world:
        console = Console(world.is_main)
        with Stopper(console) as stopper:
            prepared = prepare_data(config, DataConsole() if world.is_main else Quiet())
            folder = RunFolder.of(config, prepared.task.name)
            with folder.lock() if world.is_main else nullcontext():
                return _Session(config, world, console, stopper, prepared, folder).run()


def prepare_data(config: FinetuneConfig, progress: Any) -> Prepared:
    """Have the task's arrays ready for memory-mapping, as the options ask."""
    return prepare(
        config.task,
        size=config.size,
        data=config.data,
        data_dir=config.data_dir,
        cache_dir=config.cache_dir,
        kind=config.kind,
        upsample_from=config.upsample_from,
        progress=progress,
    )


@dataclass
class _Session:
    """One sitting of a run: what all its steps share."""

    config: FinetuneConfig
    world: World
    console: Console
    stopper: Stopper
    prepared: Prepared
    folder: RunFolder

    def run(self) -> dict[str, Any]:
        verb = self.world.broadcast(self._decide() if self.world.is_main else None)
        if verb == "done":
            result = self.folder.done()
            assert result is not None
            self.console.line(f"already finished: {self.folder.result}")
            self.console.line(_summary(result))
            return result
        state = checkpoint.load(self.folder.last) if verb == "continue" else None
        self._build()
        if state is not None:
            self._take_up(state)
        run = self._open_tracking(state)
        self.loop.extra_state = {"run_id": run.run_id, "data": self._data_hashes()}
        status = "FAILED"
        try:
            self._train(run)
            result = self._finish(run)
            status = "FINISHED"
        except (Interrupted, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            self.console.close()
            run.end(status)
        return result

    # ---- before training ----------------------------------------------------------------------

    def _decide(self) -> str:
        """Whether this run is done, to be continued or to be begun; the main process's choice."""
        config, folder = self.config, self.folder
        if config.resume == "never":
            if aside := folder.set_aside():
                self.console.line(f"the earlier run is kept in {aside}")
        else:
            folder.refuse_other_settings(config)
            if folder.done() is not None:
                return "done"
            if folder.last.is_file():
                return "continue"
        folder.begin(config)
        return "begin"

    def _build(self) -> None:
        config, world, prepared = self.config, self.world, self.prepared
        seed_everything(config.seed)
        task = prepared.task
        self.objective = Objective(
            task.kind,
            task.num_classes,
            label_smoothing=config.loss.label_smoothing,
            ordinal=config.loss.ordinal if task.kind == "ordinal" else "cross-entropy",
        )
        self.model, self.loaded = build_model(
            config.model,
            self.objective.num_outputs,
            init=config.init,
            drop_path_rate=config.net.drop_path,
            weights_dir=config.weights_dir,
        )
        self.model.to(world.device, memory_format=torch.channels_last)
        self.batches = build_batches(config, prepared, world, self.model)
        _refuse_unselectable(config.eval.select, task.kind, prepared.labels("val"))
        optimizer = optim.create_optimizer(
            self.model,
            name=config.optim.name,
            lr=peak_lr(config),
            weight_decay=config.optim.weight_decay,
            betas=config.optim.betas,
        )
        steps = len(self.batches["train"])
        scheduler = optim.create_scheduler(
            optimizer,
            name=config.optim.schedule,
            steps=config.epochs * steps,
            warmup_steps=round(config.optim.warmup_epochs * steps),
            min_lr=config.optim.min_lr,
        )
        self.loop = Loop(
            self.model,
            self._compiled(),
            optimizer,
            scheduler,
            self.objective,
            self.batches,
            world,
            LoopSettings(
                config.epochs, config.eval.select, config.optim.clip_grad, config.checkpoint.minutes
            ),
        )
        self._introduce(optimizer)
        if world.rank > 0:  # drop path must differ between processes
            torch.manual_seed(config.seed + world.rank)

    def _compiled(self) -> nn.Module:
        wanted = self.config.compile
        if wanted == "off" or (wanted == "auto" and self.world.device.type == "cpu"):
            return self.model
        return compile_or_fall_back(self.model, self.config.size, self.world, self.console.line)

    def _introduce(self, optimizer: torch.optim.Optimizer) -> None:
        task, train, say = self.prepared.task, self.batches["train"], self.console.line
        counts = ", ".join(f"{split} {b.num_images:,}" for split, b in self.batches.items())
        say(f"task    {task.name}: {task.kind}, {task.num_classes} classes, {counts} images")
        say(f"data    {self.prepared.source}{_provenance(self.prepared)}; in {train.cache_used}")
        parameters = count_parameters(self.model)
        say(f"model   {self.config.model}: {parameters / 1e6:.2f} M parameters, {self.loaded}")
        say(f"optim   {optim.describe_groups(optimizer)}; lr {peak_lr(self.config):.3g}")
        devices = f"{self.world.size} × " if self.world.size > 1 else ""
        say(f"device  {devices}{self.world.device}; {len(train)} steps an epoch")
        say(f"run     {self.folder.root}")

    def _data_hashes(self) -> dict[str, str]:
        return dict(self.prepared.hashes)

    def _take_up(self, state: dict[str, Any]) -> None:
        if state["data"] != self._data_hashes():
            raise ConfigError(
                f"{self.folder.root} was begun on other data than {self.prepared.folder} holds now; "
                "bring the old data back, or start over with --resume never"
            )
        self.loop.load(state)
        progress = self.loop.progress
        if self.world.is_main:
            self.folder.keep_rows(progress.epoch)
            if progress.best_epoch == progress.epoch and progress.step == 0:
                self._save_best()  # in case the process died between the two files
        within = f" and {progress.step} steps" if progress.step else ""
        self.console.line(f"continuing after {progress.epoch} epochs{within}")

    def _open_tracking(self, state: dict[str, Any] | None) -> Any:
        config, task = self.config, self.prepared.task
        if config.tracking == "off" or not self.world.is_main:
            return tracking.NoRun()
        return tracking.Run.start(
            tracking.default_uri(config.out),
            "dogmed-finetune",
            f"{task.name}-{config.model}-{config.init}-seed{config.seed}",
            params=configuration.flatten(configuration.to_dict(config)),
            tags={
                "task": task.name,
                "model": config.model,
                "init": config.init,
                "seed": str(config.seed),
                "size": str(config.size),
                "source": self.prepared.source,
            },
            run_id=state["run_id"] if state else None,
            out=config.out,
        )

    # ---- training and after -------------------------------------------------------------------

    def _train(self, run: Any) -> None:
        loop, console, config = self.loop, self.console, self.config

        def on_step(step: int, steps: int) -> None:
            console.step(loop.progress.epoch + 1, config.epochs, step, steps, config.batch_size)

        def on_epoch(row: dict[str, Any]) -> None:
            if self.world.is_main:
                self.folder.append_row(row)
            figures = {name: value for name, value in row.items() if name != "epoch"}
            run.log_metrics(figures, step=row["epoch"])
            console.epoch(row, config.epochs)

        self.stopper.deferring = True
        try:
            loop.run(
                self.folder.last,
                on_step=on_step,
                on_epoch=on_epoch,
                on_best=self._save_best,
                stop_requested=lambda: self.stopper.requested,
            )
        finally:
            self.stopper.deferring = False

    def _save_best(self) -> None:
        if not self.world.is_main:
            return
        config, progress, task = self.config, self.loop.progress, self.prepared.task
        record = WeightsRecord()
        save_weights(self.folder.best, self.model.state_dict(), record)

    def _finish(self, run: Any) -> dict[str, Any]:
        raise NotImplementedError


def seed_everything(seed: int) -> None:
    """Seed every generator that a run draws from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def peak_lr(config: FinetuneConfig) -> float:
    """The peak learning rate: as given, or scaled from the one for 256 images."""
    if config.optim.lr is not None:
        return config.optim.lr
    return optim.lr_from_base(config.optim.lr_base, config.batch_size)

"""One sitting of a run: from the state the last sitting left to weights in the store, or the next stop."""

from __future__ import annotations

import os
from typing import Any

import torch

from dogmed import checkpoint, optim, tracking
from dogmed import config as configuration
from dogmed.console import Console, Stopper, count
from dogmed.distributed import World
from dogmed.errors import ConfigError, DogmedError, WeightsError
from dogmed.models.cost import count_parameters, describe_cost
from dogmed.models.weights import read_weights, save_weights
from dogmed.pretrain import build, result, subset
from dogmed.pretrain.config import PretrainConfig
from dogmed.pretrain.folder import PretrainFolder
from dogmed.pretrain.images import ImageSet
from dogmed.pretrain.loader import worker_errors
from dogmed.pretrain.loop import Loop
from dogmed.provenance import peak_memory, provenance
from dogmed.weights.records import WeightsRecord

EXPERIMENT = "dogmed-pretrain"
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow")


class Session:
    """One sitting of a run: what its steps share."""

    def __init__(
        self,
        config: PretrainConfig,
        world: World,
        console: Console,
        stopper: Stopper,
        images: tuple[ImageSet, ImageSet],
        folder: PretrainFolder,
        network: build.Network,
    ):
        self.config, self.world, self.console, self.stopper = config, world, console, stopper
        self.train, self.val = images
        self.folder, self.network, self.model = folder, network, network.model
        self.store = result.Store.of(config, folder)
        self.data_hashes = {
            split: build.fingerprint(part)
            for split, part in zip(("train", "val"), images, strict=True)
        }

    def run(self) -> dict[str, Any]:
        verb = self.world.broadcast(self._decide() if self.world.is_main else None)
        if verb == "done":
            return self._leave_alone()
        if self.world.is_main:
            averaged = self.config.ema.decay is not None
            self.store.refuse_other(begin=verb != "continue")
            self.store.refuse_unwritable(count_parameters(self.model), averaged)
        self._build()
        state = self._load_last() if verb == "continue" else None
        if state is not None:
            self._take_up(state)
        elif self.world.is_main:
            if verb == "anew" and (aside := self.folder.set_aside()):
                self.console.line(f"the earlier run is kept in {aside}")
            self.folder.begin(
                configuration.to_dict(self.config),
                stale=[self.folder.final, self.folder.train_files],
            )
            if self.config.subset.per_class or self.config.subset.classes:
                subset.write_list(self.folder.train_files, self.train)
        self.loop.extra_state = {"data": self.data_hashes}
        tracked: tracking.Run | tracking.NoRun = tracking.NoRun()
        status = "FAILED"
        try:
            tracked = self._track(continued=state is not None)
            self._train(tracked)
            finished = self._finish(tracked)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            self.console.close()
            for batches in self.batches.values():
                batches.close()
            tracked.end(status)
        if self.world.is_main:
            self.folder.publish_result()
        self.console.line(result.summary(finished))
        return finished

    # ---- before training ----------------------------------------------------------------------

    def _decide(self) -> str:
        """Whether this run is done, to be continued, begun, or begun anew; the main process's choice."""
        config, folder = self.config, self.folder
        # a group of processes that torchrun has restarted goes on with what it began
        restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        if config.resume == "never" and not restarted:
            return "anew"
        folder.refuse_other_settings(configuration.to_dict(config))
        if (finished := folder.done()) is not None:
            folder.refuse_other("data", finished["data"]["sha256"], self.data_hashes)
            return "done"
        return "continue" if folder.last.is_file() else "begin"

    def _leave_alone(self) -> dict[str, Any]:
        """A finished run: see to it that the store has its weights."""
        finished: dict[str, Any] = self.world.broadcast(
            self.folder.done() if self.world.is_main else None
        )
        self.console.line(f"already finished, nothing to do: {self.folder.result}")
        if self.world.is_main:
            try:
                self.console.line(self.store.publish())
            except WeightsError as error:
                again = f"delete {self.folder.result} to write them again from the last checkpoint"
                raise WeightsError(
                    f"{error}; if the run's own weights are lost, {again}"
                ) from error
        self.console.line(result.summary(finished))
        return finished

    def _build(self) -> None:
        config, world = self.config, self.world
        self.scale = build.build_scale(config, self.model)
        self.model.to(world.device, memory_format=torch.channels_last)
        self.batches = build.build_batches(config, (self.train, self.val), self.network, world)
        optimizer, scheduler = build.build_optimizer(config, self.model, len(self.batches["train"]))
        self.facts = provenance(world.device, LIBRARIES)
        self.loop = Loop(
            self.model,
            build.compiled(config, self.model, world, self.console.line),
            optimizer,
            scheduler,
            self.batches,
            world,
            build.loop_settings(config),
            self.scale,
        )
        self._introduce(optimizer)

    def _introduce(self, optimizer: torch.optim.Optimizer) -> None:
        config, train, val = self.config, self.train, self.val
        devices = f"{self.world.size} × " if self.world.size > 1 else ""
        workers = build.count_workers(config.loader.workers)
        lines = {
            "recipe": f"{config.recipe}: {count(config.epochs, 'epoch')} of "
            f"{count(len(self.batches['train']), 'step')} of {config.batch_size} images",
            "data": f"{config.data} ({train.kind}): {len(train.classes)} classes; "
            f"train {len(train):,}, val {len(val):,}; {config.size} px, "
            f"decoded {config.loader.decode} by {count(workers, 'worker')}",
            "model": "; ".join(
                [
                    f"{config.model}, "
                    f"{describe_cost(count_parameters(self.model), self.network.macs)}",
                    *self.network.notes,
                ]
            ),
            "optim": f"{optim.describe_groups(optimizer)}; peak lr {build.peak_lr(config):.3g}",
            "device": f"{devices}{self.world.device}",
            "run": str(self.folder.root),
            "weights": str(self.store.path),
        }
        for name, text in lines.items():
            self.console.line(f"{name:<7} {text}")

    def _load_last(self) -> dict[str, Any]:
        """The saved state, read by the main process: the others may see no file of this folder."""
        state, problem = None, None
        if self.world.is_main:
            try:
                state = checkpoint.load(self.folder.last)
            except DogmedError as error:
                problem = f"{error}; --resume never starts over and keeps the old run"
        state, problem = self.world.broadcast((state, problem))
        if problem:
            raise ConfigError(problem)
        return state

    def _take_up(self, state: dict[str, Any]) -> None:
        self.folder.refuse_other("data", state["data"], self.data_hashes)
        self.loop.load(state, self.folder.last)
        progress = self.loop.progress
        if self.world.is_main:
            self.folder.write_rows(progress.rows)
            if progress.step == 0 and progress.best_epoch == progress.epoch > 0:
                self._save_best()  # in case the process died between the two files
        within = f" and {count(progress.step, 'step')}" if progress.step else ""
        self.console.line(f"continuing after {count(progress.epoch, 'epoch')}{within}")

    def _track(self, *, continued: bool) -> tracking.Run | tracking.NoRun:
        config = self.config
        if config.tracking == "off" or not self.world.is_main:
            return tracking.NoRun()
        run = tracking.Run.start(
            tracking.default_uri(config.out.expanduser()),
            EXPERIMENT,
            "-".join([*self.folder.root.parts[-3:]]),
            params=configuration.flatten(configuration.to_dict(config)),
            tags={
                "recipe": config.recipe,
                "model": config.model,
                "seed": str(config.seed),
                "size": str(config.size),
            },
            out=config.out.expanduser(),
            ledger=self.folder.ledger,
        )
        if not continued:
            for split, context in (("train", "train"), ("val", "validation")):
                name = f"{config.record.data}-{split}"
                run.log_dataset(name, str(config.data), self.data_hashes[split], context)
        else:  # what an earlier sitting could not log, or logged and then lost by a kill
            for row in self.loop.progress.rows:
                run.log_metrics(result.curves(row), step=row["epoch"])
        return run

    # ---- training and after -------------------------------------------------------------------

    def _train(self, tracked: tracking.Run | tracking.NoRun) -> None:
        loop, config = self.loop, self.config
        pace = result.Pace(self.console, loop, config.epochs)

        def on_epoch(row: dict[str, Any], improved: bool) -> None:
            if self.world.is_main:
                self.folder.append_row(row)
            tracked.log_metrics(result.curves(row), step=row["epoch"])
            text = result.epoch_line(row, improved)
            self.console.epoch(row["epoch"], config.epochs, row["epoch_seconds"], text)

        self.stopper.deferring = True
        try:
            with worker_errors():
                loop.run(
                    self.folder.last,
                    on_step=pace.step,
                    on_epoch=on_epoch,
                    on_best=self._save_best,
                    stop_requested=lambda: self.stopper.requested,
                )
        finally:
            self.stopper.deferring = False

    def _save_best(self) -> None:
        if self.world.is_main:
            progress = self.loop.progress
            save_weights(
                self.folder.best,
                self.model.state_dict(),
                self._record(
                    progress.best_epoch, result.scores(progress.rows[progress.best_epoch - 1])
                ),
            )

    def _record(self, epoch: int, scores: dict[str, float]) -> WeightsRecord:
        """What the weights after ``epoch`` are, which scored so on val."""
        return result.weights_record(
            self.config,
            self.network,
            self.train,
            parameters=count_parameters(self.model),
            epochs=epoch,
            score={f"val_{name}": score for name, score in scores.items()},
            facts=self.facts,
        )

    def _finish(self, tracked: tracking.Run | tracking.NoRun) -> dict[str, Any]:
        """Write the weights and all else that a finished run leaves behind."""
        config, progress, rows = self.config, self.loop.progress, self.loop.progress.rows
        epoch = progress.best_epoch if config.eval.select == "acc1" else progress.epoch
        scores = result.scores(rows[epoch - 1], averaged=config.eval.select == "ema")
        seconds = sum(row["epoch_seconds"] for row in rows)
        pace = len(rows) / sum(1 / max(row["images_per_second"], 0.1) for row in rows)
        bad = [name for part in self.world.gather(self._bad_images()) for name in part]
        report = {
            "recipe": config.recipe,
            "model": config.model,
            "options": self.network.options,
            "seed": config.seed,
            "data": {
                "name": config.record.data,
                "kind": self.train.kind,
                "size": config.size,
                "classes": len(self.train.classes),
                "train_images": len(self.train),
                "val_images": len(self.val),
                "unreadable": sorted(set(bad))[:100],
                "decode": config.loader.decode,
                "sha256": self.data_hashes,
            },
            "epochs": config.epochs,
            "steps": config.epochs * len(self.batches["train"]),
            "batch_size": config.batch_size,
            "peak_lr": build.peak_lr(config),
            "epoch": epoch,
            "selected_on": config.eval.select,
            "val": scores,
            "best_epoch": progress.best_epoch,
            "best_val_acc1": rows[progress.best_epoch - 1]["val_acc1"],
            "seconds": round(seconds, 3),
            "images_per_second": round(pace, 1),
            "data_wait": round(sum(row["data_wait"] for row in rows) / len(rows), 4),
            "peak_memory": peak_memory(self.world.device),
            "parameters": count_parameters(self.model),
            "macs": self.network.macs,
            "processes": self.world.size,
            **self.facts,
            "mlflow_run_id": tracked.run_id,
        }
        if self.world.is_main:
            self._write(report, tracked)
        return self.world.broadcast(report)

    def _bad_images(self) -> list[str]:
        return [name for batches in self.batches.values() for name in batches.bad]

    def _write(
        self,
        report: dict[str, Any],
        tracked: tracking.Run | tracking.NoRun,
    ) -> None:
        folder, loop, epoch = self.folder, self.loop, report["epoch"]
        state = self.model.state_dict()
        if report["selected_on"] == "ema" and loop.average is not None:
            state = loop.average.module.state_dict()
        elif epoch != loop.progress.epoch:
            state = read_weights(folder.best)[0]
        record = save_weights(folder.final, state, self._record(epoch, report["val"]))
        report["weights_sha256"] = record.sha256
        self.console.line(self.store.publish())
        report["weights"] = str(self.store.path)
        files = [folder.config, folder.train_files]
        for path in files:
            if path.is_file():
                tracked.log_artifact(path)
        scores = {f"final_{name}": report["val"][name] for name in ("acc1", "acc5")}
        name = f"{self.config.model}-{self.config.recipe}".replace(".", "_")  # MLflow takes no dots
        tracked.log_weights(folder.final, name, scores)
        tracked.log_artifact(folder.stage_result(report), name=folder.result.name)

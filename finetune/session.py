"""One sitting of a run: from the state the last sitting left to the result, or to the next stop."""

from __future__ import annotations

from typing import Any

import torch

from dogmed import checkpoint, optim, tracking
from dogmed import config as configuration
from dogmed.console import Console, Stopper
from dogmed.data.store import Prepared
from dogmed.distributed import World
from dogmed.errors import ConfigError, DogmedError
from dogmed.finetune import build, result
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.folder import FinetuneFolder
from dogmed.finetune.loop import Loop, LoopSettings
from dogmed.finetune.trial import SPLITS, HopelessError, Trial
from dogmed.models.cost import count_parameters, describe_cost
from dogmed.models.weights import WeightsRecord, save_weights
from dogmed.objective import Objective
from dogmed.provenance import peak_memory, provenance

LIBRARIES = ("torch", "timm", "monai", "medmnist", "numpy", "scikit-learn")


class Session:
    """One sitting of a run: what its steps share."""

    def __init__(
        self,
        config: FinetuneConfig,
        world: World,
        console: Console,
        stopper: Stopper,
        prepared: Prepared,
        folder: FinetuneFolder,
        network: build.Network,
        trial: Trial | None = None,
    ):
        self.config, self.world, self.console, self.stopper = config, world, console, stopper
        self.prepared, self.task, self.folder, self.trial = prepared, prepared.task, folder, trial
        self.network, self.model = network, network.model
        self.weights_sha256 = network.loaded.sha256
        self.data_hashes = {
            name: facts["sha256"] for name, facts in sorted(prepared.manifest["files"].items())
        }

    def run(self, objective: Objective) -> dict[str, Any]:
        verb = self.world.broadcast(self._decide() if self.world.is_main else None)
        if verb == "done":
            finished = self.folder.done()
            assert finished is not None
            self.console.line(f"already finished, nothing to do: {self.folder.result}")
            self.console.line(result.summary(finished))
            return finished
        self._build(objective)
        state = self._load_last() if verb == "continue" else None
        if state is not None:
            self._take_up(state)
        elif self.world.is_main:
            settings = configuration.to_dict(self.config)
            self.folder.begin(settings, stale=[self.folder.predictions])
        self.loop.extra_state = {"data": self.data_hashes}
        tracked: tracking.Run | tracking.NoRun = tracking.NoRun()
        status = "FAILED"
        try:
            tracked = self._track(continued=state is not None)
            self._train(tracked)
            finished = self._finish(tracked)
            status = "FINISHED"
        except (KeyboardInterrupt, HopelessError):
            status = "KILLED"
            raise
        finally:
            self.console.close()
            tracked.end(status)
        if self.world.is_main:
            self.folder.publish_result()
        self.console.line(result.summary(finished))
        return finished

    # ---- before training ----------------------------------------------------------------------

    def _decide(self) -> str:
        """Whether this run is done, to be continued or to be begun; the main process's choice."""
        config, folder = self.config, self.folder
        if config.resume == "never":
            if aside := folder.set_aside():
                self.console.line(f"the earlier run is kept in {aside}")
            return "begin"
        folder.refuse_other_settings(configuration.to_dict(config))
        if (finished := folder.done()) is not None:
            folder.refuse_other("data", finished["data"]["sha256"], self.data_hashes)
            folder.refuse_other("initial weights", finished["weights_sha256"], self.weights_sha256)
            return "done"
        return "continue" if folder.last.is_file() else "begin"

    def _build(self, objective: Objective) -> None:
        config, world = self.config, self.world
        build.refuse_unselectable(config.eval.select, self.prepared.labels("val"))
        self.objective = objective
        build.refuse_lone_images(self.model, config.batch_size, world.size)
        self.model.to(world.device, memory_format=torch.channels_last)
        splits = SPLITS if self.trial else build.SPLITS
        self.batches = build.build_batches(config, self.prepared, world, self.network, splits)
        steps = len(self.batches["train"])
        optimizer, scheduler = build.build_optimizer(config, self.model, steps)
        self.facts = provenance(world.device, LIBRARIES)
        self.loop = Loop(
            self.model,
            build.compiled(config, self.model, self.batches["train"], world, self.console.line),
            optimizer,
            scheduler,
            self.objective,
            self.batches,
            world,
            LoopSettings(
                epochs=config.epochs,
                select=config.eval.select,
                clip_grad=config.optim.clip_grad,
                save_minutes=config.checkpoint.minutes,
                scale=self.network.scale,
            ),
        )
        self._introduce(optimizer)
        if world.rank > 0:  # drop path must differ between processes
            torch.manual_seed(config.seed + world.rank)

    def _introduce(self, optimizer: torch.optim.Optimizer) -> None:
        task, prepared, train = self.task, self.prepared, self.batches["train"]
        counts = ", ".join(f"{split} {len(b.index):,}" for split, b in self.batches.items())
        inferred = " (inferred from the labels)" if prepared.manifest["kind_inferred"] else ""
        resized = ""
        if prepared.interpolation:
            resized = f", resized from {prepared.source_size} px ({prepared.interpolation})"
        devices = f"{self.world.size} × " if self.world.size > 1 else ""
        for name, text in {
            "task": f"{task.name}: {task.kind}{inferred}, {task.num_classes} classes; {counts}",
            "data": f"{prepared.source}, {self.config.size} px{resized}; kept in {train.cache_used}",
            "model": f"{self.config.model}, {describe_cost(count_parameters(self.model), self.network.macs)}; "
            f"{self.network.loaded}",
            "optim": f"{optim.describe_groups(optimizer)}; peak lr {build.peak_lr(self.config):.3g}",
            "device": f"{devices}{self.world.device}, {len(train)} steps an epoch",
            "run": str(self.folder.root),
        }.items():
            self.console.line(f"{name:<7} {text}")

    def _load_last(self) -> dict[str, Any]:
        try:
            return checkpoint.load(self.folder.last)
        except DogmedError as error:
            raise ConfigError(
                f"{error}; --resume never starts over and keeps the old run"
            ) from error

    def _take_up(self, state: dict[str, Any]) -> None:
        self.folder.refuse_other("data", state["data"], self.data_hashes)
        self.loop.load(state)
        progress = self.loop.progress
        if self.world.is_main:
            self.folder.write_rows(progress.rows)
            if progress.step == 0 and progress.best_epoch == progress.epoch > 0:
                self._save_best()  # in case the process died between the two files
        within = f" and {progress.step} steps" if progress.step else ""
        epochs = f"{progress.epoch} epoch{'s' * (progress.epoch != 1)}"
        self.console.line(f"continuing after {epochs}{within}")

    def _track(self, *, continued: bool) -> tracking.Run | tracking.NoRun:
        config, task, prepared = self.config, self.task, self.prepared
        if config.tracking == "off" or not self.world.is_main:
            return tracking.NoRun()
        facts = {
            "task": task.name,
            "model": config.model,
            "init": config.init,
            "seed": str(config.seed),
            "size": str(config.size),
            "source": prepared.source,
            "train_fraction": f"{config.train_fraction:g}",
            "label": config.label,
        }
        if config.parent_run:
            facts[tracking.PARENT_TAG] = config.parent_run
        run = tracking.Run.start(
            tracking.default_uri(config.out.expanduser()),
            config.experiment,
            "-".join([*self.folder.root.parts[-3:]]),
            params=configuration.flatten(configuration.to_dict(config)),
            tags=facts,
            out=config.out.expanduser(),
            ledger=self.folder.ledger,
        )
        if not continued:
            for split in self.batches:
                context = "validation" if split == "val" else split
                digest = self.data_hashes[f"{split}_images.npy"]
                name = f"{task.name}-{config.size}-{split}"
                run.log_dataset(name, prepared.manifest["source_file"], digest, context)
        else:  # what an earlier sitting could not log, or logged and then lost by a kill
            for row in self.loop.progress.rows:
                run.log_metrics(_curves(row), step=row["epoch"])
        return run

    # ---- training and after -------------------------------------------------------------------

    def _train(self, tracked: tracking.Run | tracking.NoRun) -> None:
        loop, config = self.loop, self.config

        def on_step(step: int, steps: int) -> None:
            self.console.step(
                loop.progress.epoch + 1, config.epochs, step, steps, config.batch_size
            )

        def on_epoch(row: dict[str, Any], improved: bool) -> None:
            if self.world.is_main:
                self.folder.append_row(row)
            tracked.log_metrics(_curves(row), step=row["epoch"])
            text = result.epoch_line(row, improved)
            self.console.epoch(row["epoch"], config.epochs, row["epoch_seconds"], text)
            if self.trial is not None:
                self.trial.report(row)

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
        config, progress = self.config, self.loop.progress
        record = WeightsRecord(
            model=config.model,
            num_classes=self.objective.num_outputs,
            params=count_parameters(self.model),
            recipe="finetune",
            init=config.init,
            options=self.network.loaded.options,
            seed=config.seed,
            epochs=progress.epoch,
            score={k: v for k, v in progress.best_scores.items() if v is not None},
            data=result.data_record(self.prepared, self.network),
            training=result.training_record(config),
            licence=self.network.loaded.licence,
            git_commit=self.facts["git_commit"],
            versions=self.facts["versions"],
        )
        save_weights(self.folder.best, self.model.state_dict(), record)

    def _finish(self, tracked: tracking.Run | tracking.NoRun) -> dict[str, Any]:
        """Score the last epoch, then the best one; write all that a finished run leaves behind."""
        config, loop, folder = self.config, self.loop, self.folder
        progress, resamples = loop.progress, config.eval.resamples
        scored = [split for split in self.batches if split != "train"]
        self.console.line(f"scoring {' and '.join(scored)}, best epoch {progress.best_epoch}")
        last = {s: result.score(loop, loop.predict(self.batches[s]), resamples)[0] for s in scored}
        result.load_best(self.model, folder.best, self.world)
        predictions = {s: loop.predict(self.batches[s]) for s in scored}
        best = {s: result.score(loop, predictions[s], resamples) for s in scored}
        calibrated = result.calibrate(self.objective, predictions)
        if self.world.is_main:
            result.complete_best(folder.best, calibrated["temperature"], self.prepared)
        rows = progress.rows
        seconds = sum(row["epoch_seconds"] for row in rows)
        pace = len(rows) / sum(1 / max(row["images_per_second"], 0.1) for row in rows)
        report = {
            "task": self.task.name,
            "kind": self.task.kind,
            "classes": list(self.task.classes),
            "model": config.model,
            "init": config.init,
            "weights": str(self.network.loaded),
            "weights_sha256": self.weights_sha256,
            "seed": config.seed,
            "data": {
                "source": self.prepared.source,
                "size": config.size,
                "source_size": self.prepared.source_size,
                "interpolation": self.prepared.interpolation,
                "train_images": len(self.batches["train"].index),
                "sha256": self.data_hashes,
            },
            "epochs": config.epochs,
            "batch_size": config.batch_size,
            "peak_lr": build.peak_lr(config),
            "best_epoch": progress.best_epoch,
            "selected_on": f"val_{config.eval.select}",
            **{split: scores for split, (scores, _, _) in best.items()},
            "last_epoch": last,
            "calibration": calibrated,
            "seconds": round(seconds, 3),
            "images_per_second": round(pace, 1),
            "peak_memory": peak_memory(self.world.device),
            "parameters": count_parameters(self.model),
            "macs": self.network.macs,
            "processes": self.world.size,
            **self.facts,
            "mlflow_run_id": tracked.run_id,
        }
        if self.trial is None:
            _, labels, probabilities = best["test"]
            report["trivial_test_acc"] = result.trivial_accuracy(
                self.task.kind, self.prepared.labels("train"), labels
            )
            if self.world.is_main:
                self._write(report, labels, probabilities, tracked)
        elif self.world.is_main:
            tracked.log_artifact(folder.stage_result(report), name=folder.result.name)
        return report

    def _write(
        self,
        report: dict[str, Any],
        labels: Any,
        probabilities: Any,
        tracked: tracking.Run | tracking.NoRun,
    ) -> None:
        folder, task = self.folder, self.task
        result.write_predictions(folder.predictions, probabilities)
        pictures = result.draw(
            folder, self.loop.progress.rows, task.kind, task.classes, labels, probabilities
        )
        for path in (*pictures, folder.predictions, folder.config):
            tracked.log_artifact(path, "figures" if path in pictures else None)
        scores = {f"test_{name}": report["test"][name] for name in ("acc", "auc", "macro_f1")}
        tracked.log_weights(folder.best, "best", scores | result.calibration_scores(report))
        name = f"dogmed-{folder.root.parts[-3]}-{self.config.size}"  # those trained on other images are others
        if self.config.upsample_from:
            name += f"-from{self.config.upsample_from}"
        tags = {name: str(score) for name, score in scores.items()}
        tags["folder"] = "/".join(folder.root.parts[-3:])
        tracked.propose(name, report["val"]["auc"], tags)
        tracked.log_artifact(folder.stage_result(report), name=folder.result.name)


def _curves(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "epoch"}

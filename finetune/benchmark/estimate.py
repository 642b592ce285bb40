"""``dogmed benchmark --dry-run``: what would run, and what it takes, after trying some steps of each model."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from ignite.engine import Events

from dogmed.console import duration
from dogmed.data.loader import Batches, train_steps
from dogmed.data.progress import human
from dogmed.data.tasks import Task
from dogmed.distributed import World, find_device
from dogmed.finetune import build
from dogmed.finetune.benchmark.cells import Cell
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.loop import Loop, LoopSettings
from dogmed.models.cost import activation_bytes, count_parameters, describe_cost

WARM_UP = 1
TRIAL_STEPS = 4  # the warm-up among them
TRIAL_SECONDS = 15  # a slow machine tells enough with fewer steps


@dataclass(frozen=True)
class Trial:
    """What a model takes on this machine."""

    train: float
    """Seconds for an image, trained on."""
    score: float
    """Seconds for an image, scored."""
    parameters: int
    memory: int
    """Bytes for weights, gradients, moments and a batch's activations in float32; a lower bound."""
    text: str


def describe(cells: Sequence[Cell], slots: int) -> Iterator[str]:
    """Tell the cells with their states at once, then, as they are found, hours, memory and disk.

    A few real steps are done for each model, on noise in the form of the first task. Nothing is written.

    Args:
        cells: as ``find_cells`` and ``check_weights`` leave them.
        slots: how many run at once.
    """
    start_up = time.time() - psutil.Process().create_time()  # a cell's own start is like this one's
    config = cells[0].config
    device = find_device(config.device)
    todo = [cell for cell in cells if cell.state == "to do"]
    yield from (f"{_state(cell):<12}{cell.title}" for cell in cells)
    yield (
        f"cells       {len(cells)}: {len(todo)} to do, "
        f"{sum(cell.state == 'done' for cell in cells)} done, "
        f"{sum(cell.state == 'no weights' for cell in cells)} without weights"
    )
    trials: dict[str, Trial] = {}
    for model, cell in sorted({cell.network: cell for cell in reversed(todo)}.items()):
        trials[model] = _try(replace(cell.config, init="scratch"), cell.data.task, device)
        yield f"model       {model}: {trials[model].text}"
    seconds = sum(start_up + _seconds(cell, trials[cell.network]) for cell in todo)
    memory = max((trial.memory for trial in trials.values()), default=0)
    out = config.out.expanduser()
    yield (
        f"time        {seconds / 3600:,.2f} {device.type.upper()}-hours, {duration(seconds / slots)} with "
        f"{slots} at once: steps on {device} as tried, validation, scoring, and "
        f"{duration(start_up)} for each start"
    )
    yield f"memory      from {human(memory)} on the device for the largest model"
    yield (
        f"disk        {human(_data_bytes(todo))} to prepare data (downloads not counted), "
        f"{human(_run_bytes(todo, trials))} for checkpoints; {human(_free(out))} free at {out}"
    )
    yield "dry run: nothing was written"


def _try(config: FinetuneConfig, task: Task, device: torch.device) -> Trial:
    """Do some steps of training and one of scoring, without torch.compile."""
    objective = build.build_objective(config, task.kind, task.num_classes)
    network = build.build_network(config, objective.num_outputs)
    model, parameters = network.model, count_parameters(network.model)
    activations = activation_bytes(model, config.size) * config.batch_size
    model.to(device, memory_format=torch.channels_last)
    batches = _noise(config, task, network, device)
    optimizer, scheduler = build.build_optimizer(config, model, TRIAL_STEPS)
    settings = LoopSettings(epochs=TRIAL_STEPS)
    world = World(0, 1, device)
    loop = Loop(model, model, optimizer, scheduler, objective, batches, world, settings)
    laps = [time.monotonic()]

    @loop.trainer.on(Events.ITERATION_COMPLETED)
    def note_time() -> None:
        _wait_for(device)
        laps.append(time.monotonic())
        if laps[-1] - laps[0] > TRIAL_SECONDS and len(laps) > WARM_UP + 1:
            loop.trainer.terminate()

    model.train()
    loop.trainer.run()
    steps = len(laps) - 1 - WARM_UP
    train = (laps[-1] - laps[WARM_UP]) / steps / config.batch_size
    began = time.monotonic()
    loop.predict(batches["val"])
    score = (time.monotonic() - began) / len(batches["val"].index)
    memory = 4 * parameters * 4 + activations
    text = (
        f"{describe_cost(parameters, network.macs)} an image; trains {1 / train:,.0f} and scores "
        f"{1 / score:,.0f} img/s ({steps} steps of {config.batch_size}); {human(memory)} of memory"
    )
    return Trial(train, score, parameters, memory, text)


def _noise(
    config: FinetuneConfig, task: Task, network: build.Network, device: torch.device
) -> dict[str, Batches]:
    """A batch of images of noise in a task's form, to train on and to score."""
    rng, count = np.random.default_rng(0), config.batch_size
    channels = (3,) if task.channels == 3 else ()
    images = rng.integers(0, 256, (count, config.size, config.size, *channels), dtype=np.uint8)
    top = 2 if task.kind == "multi-label" else task.num_classes
    labels = rng.integers(0, top, (count, task.label_width))
    return {
        split: Batches(
            images,
            labels,
            batch_size=count,
            device=device,
            train=split == "train",
            mean=network.mean,
            std=network.std,
            hflip=config.augment.hflip,
        )
        for split in ("train", "val")
    }


def _state(cell: Cell) -> str:
    if cell.state == "to do" and cell.config.resume == "auto" and cell.folder.last.is_file():
        return f"from {cell.epochs_done()}/{cell.config.epochs}"
    return cell.state


def _seconds(cell: Cell, trial: Trial) -> float:
    """Time that a cell's steps, validation and scoring take from where it stands."""
    config, samples = cell.config, cell.data.samples
    begun = cell.epochs_done() if config.resume == "auto" else 0
    epochs = max(0, config.epochs - begun)
    steps = train_steps(cell.train_images, config.batch_size)
    trained = min(cell.train_images, steps * config.batch_size)
    scored = epochs * samples["val"] + 2 * (samples["val"] + samples["test"])
    return epochs * trained * trial.train + scored * trial.score


def _data_bytes(cells: Sequence[Cell]) -> int:
    """Of the prepared arrays that are not there yet."""
    return sum({cell.config.task: cell.data.bytes_to_prepare for cell in cells}.values())


def _run_bytes(cells: Sequence[Cell], trials: dict[str, Trial]) -> int:
    """Of what runs leave behind: weights with two moments, the best weights, and those in MLflow."""
    copies = {cell.key: 3 + 1 + (cell.config.tracking == "mlflow") for cell in cells}
    return sum(4 * copies[cell.key] * trials[cell.network].parameters for cell in cells)


def _free(folder: Path) -> int:
    """Free bytes on the disk where a folder is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

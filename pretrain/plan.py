"""``dogmed pretrain --dry-run``: what would run, after trying some steps, without writing a file."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

from dogmed import config as configuration
from dogmed.console import count, duration
from dogmed.data.progress import human
from dogmed.distributed import World, find_device, keep_freed_memory
from dogmed.models.cost import activation_bytes, count_parameters, describe_cost
from dogmed.pretrain import build
from dogmed.pretrain.config import PretrainConfig
from dogmed.pretrain.folder import PretrainFolder
from dogmed.pretrain.images import ImageSet
from dogmed.pretrain.loop import Loop
from dogmed.pretrain.result import Store
from dogmed.provenance import peak_memory

TRIAL_STEPS = 20
TRIAL_SECONDS = 120  # a slow machine tells enough with fewer steps
WARM_UP = 2


@dataclass(frozen=True)
class Trial:
    """What some real steps of training took."""

    steps: int
    seconds: float
    """A step, those of the warm-up left out."""
    data_wait: float
    """Share of it spent waiting for images."""
    memory: dict[str, int]
    """Peak of this process, by place."""


def describe(config: PretrainConfig, images: tuple[ImageSet, ImageSet]) -> str:
    """Tell data, model, steps, time, memory, folder and weights of a run, one fact a line.

    One process does some steps as it would in the run, on real images: its share of a batch.

    Raises:
        DogmedError: what the run itself would raise for its options, data or store.
    """
    train, val = images
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    network = build.build_network(config, len(train.classes))
    model, parameters = network.model, count_parameters(network.model)
    steps = len(train) // config.batch_size
    folder = PretrainFolder.of(config)
    state = "begins"
    if config.resume == "auto":
        folder.refuse_other_settings(configuration.to_dict(config))
        if folder.done() is not None:
            state = "is finished already"
        elif folder.last.is_file():
            state = "would be continued"
    store = Store.of(config, folder)
    store.refuse_other(begin=config.resume == "never")
    share = -(-config.batch_size // processes)
    at_once = min(config.micro_batch, share)
    copies = 4 + (config.ema.decay is not None)  # weights, gradients, two moments, average
    states = copies * parameters * 4
    activations = activation_bytes(model, config.size) * at_once
    device = find_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()  # as the run will, or it would seem slower than it is
    part = config.subset
    drawn = f" (drawn by seed {part.seed})" if part.per_class or part.classes else ""
    trial = try_steps(config, images, network, World(0, processes, device))
    total = config.epochs * steps
    seen = ", ".join(f"{human(size)} {name[:-6]}" for name, size in trial.memory.items())
    return "\n".join(
        [
            f"recipe    {config.recipe}",
            f"data      {config.data} ({train.kind}): {len(train.classes):,} classes, "
            f"{len(train):,} training{drawn} and {len(val):,} val images",
            f"model     {config.model}: {describe_cost(parameters, network.macs)} an image",
            *(f"          {note}" for note in network.notes),
            f"steps     {count(config.epochs, 'epoch')} × {count(steps, 'step')} of "
            f"{config.batch_size:,} images = {count(total, 'step')} on {processes} × {device}, "
            f"{-(-share // at_once)} micro-batches of up to {at_once} a device; "
            f"peak lr {build.peak_lr(config):.3g}",
            f"memory    {human(states)} for weights, gradients and moments, {human(activations)} for "
            "the activations of a micro-batch (float32; half of it under bfloat16); "
            f"peak in the trial: {seen}",
            f"time      {duration(total * trial.seconds)} for all steps, validation not counted: "
            f"{count(trial.steps, 'step')} took {trial.seconds:.3g} s each, "
            f"{config.batch_size / trial.seconds:,.0f} img/s, waiting for data {trial.data_wait:.0%}",
            f"run       {folder.root} {state}",
            f"weights   {store.path}",
            "dry run: nothing was written"
            + (
                ""
                if train.kind == "folder"
                else f" but the index of the {train.kind}, in the cache"
            ),
        ]
    )


def try_steps(
    config: PretrainConfig,
    images: tuple[ImageSet, ImageSet],
    network: build.Network,
    world: World,
) -> Trial:
    """Do up to 20 real steps of one process's share, after two to warm up.

    Args:
        config: options of the run.
        images: train and val.
        network: is trained a little.
        world: how many processes the run would have; only this one takes part.
    """
    model, alone = network.model, World(0, 1, world.device)
    scale = build.build_scale(config, model)
    model.to(world.device, memory_format=torch.channels_last)
    batches = build.build_batches(config, images, network, world)
    optimizer, scheduler = build.build_optimizer(config, model, len(batches["train"]))
    compiled = build.compiled(config, model, world, print)
    settings = build.loop_settings(config)
    loop = Loop(model, compiled, optimizer, scheduler, batches, alone, settings, scale)
    train = batches["train"]
    train.set_epoch(0)
    model.train()
    started = began = time.monotonic()
    waited, done = 0.0, 0
    try:
        for micro_batches in train:
            loop.train_step(micro_batches)
            done += 1
            if done <= WARM_UP:
                _wait_for(world.device)
                began, waited = time.monotonic(), train.wait_seconds
            late = time.monotonic() - started > TRIAL_SECONDS and done > WARM_UP
            if done == WARM_UP + TRIAL_STEPS or late:
                break
        _wait_for(world.device)
        seconds = max(time.monotonic() - began, 1e-9)
        loop.check_losses()
        waited = train.wait_seconds - waited
    finally:
        for loader in batches.values():
            loader.close()
    counted = max(1, done - WARM_UP)
    return Trial(counted, seconds / counted, min(1.0, waited / seconds), peak_memory(world.device))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""From options to objects: data, model, batches, optimizer. Nothing here trains."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from dogmed import optim
from dogmed.data.loader import Batches, stratified_fraction
from dogmed.data.progress import Progress
from dogmed.data.store import Prepared, prepare
from dogmed.distributed import World
from dogmed.errors import ConfigError, DataError
from dogmed.finetune.config import FinetuneConfig
from dogmed.models import build_model
from dogmed.models.cost import count_macs
from dogmed.models.loading import Loaded
from dogmed.objective import Objective

SPLITS = ("train", "val", "test")


def prepare_data(config: FinetuneConfig, progress: Progress) -> Prepared:
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


def seed_everything(seed: int) -> None:
    """Seed every generator that a run draws from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def build_objective(config: FinetuneConfig, kind: str, num_classes: int) -> Objective:
    """The loss of the task's kind; the choice among ordinal heads concerns ordinal tasks alone."""
    return Objective(
        kind,
        num_classes,
        label_smoothing=config.loss.label_smoothing,
        ordinal=config.loss.ordinal if kind == "ordinal" else "cross-entropy",
    )


def build_network(config: FinetuneConfig, num_outputs: int) -> tuple[nn.Module, Loaded]:
    """The model with its initial weights, on the CPU, and what was loaded into it."""
    return build_model(
        config.model,
        num_outputs,
        init=config.init,
        drop_path_rate=config.net.drop_path,
        weights_dir=config.weights_dir,
    )


def count_macs_of(config: FinetuneConfig, model: nn.Module) -> int:
    """Multiply-accumulates of one image, by running one.

    Raises:
        ConfigError: the model cannot take images of this size.
    """
    try:
        return count_macs(model, config.size)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{config.model} cannot take {config.size} px images ({reason}); give a larger --size, "
            "or a model that takes any, such as dognext_atto"
        ) from error


def normalisation(model: nn.Module, loaded: Loaded) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in [0, 1]: those the initial weights were trained with."""
    if loaded.data is not None:
        return loaded.data.mean, loaded.data.std
    cfg: Any = model.pretrained_cfg
    return tuple(cfg["mean"]), tuple(cfg["std"])


def build_batches(
    config: FinetuneConfig,
    prepared: Prepared,
    world: World,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> dict[str, Batches]:
    """A loader for each split; the training one shuffles, flips and honours ``train_fraction``."""
    batches = {}
    for split in SPLITS:
        train, labels = split == "train", prepared.labels(split)
        indices = None
        if train and config.train_fraction < 1:
            indices = stratified_fraction(
                labels, config.train_fraction, config.seed, prepared.task.kind
            )
        batches[split] = Batches(
            prepared.images(split),
            labels,
            batch_size=config.batch_size if train else max(config.eval.batch_size, world.size),
            device=world.device,
            train=train,
            mean=mean,
            std=std,
            cache=config.cache,
            seed=config.seed,
            hflip=config.augment.hflip,
            rank=world.rank,
            world_size=world.size,
            indices=indices,
        )
    return batches


def build_optimizer(
    config: FinetuneConfig, model: nn.Module, steps: int
) -> tuple[torch.optim.Optimizer, Any]:
    """Optimizer and per-step schedule over ``steps`` steps an epoch."""
    options = config.optim
    optimizer = optim.create_optimizer(
        model,
        name=options.name,
        lr=peak_lr(config),
        weight_decay=options.weight_decay,
        betas=options.betas,
    )
    scheduler = optim.create_scheduler(
        optimizer,
        name=options.schedule,
        steps=config.epochs * steps,
        warmup_steps=round(options.warmup_epochs * steps),
        min_lr=options.min_lr,
    )
    return optimizer, scheduler


def peak_lr(config: FinetuneConfig) -> float:
    """The peak learning rate: as given, or scaled from the one for 256 images."""
    if config.optim.lr is not None:
        return config.optim.lr
    return optim.lr_from_base(config.optim.lr_base, config.batch_size)


def refuse_unselectable(select: str, kind: str, labels: np.ndarray, split: str = "val") -> None:
    """Make sure that the validation figure that picks the best epoch exists.

    Raises:
        DataError: every label of val is of one class, so that no AUC is defined.
    """
    varied = [len(np.unique(column)) > 1 for column in labels.T]
    if select == "auc" and not any(varied):
        raise DataError(
            f"{split} holds one class only, so AUC cannot pick the best epoch; "
            "add images of other classes, or give --eval.select acc (or loss, or last)"
        )


def compile_or_fall_back(
    model: nn.Module, example: torch.Tensor, say: Callable[[str], None]
) -> nn.Module:
    """Compile ``model`` and try it forward and backward; on failure say so in a line and go on without.

    Random number generators and gradients are left as they were.

    Args:
        model: in training mode or not, on its device.
        example: a batch of images as training will see them.
        say: prints a line.
    """
    amp = torch.autocast("cuda", torch.bfloat16, enabled=example.is_cuda)
    devices = [example.device] if example.is_cuda else []
    training = model.training
    with torch.random.fork_rng(devices):
        try:
            compiled = torch.compile(model)
            with amp:
                out = compiled.train()(example)
            out.float().sum().backward()
        except Exception as error:  # whatever a compiler, its back end or its tool chain raises
            lines = str(error).strip().splitlines()
            say(
                f"torch.compile failed, going on without: {lines[0] if lines else type(error).__name__}"
            )
            compiled = model
    model.train(training)
    model.zero_grad(set_to_none=True)
    return compiled

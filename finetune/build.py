"""From options to objects: data, model, batches, optimizer. Nothing here trains."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from dogmed import optim
from dogmed.data.loader import Batches, choose_cache, stratified_fraction
from dogmed.data.progress import Progress
from dogmed.data.store import Plan, Prepared, plan, prepare
from dogmed.distributed import World
from dogmed.errors import ConfigError, DataError
from dogmed.finetune.config import FinetuneConfig, data_options
from dogmed.models import GaussDerResNet, build_model
from dogmed.models.compiling import compile_or_fall_back
from dogmed.models.cost import count_macs
from dogmed.models.loading import Loaded
from dogmed.models.scaling import BatchScale
from dogmed.objective import Objective
from dogmed.options import net_options, open_optimizer, open_scale


@dataclass(frozen=True)
class Network:
    """A model with its initial weights, and what it costs."""

    model: nn.Module
    loaded: Loaded
    macs: int
    """Multiply-accumulates of one image."""
    mean: tuple[float, ...]
    """Per channel, in [0, 1]: what the initial weights were trained with."""
    std: tuple[float, ...]
    scale: BatchScale | None
    """The scale augmentation of its training; None for whole images always."""


SPLITS = ("train", "val", "test")


def prepare_data(config: FinetuneConfig, progress: Progress) -> Prepared:
    """Have the task's arrays ready for memory-mapping, as the options ask."""
    return prepare(**data_options(config), progress=progress)


def plan_data(config: FinetuneConfig) -> Plan:
    """What ``prepare_data`` would find and do; refuses what it would refuse."""
    return plan(**data_options(config))


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


def build_network(
    config: FinetuneConfig, num_outputs: int, classes: Sequence[str] | None = None
) -> Network:
    """Build the model on the CPU with its initial weights, from the seed.

    Args:
        config: options of the run.
        num_outputs: of the classifier.
        classes: names of the task's classes; then only a classifier of the same ones is taken along.

    Raises:
        ConfigError: unknown model or option, or a model that cannot take images of this size, or the
            scale augmentation.
        WeightsError: the weights that ``init`` names are not there or do not fit.
    """
    seed_everything(config.seed)
    model, loaded = build_model(
        config.model,
        num_outputs,
        init=config.init,
        drop_path_rate=config.net.drop_path,
        weights_dir=config.weights_dir,
        options=net_options(config.net),
        classes=classes,
    )
    try:
        macs = count_macs(model, config.size)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{config.model} cannot take {config.size} px images ({reason}); give a larger --size, "
            "or a model that takes any, such as dognext_atto"
        ) from error
    cfg: Any = model.pretrained_cfg
    seen = loaded.data
    if seen and seen.trained_size is not None and seen.size != config.size:
        note = f"these weights were chosen for {seen.size} px: --size {seen.size}"
        loaded = replace(loaded, notes=(*loaded.notes, note))
    if isinstance(model, GaussDerResNet) and (blind := model.blind_channels(config.size)):
        note = (
            f"the coarsest {blind} of {len(model.channel_scales)} scale channels smooth over all of {config.size} "
            "px: a larger --size or a smaller --net.stride gives them something to see"
        )
        loaded = replace(loaded, notes=(*loaded.notes, note))
    mean, std = (seen.mean, seen.std) if seen else (tuple(cfg["mean"]), tuple(cfg["std"]))
    details = asdict(config.scale)
    scale = open_scale(model, config.model, config.size, config.seed, config.scale_aug, details)
    return Network(model, loaded, macs, mean, std, scale)


def build_batches(
    config: FinetuneConfig,
    prepared: Prepared,
    world: World,
    network: Network,
    splits: Sequence[str] = SPLITS,
) -> dict[str, Batches]:
    """A loader for each of the splits; the training one shuffles, flips and honours ``train_fraction``.

    Where the pixels are kept is chosen once, for all splits together.
    """
    pixels = sum(prepared.images(split).nbytes for split in splits)
    cache = choose_cache(config.cache, pixels, world.device, world.size)
    batches = {}
    for split in splits:
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
            mean=network.mean,
            std=network.std,
            cache=cache,
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
    return open_optimizer(model, config.optim, peak_lr(config), config.epochs, steps)


def peak_lr(config: FinetuneConfig) -> float:
    """The peak learning rate: as given, or scaled from the one for 256 images."""
    return optim.peak_lr(config.optim.lr, config.optim.lr_base, config.batch_size)


def refuse_unselectable(select: str, labels: np.ndarray) -> None:
    """Make sure that the validation figure that picks the best epoch exists.

    Raises:
        DataError: every label of val is of one class, so that no AUC is defined.
    """
    varied = [len(np.unique(column)) > 1 for column in labels.T]
    if select == "auc" and not any(varied):
        raise DataError(
            "val holds one class only, so AUC cannot pick the best epoch; "
            "add images of other classes, or give --eval.select acc (or loss, or last)"
        )


def refuse_lone_images(model: nn.Module, batch_size: int, processes: int) -> None:
    """Make sure that batch normalisation sees more than one image a process.

    Raises:
        ConfigError: it does not.
    """
    normalised = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    if normalised and batch_size < 2 * processes:
        raise ConfigError(
            f"--batch-size {batch_size} leaves a single image to a process, and this model has batch "
            f"normalisation: give --batch-size {2 * processes} or more"
        )


def compiled(
    config: FinetuneConfig,
    model: nn.Module,
    train: Batches,
    world: World,
    say: Callable[[str], None],
) -> nn.Module:
    """What whole images go through: the model, compiled where that is wanted and works."""
    if config.compile == "off" or (config.compile == "auto" and world.device.type == "cpu"):
        return model
    example = next(iter(train))["image"]
    left = len(train.index) % train.batch_size
    rest = -(-(left - world.rank) // world.size)  # this process's share of a smaller last batch
    last = rest and len(train) > len(train.index) // train.batch_size
    sizes = [len(example), rest] if last else [len(example)]
    return compile_or_fall_back(model, example, sizes, say)

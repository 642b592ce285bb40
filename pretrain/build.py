"""From options to objects: data, model, batches, optimizer. Nothing here trains."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from timm.models import is_model_in_modules
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dogmed import optim
from dogmed.distributed import World
from dogmed.errors import ConfigError, DataError
from dogmed.models import build_model
from dogmed.models.compiling import compile_or_fall_back
from dogmed.models.cost import count_macs
from dogmed.models.scaling import BatchScale
from dogmed.options import net_options, open_optimizer, open_scale
from dogmed.pretrain import subset
from dogmed.pretrain.config import PretrainConfig
from dogmed.pretrain.images import ImageSet
from dogmed.pretrain.loader import ImageBatches
from dogmed.pretrain.loop import LoopSettings
from dogmed.pretrain.transforms import eval_transform, train_transform


@dataclass(frozen=True)
class Network:
    """A model with its initial weights, and what it costs."""

    model: nn.Module
    options: dict[str, Any]
    """Constructor options that differ from the architecture's own."""
    notes: tuple[str, ...]
    """What should be said of it."""
    macs: int
    """Multiply-accumulates of one image."""
    mean: tuple[float, ...]
    """Per channel, in [0, 1]."""
    std: tuple[float, ...]


def draw_images(
    config: PretrainConfig, splits: tuple[ImageSet, ImageSet]
) -> tuple[ImageSet, ImageSet]:
    """Take the subset of train that the options ask for, and val of the same classes.

    Raises:
        DataError: the images do not have as many classes as the classifier.
    """
    train, val = splits
    part = config.subset
    train = subset.draw(train, per_class=part.per_class, classes=part.classes, seed=part.seed)
    val = subset.of_classes(val, train.classes)
    found, wanted = len(train.classes), config.num_classes
    if wanted is not None and found != wanted:
        raise DataError(
            f"{config.data} has {found} classes to train on, and --num-classes asks for a classifier "
            f"of {wanted}: give --num-classes {found}, or leave it out"
        )
    return train, val


def fingerprint(images: ImageSet) -> str:
    """SHA-256 over classes, names and labels: whether a run continues on the same images."""
    digest = hashlib.sha256("\0".join(images.classes).encode())
    digest.update(images.labels.astype("<i8").tobytes())
    for i in range(len(images)):
        digest.update(images.name(i).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def build_network(config: PretrainConfig, num_classes: int) -> Network:
    """Build the model on the CPU with its random initial weights, from the seed.

    Raises:
        ConfigError: unknown model or option, or a model that cannot take images of this size.
    """
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)
    torch.manual_seed(config.seed)
    options, notes = net_options(config.net), []
    if "kernel_size" in options and not is_model_in_modules(config.model, ["dognext"]):
        del options["kernel_size"]  # of a recipe that serves other models too
        notes.append(f"{config.model} has no DoGConv: it keeps its own kernels")
    drop_path = config.net.drop_path
    model, loaded = build_model(
        config.model, num_classes, drop_path_rate=drop_path, options=options
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
    return Network(
        model, options, (*notes, *loaded.notes), macs, tuple(cfg["mean"]), tuple(cfg["std"])
    )


def build_scale(config: PretrainConfig, model: nn.Module) -> BatchScale | None:
    """The scale augmentation, or None where there is none; raises as ``open_scale`` does."""
    details = asdict(config.scale)
    return open_scale(model, config.model, config.size, config.seed, config.scale_aug, details)


def build_batches(
    config: PretrainConfig,
    images: tuple[ImageSet, ImageSet],
    network: Network,
    world: World,
) -> dict[str, ImageBatches]:
    """Loaders of ``train`` (shuffled, augmented) and ``val``."""
    augment, loader = config.augment, config.loader
    transforms = {
        "train": train_transform(
            config.size,
            mean=network.mean,
            std=network.std,
            scale=augment.crop_scale,
            ratio=augment.crop_ratio,
            interpolation=augment.interpolation,
            hflip=augment.hflip,
            color_jitter=augment.color_jitter,
            auto_augment=augment.auto_augment,
            re_prob=augment.erase,
            re_mode=augment.erase_mode,
            re_count=augment.erase_count,
            decode=loader.decode,
        ),
        "val": eval_transform(
            config.size,
            mean=network.mean,
            std=network.std,
            crop_pct=config.eval.crop_pct,
            interpolation="bicubic",
        ),
    }
    _refuse_lone_image(config, network.model, world)
    batches = {}
    for split, of_split in zip(("train", "val"), images, strict=True):
        train = split == "train"
        batches[split] = ImageBatches(
            of_split,
            transforms[split],
            batch_size=config.batch_size if train else config.eval.batch_size * world.size,
            micro_batch=config.micro_batch if train else None,
            device=world.device,
            train=train,
            seed=config.seed,
            workers=count_workers(loader.workers),
            max_bad_share=loader.max_bad,
            rank=world.rank,
            world_size=world.size,
        )
    return batches


def _refuse_lone_image(config: PretrainConfig, model: nn.Module, world: World) -> None:
    """Make sure that no micro-batch is one image where batches are normalised: it has no variance.

    Raises:
        ConfigError: one is.
    """
    shares = {-(-(config.batch_size - rank) // world.size) for rank in range(world.size)}
    lone = any(
        1 in (share, share % config.micro_batch) or config.micro_batch == 1 for share in shares
    )
    if lone and any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise ConfigError(
            f"{config.model} normalises batches, and --batch-size {config.batch_size} by --micro-batch "
            f"{config.micro_batch} on {world.size} process(es) leaves one image alone: give other sizes"
        )


def count_workers(asked: int | None) -> int:
    """Decoding processes of one process: as asked, or this machine's cores shared among its processes."""
    if asked is not None:
        return asked
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def build_optimizer(
    config: PretrainConfig, model: nn.Module, steps: int
) -> tuple[torch.optim.Optimizer, Any]:
    """Optimizer and per-step schedule over ``steps`` steps an epoch."""
    return open_optimizer(model, config.optim, peak_lr(config), config.epochs, steps)


def peak_lr(config: PretrainConfig) -> float:
    """The peak learning rate: as given, or scaled from the one for 256 images."""
    return optim.peak_lr(config.optim.lr, config.optim.lr_base, config.batch_size)


def loop_settings(config: PretrainConfig) -> LoopSettings:
    """What the loop needs to know.

    Raises:
        ConfigError: an average is to be selected, and none is kept.
    """
    if config.eval.select == "ema" and config.ema.decay is None:
        raise ConfigError("--eval.select ema: no average is kept; give --ema.decay 0.9999, say")
    return LoopSettings(
        epochs=config.epochs,
        seed=config.seed,
        label_smoothing=config.loss.label_smoothing,
        clip_grad=config.optim.clip_grad,
        save_minutes=config.checkpoint.minutes,
        ema_decay=config.ema.decay,
        ema_warmup=config.ema.warmup,
    )


def compiled(
    config: PretrainConfig, model: nn.Module, world: World, say: Callable[[str], None]
) -> nn.Module:
    """What whole images go through: the model, compiled where that is wanted and works."""
    if config.compile == "off" or (config.compile == "auto" and world.device.type == "cpu"):
        return model
    share = -(-(config.batch_size - world.rank) // world.size)
    largest = min(config.micro_batch, share)
    sizes = [largest, *([share % largest] if share % largest else [])]
    example = torch.zeros(largest, 3, config.size, config.size, device=world.device)
    example = example.contiguous(memory_format=torch.channels_last)
    return compile_or_fall_back(model, example, sizes, say)

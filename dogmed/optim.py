"""Optimizers and learning-rate schedules: timm's factories, with the thesis's rules on top.

The rules (Table 4.1): the learning rate is 2e-4 x batch/256, decayed by one cosine without warm-up,
and neither DoGConv parameters nor norms, biases and GRN are decayed.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, get_optimizer_info, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dogmed.errors import ConfigError, nearest

# Our names -> timm's, as far as steps, warm-up and floor say all there is to say.
SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {"sched": "cosine"},
    "linear": {"sched": "poly", "decay_rate": 1.0},
    "constant": {"sched": "step", "decay_rate": 1.0},
}


def lr_from_base(base: float, batch_size: int) -> float:
    """Scale a learning rate stated for 256 images a step to ``batch_size`` (global)."""
    return base * batch_size / 256


def peak_lr(lr: float | None, lr_base: float, batch_size: int) -> float:
    """The peak learning rate: ``lr`` as it is, or where it is None ``lr_base`` scaled."""
    return lr_from_base(lr_base, batch_size) if lr is None else lr


def build(
    model: nn.Module,
    *,
    name: str,
    peak: float,
    weight_decay: float,
    betas: tuple[float, float] | None,
    schedule: str,
    epochs: int,
    steps: int,
    warmup_epochs: float,
    min_lr: float,
) -> tuple[torch.optim.Optimizer, Scheduler]:
    """Make an optimizer and its per-step schedule over a whole training.

    Args:
        model: the model to train.
        name: of the optimizer.
        peak: learning rate, see ``peak_lr``.
        weight_decay: as ``create_optimizer`` takes it.
        betas: as ``create_optimizer`` takes them.
        schedule: cosine, linear or constant.
        epochs: of the training.
        steps: optimizer steps of an epoch.
        warmup_epochs: epochs of linear warm-up, whole or not.
        min_lr: rate reached at the end.

    Raises:
        ConfigError: what ``create_optimizer`` and ``create_scheduler`` refuse.
    """
    optimizer = create_optimizer(model, name=name, lr=peak, weight_decay=weight_decay, betas=betas)
    scheduler = create_scheduler(
        optimizer,
        name=schedule,
        steps=epochs * steps,
        warmup_steps=round(warmup_epochs * steps),
        min_lr=min_lr,
    )
    return optimizer, scheduler


def create_optimizer(
    model: nn.Module,
    *,
    name: str = "adamw",
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] | None = None,
) -> torch.optim.Optimizer:
    """Make timm's optimizer over ``model``, decaying only weights that the model lets be decayed.

    Tensors of one dimension (norms, biases, GRN) and those named by ``model.no_weight_decay()``
    (DoGConv's) form a group without decay. Both are looked up under the wrappers of
    DistributedDataParallel and ``torch.compile``, which hide the method or change the names.

    On CUDA the fused kernels of torch are used where the optimizer has them: one launch in place of
    dozens. On a CPU torch's default stays, because the fused result differs in the last bits.

    Args:
        model: the model to train; parameters without ``requires_grad`` are left out.
        name: one of ``timm.optim.list_optimizers()``.
        lr: peak learning rate of one step, after scaling (see ``lr_from_base``).
        weight_decay: decoupled or not, as the optimizer has it.
        betas: decay rates of the two moments; None leaves the optimizer's own.

    Raises:
        ConfigError: unknown name, a rate out of range, or betas for an optimizer without any.
    """
    names = [str(known) for known in list_optimizers()]
    if name not in names:
        raise ConfigError(f"unknown optimizer '{name}'{nearest(name, names)}")
    if not lr > 0:
        raise ConfigError(f"learning rate {lr}: expected a value above 0")
    if not weight_decay >= 0:
        raise ConfigError(f"weight decay {weight_decay}: expected 0 or more")
    extra: dict[str, Any] = {}
    if betas is not None:
        if not get_optimizer_info(name).has_betas:
            raise ConfigError(
                f"optimizer '{name}' has no betas, got {tuple(betas)}: give --optim.betas None"
            )
        if not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"betas {tuple(betas)}: expected two values in [0, 1)")
        extra["betas"] = tuple(betas)
    model = _unwrap(model)
    optimizer_class = get_optimizer_class(name, bind_defaults=False)
    on_cuda = all(p.is_cuda for p in model.parameters() if p.requires_grad)
    if on_cuda and "fused" in inspect.signature(optimizer_class).parameters:
        extra["fused"] = True
    return create_optimizer_v2(model, opt=name, lr=lr, weight_decay=weight_decay, **extra)


def create_scheduler(
    optimizer: torch.optim.Optimizer,
    *,
    name: str = "cosine",
    steps: int,
    warmup_steps: int = 0,
    min_lr: float = 0.0,
) -> Scheduler:
    """Make timm's schedule, counted in optimizer steps over the whole of training.

    Call ``step_update(n)`` after the n-th step (n from 1): it sets the rate of step n+1. Without
    warm-up, and with T = steps, the rate of the step after n is

        cosine    min_lr + (lr - min_lr)(1 + cos(pi n/T))/2
        linear    min_lr + (lr - min_lr)(1 - n/T)
        constant  lr

    Warm-up rises linearly from 0 over its steps and shortens the rest: n and T are then counted
    from its end, so that there is no jump.

    Args:
        optimizer: its present learning rate is the peak.
        name: cosine, linear or constant.
        steps: optimizer steps of the whole training, warm-up included.
        warmup_steps: steps of linear warm-up.
        min_lr: rate reached at the end.

    Raises:
        ConfigError: unknown name or numbers that leave no schedule.
    """
    if name not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise ConfigError(f"unknown schedule '{name}'{nearest(name, SCHEDULES)}; there are {known}")
    if not 0 <= warmup_steps < steps:
        raise ConfigError(
            f"{warmup_steps} warm-up steps of {steps} in all: expected fewer; lower "
            "--optim.warmup-epochs, or raise --epochs"
        )
    peak = max(group["lr"] for group in optimizer.param_groups)
    if not 0 <= min_lr <= peak:
        raise ConfigError(f"lowest learning rate {min_lr}: expected between 0 and the peak {peak}")
    scheduler, _ = create_scheduler_v2(
        optimizer,
        **SCHEDULES[name],
        num_epochs=steps - warmup_steps,
        decay_epochs=steps,
        warmup_epochs=warmup_steps,
        warmup_lr=0.0,
        warmup_prefix=True,
        min_lr=min_lr,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    return scheduler


def describe_groups(optimizer: torch.optim.Optimizer) -> str:
    """Tell in one line what is decayed and what is not, for the log."""
    parts = []
    for group in sorted(optimizer.param_groups, key=lambda g: -g["weight_decay"]):
        tensors, values = len(group["params"]), sum(p.numel() for p in group["params"])
        decay = f"weight decay {group['weight_decay']:g}" if group["weight_decay"] else "no decay"
        parts.append(f"{decay} on {tensors} tensors ({values:,} parameters)")
    return f"{type(optimizer).__name__}: " + ", ".join(parts)


def _unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside ``torch.compile``'s and DistributedDataParallel's wrappers."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(model, torch._dynamo.OptimizedModule):
            model = model._orig_mod
        else:
            return model

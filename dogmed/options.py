"""Groups of options that both pipelines have, and the ranges that options share."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from dogmed.config import configclass

Count = Annotated[int, Gt(0), Le(1_000_000)]
Side = Annotated[int, Gt(0), Le(16_384)]
Seed = Annotated[int, Ge(0), Le(2**63 - 1)]
Rate = Annotated[float, Gt(0), Le(1e3)]
Share = Annotated[float, Ge(0), Le(1)]


@configclass
class OptimConfig:
    """Optimizer and schedule."""

    name: str
    """timm's name of the optimizer."""
    lr_base: Rate
    """Peak learning rate for a batch of 256; scaled by batch-size/256."""
    lr: Rate | None
    """Peak learning rate as it is, in place of the scaled lr-base."""
    weight_decay: Annotated[float, Ge(0)]
    """Decoupled weight decay; never applied to DoGConv parameters, norms, GRN and biases."""
    betas: tuple[Annotated[float, Ge(0), Lt(1)], Annotated[float, Ge(0), Lt(1)]] | None
    """Decay rates of Adam's two moments; None for an optimizer that has none."""
    schedule: Literal["cosine", "linear", "constant"]
    """Course of the learning rate, per step."""
    warmup_epochs: Annotated[float, Ge(0), Le(1e6)]
    """Epochs of linear warm-up."""
    min_lr: Annotated[float, Ge(0), Le(1e3)]
    """Learning rate at the end of the cosine."""
    clip_grad: Annotated[float, Gt(0)] | None
    """Largest gradient norm; None does not clip."""


@configclass
class CheckpointConfig:
    """When the state is saved besides the end of every epoch."""

    minutes: Annotated[float, Ge(0)]
    """Save within an epoch too, this often; 0 saves only between epochs."""

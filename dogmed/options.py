"""Groups of options that both pipelines have, and the ranges that options share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args

from annotated_types import Ge, Gt, Le, Lt

from dogmed.config import configclass, recipe
from dogmed.errors import ConfigError

if TYPE_CHECKING:  # PyTorch: not for --help
    import torch
    from torch import nn

    from dogmed.models.scaling import BatchScale

Count = Annotated[int, Gt(0), Le(1_000_000)]
Side = Annotated[int, Gt(0), Le(16_384)]
Seed = Annotated[int, Ge(0), Le(2**63 - 1)]
Rate = Annotated[float, Gt(0), Le(1e3)]
Share = Annotated[float, Ge(0), Le(1)]
Positive = Annotated[float, Gt(0), Le(1e3)]
KernelSize = Annotated[int, Gt(0), Le(99)]
Factor = Annotated[float, Gt(0), Le(1)]
ScaleAug: TypeAlias = Literal["off", "scale", "multi-kernel", "hybrid"]


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


def open_optimizer(
    model: nn.Module, options: OptimConfig, peak: float, epochs: int, steps: int
) -> tuple[torch.optim.Optimizer, Any]:
    """Optimizer and per-step schedule over a whole training.

    Args:
        model: that is to be trained.
        options: all but the peak and what is clipped.
        peak: learning rate.
        epochs: of the training.
        steps: of the optimizer, an epoch.

    Raises:
        ConfigError: there is no such optimizer, or it cannot take an option.
    """
    from dogmed import optim

    return optim.build(
        model,
        name=options.name,
        peak=peak,
        weight_decay=options.weight_decay,
        betas=options.betas,
        schedule=options.schedule,
        epochs=epochs,
        steps=steps,
        warmup_epochs=options.warmup_epochs,
        min_lr=options.min_lr,
    )


@configclass
class CheckpointConfig:
    """When the state is saved besides the end of every epoch."""

    minutes: Annotated[float, Ge(0)]
    """Save within an epoch too, this often; 0 saves only between epochs."""


@configclass
class NetConfig:
    """Constructor options of the network; None is its own value, or what the initial weights were trained with."""

    drop_path: Annotated[float, Ge(0), Lt(1)]
    """Largest drop-path rate, growing linearly with depth; models without drop path ignore the default."""
    kernel_size: KernelSize | None
    """Kernel size of every DoGConv, odd."""
    extent: Positive | None
    """Half-width of the region a DoGConv samples; None grows it with the kernel size (rings round 7x7)."""
    order: Literal["base", "d1", "d2"] | None
    """DoG functions mixed in a kernel."""
    downsample: Literal["dog", "conv"] | None
    """Strided DoGConvs, or ConvNeXt V2's strided convolutions."""
    double_residual: bool | None
    """Skip convolution and MLP separately."""
    use_grn: bool | None
    """ConvNeXt V2's global response normalisation."""
    dog_init: Literal["patterns", "random"] | None
    """Initial kernels of DoGConvs."""
    dog_margin: Annotated[float, Ge(0), Le(1e3)] | None
    """Initial lead of the chosen function's logit."""
    dog_bias: Literal["output", "kernel"] | None
    """Where a DoGConv adds its bias."""
    stride: Annotated[int, Gt(0), Le(64)] | None
    """GaussDerResNet: pixels to a cell of its maps."""
    sigma: Positive | None
    """GaussDerResNet: scale of the first layer in the finest scale channel, in cells."""
    growth: Positive | None
    """GaussDerResNet: ratio of the scales of successive blocks."""
    scale_channels: Annotated[int, Ge(0), Le(64)] | None
    """GaussDerResNet: number of scale channels."""
    channel_ratio: Positive | None
    """GaussDerResNet: ratio of the scales of neighbouring scale channels."""
    zero_order: bool | None
    """GaussDerResNet: combine smoothed maps too, not derivatives alone."""
    separable: bool | None
    """GaussDerResNet: depthwise-separable layers."""
    pooling: Literal["max", "avg", "logsumexp"] | None
    """GaussDerResNet: of the scores over the scale channels."""
    selection: Literal["center", "max", "avg"] | None
    """GaussDerResNet: the point whose features are classified, or the mean of all."""


def net_options(net: NetConfig) -> dict[str, Any]:
    """The constructor options that were given, besides drop path, as ``build_model`` takes them."""
    given = {field.name: getattr(net, field.name) for field in dataclasses.fields(net)}
    del given["drop_path"]
    return {name: value for name, value in given.items() if value is not None}


@configclass
class ScaleConfig:
    """Details of --scale-aug (thesis section 4.4); None is the word's own value, in ``configs/scale.yaml``."""

    probability: Share | None
    """Probability that a batch is downsampled; 0 never does."""
    range: tuple[Factor, Factor] | None
    """Smallest and largest factor s, drawn uniformly."""
    resize_kernels: Share | None
    """Probability that a downsampled batch meets smaller DoG kernels: 0 scale, 0.5 hybrid, 1 multi-kernel."""
    kernel_sizes: tuple[KernelSize, KernelSize] | None
    """Kernel size for s from the threshold on, and for s below it."""
    threshold: Factor | None
    """Factor s from which on the larger of the smaller kernels serves."""


def scale_options(word: ScaleAug, details: Mapping[str, Any]) -> dict[str, Any]:
    """What a word of ``--scale-aug`` stands for, by field of ``ScaleConfig``; details that are given win."""
    given = {name: value for name, value in details.items() if value is not None}
    return {**recipe("scale")[word], **given}


def refuse_idle_details(word: ScaleAug, details: Mapping[str, Any]) -> None:
    """Make sure that details of ``--scale-aug`` are not given where nothing is ever scaled.

    Raises:
        ConfigError: one is, and it is not at its usual value.
    """
    usual, chosen = recipe("scale")[word], scale_options(word, details)
    idle = [name for name, value in usual.items() if _plain(chosen[name]) != _plain(value)]
    if chosen["probability"] == 0 and idle:
        raise ConfigError(
            f"--scale.{idle[0].replace('_', '-')} does nothing while no batch is scaled: give "
            "--scale-aug scale, multi-kernel or hybrid too"
        )


def open_scale(
    model: nn.Module, name: str, size: int, seed: int, word: ScaleAug, details: Mapping[str, Any]
) -> BatchScale | None:
    """The random scale of a run's steps, or None where no batch is ever downsampled.

    Args:
        model: that is to be trained, on any device.
        name: of the model, for messages.
        size: side of the whole images, pixels.
        seed: of the run.
        word: of ``--scale-aug``.
        details: by field of ``ScaleConfig``; None is the word's own.

    Raises:
        ConfigError: a detail is idle or out of range, or the model cannot take it.
    """
    from dogmed.models.scaling import ScaleError, build_scale

    refuse_idle_details(word, details)
    try:
        return build_scale(model, name, size, seed, scale_options(word, details))
    except ScaleError as error:
        raise ConfigError(f"{error}: {_SCALE_FLAGS[error.cause]}") from error


_SCALE_FLAGS = {
    "factors": "give --scale.range so",
    "layers": "give --scale-aug scale (images alone), or a dognext_* model",
    "kernel_sizes": "give other --scale.kernel-sizes, or a larger --net.kernel-size",
    "size": "give a larger --size, or a larger smallest factor of --scale.range",
}
"""How the flags mend what a ``ScaleError`` says."""


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def settled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's nested settings with the values that its word of ``--scale-aug`` stands for.

    Runs are kept and compared with these: one day a word may stand for others.
    """
    word, details = settings["scale_aug"], settings["scale"]
    if word not in get_args(ScaleAug) or not isinstance(details, Mapping):
        return dict(settings)  # of a damaged file; it is not that of any run
    return {**settings, "scale": scale_options(word, details)}

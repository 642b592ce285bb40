"""Scale augmentation of whole batches, and DoG kernels that shrink with the images (section 4.4).

With some probability a batch is downsampled by a factor s before the forward pass, so that the network
sees scales that RandomResizedCrop, which only ever enlarges, never shows. Every DoGConv may then sample
its kernels with fewer cells: at an unchanged extent the pattern shrinks as the image did. The thesis
names no interpolation; ours is bilinear with antialiasing, as an image library makes smaller images:
plain bilinear at s = 0.35 would read four of each eight pixels and show aliases that no small image has.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dogmed.errors import ConfigError
from dogmed.models.dog import DoGConv2d

Cause = Literal["factors", "layers", "kernel_sizes", "size"]
_STREAM = 0x5CA1E  # keeps these draws apart from others of the same seed and step


class ScaleError(ConfigError):
    """A scale augmentation that cannot be; the command line adds how its flags mend it.

    Args:
        cause: what stands in the way.
        message: says it.
    """

    def __init__(self, cause: Cause, message: str):
        super().__init__(message)
        self.cause = cause


@dataclass(frozen=True)
class Draw:
    """What one batch meets."""

    factor: float = 1.0
    """Of the image's side."""
    kernel_size: int | None = None
    """Of every DoGConv; None leaves them as they are."""


@dataclass(frozen=True)
class BatchScale:
    """The random scale of each step of a run.

    ``configs/scale.yaml`` has the thesis's values. Draws depend on seed and
    step alone: all processes and micro-batches of a step have the same, and a continued run goes on
    with what would have come.

    Args:
        seed: of the run.
        probability: that a batch is downsampled.
        factors: smallest and largest factor, drawn uniformly.
        resize_kernels: probability that a downsampled batch meets smaller kernels.
        kernel_sizes: for factors from ``threshold`` on, and below it.
        threshold: between the two kernel sizes.

    Raises:
        ScaleError: the factors are in the wrong order.
    """

    seed: int
    probability: float
    factors: tuple[float, float]
    resize_kernels: float
    kernel_sizes: tuple[int, int]
    threshold: float

    def __post_init__(self) -> None:
        low, high = self.factors
        if not 0 < low <= high <= 1:
            raise ScaleError(
                "factors", f"factors {low:g} to {high:g}: expected 0 < smallest <= largest <= 1"
            )

    def draw(self, step: int) -> Draw:
        """Say what the batch of a step meets; steps count through all epochs."""
        rng = np.random.default_rng(np.random.SeedSequence((self.seed, step, _STREAM)))
        downsample, position, resize = rng.random(3)
        if downsample >= self.probability:
            return Draw()
        low, high = self.factors
        factor = low + (high - low) * position
        if resize >= self.resize_kernels:
            return Draw(factor)
        return Draw(factor, self.kernel_sizes[0 if factor >= self.threshold else 1])


def downsample(images: Tensor, factor: float) -> Tensor:
    """Shrink a batch, (B, C, H, W), to round(factor H) x round(factor W), channels last."""
    if factor == 1:
        return images
    height, width = (max(1, round(factor * side)) for side in images.shape[-2:])
    smaller = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
    return smaller.contiguous(memory_format=torch.channels_last)


def usual_kernel_size(model: nn.Module) -> int | None:
    """The kernel size that most DoGConvs of a network have, the larger of two; None without any."""
    sizes = Counter(layer.kernel_size for layer in model.modules() if isinstance(layer, DoGConv2d))
    return max(sizes, key=lambda size: (sizes[size], size), default=None)


def nearest_odd(x: float) -> int:
    """The odd integer nearest to ``x``, of two the larger: 15 for 14."""
    return 2 * math.floor(x / 2) + 1


@contextlib.contextmanager
def resized_kernels(model: nn.Module, kernel_size: int | None) -> Iterator[None]:
    """Let every DoGConv of ``model`` sample ``kernel_size`` cells inside the context; None changes none.

    A layer whose size is not the usual one gets the odd size nearest to the same proportion.

    Args:
        model: a network; one without DoGConvs is left as it is.
        kernel_size: odd.

    Raises:
        ConfigError: an even size.
    """
    if kernel_size is None:
        yield
        return
    if kernel_size % 2 == 0:
        raise ConfigError(
            f"kernels of {kernel_size} cells: expected an odd size; give {nearest_odd(kernel_size)}"
        )
    layers = [module for module in model.modules() if isinstance(module, DoGConv2d)]
    before = [layer.kernel_size for layer in layers]
    try:
        usual = usual_kernel_size(model) or 1
        for layer, size in zip(layers, before, strict=True):
            layer.kernel_size = nearest_odd(size * kernel_size / usual)
        yield
    finally:
        for layer, size in zip(layers, before, strict=True):
            layer.kernel_size = size


class TwoSpeeds(nn.Module):
    """One network for two kinds of batches: compiled for whole images, eager for downsampled ones.

    Downsampled batches come in a hundred sizes, and compiling for each would cost more than it saves;
    they are a fifth of the batches and less than a tenth of the pixels. Both ways share the parameters.

    Args:
        model: the bare network.
        compiled: the same network compiled, or itself.
    """

    def __init__(self, model: nn.Module, compiled: nn.Module):
        super().__init__()
        self.model = model
        self._compiled = (compiled,)  # in a tuple: its parameters are those of the model

    def forward(self, images: Tensor, whole: bool) -> Tensor:
        """(B, 3, H, W) -> (B, classes)"""
        return self._compiled[0](images) if whole else self.model(images)


def build_scale(
    model: nn.Module, name: str, size: int, seed: int, options: Mapping[str, Any]
) -> BatchScale | None:
    """The random scale of a run's steps, or None where no batch is ever downsampled.

    Args:
        model: that is to be trained, on any device.
        name: of the model, for messages.
        size: side of the whole images, pixels.
        seed: of the run.
        options: as ``dogmed.options.scale_options`` gives them.

    Raises:
        ScaleError: an option is out of range, or the model cannot take it.
    """
    if options["probability"] == 0:
        return None
    smallest, largest = options["range"]
    large, small = options["kernel_sizes"]
    scale = BatchScale(
        seed,
        options["probability"],
        (smallest, largest),
        options["resize_kernels"],
        (large, small),
        options["threshold"],
    )
    refuse_unusable(model, name, scale, size)
    return scale


def refuse_unusable(model: nn.Module, name: str, scale: BatchScale, size: int) -> None:
    """Make sure that the model can take the smallest batch, and has kernels to resize if that is asked.

    Raises:
        ScaleError: it cannot, or has none; or a smaller kernel size is even or not smaller.
    """
    if scale.resize_kernels:
        layers = [module for module in model.modules() if isinstance(module, DoGConv2d)]
        if not layers:
            raise ScaleError(
                "layers", f"{name} has no DoGConv, and only their kernels can be resized"
            )
        largest, (large, small) = usual_kernel_size(model) or 0, scale.kernel_sizes
        if not small <= large <= largest or any(k % 2 == 0 for k in scale.kernel_sizes):
            raise ScaleError(
                "kernel_sizes",
                f"kernel sizes {large} and {small}: expected odd sizes that fall from {largest}, the model's",
            )
    side = max(1, round(scale.factors[0] * size))
    smallest = scale.kernel_sizes[1] if scale.resize_kernels else None
    training = model.training
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, side, side, device=parameter.device, dtype=parameter.dtype)
    try:
        with torch.no_grad(), resized_kernels(model, smallest):
            model.eval()(image)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ScaleError(
            "size",
            f"{name} cannot take {side} px images, to which a factor of {scale.factors[0]:g} shrinks those of "
            f"{size} px ({reason})",
        ) from error
    finally:
        model.train(training)

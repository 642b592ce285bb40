"""The ways to use a trained model at fewer FLOPs, what each costs, and which of them are worth it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from torch import nn

from dogmed.errors import ConfigError
from dogmed.models import DoGNeXt
from dogmed.models.cost import count_macs
from dogmed.models.scaling import nearest_odd
from dogmed.models.stem import StemDoGConv2d
from dogmed.models.trained import dog_layers

Way = Literal["full", "stride", "resolution", "stride+kernel"]
WAYS: tuple[Way, ...] = ("stride", "resolution", "stride+kernel")
FACTORS = (1.25, 1.5, 1.75, 2.0)
"""By which strides grow and sides shrink unless they are given: about 64% to a quarter of the FLOPs."""


class Configuration(NamedTuple):
    """One way to use a trained model."""

    way: Way
    side: int
    """Of the image, in pixels."""
    stride: int | None
    """Of the first DoGConv; None for a network that does not stride in one."""
    kernel_size: int | None
    """Of the first DoGConv."""

    @property
    def stem(self) -> str:
        """Name of stride and kernel, a part of a file's name; "" for a network without."""
        return f"stride{self.stride}-kernel{self.kernel_size}" if self.stride else ""

    @property
    def key(self) -> str:
        """Name of all of it."""
        return "-".join(filter(None, [self.stem, f"{self.side}px"]))

    def __str__(self) -> str:
        stem = f"stride {self.stride}, kernel {self.kernel_size}, " if self.stride else ""
        return f"{stem}{self.side} px"


class Cost(NamedTuple):
    """Multiply-accumulates of a forward pass of one image."""

    macs: int
    """All of them."""
    sampling: int
    """Of them, to sample the DoG kernels, which a batch needs once."""


def configurations(
    model: nn.Module, title: str, size: int, strides: Sequence[int], resolutions: Sequence[int]
) -> list[Configuration]:
    """Say what is to be tried with a model: as it is, then each way, the largest first.

    Without strides they are ``FACTORS`` times its own. Without resolutions they are the sides at which
    the first feature map is as large as at these strides.

    Args:
        model: the network.
        title: for messages.
        size: side in pixels that it is used at.
        strides: of the first DoGConv; empty for the usual ones.
        resolutions: in pixels; empty for the usual ones.

    Raises:
        ConfigError: the network does not stride in a DoGConv, or an image is smaller than a stride.
    """
    layer = strided_layer(model)
    if layer is None:
        if strides:
            what = "strides in no DoGConv" if dog_layers(model) else "has no DoGConv"
            raise ConfigError(
                f"--strides: {title} {what}, whose stride could be another; leave it out (--resolutions "
                "is for any model), or give a dognext_* model"
            )
        sides = resolutions or [round(size / factor) for factor in FACTORS]
        full = Configuration("full", size, None, None)
        lower = [full._replace(way="resolution", side=side) for side in sides]
        return [full, *_sorted(lower, full)]
    own, kernel = layer.stride, layer.kernel_size
    steps = strides or [round(own * factor) for factor in FACTORS]
    sides = resolutions or [round(size * own / step) for step in steps]
    if max(steps) > size:
        raise ConfigError(f"--strides {max(steps)}: images of {title} have {size} px only")
    if min(sides) < own:
        raise ConfigError(f"--resolutions {min(sides)}: the first stride of {title} is {own} px")
    full = Configuration("full", size, own, kernel)
    tried = [full._replace(way="stride", stride=step) for step in steps]
    tried += [full._replace(way="resolution", side=side) for side in sides]
    tried += [
        Configuration("stride+kernel", size, step, in_proportion(kernel, own, step))
        for step in steps
    ]
    return [full, *_sorted(tried, full)]


def in_proportion(kernel_size: int, stride: int, new_stride: int) -> int:
    """The odd kernel size nearest to ``kernel_size * new_stride / stride``, of two the larger: 15 for 14."""
    return nearest_odd(kernel_size * new_stride / stride)


def strided_layer(model: nn.Module) -> StemDoGConv2d | None:
    """The first DoGConv of a network that strides in it."""
    if not isinstance(model, DoGNeXt):
        return None
    layer = next(iter(dog_layers(model).values()))
    return layer if isinstance(layer, StemDoGConv2d) else None


@contextlib.contextmanager
def changed_stem(model: Any, stride: int, kernel_size: int) -> Iterator[None]:
    """Let the first DoGConv have another stride and kernel size inside the context, and its pool the stride."""
    block = model.stages[0].blocks[0]
    layer, pool = block.conv_dw, block.shortcut
    before = layer.stride, layer.kernel_size, pool.stride, pool.kernel_size
    try:
        layer.stride, layer.kernel_size = stride, kernel_size
        pool.stride = pool.kernel_size = stride
        yield
    finally:
        layer.stride, layer.kernel_size, pool.stride, pool.kernel_size = before


def change(model: nn.Module, one: Configuration) -> contextlib.AbstractContextManager[None]:
    """What makes a model one of its configurations, but for the size of the image."""
    if one.stride is None or one.kernel_size is None:
        return contextlib.nullcontext()
    return changed_stem(model, one.stride, one.kernel_size)


def too_small(one: Configuration, full: Configuration, stride: int) -> str | None:
    """Say why the image is too small for a configuration, whose total stride is larger; None if it is not.

    A network that is used below its total stride as it is, is bound by its first stride alone.

    Args:
        one: to be tried.
        full: the model as it is.
        stride: in total, of the model as it is.
    """
    needed = stride * (one.stride or 1) // (full.stride or 1)
    if full.side < stride or one.side >= needed:
        return None
    return f"its total stride {'is' if needed == stride else 'would be'} {needed} px"


def count_cost(network: nn.Module, one: Configuration, in_chans: int) -> Cost | str:
    """Count what a configuration costs; returns what the network says if it cannot take the image."""
    with change(network, one):
        try:
            macs = count_macs(network, one.side, in_chans)
        except (RuntimeError, AssertionError, ValueError) as error:
            return str(error).strip().partition("\n")[0]
        return Cost(macs, sum(layer.sampling_macs for layer in dog_layers(network).values()))


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Mark the points, (cost, score), that no other beats: none is as cheap and better, or cheaper and as good."""
    best: tuple[float, float] | None = None
    marks = [False] * len(points)
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if best is None or points[i][1] > best[1] or points[i] == best:
            marks[i], best = True, points[i]
    return marks


def _sorted(tried: Sequence[Configuration], full: Configuration) -> list[Configuration]:
    """By way, the dearest first, without those that are the full model."""
    new = {one for one in tried if one._replace(way="full") != full}
    return sorted(new, key=lambda one: (WAYS.index(one.way), one.stride or 0, -one.side))

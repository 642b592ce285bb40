"""DoGConv: depthwise convolution with kernels sampled from differences of Gaussians.

The formulation is that of the DoGNeXt thesis, sections 3.1 and 4.2.1, whose equation numbers are
used throughout; the functions and their integrals are in `sampling.py`. Our own are the shuffled
channels, the default mixing margin, and when kernels are sampled.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from dogmed.errors import ConfigError, nearest
from dogmed.models.sampling import DoGParameters, sample_kernels

Order = Literal["base", "d1", "d2"]

MARGIN = 0.05
"""Initial lead of the chosen function's logit: 98.7% of the weight, and a gradient to change it."""


class Pattern(NamedTuple):
    """A kind of initial kernel (section 4.2.1)."""

    share: int  # fortieths of the channels, in the order "d2"
    sigma: tuple[tuple[float, float], tuple[float, float]]  # ranges of sigma1 and sigma2
    center: int  # +1: narrow minus wide ("on"), -1: wide minus narrow ("off"), 0: as drawn
    derivative: int  # which function of `mix`
    direction: int  # which function of `mix_d1` or `mix_d2`


_CENTER, _CROSS = ((-1.1, -0.7),) * 2, ((0.0, 0.8), (1.0, 1.1))
_FIRST, _SECOND = ((-1.0, 1.0),) * 2, ((-0.5, 0.5),) * 2

PATTERNS: dict[str, Pattern] = {
    "on_center": Pattern(5, _CENTER, +1, 0, 0),
    "off_center": Pattern(5, _CENTER, -1, 0, 0),
    "on_cross": Pattern(5, _CROSS, +1, 0, 0),
    "off_cross": Pattern(5, _CROSS, -1, 0, 0),
    "dx": Pattern(5, _FIRST, 0, 1, 0),
    "dy": Pattern(5, _FIRST, 0, 1, 1),
    "dxx": Pattern(4, _SECOND, 0, 2, 0),
    "dyy": Pattern(4, _SECOND, 0, 2, 1),
    "dxy": Pattern(2, _SECOND, 0, 2, 2),
}
_HIGHEST: dict[str, int] = {"base": 0, "d1": 1, "d2": 2}


def pattern_counts(channels: int, order: Order = "d2") -> dict[str, int]:
    """Say how many channels start as each pattern; the counts sum to ``channels``.

    The shares of section 4.2.1, among the patterns the order has, rounded by largest remainder
    (ties to the pattern named first): no count is a whole channel away from its exact share.

    Args:
        channels: number of kernels.
        order: "base", "d1" or "d2", see :class:`DoGConv2d`.
    """
    shares = {n: p.share for n, p in PATTERNS.items() if p.derivative <= _HIGHEST[order]}
    total = sum(shares.values())
    counts = {name: channels * share // total for name, share in shares.items()}
    left = channels - sum(counts.values())
    by_remainder = sorted(shares, key=lambda name: -(channels * shares[name] % total))
    for name in by_remainder[:left]:
        counts[name] += 1
    return counts


class DoGConv2d(nn.Module):
    """Depthwise convolution whose kernels are mixtures of DoG functions, (3.21).

    A channel learns ``sigma`` (two widths), ``mix`` (logits of the Gaussian, its first and its
    second derivatives), ``mix_d1`` (d/dx, d/dy), ``mix_d2`` (d2/dx2, d2/dy2, d2/dxdy),
    ``log_scale`` and ``bias``; x runs along columns. Lower orders hold only the parameters they
    use. None depends on ``kernel_size``, ``extent`` or ``stride``: these attributes may be changed
    on a trained layer. The padding is ``kernel_size // 2``. Kernels are sampled in float32 at
    least, under autocast too.

    ``log_scale`` and ``bias`` start at 0, the plain reading of (3.21); in DoGNeXt a LayerNorm
    follows, so that a common factor would change nothing. Channels are shuffled at initialisation:
    in blocks, a channel of the residual stream would meet one pattern in every layer of its stage.

    Args:
        channels: number of input, and output, channels.
        kernel_size: cells along each axis.
        stride: stride along both axes.
        extent: half-width of the sampled region, in the unit of sigma; to add rings round an
            unchanged 7x7 core let it grow as ``2 * kernel_size / 7``.
        order: "base" (Gaussian only), "d1" (and first derivatives) or "d2" (and second).
        init: "patterns" (section 4.2.1), or "random": truncated normal, standard deviation 0.02,
            for all. Random widths are so far below a cell that hardly any gets a gradient.
        bias: "output" adds it to the convolution's output; "kernel" to each of the kernel's
            entries, as (3.21) is printed (the kernel's mass then changes with its size).
        margin: initial lead, under "patterns", of the chosen function's logit. Each other function
            starts with about exp(-margin / 0.01) of the weight: 0.02 leaves it 11% (a blend), 0.05
            0.7%, 0.1 5e-5; from about 0.9 on it underflows in float32, and the choice is frozen.

    Raises:
        ConfigError: an argument is out of range or not among the choices.
    """

    mix: nn.Parameter | None
    mix_d1: nn.Parameter | None
    mix_d2: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        *,
        stride: int = 1,
        extent: float = 2.0,
        order: Order = "d2",
        init: Literal["patterns", "random"] = "patterns",
        bias: Literal["output", "kernel"] = "output",
        margin: float = MARGIN,
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "kernel_size": kernel_size, "stride": stride}
        for name, value in sizes.items():
            if value < 1:
                raise ConfigError(f"DoGConv2d: {name} must be at least 1, got {value!r}")
        if extent <= 0:
            raise ConfigError(f"DoGConv2d: extent must be positive, got {extent!r}")
        check_choice("DoGConv2d", "order", order, ("base", "d1", "d2"))
        check_choice("DoGConv2d", "init", init, ("patterns", "random"))
        check_choice("DoGConv2d", "bias", bias, ("output", "kernel"))
        self.channels, self.kernel_size = channels, kernel_size
        self.stride, self.extent = stride, extent
        self.order, self.init, self.bias_in, self.margin = order, init, bias, margin
        highest = _HIGHEST[order]
        self.sigma = nn.Parameter(torch.empty(channels, 2))
        self.mix = nn.Parameter(torch.empty(channels, highest + 1)) if highest >= 1 else None
        self.mix_d1 = nn.Parameter(torch.empty(channels, 2)) if highest >= 1 else None
        self.mix_d2 = nn.Parameter(torch.empty(channels, 3)) if highest == 2 else None
        self.log_scale = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self._given: Tensor | None = None  # by sampled_together
        self._cached: tuple[Any, Tensor] | None = None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial parameters, from the CPU's generator whatever the device."""
        if self.init == "random":
            for parameter in self.parameters():
                trunc_normal_(parameter, std=0.02)
            return
        for parameter in self.parameters():
            parameter.zero_()
        shuffled = torch.randperm(self.channels, device="cpu")
        counts = pattern_counts(self.channels, self.order)
        for name, channels in zip(counts, shuffled.split(list(counts.values())), strict=True):
            self._set_pattern(PATTERNS[name], channels)

    def _set_pattern(self, pattern: Pattern, channels: Tensor) -> None:
        sigma = torch.stack(
            [torch.empty(len(channels), device="cpu").uniform_(*r) for r in pattern.sigma], dim=1
        )  # (n, 2)
        if pattern.center:
            by_width = sigma.abs().argsort(dim=1, descending=pattern.center < 0)
            sigma = sigma.gather(1, by_width)
        channels = channels.to(self.sigma.device)
        self.sigma[channels] = sigma.to(self.sigma)
        if self.mix is not None:
            self.mix[channels, pattern.derivative] = self.margin
        directions = (None, self.mix_d1, self.mix_d2)[pattern.derivative]
        if directions is not None:
            directions[channels, pattern.direction] = self.margin

    def kernel(self, kernel_size: int | None = None, extent: float | None = None) -> Tensor:
        """Sample the kernels, (C, 1, K, K), with gradients to the parameters.

        Args:
            kernel_size: cells along each axis, the layer's own if None. At an unchanged extent this
                resizes the pattern and keeps its mass.
            extent: half-width of the sampled region, the layer's own if None.
        """
        kernel_size = self.kernel_size if kernel_size is None else kernel_size
        extent = self.extent if extent is None else extent
        return self.finish(sample_kernels(self.functions(), kernel_size, extent))

    def functions(self) -> DoGParameters:
        """Return the parameters of the sampled functions."""
        return DoGParameters(self.sigma, self.log_scale, self.mix, self.mix_d1, self.mix_d2)

    def finish(self, kernel: Tensor) -> Tensor:
        """Make kernels, (C, 1, K, K), of sampled functions, (C, K, K): (3.21)'s bias, and the type."""
        if self.bias_in == "kernel":
            kernel = kernel + self.bias[:, None, None]
        return kernel.unsqueeze(1).to(self.sigma.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W'), H' = ceil(H / stride) for an odd kernel size."""
        bias = self.bias if self.bias_in == "output" else None
        padding = self.kernel_size // 2
        kernel = self.current_kernel()
        return F.conv2d(x, kernel, bias, self.stride, padding, groups=self.channels)

    def current_kernel(self) -> Tensor:
        """Return the kernels of this forward pass, (C, 1, K, K), sampling them only if need be.

        In eval mode and without gradients they are kept until a parameter is changed or moved, or
        gradients are asked for: a step of a fused optimizer leaves no trace on the parameters. Nor
        does a change through ``parameter.data``; call ``train()`` or ``eval()`` after it.
        """
        if self._given is not None:
            return self._given
        if torch.compiler.is_compiling():
            return self.kernel()
        if self.training or torch.is_grad_enabled():
            self._cached = None
            return self.kernel()
        if any(p.is_inference() for p in self.parameters()):  # they have no version
            return self.kernel()
        state = [(p.data_ptr(), p._version, p.dtype, p.device) for p in self.parameters()]
        key = (self.kernel_size, self.extent, state)
        if self._cached is None or self._cached[0] != key:
            self._cached = (key, self.kernel())
        return self._cached[1]

    def train(self, mode: bool = True) -> Self:
        """Set the mode, and drop kept kernels."""
        self._cached = None
        return super().train(mode)

    @property
    def sampling_macs(self) -> int:
        """Multiply-accumulates of sampling the kernels, which FLOP counters do not see."""
        rows, size = _HIGHEST[self.order] + 1, self.kernel_size
        return 2 * self.channels * (rows * rows * size + rows * size * size)

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"extent={self.extent:g}, order={self.order}, bias={self.bias_in}"
        )


@contextlib.contextmanager
def sampled_together(layers: Iterable[DoGConv2d]) -> Iterator[None]:
    """Sample the kernels of all layers in one go, for the forward passes inside the context.

    The kernels of a network are small: sampled layer by layer, a training step of `dognext_atto`
    is a thousand launches longer. Values are the same to the last bit.
    """
    layers = list(layers)
    groups = defaultdict(list)
    for layer in layers:
        sigma = layer.sigma
        groups[layer.order, layer.kernel_size, layer.extent, sigma.dtype, sigma.device].append(
            layer
        )
    try:
        for (_, kernel_size, extent, *_), group in groups.items():
            columns: Any = zip(*(layer.functions() for layer in group), strict=True)
            stacked: Any = (None if c[0] is None else torch.cat(c) for c in columns)
            kernels = sample_kernels(DoGParameters(*stacked), kernel_size, extent)
            channels = [layer.channels for layer in group]
            for layer, kernel in zip(group, kernels.split(channels), strict=True):
                layer._given, layer._cached = layer.finish(kernel), None
        yield
    finally:
        for layer in layers:
            layer._given = None


def check_choice(where: str, option: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless ``value`` is one of ``choices``."""
    if value not in choices:
        expected = " or ".join(choices)
        hint = nearest(value, choices)
        raise ConfigError(f"{where}: {option} must be {expected}, got {value!r}{hint}")

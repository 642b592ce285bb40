"""DoGConv: depthwise convolution with kernels sampled from differences of Gaussians.

The formulation is that of the DoGNeXt thesis, sections 3.1 and 4.2.1, whose equation numbers are
used throughout. Our own are the separable form of the integrals, the floor under sigma, the
shuffled channels and the default mixing margin.

Every kernel entry is the integral of the function over the entry's cell, so that a kernel sampled
at another size keeps its mass. All integrals are products of two of the three one-dimensional ones
of `gaussian_integrals`.

Errata of the thesis, each shown by quadrature in tests/models/test_dog.py:

- (3.15) is printed with 1/sigma^5 and with factors that do not integrate (3.6): the integral over x
  is g'(c) - g'(a), with g'(x) = -x g(x) / sigma^2.
- (3.16) is printed with 1/sigma^4 and 1/A, but the integral of (3.7) has 1/(2 pi sigma^2).
- (3.20) writes sigma(p/0.01) for a softmax over two logits and prints d/dx twice: the second
  function is the transposed one, d/dy.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from dogmed.errors import ConfigError, nearest

Order = Literal["base", "d1", "d2"]

TEMPERATURE = 0.01
"""Temperature of every mixing softmax (3.19)."""

MARGIN = 0.05
"""Initial lead of the chosen function's logit: 98.7% of the weight, and a gradient to change it."""

SIGMA_FLOOR = 1e-6
"""Smallest |sigma| that is sampled.

With an odd kernel size no cell edge lies on 0, every function is constant to the last bit once
sigma is below 1/80 of a cell, and the floor changes nothing. With an even one an edge lies on 0,
where g(0) = 1/(sigma sqrt(2 pi)) has no limit: the steepest entry, of d2/dxdy, has the slope
1/(pi sigma^3). This is the smallest power of ten at which the square of that slope, which AdamW
keeps, fits in float32.
"""


def cell_edges(kernel_size: int, extent: float, like: Tensor) -> Tensor:
    """Return the edges of equal cells over [-extent, extent], exactly symmetric: (K + 1,).

    Args:
        kernel_size: number of cells, K.
        extent: half-width of the sampled region, in the unit of sigma.
        like: tensor whose dtype and device the edges take.
    """
    steps = torch.arange(-kernel_size, kernel_size + 1, 2, dtype=like.dtype, device=like.device)
    return steps * (extent / kernel_size)


def gaussian_integrals(sigma: Tensor, edges: Tensor, order: int = 2) -> Tensor:
    """Integrate the Gaussian and its derivatives over the cells between edges: (..., order + 1, K).

    Row n holds the integral of the n-th derivative of g(x) = exp(-x^2/2sigma^2)/(sigma sqrt(2 pi)):
    the factors of (3.13) to (3.16), errata mended. Values and gradients are finite for every finite
    sigma, 0 included. In the far tail the difference of two erf cancels; what is lost is of the
    order of an ulp of the row's largest entry, and gradients, being Gaussians, lose nothing.

    Args:
        sigma: standard deviations, (...); only |sigma| counts.
        edges: increasing cell edges, (K + 1,), of sigma's dtype.
        order: highest derivative, 0 to 2.
    """
    if order not in (0, 1, 2):
        raise ValueError(f"gaussian_integrals: order must be 0, 1 or 2, got {order!r}")
    width = sigma.abs().clamp(min=SIGMA_FLOOR).unsqueeze(-1)  # (..., 1)
    u = edges / width  # (..., K + 1)
    antiderivatives = [0.5 * torch.erf(u / math.sqrt(2))]
    if order >= 1:
        g = torch.exp(-0.5 * u * u) / (width * math.sqrt(2 * math.pi))
        antiderivatives.append(g)
    if order == 2:
        antiderivatives.append(-u * g / width)
    return torch.stack(antiderivatives, dim=-2).diff(dim=-1)


def separable_kernels(integrals: Tensor, weights: Tensor) -> Tensor:
    """Sum weights[p, q] * (row p along y) (x) (row q along x) over p and q: (..., K, K).

    Products and sums, not a matmul: neither autocast nor TF32 lowers their precision.

    Args:
        integrals: rows of one-dimensional integrals, (..., P, K).
        weights: weight of each product, (..., P, P), y first.
    """
    along_x = (weights.unsqueeze(-1) * integrals.unsqueeze(-3)).sum(-2)  # (..., P, K)
    return (integrals.unsqueeze(-1) * along_x.unsqueeze(-2)).sum(-3)


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

    def weights(self) -> Tensor:
        """Return the weight of each product of one-dimensional derivatives: (C, P, P), y first."""
        dtype = torch.promote_types(self.sigma.dtype, torch.float32)
        if self.mix is None or self.mix_d1 is None:
            return torch.ones_like(self.log_scale, dtype=dtype)[:, None, None]
        mix = torch.softmax(self.mix.to(dtype) / TEMPERATURE, dim=-1)  # (C, 2 or 3)
        first = mix[:, 1:2] * torch.softmax(self.mix_d1.to(dtype) / TEMPERATURE, dim=-1)
        n, dx, dy = mix[:, 0], first[:, 0], first[:, 1]
        zero = torch.zeros_like(n)
        if self.mix_d2 is None:
            return torch.stack([n, dx, dy, zero], dim=-1).unflatten(-1, (2, 2))
        second = mix[:, 2:3] * torch.softmax(self.mix_d2.to(dtype) / TEMPERATURE, dim=-1)
        dxx, dyy, dxy = second.unbind(-1)
        rows = [n, dx, dxx, dy, dxy, zero, dyy, zero, zero]
        return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))

    def kernel(self, kernel_size: int | None = None, extent: float | None = None) -> Tensor:
        """Sample the kernels, (C, 1, K, K), with gradients to the parameters.

        Args:
            kernel_size: cells along each axis, the layer's own if None. At an unchanged extent this
                resizes the pattern and keeps its mass.
            extent: half-width of the sampled region, the layer's own if None.
        """
        kernel_size = self.kernel_size if kernel_size is None else kernel_size
        extent = self.extent if extent is None else extent
        sigma = self.sigma.to(torch.promote_types(self.sigma.dtype, torch.float32))
        edges = cell_edges(kernel_size, extent, sigma)
        integrals = gaussian_integrals(sigma, edges, _HIGHEST[self.order])  # (C, 2, P, K)
        first, second = separable_kernels(integrals, self.weights().unsqueeze(1)).unbind(1)
        kernel = (first - second) * self.log_scale.to(sigma.dtype).exp()[:, None, None]  # (C, K, K)
        if self.bias_in == "kernel":
            kernel = kernel + self.bias[:, None, None]
        return kernel.unsqueeze(1).to(self.sigma.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W'), H' = ceil(H / stride) for an odd kernel size."""
        bias = self.bias if self.bias_in == "output" else None
        padding = self.kernel_size // 2
        return F.conv2d(x, self.kernel(), bias, self.stride, padding, groups=self.channels)

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


def check_choice(where: str, option: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless ``value`` is one of ``choices``."""
    if value not in choices:
        expected = " or ".join(choices)
        hint = nearest(value, choices)
        raise ConfigError(f"{where}: {option} must be {expected}, got {value!r}{hint}")

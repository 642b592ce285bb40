"""Sampling Gaussian derivatives: their integrals over cells, as kernels and as matrices.

The DoGNeXt thesis, section 3.1; its equation numbers are used throughout. Our own are the separable
form of the integrals, the floor under sigma, and `derivative_matrices`, which is what the
GaussDerResNets (`gaussderresnet.py`) use of the same integrals. Every kernel entry is the integral of the function
over the entry's cell, so that a kernel sampled at another size keeps its mass. All integrals are
products of two of the three one-dimensional ones of `gaussian_integrals`.

Errata of the thesis, each shown by quadrature in tests/models/test_dog.py:

- (3.15) is printed with 1/sigma^5 and with factors that do not integrate (3.6): the integral over x
  is g'(c) - g'(a), with g'(x) = -x g(x) / sigma^2.
- (3.16) is printed with 1/sigma^4 and 1/A, but the integral of (3.7) has 1/(2 pi sigma^2).
- (3.20) writes sigma(p/0.01) for a softmax over two logits and prints d/dx twice: the second
  function is the transposed one, d/dy.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

TEMPERATURE = 0.01
"""Temperature of every mixing softmax (3.19)."""

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
        edges: increasing cell edges, (K + 1,) or (..., K + 1), of sigma's dtype.
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


SIGMA_LIMIT = 0.7
"""Smallest sigma, in cells, of `derivative_matrices`: below it the responses to an image's fine
structure are those of another scale (tests/models/test_sampling.py has the errors)."""


def derivative_matrices(
    sigma: float, cells_in: int, cells_out: int, order: int = 2, *, pitch: float = 1.0
) -> Tensor:
    """Make matrices that take scale-normalised Gaussian derivatives of a line of cells.

    Row i of matrix n gives sigma^n d^n/dx^n of the line, smoothed by a Gaussian, at the i-th of
    ``cells_out`` points, ``pitch`` apart, in whose middle is the middle of the line. Outside, the
    line goes on as its mirror image, edge cells repeated: mirroring then commutes with rescaling.
    Entries are integrals over cells, as everywhere here; a cell has a variance of 1/12 itself, which
    the integrated Gaussian goes without, so that the smoothing has the variance sigma^2.

    Args:
        sigma: standard deviation of the smoothing, in input cells.
        cells_in: cells of the line.
        cells_out: points at which the derivatives are taken.
        order: highest derivative, 0 to 2.
        pitch: input cells from one point to the next.

    Returns:
        (order + 1, cells_out, cells_in), float64, on the CPU.

    Raises:
        ValueError: sigma is below SIGMA_LIMIT, or a number of cells below 1.
    """
    if not sigma >= SIGMA_LIMIT or min(cells_in, cells_out) < 1:
        raise ValueError(
            f"derivative_matrices: sigma must be at least {SIGMA_LIMIT} cells and the numbers of cells at "
            f"least 1, got {sigma!r}, {cells_in!r}, {cells_out!r}"
        )
    exact: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    reach = math.ceil(7 * sigma)  # a Gaussian's tail beyond it is below 3e-12
    points = torch.arange(cells_out, **exact) - (cells_out - 1) / 2
    centers = cells_in / 2 + pitch * points
    edges = torch.arange(-reach, cells_in + reach + 1, **exact) - centers[:, None]
    width = torch.full((cells_out,), math.sqrt(sigma**2 - 1 / 12), **exact)
    integrals = gaussian_integrals(width, edges, order).movedim(-2, 0)  # (P, out, reached)
    orders = torch.arange(order + 1, **exact)
    integrals = (
        integrals * ((-sigma) ** orders)[:, None, None]
    )  # g^(n)(x - t) = (-1)^n g^(n)(t - x)
    cell = torch.arange(-reach, cells_in + reach, device="cpu") % (2 * cells_in)
    mirrored = torch.minimum(cell, 2 * cells_in - 1 - cell)
    matrices = torch.zeros(order + 1, cells_out, cells_in, **exact)
    return matrices.index_add_(2, mirrored, integrals)


class DoGParameters(NamedTuple):
    """The parameters of mixtures of DoG functions, a row a channel, as :class:`DoGConv2d` has them."""

    sigma: Tensor
    log_scale: Tensor
    mix: Tensor | None
    mix_d1: Tensor | None
    mix_d2: Tensor | None


def mixing_weights(parameters: DoGParameters) -> Tensor:
    """Return the weight of each product of one-dimensional derivatives: (C, P, P), y first."""
    _, log_scale, mix, mix_d1, mix_d2 = parameters
    dtype = torch.promote_types(log_scale.dtype, torch.float32)
    if mix is None or mix_d1 is None:
        return torch.ones_like(log_scale, dtype=dtype)[:, None, None]
    mix = torch.softmax(mix.to(dtype) / TEMPERATURE, dim=-1)  # (C, 2 or 3)
    first = mix[:, 1:2] * torch.softmax(mix_d1.to(dtype) / TEMPERATURE, dim=-1)
    n, dx, dy = mix[:, 0], first[:, 0], first[:, 1]
    zero = torch.zeros_like(n)
    if mix_d2 is None:
        return torch.stack([n, dx, dy, zero], dim=-1).unflatten(-1, (2, 2))
    second = mix[:, 2:3] * torch.softmax(mix_d2.to(dtype) / TEMPERATURE, dim=-1)
    dxx, dyy, dxy = second.unbind(-1)
    rows = [n, dx, dxx, dy, dxy, zero, dyy, zero, zero]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def sample_kernels(parameters: DoGParameters, kernel_size: int, extent: float) -> Tensor:
    """Sample mixtures of DoG functions, (3.21) without its bias: (C, K, K), float32 at least.

    Args:
        parameters: of one or more layers, row by row.
        kernel_size: cells along each axis.
        extent: half-width of the sampled region, in the unit of sigma.
    """
    sigma = parameters.sigma.to(torch.promote_types(parameters.sigma.dtype, torch.float32))
    weights = mixing_weights(parameters).unsqueeze(1)  # (C, 1, P, P)
    edges = cell_edges(kernel_size, extent, sigma)
    integrals = gaussian_integrals(sigma, edges, weights.shape[-1] - 1)  # (C, 2, P, K)
    first, second = separable_kernels(integrals, weights).unbind(1)
    return (first - second) * parameters.log_scale.to(sigma.dtype).exp()[:, None, None]

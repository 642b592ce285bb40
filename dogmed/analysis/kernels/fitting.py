"""Fitting DoG kernels to learned ones: how much of a kernel's energy a mixture of DoG functions explains.

A DoGConv's kernel without its bias is e^rho sum_i w_i (F_i(sigma1) - F_i(sigma2)), with convex weights
w of six functions F_i, (3.21). Given the two widths, the products e^rho w_i are any non-negative
numbers: least squares under that constraint, which three facts make exact and cheap for thousands of
kernels at once:

- the functions' parities split the six: dx, dy and dxy are each orthogonal to all others;
- of the three that are left (n, dxx, dyy) the best non-negative combination is the best feasible one of
  the seven unconstrained ones of one, two or three functions;
- inner products of kernels are products of inner products of one-dimensional integrals.

What remains is a search over two widths for each kernel: the best pairs of a grid, which all kernels
share, are refined. Swapping the widths turns the sign. Widths go from a point to a constant: where one
of two functions is nearly flat or a single cell, the family has a limit and no optimum inside.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dogmed.models.patterns import ROWS
from dogmed.models.sampling import cell_edges, gaussian_integrals, separable_kernels

WIDTHS = 72  # of the grid
NARROWEST, WIDEST = 0.08, 10.0  # of the grid: in cells, in extents
CLOSEST = 2e-3  # half the logarithm of two widths' ratio; closer, energies lose their digits
STARTS = 4  # of a kernel: the best peaks of the grid
STEPS = 30  # of the refinement
STEP = (3e-4, 0.1)  # the least and the first, in logarithms of widths
FARTHEST = 0.5  # that Newton's step leads
SINGULAR = 1e-9  # determinant of normalised functions below which one of them is left out
CANCELLED = 1e-9  # share of a function's square that is left of a difference of two, and is none
CHUNK = 128  # kernels against all pairs at once

_EVEN, _ALONE = [0, 3, 4], [1, 2, 5]  # of FUNCTIONS: n, dxx, dyy; dx, dy, dxy
_SUBSETS = [[0, 1], [0, 2], [1, 2], [0, 1, 2]]  # of the even ones, besides one alone


class Fit(NamedTuple):
    """The DoG kernels nearest to C kernels."""

    sigma: Tensor
    """(C, 2)"""
    weights: Tensor
    """(C, 6), of ``FUNCTIONS``; they sum to 1."""
    scale: Tensor
    """(C,), e^rho."""
    kernels: Tensor
    """(C, K, K)"""
    explained: Tensor
    """(C,), 1 - |k - fit|^2 / |k|^2; NaN for a kernel that is zero."""


def fit(kernels: Tensor, extent: float | None = None, *, single: bool = False) -> Fit:
    """Fit a DoG kernel of order "d2" to each kernel by least squares.

    Args:
        kernels: (C, K, K).
        extent: half-width of the sampled region, the unit of the widths; 2 * K / 7 if None, as in
            DoGNeXt. The energy explained does not depend on it.
        single: take one function alone, as a one-hot mixture does, in place of convex mixtures.
    """
    kernels = kernels.detach().to(torch.float64)
    size = kernels.shape[-1]
    extent = 2 * size / 7 if extent is None else extent
    norm = kernels.flatten(1).norm(dim=1)
    unit = kernels / torch.where(norm > 0, norm, 1)[:, None, None]
    search = _Search(size, extent, single)
    sigma = torch.cat([search.refine(part, search.starts(part)) for part in unit.split(CHUNK)])
    amounts = search.amounts(unit, sigma[:, None])[:, 0]
    fitted = dog_kernels(sigma, amounts, size, extent)
    total = amounts.sum(1)
    return Fit(
        sigma,
        amounts / torch.where(total > 0, total, 1)[:, None],
        total * norm,
        fitted * norm[:, None, None],
        torch.where(norm > 0, 1 - (unit - fitted).square().sum((1, 2)), torch.nan),
    )


def dog_kernels(sigma: Tensor, amounts: Tensor, kernel_size: int, extent: float) -> Tensor:
    """Sample sum_i amounts_i (F_i(sigma1) - F_i(sigma2)): (C, K, K).

    Args:
        sigma: (C, 2).
        amounts: (C, 6), e^rho times the weights of ``FUNCTIONS``.
        kernel_size: cells along each axis, K.
        extent: half-width of the sampled region.
    """
    weights = amounts.new_zeros(len(amounts), 3, 3)
    for column, (y, x) in enumerate(ROWS):
        weights[:, y, x] = amounts[:, column]
    integrals = gaussian_integrals(sigma, cell_edges(kernel_size, extent, sigma))
    first, second = separable_kernels(integrals, weights[:, None]).unbind(1)
    return first - second


class _Search:
    """The search for two widths, for kernels (C, K, K) of unit energy."""

    def __init__(self, size: int, extent: float, single: bool) -> None:
        self.single = single
        self.narrowest, self.widest = NARROWEST * 2 * extent / size, WIDEST * extent
        self.edges = cell_edges(size, extent, torch.zeros((), dtype=torch.float64))
        low, high = math.log(self.narrowest), math.log(self.widest)
        self.grid = torch.linspace(low, high, WIDTHS, dtype=torch.float64).exp()
        self.rows = gaussian_integrals(self.grid, self.edges)  # (G, 3, K)
        self.gram = _gram(
            torch.stack(
                [
                    self.rows[:, None].expand(-1, WIDTHS, -1, -1),
                    self.rows.expand(WIDTHS, -1, -1, -1),
                ],
                dim=2,
            )
        )  # (G, G, 12)

    def starts(self, kernels: Tensor) -> Tensor:
        """The widths (C, STARTS, 2) of the grid that do best among their neighbours."""
        along_x = torch.einsum("cyx,gqx->cgqy", kernels, self.rows)
        products = _functions(torch.einsum("cgqy,gpy->cgpq", along_x, self.rows))  # (C, G, 6)
        products = products[:, :, None] - products[:, None]
        energy = _best_energy(self.gram, products, self.single)  # (C, G, G)
        tops = torch.nn.functional.max_pool2d(energy, 3, stride=1, padding=1)
        peaks = torch.where(energy == tops, energy, -1).flatten(1)
        best = peaks.topk(STARTS, dim=1).indices  # (C, S)
        return self.grid[torch.stack([best // WIDTHS, best % WIDTHS], dim=-1)]

    def refine(self, kernels: Tensor, starts: Tensor) -> Tensor:
        """Climb from each start on a shrinking stencil; the best end of each kernel, (C, 2).

        Beside the nine points of the stencil, Newton's step from their energies is tried.
        """
        log = starts.log()
        at = torch.stack([log.mean(-1), (log[..., 0] - log[..., 1]) / 2], dim=-1)  # (C, S, 2)
        step = torch.full_like(at[..., 0], STEP[1])
        side = torch.tensor([-1.0, 0.0, 1.0], dtype=at.dtype)
        stencil = torch.cartesian_prod(side, side)  # (9, 2)
        for _ in range(STEPS):
            points = self._inside(at[:, :, None] + step[..., None, None] * stencil)
            energy = self._energy(kernels, points)  # (C, S, 9)
            move = (step[..., None] * _newton(energy)).clamp(-FARTHEST, FARTHEST)
            newton = self._inside((at + move)[:, :, None])
            points = torch.cat([points, newton], dim=2)
            energy = torch.cat([energy, self._energy(kernels, newton)], dim=2)
            best, which = energy.max(2)
            at = points.take_along_dim(which[..., None, None], 2)[:, :, 0]
            near = (which == 4) | ((which == 9) & (move.abs().amax(-1) < step))
            step = torch.where(near, 0.35 * step, 1.4 * step).clamp(*STEP)
        return _widths(at.take_along_dim(best.argmax(1)[:, None, None], 1)[:, 0])

    def energy(self, kernels: Tensor, sigma: Tensor) -> Tensor:
        """The energy (C, T) of the best combination at widths (C, T, 2)."""
        return _best_energy(*self._products(kernels, sigma), self.single)

    def amounts(self, kernels: Tensor, sigma: Tensor) -> Tensor:
        """The amounts (C, T, 6) of the best combination at widths (C, T, 2)."""
        return _best_amounts(*self._products(kernels, sigma), self.single)

    def _products(self, kernels: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        rows = gaussian_integrals(sigma, self.edges)  # (C, T, 2, 3, K)
        along_x = torch.einsum("cyx,cnx->cny", kernels, rows.flatten(1, 3)).view_as(rows)
        products = _functions(rows @ along_x.mT)  # (C, T, 2, 6)
        return _gram(rows), products[..., 0, :] - products[..., 1, :]

    def _energy(self, kernels: Tensor, points: Tensor) -> Tensor:
        return self.energy(kernels, _widths(points.flatten(1, 2))).view(points.shape[:-1])

    def _inside(self, points: Tensor) -> Tensor:
        """Keep points (..., 2), mean and half difference of the widths' logarithms, in the range."""
        half = points[..., 1]
        half = torch.where(half < 0, half.clamp(max=-CLOSEST), half.clamp(min=CLOSEST))
        low, high = math.log(self.narrowest), math.log(self.widest)
        half = half.clamp(-(high - low) / 2, (high - low) / 2)
        mean = points[..., 0].clamp(low + half.abs(), high - half.abs())
        return torch.stack([mean, half], dim=-1)


def _widths(points: Tensor) -> Tensor:
    mean, half = points.unbind(-1)
    return torch.stack([mean + half, mean - half], dim=-1).exp()


def _newton(energy: Tensor) -> Tensor:
    """Newton's step to a maximum from the energies of a 3x3 stencil (..., 9), in its steps: (..., 2).

    The curvatures count without their sign, so that it leads away from a saddle.
    """
    e = energy.unflatten(-1, (3, 3))
    slope = torch.stack([e[..., 2, 1] - e[..., 0, 1], e[..., 1, 2] - e[..., 1, 0]], dim=-1) / 2
    xx = e[..., 2, 1] - 2 * e[..., 1, 1] + e[..., 0, 1]
    yy = e[..., 1, 2] - 2 * e[..., 1, 1] + e[..., 1, 0]
    xy = (e[..., 2, 2] - e[..., 2, 0] - e[..., 0, 2] + e[..., 0, 0]) / 4
    curvature, axes = torch.linalg.eigh(torch.stack([xx, xy, xy, yy], dim=-1).unflatten(-1, (2, 2)))
    along = (axes.mT @ slope[..., None]) / curvature.abs().clamp(min=1e-12)[..., None]
    return (axes @ along)[..., 0]


def _functions(products: Tensor) -> Tensor:
    """From products with all pairs of one-dimensional functions (..., 3, 3), those of ``FUNCTIONS``."""
    return torch.stack([products[..., y, x] for y, x in ROWS], dim=-1)


def _gram(rows: Tensor) -> Tensor:
    """Inner products of the differences D_i of two widths: (..., 2, 3, K) -> (..., 12).

    The nine of the even functions, row by row, then the squares of the others. A function of which
    only rounding is left has the square 0.
    """
    along = torch.einsum("...apk,...bqk->...abpq", rows, rows)  # (..., 2, 2, 3, 3)
    pairs = [(i, j) for i in _EVEN for j in _EVEN] + [(i, i) for i in _ALONE]
    of = torch.stack(
        [along[..., ROWS[i][0], ROWS[j][0]] * along[..., ROWS[i][1], ROWS[j][1]] for i, j in pairs],
        dim=-1,
    )  # (..., 2, 2, 12)
    total = of[..., 0, 0, :] + of[..., 1, 1, :]
    left = total - of[..., 0, 1, :] - of[..., 1, 0, :]
    square = torch.tensor([i == j for i, j in pairs])
    return torch.where(square & (left < CANCELLED * total), 0, left)


class _Normalised(NamedTuple):
    """The six differences D_i made to functions of unit length; one that is rounding alone is 0."""

    length: Tensor
    """(..., 6)"""
    cosines: Tensor
    """Of the even ones with one another: (..., 3, 3)."""
    products: Tensor
    """With the kernel, (..., 6)."""

    @classmethod
    def of(cls, gram: Tensor, products: Tensor) -> _Normalised:
        """From what ``_gram`` gives, (..., 12), and products with the kernel, (..., 6)."""
        even, alone = gram[..., :9].unflatten(-1, (3, 3)), gram[..., 9:]
        square = torch.zeros_like(gram[..., :6])
        square[..., _EVEN], square[..., _ALONE] = even.diagonal(dim1=-2, dim2=-1), alone
        there = square > torch.finfo(square.dtype).tiny
        length = torch.where(there, square, 1).sqrt()
        e, used = length[..., _EVEN], there[..., _EVEN]
        cosines = even / (e[..., None] * e[..., None, :])
        cosines = torch.where(used[..., None] & used[..., None, :], cosines, 0)
        return cls(length, cosines, torch.where(there, products / length, 0))


def _best_energy(gram: Tensor, products: Tensor, single: bool) -> Tensor:
    """The energy (...) of the best non-negative combination, or of the best function alone."""
    d = _Normalised.of(gram, products)
    alone = d.products.clamp(min=0).square()
    if single:
        return alone.amax(-1)
    best = alone[..., _EVEN].amax(-1)
    for subset in _SUBSETS:
        best = torch.maximum(best, _combination(d, subset)[1])
    return best + alone[..., _ALONE].sum(-1)


def _best_amounts(gram: Tensor, products: Tensor, single: bool) -> Tensor:
    """The amount of each D_i (..., 6) in that combination."""
    d = _Normalised.of(gram, products)
    alone = d.products.clamp(min=0)
    best, which = (alone if single else alone[..., _EVEN]).square().max(-1)
    if single:
        return torch.nn.functional.one_hot(which, 6) * alone / d.length
    even = torch.nn.functional.one_hot(which, 3) * alone[..., _EVEN]
    for subset in _SUBSETS:
        amounts, energy = _combination(d, subset)
        full = torch.zeros_like(even)
        full[..., subset] = torch.stack(amounts, dim=-1)
        even = torch.where((energy > best)[..., None], full, even)
        best = torch.maximum(best, energy)
    found = alone.clone()
    found[..., _EVEN] = even
    return found / d.length


def _combination(d: _Normalised, subset: list[int]) -> tuple[list[Tensor], Tensor]:
    """The best combination of two or three even functions, and its energy (...), 0 if not feasible."""
    b = [d.products[..., _EVEN[k]] for k in subset]
    if len(subset) == 2:
        x = d.cosines[..., subset[0], subset[1]]
        one = torch.ones_like(x)
        det, rows = 1 - x * x, [[one, -x], [-x, one]]
    else:
        x, y, z = (d.cosines[..., i, j] for i, j in ((0, 1), (0, 2), (1, 2)))
        det = 1 + 2 * x * y * z - x * x - y * y - z * z
        xy, xz, yz = x * y - z, x * z - y, y * z - x
        rows = [[1 - z * z, yz, xz], [yz, 1 - y * y, xy], [xz, xy, 1 - x * x]]
    usable = det > SINGULAR
    det = torch.where(usable, det, 1)
    amounts = [
        sum((cell / det * p for cell, p in zip(row, b, strict=True)), 0 * b[0]) for row in rows
    ]
    energy = sum((c * p for c, p in zip(amounts, b, strict=True)), 0 * b[0])
    for c in amounts:
        usable = usable & (c >= 0)
    return amounts, torch.where(usable, energy, 0)

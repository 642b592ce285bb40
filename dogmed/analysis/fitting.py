"""Fitting DoG kernels to learned ones: how much of a kernel's energy a mixture of DoG functions explains.

A DoGConv's kernel without its bias is e^rho sum_i w_i (F_i(sigma1) - F_i(sigma2)), with convex weights
w of six functions F_i, (3.21). Given the two widths, the products e^rho w_i are any non-negative
numbers: least squares under that constraint, which three facts make exact and cheap for thousands of
kernels at once:

- the functions' parities split the six: dx, dy and dxy are each orthogonal to all others;
- of the three that are left (n, dxx, dyy) the best non-negative combination is one of seven
  unconstrained ones, the best of those that are feasible;
- inner products of kernels are products of inner products of one-dimensional integrals.

What remains is a search over two widths for each kernel: the best pairs of a grid, which all kernels
share, are refined. Swapping the widths turns the sign. Widths go from a point to a constant: where one
of two functions is nearly flat or a single cell, the family has a limit and no optimum inside.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from dogmed.models.sampling import cell_edges, gaussian_integrals, separable_kernels

FUNCTIONS = ("n", "dx", "dy", "dxx", "dyy", "dxy")
ROWS = ((0, 0), (0, 1), (1, 0), (0, 2), (2, 0), (1, 1))
"""Derivatives along y and along x of each of ``FUNCTIONS``."""

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

_EVEN, _ALONE = (0, 3, 4), (1, 2, 5)  # of FUNCTIONS: n, dxx, dyy; dx, dy, dxy
_SUBSETS = [s for size in (1, 2, 3) for s in itertools.combinations(range(3), size)]


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
    _, amounts = search.solve(unit, sigma[:, None])
    amounts = amounts[:, 0]
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
        ends = torch.tensor([self.narrowest, self.widest], dtype=torch.float64).log()
        self.grid = torch.linspace(*ends.tolist(), WIDTHS, dtype=torch.float64).exp()
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
        energy, _ = _best_amounts(self.gram, products, self.single)  # (C, G, G)
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

    def solve(self, kernels: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Energy (C, T) and amounts (C, T, 6) of the best combination at widths (C, T, 2)."""
        rows = gaussian_integrals(sigma, self.edges)  # (C, T, 2, 3, K)
        along_x = torch.einsum("cyx,cnx->cny", kernels, rows.flatten(1, 3)).view_as(rows)
        products = _functions(rows @ along_x.mT)  # (C, T, 2, 6)
        return _best_amounts(_gram(rows), products[..., 0, :] - products[..., 1, :], self.single)

    def _energy(self, kernels: Tensor, points: Tensor) -> Tensor:
        energy, _ = self.solve(kernels, _widths(points.flatten(1, 2)))
        return energy.view(points.shape[:-1])

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


def _best_amounts(gram: Tensor, products: Tensor, single: bool) -> tuple[Tensor, Tensor]:
    """The best non-negative combination: its energy (...) and the amount of each D_i (..., 6).

    Args:
        gram: as of ``_gram``.
        products: of the D_i with the kernel, (..., 6).
        single: of one function alone.
    """
    even, alone = gram[..., :9].unflatten(-1, (3, 3)), gram[..., 9:]
    squares = torch.stack(
        [even[..., 0, 0], alone[..., 0], alone[..., 1], even[..., 1, 1], even[..., 2, 2],
         alone[..., 2]], dim=-1,
    )  # fmt: skip
    there = squares > torch.finfo(squares.dtype).tiny
    length = torch.where(there, squares, 1).sqrt()
    b = torch.where(there, products / length, 0)  # with functions of unit length
    alone_b = b.clamp(min=0)
    if single:
        energy, which = alone_b.square().max(-1)
        chosen = torch.nn.functional.one_hot(which, 6)
        return energy, chosen * alone_b / length
    e = list(_EVEN)
    cosines = even / (length[..., e, None] * length[..., None, e])
    energy, c = _best_of_even(cosines, b[..., e], there[..., e])
    amounts = alone_b.clone()
    amounts[..., e] = c
    return energy + alone_b[..., list(_ALONE)].square().sum(-1), amounts / length


def _best_of_even(cosines: Tensor, b: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """The best feasible one of the seven combinations of three functions of unit length."""
    energy = torch.zeros_like(b[..., 0])
    amounts = torch.zeros_like(b)
    eye = torch.eye(3, dtype=b.dtype)
    for subset in _SUBSETS:
        used = torch.tensor([k in subset for k in range(3)])
        g = torch.where(used[:, None] & used, cosines, 0) + eye * ~used
        g = torch.where(eye.bool(), 1, g)
        adjugate = torch.stack(
            [torch.linalg.cross(g[..., (k + 1) % 3, :], g[..., (k + 2) % 3, :]) for k in range(3)],
            dim=-1,
        )
        det = (g[..., 0, :] * adjugate[..., :, 0]).sum(-1)
        inverse = adjugate / torch.where(det > SINGULAR, det, 1)[..., None, None]
        c = (inverse * torch.where(used, b, 0)[..., None, :]).sum(-1)
        usable = (det > SINGULAR) & (there | ~used).all(-1) & (c >= 0).all(-1)
        gained = torch.where(usable, (c * b).sum(-1), 0)
        better = gained > energy
        energy = torch.where(better, gained, energy)
        amounts = torch.where(better[..., None], c, amounts)
    return energy, amounts

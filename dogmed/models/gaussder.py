"""Layers of Gaussian derivatives: learned combinations, of one set of weights, at several scales.

The layer of "Scale-covariant and scale-invariant Gaussian derivative networks" (Lindeberg, 2021,
https://arxiv.org/abs/2011.14759) and of the papers in `gaussderresnet.py`. Ours is how it is computed:
as products with the matrices of `sampling.py`, which cost the same whatever the scale, and give the
derivatives on any grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dogmed.models.sampling import derivative_matrices

ORDERS = 3
"""Derivatives along an axis: none, first, second."""

KEPT = 8
"""Sizes whose matrices a layer keeps, along y and x together."""


class GaussianDerivative2d(nn.Module):
    """Learned linear combinations of Gaussian derivatives up to second order, at several scales.

    The derivatives are scale-normalised (d/dx times sigma), so that one set of weights means the
    same at each scale. Maps are laid out as (S, C, H, B, W): the derivatives along y, those along x and
    the combination of channels are then products of matrices, without a copy between them.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        sigmas: scale of each scale channel, in cells of the input.
        zero_order: combine the smoothed maps themselves too.
        separable: combine the derivatives of each channel apart, then mix channels: C (P + C')
            weights in place of C P C', P derivatives.
        pitch: cells of the input to a cell of the output.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        sigmas: tuple[float, ...],
        *,
        zero_order: bool = False,
        separable: bool = False,
        pitch: int = 1,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.pitch = in_channels, out_channels, pitch
        self.sigmas, self.zero_order, self.separable = sigmas, zero_order, separable
        terms = [(p, q) for p in range(ORDERS) for q in range(ORDERS - p)]  # along y, along x
        self.terms = tuple(terms if zero_order else terms[1:])
        shape = (in_channels,) if separable else (out_channels, in_channels)
        self.weight = nn.Parameter(torch.empty(len(self.terms), *shape))
        fan_in = len(self.terms) * (1 if separable else in_channels)
        nn.init.normal_(self.weight, std=fan_in**-0.5)
        self.pointwise = Pointwise(in_channels, out_channels) if separable else None
        self._kept: dict[Any, Tensor] = {}

    def forward(self, x: Tensor, cells: tuple[int, int] | None = None) -> Tensor:
        """(S, C, H, B, W) -> (S, C', H', B, W')

        Args:
            x: maps of each scale channel.
            cells: H' and W', the grid on which the derivatives are taken, about the centre; None is
                one of the whole input. (1, 1) is the centre alone.
        """
        scales, channels, height, batch, width = x.shape
        rows, columns = cells or (self.cells(height), self.cells(width))
        x = x.reshape(scales, channels, height, batch * width)
        along_y = [m[:, None] @ x for m in self._matrices(height, rows, x)]  # (S, C, H', B W)
        along_x = self._matrices(width, columns, x)
        combine = self._combine_apart if self.separable else self._combine
        x = combine(along_y, along_x, (scales, rows * batch, width))
        x = x.view(scales, -1, rows, batch, columns)
        return x if self.pointwise is None else self.pointwise(x)

    def cells(self, side: int) -> int:
        """Cells of the output along a side of the input; halves round up."""
        return max(1, (2 * side + self.pitch) // (2 * self.pitch))

    def _combine(
        self, along_y: list[Tensor], along_x: Tensor, shape: tuple[int, int, int]
    ) -> Tensor:
        """Sum over the terms, each with weights for every pair of channels: (S, C' H' B, W')."""
        scales, _, width = shape
        mixed: list[Tensor | None] = [None] * ORDERS
        for weight, (p, q) in zip(self.weight, self.terms, strict=True):
            maps = along_y[p].view(scales, self.in_channels, -1)
            weight = weight.expand(scales, -1, -1)
            before = mixed[q]
            mixed[q] = weight @ maps if before is None else torch.baddbmm(before, weight, maps)
        return _sum_of_products(
            [m.view(scales, -1, width) for m in mixed if m is not None], along_x.mT
        )

    def _combine_apart(
        self, along_y: list[Tensor], along_x: Tensor, shape: tuple[int, int, int]
    ) -> Tensor:
        """Sum over the terms, each with a weight for every channel: (S C, H' B, W')."""
        scales, lines, width = shape
        matrices, done = [], 0
        for p in range(ORDERS):
            count = sum(term[0] == p for term in self.terms)
            first = ORDERS - p - count  # 1 where there is no zero order
            weight = self.weight[done : done + count]
            matrix = torch.einsum("qc,qsvw->scwv", weight, along_x[first : first + count])
            matrices.append(matrix.flatten(0, 1).to(along_y[p]))
            done += count
        maps = [m.view(scales * self.in_channels, lines, width) for m in along_y]
        return _sum_of_products(maps, matrices)

    def _matrices(self, cells_in: int, cells_out: int, like: Tensor) -> Tensor:
        """The matrices of each order and scale channel, (3, S, out, in), made once for a size."""
        arguments = (self.sigmas, cells_in, cells_out, self.pitch)
        if torch.compiler.is_compiling():
            return sampled(*arguments).to(like)
        key = (cells_in, cells_out, like.device, like.dtype)
        kept = self._kept.pop(key, None)
        if kept is None:
            with torch.inference_mode(False):  # training may use them next
                kept = sampled(*arguments).to(like)
            if type(kept) is not Tensor:  # one without values, of a tracer
                return kept
        self._kept[key] = kept
        if len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]  # not used for longest
        return kept

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles go without kept matrices."""
        return {**super().__getstate__(), "_kept": {}}

    def extra_repr(self) -> str:
        sigmas = ", ".join(f"{sigma:.3g}" for sigma in self.sigmas)
        options = f"zero_order={self.zero_order}, separable={self.separable}"
        return f"{self.in_channels}, {self.out_channels}, sigmas=({sigmas}), {options}"


def _sum_of_products(left: Sequence[Tensor], right: Sequence[Tensor] | Tensor) -> Tensor:
    """Sum of batched matrix products."""
    total = torch.bmm(left[0], right[0])
    for a, b in zip(left[1:], right[1:], strict=True):
        total = torch.baddbmm(total, a, b)
    return total


@torch.compiler.assume_constant_result
def sampled(sigmas: tuple[float, ...], cells_in: int, cells_out: int, pitch: int) -> Tensor:
    """Derivative matrices of several scales, (3, S, out, in)."""
    made = [
        derivative_matrices(sigma, cells_in, cells_out, ORDERS - 1, pitch=pitch) for sigma in sigmas
    ]
    return torch.stack(made, dim=1)


class Pointwise(nn.Module):
    """1x1 convolution, without a bias, of maps in this file's layout.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels))
        nn.init.normal_(self.weight, std=in_channels**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(S, C, H, B, W) -> (S, C', H, B, W)"""
        return (self.weight @ x.flatten(2)).unflatten(2, x.shape[2:])

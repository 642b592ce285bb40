"""What kernels look like, in words and figures: pattern, size, response to frequencies.

The patterns are those of the thesis's section 4.2.1, told by what a kernel computes and not by what it was
drawn as: widths count without their sign, and a centre is told from a cross by the narrower width. The
thesis's two ranges overlap, so that one in eight of the kernels drawn as a cross counts as a centre.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dogmed.analysis.fitting import FUNCTIONS, ROWS, Fit
from dogmed.analysis.layers import Layer
from dogmed.models.dog import PATTERNS
from dogmed.models.sampling import DoGParameters, mixing_weights

DOMINANCE = 0.5
"""A function with more than this share of the mixing weights gives a kernel its name."""
EXPLAINED = 0.5
"""A learned kernel has the name of a single pattern that explains at least this share of its energy."""
CENTER_FROM = min(abs(edge) for edge in PATTERNS["on_center"].sigma[0])
"""A DoG is a centre from this narrower width on, below it a cross."""
ABSENT = 1e-6
"""A DoGConv's kernel without an entry of this size, before scaling, is none."""

NAMES = (*PATTERNS, "mixed", "other", "none")
"""Of all kinds of kernels, in the order that they are told in."""
TITLES = {
    "on_center": "on centre", "off_center": "off centre", "on_cross": "on cross", "off_cross": "off cross",
    "dx": "d/dx", "dy": "d/dy", "dxx": "d²/dx²", "dyy": "d²/dy²", "dxy": "d²/dxdy",
}  # fmt: skip

BINS = 24
FREQUENCIES = np.linspace(0, 0.5, 33)
"""Cycles per pixel of a layer's input."""
ANGLES = 24


def function_weights(parameters: DoGParameters) -> Tensor:
    """The mixing weights of ``FUNCTIONS``, (C, 6); 0 for those that the order lacks."""
    weights = mixing_weights(parameters)
    rows = weights.shape[-1]
    zero = torch.zeros_like(weights[:, 0, 0])
    found = [weights[:, y, x] if y < rows and x < rows else zero for y, x in ROWS]
    return torch.stack(found, dim=1)


def dog_patterns(layer: Layer) -> NDArray[np.str_]:
    """Name the pattern of each kernel of a DoGConv, (C,)."""
    assert layer.functions is not None
    names = _named(layer.functions.sigma, function_weights(layer.functions))
    absent = layer.unscaled().abs().amax((1, 2)) < ABSENT
    return np.where(absent.numpy(), "none", names)


def fitted_patterns(single: Fit) -> NDArray[np.str_]:
    """Name the pattern of each learned kernel, (C,), by the single function that fits it best."""
    names = _named(single.sigma, single.weights)
    names = np.where((single.explained < EXPLAINED).numpy(), "other", names)
    return np.where(single.explained.isnan().numpy(), "none", names)


def _named(sigma: Tensor, weights: Tensor) -> NDArray[np.str_]:
    first, second = sigma.detach().abs().unbind(1)
    side = np.where((first < second).numpy(), "on", "off")
    shape = np.where((torch.minimum(first, second) < CENTER_FROM).numpy(), "cross", "center")
    most, which = weights.detach().max(1)
    names = np.array(FUNCTIONS)[which.numpy()]
    names = np.where(names == "n", np.char.add(np.char.add(side, "_"), shape), names)
    return np.where((most > DOMINANCE).numpy(), names, "mixed")


def counts(names: Sequence[str] | NDArray[np.str_]) -> dict[str, int]:
    """How many kernels there are of each kind that occurs."""
    return {name: n for name in NAMES if (n := int(np.sum(np.asarray(names) == name)))}


def changes(before: NDArray[np.str_], after: NDArray[np.str_]) -> dict[str, dict[str, int]]:
    """How many kernels of each kind became each kind."""
    return {name: counts(after[before == name]) for name in counts(before)}


def order(names: NDArray[np.str_]) -> NDArray[np.intp]:
    """Channels by pattern, and by number within one."""
    return np.argsort([NAMES.index(name) for name in names], kind="stable")


def radius(kernels: Tensor) -> NDArray[np.float64]:
    """The energy-weighted radius of each kernel about its middle, in cells: (C, K, K) -> (C,).

    The root of sum k^2 r^2 / sum k^2 over the cells' centres; NaN for a kernel that is zero. A
    Gaussian has its standard deviation.
    """
    size = kernels.shape[-1]
    at = torch.arange(size, dtype=kernels.dtype) - (size - 1) / 2
    square = at[:, None] ** 2 + at**2
    energy = kernels.square()
    return ((energy * square).sum((1, 2)) / energy.sum((1, 2))).sqrt().numpy()


def response(kernels: Tensor) -> NDArray[np.float64]:
    """The mean magnitude, over all directions, of each kernel's Fourier transform: (C, K, K) -> (C, F).

    Of kernels of unit energy, sum k^2 = 1, at ``FREQUENCIES``: a single cell gives 1 at all of them. The
    transform is worked out on circles, not interpolated from a grid.
    """
    size = kernels.shape[-1]
    at = torch.arange(size, dtype=kernels.dtype) - (size - 1) / 2
    angle = torch.arange(ANGLES, dtype=kernels.dtype) * (math.pi / ANGLES)
    f = torch.from_numpy(FREQUENCIES).to(kernels.dtype)[:, None]
    along_x = torch.exp(-2j * math.pi * (f * angle.cos())[..., None] * at)  # (F, A, K)
    along_y = torch.exp(-2j * math.pi * (f * angle.sin())[..., None] * at)
    waves = (along_y[..., :, None] * along_x[..., None, :]).flatten(2).flatten(0, 1)  # (F A, K K)
    norm = kernels.flatten(1).norm(dim=1, keepdim=True)
    found = (kernels.flatten(1) / norm).to(waves.dtype) @ waves.T
    return found.abs().unflatten(1, (len(FREQUENCIES), ANGLES)).mean(2).numpy()


def quartiles(values: NDArray[np.float64]) -> dict[str, float] | None:
    """Median and quartiles of the values that are there; None if none is."""
    there = values[np.isfinite(values)]
    if not len(there):
        return None
    q25, median, q75 = np.quantile(there, [0.25, 0.5, 0.75])
    return {"q25": float(q25), "median": float(median), "q75": float(q75)}

"""What kernels look like, in words and figures: pattern, size, response to frequencies.

The patterns are those of ``dogmed.models.patterns``; a kernel that was learned freely has that of its fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dogmed.analysis.kernels.fitting import Fit
from dogmed.analysis.kernels.layers import Layer
from dogmed.models.patterns import NAMES, name_kernels, name_mixtures

EXPLAINED = 0.5
"""A learned kernel has the name of a single pattern that explains at least this share of its energy."""

BINS = 24
FREQUENCIES = np.linspace(0, 0.5, 33)
"""Cycles per pixel of a layer's input."""
ANGLES = 24


def dog_patterns(layer: Layer) -> NDArray[np.str_]:
    """Name the pattern of each kernel of a DoGConv, (C,)."""
    assert layer.functions is not None
    return name_kernels(layer.functions, layer.size, layer.extent)


def fitted_patterns(single: Fit) -> NDArray[np.str_]:
    """Name the pattern of each learned kernel, (C,), by the single function that fits it best."""
    names = name_mixtures(single.sigma, single.weights)
    names = np.where((single.explained < EXPLAINED).numpy(), "other", names)
    return np.where(single.explained.isnan().numpy(), "none", names)


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

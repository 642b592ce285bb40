"""The DoG kernels that have the largest part in a class's score for an image.

With A the maps that a DoGConv gives and w the mean of the score's gradient over each, a channel's part is
w times the mean of A: the channel's summand of Grad-CAM (before what is negative is left out), averaged over
the map.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dogmed.models.dog import PATTERNS, DoGConv2d
from dogmed.models.sampling import mixing_weights, sample_kernels

SHOWN = 8
"""Kernels told of a layer."""
TITLES = {
    "on_center": "on centre", "off_center": "off centre", "on_cross": "on cross", "off_cross": "off cross",
    "dx": "d/dx", "dy": "d/dy", "dxx": "d²/dx²", "dyy": "d²/dy²", "dxy": "d²/dxdy",
}  # fmt: skip
_DERIVATIVES = {
    (0, 1): "dx",
    (1, 0): "dy",
    (0, 2): "dxx",
    (2, 0): "dyy",
    (1, 1): "dxy",
}  # along y, along x
_CENTER_FROM = min(abs(edge) for edge in PATTERNS["on_center"].sigma[0])
_DOMINANCE, _ABSENT = 0.5, 1e-6


class Kernel(NamedTuple):
    """A kernel of a layer and its part in a score."""

    channel: int
    pattern: str
    kernel: np.ndarray
    """(K, K)"""
    weight: float
    """Mean gradient of the score over the channel's map."""
    activation: float
    """Mean of the channel's map."""

    @property
    def part(self) -> float:
        """Weight times activation."""
        return self.weight * self.activation


def strongest(layer: DoGConv2d, maps: Tensor, gradients: Tensor) -> tuple[Kernel, ...]:
    """Find the kernels with the largest positive parts, the largest first, at most ``SHOWN``.

    Args:
        layer: whose kernels they are.
        maps: (1, C, H, W), that it gave of an image.
        gradients: (1, C, H, W), of the score with respect to them.
    """
    weights = gradients.detach()[0].double().mean((1, 2)).cpu()
    activations = maps.detach()[0].double().mean((1, 2)).cpu()
    parts = weights * activations
    order = parts.argsort(descending=True)[:SHOWN].tolist()
    patterns = name_patterns(layer)
    with torch.no_grad():
        kernels = layer.kernel()[:, 0].double().cpu().numpy()
    return tuple(
        Kernel(c, patterns[c], kernels[c], float(weights[c]), float(activations[c]))
        for c in order
        if parts[c] > 0
    )


@torch.no_grad()
def name_patterns(layer: DoGConv2d) -> list[str]:
    """Name the pattern of each kernel as ``dogmed analyze kernels`` does."""
    functions = layer.functions()
    mixed = mixing_weights(functions)  # (C, rows, rows): along y, along x
    plain = functions._replace(log_scale=torch.zeros_like(functions.log_scale))
    entries = sample_kernels(plain, layer.kernel_size, layer.extent).abs().amax((1, 2))
    names = []
    for weights, sigma, entry in zip(mixed, functions.sigma.abs(), entries, strict=True):
        row, column = divmod(int(weights.argmax()), len(weights))
        if entry < _ABSENT:
            names.append("none")
        elif weights[row, column] <= _DOMINANCE:
            names.append("mixed")
        elif (row, column) in _DERIVATIVES:
            names.append(_DERIVATIVES[row, column])
        else:
            side = "on" if sigma[0] < sigma[1] else "off"
            names.append(f"{side}_{'cross' if sigma.min() < _CENTER_FROM else 'center'}")
    return [TITLES.get(name, name) for name in names]

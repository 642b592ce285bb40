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

from dogmed.models.dog import DoGConv2d
from dogmed.models.patterns import TITLES, name_kernels

SHOWN = 8
"""Kernels told of a layer."""


class Kernel(NamedTuple):
    """A kernel of a layer and its part in a score."""

    channel: int
    pattern: str
    """Its title."""
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
    patterns = name_kernels(layer.functions(), layer.kernel_size, layer.extent)
    with torch.no_grad():
        kernels = layer.kernel()[:, 0].double().cpu().numpy()
    return tuple(
        Kernel(c, TITLES[patterns[c]], kernels[c], float(weights[c]), float(activations[c]))
        for c in order
        if parts[c] > 0
    )

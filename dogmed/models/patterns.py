"""What kernels of DoGConvs look like, in words: the patterns of the thesis's section 4.2.1.

They are told by what a kernel computes and not by what it was drawn as: widths count without their sign, and a
centre is told from a cross by the narrower width. The thesis's two ranges overlap, so that one in eight of
the kernels drawn as a cross counts as a centre.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dogmed.models.dog import PATTERNS
from dogmed.models.sampling import DoGParameters, mixing_weights, sample_kernels

FUNCTIONS = ("n", "dx", "dy", "dxx", "dyy", "dxy")
ROWS = ((0, 0), (0, 1), (1, 0), (0, 2), (2, 0), (1, 1))
"""Derivatives along y and along x of each of ``FUNCTIONS``."""

DOMINANCE = 0.5
"""A function with more than this share of the mixing weights gives a kernel its name."""
CENTER_FROM = min(abs(edge) for edge in PATTERNS["on_center"].sigma[0])
"""A DoG is a centre from this narrower width on, below it a cross."""
ABSENT = 1e-6
"""A kernel without an entry of this size, before scaling, is none."""

NAMES = (*PATTERNS, "mixed", "other", "none")
"""Of all kinds of kernels, in the order that they are told in; "other" is one that was learned freely."""
TITLES = {
    "on_center": "on centre", "off_center": "off centre", "on_cross": "on cross", "off_cross": "off cross",
    "dx": "d/dx", "dy": "d/dy", "dxx": "d²/dx²", "dyy": "d²/dy²", "dxy": "d²/dxdy",
    "mixed": "mixed", "other": "other", "none": "none",
}  # fmt: skip
"""Of ``NAMES``, for people."""


def function_weights(parameters: DoGParameters) -> Tensor:
    """The mixing weights of ``FUNCTIONS``, (C, 6); 0 for those that the order lacks."""
    weights = mixing_weights(parameters)
    rows = weights.shape[-1]
    zero = torch.zeros_like(weights[:, 0, 0])
    found = [weights[:, y, x] if y < rows and x < rows else zero for y, x in ROWS]
    return torch.stack(found, dim=1)


def name_mixtures(sigma: Tensor, weights: Tensor) -> NDArray[np.str_]:
    """Name the patterns, (C,), of mixtures of DoGs.

    Args:
        sigma: (C, 2), their widths.
        weights: (C, 6), of ``FUNCTIONS``; they sum to 1.
    """
    first, second = sigma.detach().cpu().abs().unbind(1)
    side = np.where((first < second).numpy(), "on", "off")
    shape = np.where((torch.minimum(first, second) < CENTER_FROM).numpy(), "cross", "center")
    most, which = weights.detach().cpu().max(1)
    names = np.array(FUNCTIONS)[which.numpy()]
    names = np.where(names == "n", np.char.add(np.char.add(side, "_"), shape), names)
    return np.where((most > DOMINANCE).numpy(), names, "mixed")


@torch.no_grad()
def name_kernels(parameters: DoGParameters, kernel_size: int, extent: float) -> NDArray[np.str_]:
    """Name the pattern of each kernel of a DoGConv, (C,).

    Args:
        parameters: that its kernels are sampled from.
        kernel_size: cells along each axis.
        extent: half-width of a kernel in the unit of sigma.
    """
    names = name_mixtures(parameters.sigma, function_weights(parameters))
    plain = parameters._replace(log_scale=torch.zeros_like(parameters.log_scale))
    entries = sample_kernels(plain, kernel_size, extent).abs().amax((1, 2))
    return np.where((entries < ABSENT).cpu().numpy(), "none", names)

"""Whether two models compute the same: the proof that an import or an export ends with."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from dogmed.errors import WeightsError

ROUNDING = 1e-4
"""Largest difference that another order of the same sums explains, relative to the output."""
_BATCH = 2


class Difference(NamedTuple):
    """How far apart the outputs of two models are; as a string, for people."""

    largest: float
    """Between any two outputs."""
    output: float
    """Largest output in absolute value."""

    def __str__(self) -> str:
        return f"largest difference {self.largest:.3g} in outputs up to {self.output:.3g}"


@torch.no_grad()
def compare(model: nn.Module, reference: nn.Module, in_chans: int) -> Difference:
    """Run both on the same images, random ones that are the same every time.

    Args:
        model: of timm, or built as timm does.
        reference: of timm, for images of the same size.
        in_chans: channels of the images.

    Raises:
        WeightsError: the outputs differ by more than rounding.
    """
    cfg: Any = reference.pretrained_cfg
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_BATCH, in_chans, *cfg["input_size"][1:], generator=generator)
    outputs, expected = (network.eval()(images) for network in (model, reference))
    difference = Difference((outputs - expected).abs().max().item(), expected.abs().max().item())
    if not difference.largest <= ROUNDING * difference.output:  # NaN too
        raise WeightsError(f"the outputs are not those of {cfg['architecture']}: {difference}")
    return difference

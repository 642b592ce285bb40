"""Measure how covariant and invariant GaussDerResNets are at their usual scales and stride.

    python -m benchmarks.covariance

Eight continuous scenes (random cosines as strong as in natural images, averaged over the pixels) are
drawn at a side and at its double; networks have random weights, and statistics of batch norm from the
scenes themselves. Errors are root mean squares, in percent of the scores' spread over the scenes:

- covariance: a channel's scores of the double minus those of the channel half as coarse, over all such pairs;
- invariance: the network's outputs of the double minus those of the scene: all channels, those at the
  ends included.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dogmed.models import GaussDerResNet

SIDES = (56, 112)
SELECTIONS = ("center", "avg", "max")
DIMS = (16, 16, 16, 16, 16, 16)


def scenes(side: int, waves: int = 33) -> Tensor:
    """Eight scenes of cosines, weaker in proportion to their frequency: (8, 3, side, side)."""
    k = torch.arange(waves, dtype=torch.float64)[:, None]
    edges = torch.arange(side + 1, dtype=torch.float64) / side
    integrals = torch.where(k > 0, (math.pi * k * edges).sin() / (math.pi * k.clamp(min=1)), edges)
    cells = side * integrals.diff(dim=1)  # (waves, side)
    generator = torch.Generator().manual_seed(0)
    amplitudes = torch.randn(8, 3, waves, waves, generator=generator, dtype=torch.float64)
    amplitudes /= 1 + (k**2 + k.T**2).sqrt()
    return torch.einsum("bcij,iy,jx->bcyx", amplitudes, cells, cells)


def error(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, over the spread of ``expected`` over the scenes, (..., B, classes)."""
    spread = (expected - expected.mean(-2, keepdim=True)).square().mean().sqrt()
    return float((found - expected).square().mean().sqrt() / spread)


@torch.no_grad()
def measure(side: int, selection: str) -> tuple[float, float]:
    """Errors of covariance and invariance between ``side`` and its double."""
    torch.manual_seed(0)
    network = GaussDerResNet(dims=DIMS, num_classes=8, selection=selection).double()  # type: ignore[arg-type]
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.momentum = 1.0
    network.train()(scenes(side))
    network.eval()
    small, large = (network.forward_features(scenes(s)) for s in (side, 2 * side))
    scores, doubled = network.forward_channels(small), network.forward_channels(large)
    shift = round(math.log(2) / math.log(network.channel_scales[1] / network.channel_scales[0]))
    return (
        error(doubled[shift:], scores[:-shift]),
        error(network.forward_head(large), network.forward_head(small)),
    )


def table() -> str:
    """Return the table in Markdown."""
    lines = ["| selection | px | covariance, % | invariance, % |", "|---|--:|--:|--:|"]
    for selection in SELECTIONS:
        for side in SIDES:
            covariance, invariance = measure(side, selection)
            lines.append(
                f"| {selection} | {side} → {2 * side} | {100 * covariance:.1f} | {100 * invariance:.0f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())

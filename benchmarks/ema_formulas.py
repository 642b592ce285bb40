"""What follows from the formulas of DoG kernels alone about averaging them; see `ema.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from dogmed.models import DoGConv2d
from dogmed.models.sampling import TEMPERATURE, DoGParameters, mixing_weights, sample_kernels

KERNEL_SIZE, EXTENT = 7, 2.0
STEPS = 1251
"""Of an ImageNet epoch with batches of 1024."""
SPREADS = {
    "sigma": (0.01, 0.03, 0.1, 0.3),
    "mix": (0.003, 0.01, 0.03, 0.1),
    "log_scale": (0.1, 0.3, 1.0),
}


def initial_weight_table(decay: float = 0.9999, power: float = 2 / 3) -> str:
    """The share that the initial weights have in an average, with timm's warm-up and without."""
    lines = [
        f"| epochs of {STEPS:,} steps | initial weights' share, decay {decay} | with the warm-up | "
        "steps averaged over, with it |",
        "|--:|--:|--:|--:|",
    ]
    for epochs in (1, 5, 10, 50, 600):
        steps = epochs * STEPS
        kept = 1 - torch.arange(1, steps, dtype=torch.float64).add(1).pow(-power)
        kept = kept.clamp(max=decay)
        window = 1 / (1 - kept[-1].item())
        lines.append(f"| {epochs} | {decay**steps:.1%} | {kept.prod():.1%} | {window:,.0f} |")
    return "\n".join(lines)


def gradient_table() -> str:
    """How much kernels depend on a width near 0, where it would have to change its sign.

    The largest entry of abs(dk/dsigma1) of the Gaussian and of its first and second derivative.
    """
    mix = torch.eye(3, dtype=torch.float64)
    zeros = torch.zeros(3, 3, dtype=torch.float64)
    lines = ["| sigma | Gaussian | first derivative | second |", "|--:|--:|--:|--:|"]
    for width in (0.5, 0.3, 0.2, 0.1, 0.07, 0.05, 0.03, 0.02):
        sigma = torch.tensor([[width, 1.0]] * 3, dtype=torch.float64)

        def kernels(sigma: Tensor) -> Tensor:
            parameters = DoGParameters(sigma, zeros[:, 0], mix, zeros[:, :2], zeros)
            return sample_kernels(parameters, KERNEL_SIZE, EXTENT)

        along = torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64)
        _, slope = torch.func.jvp(kernels, (sigma,), (along,))
        lines.append(f"| {width} | {' | '.join(f'{s:.0e}' for s in slope.abs().amax((1, 2)))} |")
    return "\n".join(lines)


@torch.no_grad()
def spread_table() -> str:
    """How far the kernel of averaged parameters is from the average of kernels, for two networks.

    Both are off the initial kernels, each parameter by the same distance in opposite directions.
    """
    lines = [
        "| two networks differ in | by | parameters averaged: median | 90th percentile | "
        "amplitudes averaged: median | 90th percentile |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, distances in SPREADS.items():
        for distance in distances:
            first, second = _layer(), _layer()
            for parameter in (name, "mix_d1", "mix_d2") if name == "mix" else (name,):
                offset = torch.randn_like(getattr(first, parameter)).sign() * distance
                getattr(first, parameter).add_(offset)
                getattr(second, parameter).sub_(offset)
            lines.append(f"| {name} | ± {distance} | {_errors(first, second)} |")
    mirrored = _layer()
    mirrored.sigma.neg_()
    lines.append(f"| sign of sigma | | {_errors(_layer(), mirrored)} |")
    return "\n".join(lines)


def _layer() -> DoGConv2d:
    torch.manual_seed(0)
    return DoGConv2d(400, KERNEL_SIZE, extent=EXTENT).double()


def _errors(first: DoGConv2d, second: DoGConv2d) -> str:
    wanted = (first.kernel() + second.kernel()) / 2
    plain, natural = _layer(), _layer()
    pairs = zip(plain.parameters(), first.parameters(), second.parameters(), strict=True)
    for mean, a, b in pairs:
        mean.copy_((a + b) / 2)
    widths = (first.sigma.abs() + second.sigma.abs()) / 2
    set_amplitudes(natural, widths, (amplitudes(first) + amplitudes(second)) / 2)
    percentiles = torch.tensor([0.5, 0.9], dtype=torch.float64)
    gaps = (kernel_gap(layer.kernel(), wanted).quantile(percentiles) for layer in (plain, natural))
    return " | ".join(f"{gap:.1%}" for pair in gaps for gap in pair)


def kernel_gap(kernels: Tensor, wanted: Tensor) -> Tensor:
    """Distance of each kernel relative to the wanted one's norm: (C,)."""
    norm = wanted.flatten(1).norm(dim=1)
    return (kernels - wanted).flatten(1).norm(dim=1) / norm.clamp(min=1e-6)


def amplitudes(layer: DoGConv2d) -> Tensor:
    """What a kernel is linear in, at given widths: (C, P, P)."""
    return mixing_weights(layer.functions()) * layer.log_scale.exp()[:, None, None]


def set_amplitudes(layer: DoGConv2d, widths: Tensor, values: Tensor) -> None:
    """Give a layer of order d2 the parameters that have these widths and amplitudes."""
    total = values.sum((1, 2))
    shares = (values / total[:, None, None]).clamp(min=1e-37)
    n, dx, dxx = shares[:, 0].unbind(1)
    dy, dxy, dyy = shares[:, 1, 0], shares[:, 1, 1], shares[:, 2, 0]
    layer.sigma.copy_(widths)
    layer.log_scale.copy_(total.log())
    for logits, parts in (
        (layer.mix, (n, dx + dy, dxx + dyy + dxy)),
        (layer.mix_d1, (dx, dy)),
        (layer.mix_d2, (dxx, dyy, dxy)),
    ):
        assert logits is not None
        logits.copy_(TEMPERATURE * torch.stack(parts, 1).log())

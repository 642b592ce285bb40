"""Patterns, sizes and responses against what is known of fresh networks and of Gaussians."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from dogmed.analysis.kernels.fitting import fit
from dogmed.analysis.kernels.layers import Layer
from dogmed.analysis.kernels.patterns import (
    FREQUENCIES,
    changes,
    counts,
    dog_patterns,
    fitted_patterns,
    order,
    radius,
    response,
)
from dogmed.models.dog import PATTERNS, DoGConv2d, pattern_counts
from dogmed.models.patterns import CENTER_FROM
from dogmed.models.sampling import cell_edges, gaussian_integrals


def layer_of(conv: DoGConv2d) -> Layer:
    with torch.no_grad():
        return Layer("conv", conv.kernel()[:, 0].double(), conv.extent, 1, 1, conv.functions())


@pytest.mark.parametrize("order", ["base", "d1", "d2"])
@pytest.mark.parametrize("channels", [8, 40, 321])
def test_a_fresh_network_has_the_shares_it_was_given(order: str, channels: int) -> None:
    torch.manual_seed(0)
    conv = DoGConv2d(channels, order=order)  # type: ignore[arg-type]
    found = Counter(dog_patterns(layer_of(conv)).tolist())
    expected = pattern_counts(channels, order)  # type: ignore[arg-type]
    derivatives = ("dx", "dy", "dxx", "dyy", "dxy")
    missing = {name: expected.get(name, 0) - found[name] for name in derivatives}
    assert min(missing.values()) >= 0
    assert sum(missing.values()) == found["none"]  # both widths drawn far below a cell
    assert found["none"] <= 0.02 * channels and not found["mixed"]
    for sign in ("on", "off"):
        one, other = f"{sign}_center", f"{sign}_cross"
        assert found[one] + found[other] == expected[one] + expected[other]
        # no centre is drawn with a width that makes it a cross; a cross may look like a centre
        assert found[one] >= expected[one]


def test_of_the_kernels_drawn_as_a_cross_an_eighth_counts_as_a_centre() -> None:
    torch.manual_seed(0)
    conv = DoGConv2d(20_000, order="base")
    found, expected = counts(dog_patterns(layer_of(conv))), pattern_counts(20_000, "base")
    low, high = PATTERNS["on_cross"].sigma[0]
    share = (high - CENTER_FROM) / (high - low)
    assert share == pytest.approx(1 / 8)
    for sign in ("on", "off"):
        drawn = expected[f"{sign}_cross"]
        moved = (drawn - found[f"{sign}_cross"]) / drawn
        assert moved == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / drawn))


def test_names_follow_what_a_kernel_computes() -> None:
    conv = DoGConv2d(6)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.zero_()
        conv.mix[:, 0] = 0.1  # type: ignore[index]
        conv.sigma.copy_(
            torch.tensor(
                [[-0.8, 0.9], [0.9, -0.8], [0.3, 0.9], [0.9, 0.3], [0.01, 0.02], [0.3, 0.9]]
            )
        )
        conv.mix[5] = 0  # type: ignore[index]
    expected = ["on_center", "off_center", "on_cross", "off_cross", "none", "mixed"]
    assert dog_patterns(layer_of(conv)).tolist() == expected


def test_a_learned_kernel_is_named_after_the_function_that_explains_it() -> None:
    torch.manual_seed(0)
    conv = DoGConv2d(40)
    names, kernels = dog_patterns(layer_of(conv)), conv.kernel()[:, 0].detach().double()
    # far below a cell, the 0.7% of d2/dx2 in a mixture outweighs its 98% of d2/dxdy
    wide = conv.sigma.detach().abs().amax(1).numpy() > 0.3
    derivative = wide & ~np.char.startswith(names, "on") & ~np.char.startswith(names, "off")
    assert derivative.sum() >= 15
    found = fitted_patterns(fit(kernels[derivative], single=True))
    assert found.tolist() == names[derivative].tolist()
    noise = torch.cat([torch.randn(5, 7, 7), torch.zeros(1, 7, 7)])
    assert fitted_patterns(fit(noise, single=True)).tolist() == ["other"] * 5 + ["none"]


def test_changes_and_order() -> None:
    before = np.array(["dx", "dx", "mixed", "on_center"])
    after = np.array(["dx", "dy", "dx", "on_center"])
    assert changes(before, after) == {
        "on_center": {"on_center": 1}, "dx": {"dx": 1, "dy": 1}, "mixed": {"dx": 1},
    }  # fmt: skip
    assert order(after).tolist() == [3, 0, 2, 1]


def gaussian(size: int, sigma: float, derivative: int) -> Tensor:
    """A Gaussian's derivative along x, sigma in cells: (1, K, K)."""
    edges = cell_edges(size, size / 2, torch.zeros((), dtype=torch.float64))
    rows = gaussian_integrals(torch.tensor(sigma, dtype=torch.float64), edges)
    return (rows[0][:, None] * rows[derivative])[None]


@pytest.mark.parametrize("sigma", [1.5, 2.5, 4.0])
def test_the_radius_of_a_gaussian_is_its_width(sigma: float) -> None:
    """The square of a Gaussian has the variance sigma^2 / 2 along each axis."""
    found = radius(gaussian(41, sigma, 0))
    assert found == pytest.approx(math.sqrt(sigma**2 + 1 / 12), rel=1e-3)  # a cell's own variance


def test_the_radius_of_few_cells() -> None:
    kernels = torch.zeros(3, 7, 7)
    kernels[0, 3, 3], kernels[1, 3, 6] = -2, 1
    kernels[2, 0, 0] = kernels[2, 3, 3] = 1
    assert radius(kernels) == pytest.approx([0, 3, 3])
    assert np.isnan(radius(torch.zeros(1, 7, 7))).all()


@pytest.mark.parametrize("derivative", [0, 1, 2])
def test_the_response_is_that_of_the_continuous_function(derivative: int) -> None:
    """|(2 pi i fx)^n exp(-2 pi^2 sigma^2 f^2)| times the cell's sinc, averaged over directions."""
    sigma, size = 2.0, 33
    kernel = gaussian(size, sigma, derivative)
    angle = (np.arange(720) + 0.5) * (math.pi / 720)
    f = FREQUENCIES[:, None]
    fx, fy = f * np.cos(angle), f * np.sin(angle)
    plain = np.abs(2 * np.pi * fx) ** derivative * np.exp(-2 * np.pi**2 * sigma**2 * f**2)
    expected = (plain * np.abs(np.sinc(fx) * np.sinc(fy))).mean(1) / float(kernel.norm())
    np.testing.assert_allclose(response(kernel)[0], expected, atol=3e-3 * expected.max())


def test_the_response_is_numpys_transform_along_the_axes() -> None:
    torch.manual_seed(0)
    kernels = torch.randn(4, 7, 7, dtype=torch.float64)
    column = torch.zeros(4, 7, 7, dtype=torch.float64)
    column[:, 3, 3] = kernels[:, 0, 0]
    np.testing.assert_allclose(response(column), 1)
    size = 2 * (len(FREQUENCIES) - 1)
    padded = np.abs(np.fft.fft2(kernels.numpy(), (size, size)))
    power = (padded**2).mean((1, 2))  # Parseval: of unit energy, 1
    np.testing.assert_allclose(power, kernels.square().sum((1, 2)))
    np.testing.assert_allclose(
        response(kernels)[:, 0], padded[:, 0, 0] / kernels.flatten(1).norm(dim=1).numpy()
    )

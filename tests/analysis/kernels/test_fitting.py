"""Fits against kernels of the family itself, scipy's non-negative least squares, and a slow search."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from dogmed.analysis.kernels.fitting import _Search, dog_kernels, fit
from dogmed.models.dog import DoGConv2d
from dogmed.models.patterns import FUNCTIONS, ROWS, function_weights
from dogmed.models.sampling import TEMPERATURE, DoGParameters, sample_kernels


def mixtures(count: int) -> DoGParameters:
    """Random mixtures, from nearly one-hot to even ones, of clearly different widths."""
    sigma = torch.rand(count, 2, dtype=torch.float64) * 1.2 + 0.15
    sigma[:, 1] = torch.where(torch.rand(count) < 0.5, sigma[:, 0] * 1.6, sigma[:, 0] / 1.6)
    sigma *= torch.where(torch.rand(count, 2) < 0.5, 1, -1)
    logits = [torch.randn(count, n, dtype=torch.float64) * 0.015 for n in (3, 2, 3)]
    return DoGParameters(sigma, torch.randn(count, dtype=torch.float64), *logits)


@pytest.mark.parametrize("size", [3, 5, 7, 8, 9, 11])
def test_kernels_of_the_family_are_explained(size: int) -> None:
    torch.manual_seed(0)
    extent = 2 * size / 7
    kernels = sample_kernels(mixtures(40), size, extent)
    found = fit(kernels)
    assert found.explained.min() > 0.999999
    torch.testing.assert_close(
        found.kernels, kernels, rtol=0, atol=2e-3 * float(kernels.abs().max())
    )


@pytest.mark.parametrize("order", ["base", "d1", "d2"])
def test_kernels_of_a_fresh_dogconv_are_explained(order: str) -> None:
    torch.manual_seed(1)
    layer = DoGConv2d(60, 7, order=order)  # type: ignore[arg-type]
    found = fit(layer.kernel()[:, 0])
    assert found.explained.min() > 0.999999


def test_a_fit_is_a_kernel_that_a_dogconv_can_have() -> None:
    """Its widths, weights and scale, as the parameters of (3.21), give the same kernels."""
    torch.manual_seed(2)
    kernels = torch.randn(12, 7, 7, dtype=torch.float64)
    found = fit(kernels, extent=2.0)
    assert (found.weights >= 0).all() and (found.scale > 0).all()
    torch.testing.assert_close(found.weights.sum(1), torch.ones(12, dtype=torch.float64))

    def logits(*columns: int) -> torch.Tensor:
        return found.weights[:, columns].clamp(min=1e-40).log() * TEMPERATURE

    n, d1, d2 = found.weights[:, 0], found.weights[:, 1:3].sum(1), found.weights[:, 3:].sum(1)
    mix = torch.stack([n, d1, d2], 1).clamp(min=1e-40).log() * TEMPERATURE
    parameters = DoGParameters(found.sigma, found.scale.log(), mix, logits(1, 2), logits(3, 4, 5))
    torch.testing.assert_close(sample_kernels(parameters, 7, 2.0), found.kernels, atol=1e-7, rtol=0)
    torch.testing.assert_close(
        function_weights(parameters), found.weights, atol=1e-9, rtol=0, check_dtype=False
    )
    left = (kernels - found.kernels).square().sum((1, 2)) / kernels.square().sum((1, 2))
    torch.testing.assert_close(found.explained, 1 - left)


def basis(sigma: tuple[float, float], size: int) -> np.ndarray:
    """The six differences at two widths, as columns."""
    widths = torch.tensor([sigma] * 6, dtype=torch.float64)
    kernels = dog_kernels(widths, torch.eye(6, dtype=torch.float64), size, 2 * size / 7)
    return kernels.flatten(1).numpy().T


@pytest.mark.parametrize("size", [6, 7])
def test_amounts_at_given_widths_are_those_of_scipy(size: int) -> None:
    torch.manual_seed(3)
    kernels = torch.randn(30, size, size, dtype=torch.float64)
    kernels /= kernels.flatten(1).norm(dim=1)[:, None, None]
    search = _Search(size, 2 * size / 7, single=False)
    for sigma in ((0.3, 0.9), (1.1, 0.7), (0.8, 4.0), (0.5, 0.55)):
        widths = torch.tensor(sigma, dtype=torch.float64).expand(30, 1, 2)
        energy, amounts = search.energy(kernels, widths), search.amounts(kernels, widths)
        for k in range(30):
            expected, left = nnls(basis(sigma, size), kernels[k].flatten().numpy())
            np.testing.assert_allclose(amounts[k, 0], expected, rtol=1e-6, atol=1e-7)
            assert float(energy[k, 0]) == pytest.approx(1 - left**2, abs=1e-9)


def test_the_search_misses_nothing_that_a_finer_grid_finds() -> None:
    torch.manual_seed(4)
    kernels = torch.randn(15, 7, 7, dtype=torch.float64)
    found = fit(kernels).explained.numpy()
    unit = kernels / kernels.flatten(1).norm(dim=1)[:, None, None]
    search = _Search(7, 2.0, single=False)
    grid = torch.linspace(math.log(0.05), math.log(15), 120, dtype=torch.float64).exp()
    pairs = torch.cartesian_prod(grid, grid)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    best = torch.stack([search.energy(unit, part.expand(15, -1, -1)).amax(1)
                        for part in pairs.split(4000)]).amax(0)  # fmt: skip
    assert (found > best.numpy() - 1e-4).all()


def test_a_single_function_explains_no_more_than_a_mixture() -> None:
    torch.manual_seed(5)
    kernels = torch.randn(40, 7, 7, dtype=torch.float64)
    mixture, single = fit(kernels), fit(kernels, single=True)
    assert (single.explained <= mixture.explained + 1e-6).all()
    assert ((single.weights > 0).sum(1) == 1).all()


def test_the_energy_explained_knows_no_scale_sign_or_extent() -> None:
    torch.manual_seed(6)
    kernels = torch.randn(10, 7, 7, dtype=torch.float64)
    first = fit(kernels).explained
    for same in (1e-6 * kernels, -kernels):
        torch.testing.assert_close(fit(same).explained, first, rtol=0, atol=1e-6)
    torch.testing.assert_close(fit(kernels, extent=3.5).explained, first, rtol=0, atol=1e-9)
    torch.testing.assert_close(fit(kernels.mT).explained, first, rtol=0, atol=1e-6)  # x for y


def test_a_kernel_of_zeros_is_not_told_of() -> None:
    kernels = torch.zeros(2, 7, 7)
    kernels[1, 3, 3] = 1
    found = fit(kernels)
    assert found.explained[0].isnan() and found.explained[1] > 0.99
    assert not found.kernels[0].any() and found.scale[0] == 0


def test_rows_and_functions_go_together() -> None:
    assert len(FUNCTIONS) == len(ROWS) == len(set(ROWS)) == 6

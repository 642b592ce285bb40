"""Matrices of Gaussian derivatives against quadrature and moments; test_dog.py has the kernels."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from dogmed.models.sampling import SIGMA_LIMIT, derivative_matrices


@pytest.mark.parametrize(
    ("sigma", "cells_in", "cells_out"), [(0.7, 9, 9), (1.3, 8, 5), (3.0, 7, 1)]
)
def test_matrices_are_the_derivatives_of_the_mirrored_line(
    sigma: float, cells_in: int, cells_out: int
) -> None:
    line = np.random.default_rng(0).normal(size=cells_in)
    width = math.sqrt(sigma**2 - 1 / 12)
    derivatives = (
        lambda u: np.exp(-0.5 * (u / width) ** 2) / (width * math.sqrt(2 * math.pi)),
        lambda u: -u / width**2 * derivatives[0](u),
        lambda u: (u**2 / width**2 - 1) / width**2 * derivatives[0](u),
    )
    pitch = cells_in / cells_out
    found = derivative_matrices(sigma, cells_in, cells_out, pitch=pitch) @ torch.from_numpy(line)
    for (order, derivative), i in itertools.product(enumerate(derivatives), range(cells_out)):
        center = (i + 0.5) * cells_in / cells_out
        expected = 0.0
        for cell in range(math.floor(center - 9 * sigma), math.ceil(center + 9 * sigma)):
            mirrored = cell % (2 * cells_in)
            value = line[min(mirrored, 2 * cells_in - 1 - mirrored)]
            expected += value * quad(lambda t, c=center, d=derivative: d(c - t), cell, cell + 1)[0]
        assert found[order, i].item() == pytest.approx(sigma**order * expected, abs=1e-9)


@pytest.mark.parametrize(("sigma", "bound"), [(SIGMA_LIMIT, 1e-2), (1.0, 1e-6), (2.0, 1e-12)])
def test_matrices_have_the_moments_of_gaussian_derivatives(sigma: float, bound: float) -> None:
    matrices = derivative_matrices(sigma, 81, 81)[:, 40]
    x = torch.arange(81, dtype=torch.float64) - 40
    assert matrices.sum(1).tolist() == pytest.approx([1, 0, 0], abs=1e-12)
    assert (matrices[0] * x**2).sum() == pytest.approx(sigma**2, rel=bound)
    assert (matrices[1] * x).sum() == pytest.approx(sigma, rel=bound)
    assert (matrices[2] * x**2 / 2).sum() == pytest.approx(sigma**2, rel=bound)


@pytest.mark.parametrize(("cells_in", "cells_out"), [(30, 8), (29, 7), (31, 8)])
def test_points_are_a_pitch_apart_about_the_middle(cells_in: int, cells_out: int) -> None:
    """Of a line that rises by 1 a cell the smoothed values are the places of the points."""
    smoothed = derivative_matrices(0.7, cells_in, cells_out, pitch=4.0)[0]
    places = smoothed @ (torch.arange(cells_in, dtype=torch.float64) + 0.5)
    inner = places[1:-1]
    assert inner.diff().tolist() == pytest.approx([4.0] * (cells_out - 3), abs=1e-3)
    assert inner.mean().item() == pytest.approx(cells_in / 2, abs=1e-3)


def test_below_the_limit_it_would_be_another_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """What docs/gaussderresnet.md says of 0.5 cells."""
    monkeypatch.setattr("dogmed.models.sampling.SIGMA_LIMIT", 0.5)
    second = derivative_matrices(0.5, 81, 81)[2, 40]
    x = torch.arange(81, dtype=torch.float64) - 40
    assert ((second * x**2 / 2).sum() / 0.25).item() == pytest.approx(1.42, abs=0.005)


def test_smoothing_twice_is_smoothing_once() -> None:
    first, second, both = (derivative_matrices(s, 40, 40)[0] for s in (3.0, 4.0, 5.0))
    torch.testing.assert_close(second @ first, both, rtol=0, atol=1e-6)


@pytest.mark.parametrize("values", [(0.69, 4, 4), (float("nan"), 4, 4), (1.0, 0, 4), (1.0, 4, 0)])
def test_what_cannot_be_sampled_is_refused(values: tuple[float, int, int]) -> None:
    with pytest.raises(ValueError, match=f"sigma must be at least {SIGMA_LIMIT}"):
        derivative_matrices(*values)

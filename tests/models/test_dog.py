"""DoGConv2d against numerical quadrature, and the properties its kernels promise."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import dblquad
from scipy.special import erf
from torch import Tensor

import dogmed.models.sampling as sampling
from dogmed.models.dog import DoGConv2d
from dogmed.models.sampling import cell_edges, gaussian_integrals

# the functions as the thesis prints them, (3.4) to (3.7), and where a layer's logits select them
FUNCTIONS: dict[str, tuple[int, int, Callable]] = {
    "n": (0, 0, lambda x, y, s: normal(x, y, s)),
    "dx": (1, 0, lambda x, y, s: -x / s**2 * normal(x, y, s)),
    "dy": (1, 1, lambda x, y, s: -y / s**2 * normal(x, y, s)),
    "dxx": (2, 0, lambda x, y, s: (x**2 / s**4 - 1 / s**2) * normal(x, y, s)),
    "dyy": (2, 1, lambda x, y, s: (y**2 / s**4 - 1 / s**2) * normal(x, y, s)),
    "dxy": (2, 2, lambda x, y, s: x * y / s**4 * normal(x, y, s)),
}


def normal(x, y, s):
    return np.exp(-(x**2 + y**2) / (2 * s**2)) / (2 * np.pi * s**2)


def edges_of(size: int, extent: float = 2.0) -> list[float]:
    return [extent * (2 * i - size) / size for i in range(size + 1)]


def nodes(a: float, b: float, s: float) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on [a, b], refined around 0 at the scale of s."""
    cuts = [a, *(s * t for t in (-40, -20, -10, -5, -2, 0, 2, 5, 10, 20, 40) if a < s * t < b), b]
    t, w = np.polynomial.legendre.leggauss(24)
    pieces = list(itertools.pairwise(cuts))
    x = np.concatenate([(q - p) / 2 * t + (p + q) / 2 for p, q in pieces])
    return x, np.concatenate([(q - p) / 2 * w for p, q in pieces])


def quadrature(f: Callable, s: float, size: int, extent: float = 2.0) -> np.ndarray:
    """Integrate f(x, y, s) over each cell, by tensor-product quadrature: (K, K), rows along y."""
    e = edges_of(size, extent)
    rules = [nodes(a, b, s) for a, b in itertools.pairwise(e)]
    return np.array(
        [[wy @ f(x[None, :], y[:, None], s) @ wx for x, wx in rules] for y, wy in rules]
    )


def pure(name: str, s1: float, s2: float, size: int, dtype=torch.float64) -> DoGConv2d:
    """A one-channel layer whose kernel is the plain DoG of one function."""
    derivative, direction, _ = FUNCTIONS[name]
    layer = DoGConv2d(1, size, margin=20.0).to(dtype)
    with torch.no_grad():
        for logits in (layer.mix, layer.mix_d1, layer.mix_d2):
            logits.zero_()
        layer.mix[0, derivative] = 20
        (layer.mix, layer.mix_d1, layer.mix_d2)[derivative][0, direction] = 20
        layer.sigma.copy_(torch.tensor([[s1, s2]], dtype=dtype))
    return layer


def expect_quadrature(name: str, s1: float, s2: float, size: int) -> None:
    f = FUNCTIONS[name][2]
    expected = quadrature(f, abs(s1), size) - quadrature(f, abs(s2), size)
    got = pure(name, s1, s2, size).kernel()[0, 0].detach().numpy()
    mass = sum(quadrature(lambda x, y, s: np.abs(f(x, y, s)), abs(s), size) for s in (s1, s2))
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-13 * mass.max())


@pytest.mark.parametrize("size", [1, 2, 5, 7, 8])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_kernel_is_the_integral_over_its_cells(name, size):
    rng = np.random.default_rng(size)
    for s1, s2 in rng.uniform(-1.1, 1.1, (6, 2)):
        expect_quadrature(name, s1, s2, size)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("s1", "s2"), [(1e-2, 0.5), (-1e-3, 0.3), (1e-5, 1e-2), (40.0, 3.0), (1e3, 0.7)]
)
@pytest.mark.parametrize("size", [7, 8])
def test_kernel_is_the_integral_at_extreme_widths(name, s1, s2, size):
    expect_quadrature(name, s1, s2, size)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_kernel_agrees_with_adaptive_quadrature(name):
    f = FUNCTIONS[name][2]
    for size, s in ((3, 0.9), (4, 0.45)):
        e = edges_of(size)
        got = pure(name, s, 1e9, size).kernel()[0, 0].detach().numpy()
        for i, j in itertools.product(range(size), repeat=2):
            cell = (e[j], e[j + 1], e[i], e[i + 1])  # dblquad: outer limits first
            expected, _ = dblquad(lambda y, x: f(x, y, s), *cell, epsabs=1e-12, epsrel=1e-12)  # noqa: B023
            assert got[i, j] == pytest.approx(expected, abs=1e-11)


def test_zero_width_is_the_limit():
    centre = np.zeros((7, 7))
    centre[3, 3] = 1
    between = np.zeros((8, 8))
    between[3:5, 3:5] = 0.25
    for name, size in itertools.product(FUNCTIONS, (7, 8)):
        if size == 8 and name in ("dx", "dy", "dxy"):
            continue  # an edge lies on 0 and there is no limit
        limit = {7: centre, 8: between}[size] if name == "n" else np.zeros((size, size))
        wide = quadrature(FUNCTIONS[name][2], 0.8, size)
        got = pure(name, 0.0, 0.8, size).kernel()[0, 0].detach().numpy()
        np.testing.assert_allclose(got, limit - wide, atol=1e-13)


def test_mixture_is_that_of_the_thesis():
    """(3.18) to (3.21) written out, with quadrature for every DoG."""
    torch.manual_seed(0)
    layer = DoGConv2d(3, 5, init="random", bias="kernel").double()
    with torch.no_grad():
        layer.sigma.uniform_(0.2, 1.1)
        layer.log_scale.normal_()
    got = layer.kernel()[:, 0].detach().numpy()
    p, p1, p2 = (
        torch.softmax(logits.detach() / 0.01, dim=1).numpy()
        for logits in (layer.mix, layer.mix_d1, layer.mix_d2)
    )
    for c in range(3):
        s1, s2 = layer.sigma[c].tolist()
        d = {n: quadrature(f, s1, 5) - quadrature(f, s2, 5) for n, (_, _, f) in FUNCTIONS.items()}
        first = p1[c, 0] * d["dx"] + p1[c, 1] * d["dx"].T
        second = p2[c, 0] * d["dxx"] + p2[c, 1] * d["dxx"].T + p2[c, 2] * d["dxy"]
        mixed = p[c, 0] * d["n"] + p[c, 1] * first + p[c, 2] * second
        expected = mixed * np.exp(layer.log_scale[c].item()) + layer.bias[c].item()
        np.testing.assert_allclose(got[c], expected, rtol=1e-9, atol=1e-12)


def test_printed_integrals_of_the_thesis():
    """(3.13) and (3.14) hold as printed; (3.15) and (3.16) do not, and what we compute does."""
    s, e = 0.6, edges_of(7)
    a, c = np.array(e[:-1])[None, :], np.array(e[1:])[None, :]  # x limits, along columns
    ay, by = a.T, c.T
    gauss = lambda t: np.exp(-(t**2) / (2 * s**2))  # noqa: E731
    erfs = lambda low, high: erf(high / (np.sqrt(2) * s)) - erf(low / (np.sqrt(2) * s))  # noqa: E731
    lead = np.sqrt(2 * np.pi) / (4 * np.pi)
    p13 = erfs(ay, by) * erfs(a, c) / 4
    p14 = lead / s * (gauss(c) - gauss(a)) * erfs(ay, by)
    along_x = a / 2 * gauss(a) - c / 2 * gauss(c) + erfs(a, c)
    p15 = lead / s**5 * along_x * erfs(ay, by) - p13 / s**2
    p16 = 1 / (2 * np.pi * s**4) * (gauss(ay) - gauss(by)) * (gauss(a) - gauss(c))
    true = {name: quadrature(f, s, 7) for name, (_, _, f) in FUNCTIONS.items()}
    np.testing.assert_allclose(p13, true["n"], atol=1e-13)
    np.testing.assert_allclose(p14, true["dx"], atol=1e-13)
    assert np.abs(p15 - true["dxx"]).max() > 0.1
    assert np.abs(p16 / (4 / 7) ** 2 - true["dxy"]).max() > 0.1  # 1/A is the cell's area
    np.testing.assert_allclose(p16 * s**2, true["dxy"], atol=1e-13)
    np.testing.assert_allclose(true["dy"], true["dx"].T, atol=1e-13)  # (3.20)'s second function


@pytest.mark.parametrize("order", ["base", "d1", "d2"])
@pytest.mark.parametrize("bias", ["output", "kernel"])
@pytest.mark.parametrize("size", [4, 5])
def test_gradcheck(order, bias, size):
    torch.manual_seed(1)
    layer = DoGConv2d(3, size, stride=2, order=order, init="random", bias=bias).double()
    with torch.no_grad():
        layer.sigma.copy_(torch.tensor([[0.5, -0.9], [0.3, 1.1], [-0.7, 0.2]]))
    names, values = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64, requires_grad=True)

    def output(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(output, (x, *values))


def test_resizing_keeps_the_mass():
    layer = DoGConv2d(40).double()
    blocks = layer.kernel(21).reshape(40, 7, 3, 7, 3).sum((2, 4))
    torch.testing.assert_close(blocks, layer.kernel()[:, 0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", [9, 11])
def test_growing_extent_adds_rings_round_the_same_core(size):
    torch.manual_seed(0)
    small, ring = DoGConv2d(40).double(), (size - 7) // 2
    large = small.kernel(size, extent=2 * size / 7)[..., ring:-ring, ring:-ring]
    torch.testing.assert_close(large, small.kernel(), rtol=1e-11, atol=1e-13)


WIDTHS = [0.0, -0.0, 5e-324, 1e-45, -1e-40, 1e-30, -1e-12, 1e-7, 1e-6, 1e-4, 1e-3, 1e-2]
WIDTHS += [0.1, -1.0, 10.0, 1e6, 1e30]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 15, 16])
@pytest.mark.parametrize("order", ["base", "d1", "d2"])
def test_every_width_gives_finite_kernels_and_gradients(order, size, dtype):
    torch.manual_seed(0)
    layer = DoGConv2d(len(WIDTHS), size, order=order, init="random").to(dtype)
    for partner in (0.0, 0.9):
        with torch.no_grad():
            layer.sigma[:, 0] = torch.tensor(WIDTHS, dtype=torch.float64).to(dtype)
            layer.sigma[:, 1] = partner
        layer.zero_grad()
        kernel = layer.kernel()
        assert kernel.isfinite().all()
        (kernel * torch.randn_like(kernel)).sum().backward()
        for name, parameter in layer.named_parameters():
            if name != "bias":
                assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floor_changes_nothing_without_an_edge_on_zero(dtype):
    tiny = torch.tensor([0.0, 5e-324, 1e-40, -1e-20, 1e-8, sampling.SIGMA_FLOOR, 1e-4], dtype=dtype)
    edges = cell_edges(31, 2.0, tiny)
    got = gaussian_integrals(tiny, edges)
    limit = torch.zeros_like(got)
    limit[:, 0, 15] = 1
    assert torch.equal(got, limit)


def test_floor_leaves_ordinary_widths_alone(monkeypatch):
    sigma = torch.logspace(-6, 3, 200, dtype=torch.float64).clamp(min=1e-6)
    for size in (7, 8):
        edges = cell_edges(size, 2.0, sigma)
        with_floor = gaussian_integrals(sigma, edges)
        monkeypatch.setattr(sampling, "SIGMA_FLOOR", 0.0)
        assert torch.equal(gaussian_integrals(sigma, edges), with_floor)
        monkeypatch.undo()


def test_floor_is_the_smallest_that_optimizers_can_square():
    def slope(width: float) -> float:
        layer = pure("dxy", width, 1.0, 8)
        layer.kernel()[0, 0, 4, 4].backward()
        return layer.sigma.grad[0, 0].abs().item()

    largest, just_above = torch.finfo(torch.float32).max, 1.0001 * sampling.SIGMA_FLOOR
    assert 1e33 < slope(just_above) ** 2 < largest
    assert (slope(just_above) * 1e3) ** 2 > largest  # ten times narrower: 1/sigma^3
    assert slope(0.9999 * sampling.SIGMA_FLOOR) == 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_is_accurate(name):
    for s1, s2 in ((0.02, 0.5), (0.1, 0.9), (0.8, 1.1), (0.3, 5.0)):
        for size in (7, 15):
            exact = pure(name, s1, s2, size).kernel()
            single = pure(name, s1, s2, size, torch.float32).kernel().double()
            # the widths themselves are rounded, and the narrow one enters as 1/sigma^2
            torch.testing.assert_close(single, exact, rtol=0, atol=2e-6 * exact.abs().max().item())


def test_sampling_ignores_autocast_and_half_precision_parameters():
    torch.manual_seed(0)
    layer = DoGConv2d(40)
    expected, x = layer.kernel(), torch.randn(1, 40, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.kernel(), expected)
        assert layer(x).dtype == torch.bfloat16
    half = DoGConv2d(40).bfloat16()
    rounded = DoGConv2d(40)
    rounded.load_state_dict(half.state_dict())
    assert torch.equal(half.kernel(), rounded.kernel().bfloat16())
    assert half(x.bfloat16()).dtype == torch.bfloat16


def test_x_runs_along_columns():
    ramp = torch.arange(15.0, dtype=torch.float64).expand(1, 1, 15, 15)
    middle = (0, 0, 7, 7)
    assert pure("dx", 0.4, 0.8, 7)(ramp)[middle].abs() > 1e-3
    assert pure("dy", 0.4, 0.8, 7)(ramp)[middle].abs() < 1e-12


def test_order_of_integrals_is_checked():
    sigma = torch.ones(1)
    with pytest.raises(ValueError, match="order must be 0, 1 or 2, got 3"):
        gaussian_integrals(sigma, cell_edges(7, 2.0, sigma), order=3)

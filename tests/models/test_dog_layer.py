"""DoGConv2d as a layer: its convolution, initialisation, gradients and options."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dogmed.errors import ConfigError
from dogmed.models.dog import DoGConv2d, pattern_counts


@pytest.mark.parametrize(("size", "stride"), [(7, 1), (7, 4), (8, 2), (3, 3)])
def test_forward_is_a_depthwise_convolution(size, stride):
    torch.manual_seed(0)
    layer, x = DoGConv2d(6, size, stride=stride, init="random"), torch.randn(2, 6, 17, 12)
    weight, bias = layer.kernel(), layer.bias
    expected = F.conv2d(x, weight, bias, stride=stride, padding=size // 2, groups=6)
    assert torch.equal(layer(x), expected)
    inside = DoGConv2d(6, size, stride=stride, bias="kernel")
    inside.load_state_dict(layer.state_dict())
    assert torch.equal(inside.kernel(), weight + bias[:, None, None, None])
    expected = F.conv2d(x, inside.kernel(), None, stride=stride, padding=size // 2, groups=6)
    assert torch.equal(inside(x), expected)


SHARES = dict.fromkeys(("on_center", "off_center", "on_cross", "off_cross", "dx", "dy"), 1 / 8)
SHARES |= {"dxx": 0.1, "dyy": 0.1, "dxy": 0.05}


@pytest.mark.parametrize("channels", [1, 3, 8, 10, 40, 48, 96, 320, 352])
@pytest.mark.parametrize("order", ["base", "d1", "d2"])
def test_pattern_counts(channels, order):
    kept = {"base": 4, "d1": 6, "d2": 9}[order]
    shares = dict(list(SHARES.items())[:kept])
    counts = pattern_counts(channels, order)
    assert sum(counts.values()) == channels and list(counts) == list(shares)
    for name, share in shares.items():
        exact = channels * share / sum(shares.values())
        assert abs(counts[name] - exact) < 1
        if order == "d2" and channels % 40 == 0:
            assert counts[name] == round(exact)


def classify(layer: DoGConv2d, c: int) -> str:
    """Name the pattern of one channel from its parameters alone."""
    s1, s2 = layer.sigma[c].abs().tolist()
    derivative = 0 if layer.mix is None else int(layer.mix[c].argmax())
    if derivative == 0:
        centre = min(s1, s2) >= 0.7 and not (max(s1, s2) > 1 and min(s1, s2) < 0.8)
        return ("on_" if s1 < s2 else "off_") + ("center" if centre else "cross")
    limit = {1: 1.0, 2: 0.5}[derivative]
    assert max(s1, s2) <= limit
    logits = {1: layer.mix_d1, 2: layer.mix_d2}[derivative]
    return ({1: ("dx", "dy"), 2: ("dxx", "dyy", "dxy")}[derivative])[int(logits[c].argmax())]


@pytest.mark.parametrize("order", ["base", "d1", "d2"])
def test_initial_patterns(order):
    torch.manual_seed(0)
    layer = DoGConv2d(400, order=order)
    counts = pattern_counts(400, order)
    found = [classify(layer, c) for c in range(400)]
    for name in ("dx", "dy", "dxx", "dyy", "dxy"):
        assert found.count(name) == counts.get(name, 0)
    for side in ("on_", "off_"):  # center and cross overlap in [0.7, 0.8] x [1, 1.1]
        expected = counts[side + "center"] + counts[side + "cross"]
        assert found.count(side + "center") + found.count(side + "cross") == expected
    base = [c for c in range(400) if found[c].startswith(("on_", "off_"))]
    widths = layer.sigma[base].abs().sort(dim=1).values
    center = (widths >= 0.7).all(1) & (widths <= 1.1).all(1)
    cross = (widths[:, 0] <= 0.8) & (widths[:, 1] >= 1) & (widths[:, 1] <= 1.1)
    assert (center | cross).all()
    assert cross.sum() >= counts["on_cross"] + counts["off_cross"]
    assert center.sum() >= counts["on_center"] + counts["off_center"]
    on_kernels = layer.kernel()[[c for c in base if found[c].startswith("on_")], 0, 3, 3]
    assert (on_kernels > 0).all()
    assert not layer.log_scale.any() and not layer.bias.any()


def test_channels_are_shuffled_and_reproducible():
    torch.manual_seed(3)
    first, second = DoGConv2d(40), DoGConv2d(40)
    assert not torch.equal(first.mix, second.mix)
    torch.manual_seed(3)
    assert torch.equal(DoGConv2d(40).sigma, first.sigma)


def test_random_initialisation():
    torch.manual_seed(0)
    for name, parameter in DoGConv2d(4000, init="random").named_parameters():
        assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
        assert abs(parameter.mean().item()) < 0.002, name


@pytest.mark.parametrize(("margin", "rest"), [(0.02, 0.107), (0.05, 6.6e-3), (0.1, 4.5e-5)])
def test_margin_sets_the_weight_of_the_other_functions(margin, rest):
    weights = torch.softmax(DoGConv2d(40, margin=margin).double().mix / 0.01, dim=1)
    lowest = weights.sort(dim=1).values[:, :2]
    torch.testing.assert_close(lowest, torch.full_like(lowest, rest), rtol=0.02, atol=0)


def test_large_margin_freezes_the_mixture():
    layer = DoGConv2d(40, margin=1.0)
    before = layer.mix.clone()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=0)
    layer(torch.randn(2, 40, 16, 16)).square().mean().backward()
    optimizer.step()
    torch.testing.assert_close(layer.mix, before, rtol=0, atol=1e-30)
    assert layer.sigma.grad.any()


@pytest.mark.parametrize("order", ["base", "d1", "d2"])
@pytest.mark.parametrize("init", ["patterns", "random"])
@pytest.mark.parametrize("bias", ["output", "kernel"])
def test_every_parameter_gets_a_gradient(order, init, bias):
    torch.manual_seed(0)
    layer = DoGConv2d(40, order=order, init=init, bias=bias)
    layer(torch.randn(2, 40, 16, 16)).square().mean().backward()
    expected = {"sigma", "log_scale", "bias"}
    expected |= {"base": set(), "d1": {"mix", "mix_d1"}, "d2": {"mix", "mix_d1", "mix_d2"}}[order]
    assert {name for name, _ in layer.named_parameters()} == expected
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_shapes_of_the_parameters():
    shapes = {name: tuple(p.shape) for name, p in DoGConv2d(5).named_parameters()}
    assert shapes == {
        "sigma": (5, 2),
        "mix": (5, 3),
        "mix_d1": (5, 2),
        "mix_d2": (5, 3),
        "log_scale": (5,),
        "bias": (5,),
    }
    assert DoGConv2d(5).kernel(9, 3.0).shape == (5, 1, 9, 9)
    with torch.device("meta"):
        assert DoGConv2d(5).kernel().is_meta


def test_attributes_resize_a_trained_layer():
    layer, x = DoGConv2d(4), torch.randn(1, 4, 30, 30)
    expected = F.conv2d(x, layer.kernel(15), layer.bias, stride=8, padding=7, groups=4)
    layer.kernel_size, layer.stride = 15, 8
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "d3"}, "order must be base or d1 or d2, got 'd3' (did you mean"),
        ({"init": "pattern"}, "did you mean 'patterns'?"),
        ({"bias": "none"}, "bias must be output or kernel, got 'none'"),
        ({"kernel_size": 0}, "kernel_size must be at least 1, got 0"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"extent": 0.0}, "extent must be positive"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError) as error:
        DoGConv2d(4, **options)
    assert message in str(error.value) and "\n" not in str(error.value)

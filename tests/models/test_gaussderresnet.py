"""GaussDerResNets against ordinary convolutions and the properties they are built for."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dogmed.errors import ConfigError
from dogmed.models import GaussDerResNet
from dogmed.models.gaussder import KEPT, GaussianDerivative2d
from dogmed.models.sampling import derivative_matrices

NAMES = [name for name in timm.list_models("gaussderresnet_*") if not name.endswith("_test")]


def network(**options: Any) -> GaussDerResNet:
    """A small network with statistics and weights of its own, in eval mode and double precision."""
    torch.manual_seed(1)
    net = GaussDerResNet(**{"num_classes": 3, "dims": (6, 8), "stride": 1, **options}).double()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.1, 0.1)
    torch.nn.init.normal_(net.fc.weight)
    return net.eval()


def scene(side: int, waves: int = 9) -> Tensor:
    """The same eight scenes at any size: cosines averaged over the pixels, (8, 3, side, side).

    Cosines of whole half periods go on as their mirror image outside, as the layers do.
    """
    k = torch.arange(waves, dtype=torch.float64)
    edges = torch.arange(side + 1, dtype=torch.float64) / side
    waves_at = torch.where(
        k[:, None] > 0,
        (math.pi * k[:, None] * edges).sin() / (math.pi * k.clamp(min=1))[:, None],
        edges,
    ).diff(dim=1)  # (waves, side)
    amplitudes = torch.randn(
        8, 3, waves, waves, generator=torch.Generator().manual_seed(0)
    ).double()
    return torch.einsum("bcij,iy,jx->bcyx", amplitudes, waves_at, waves_at) * side**2


@pytest.mark.parametrize("cells", [None, (5, 3), (1, 1)])
@pytest.mark.parametrize("zero_order", [False, True])
def test_separable_layers_are_layers_of_their_products(
    zero_order: bool, cells: tuple[int, int] | None
) -> None:
    """A depthwise-separable layer's weights, multiplied out, make the same layer in the full form."""
    apart = GaussianDerivative2d(3, 4, (0.8, 1.7), zero_order=zero_order, separable=True).double()
    full = GaussianDerivative2d(3, 4, (0.8, 1.7), zero_order=zero_order).double()
    assert apart.pointwise is not None
    full.weight.data = torch.einsum("oc,tc->toc", apart.pointwise.weight, apart.weight)
    x = torch.randn(2, 3, 9, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(apart(x, cells), full(x, cells))


def test_layers_are_convolutions() -> None:
    """In the middle of an image a layer is conv2d with the sampled kernels of its terms."""
    layer = GaussianDerivative2d(2, 3, (1.1,), zero_order=True).double()
    rows = derivative_matrices(1.1, 17, 17)[:, 8]  # integrals over the 17 cells round the eighth
    kernels = torch.stack([torch.outer(rows[p], rows[q]) for p, q in layer.terms])
    weight = torch.einsum("toc,tyx->ocyx", layer.weight, kernels)
    x = torch.randn(4, 2, 40, 40, dtype=torch.float64)
    x[:, :, :10], x[:, :, -10:], x[..., :10], x[..., -10:] = 0, 0, 0, 0
    found = layer(x.permute(1, 2, 0, 3)[None]).squeeze(0).permute(2, 0, 1, 3)
    expected = F.conv2d(x, weight, padding=8)
    torch.testing.assert_close(
        found[..., 9:-9, 9:-9], expected[..., 9:-9, 9:-9], rtol=1e-6, atol=1e-6
    )


def rms(difference: Tensor, values: Tensor) -> float:
    """Root mean square of a difference as a share of the values' spread over images."""
    return (difference.square().mean().sqrt() / values.std(-2).mean()).item()


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("selection", ["center", "avg", "max"])
def test_enlarging_the_image_shifts_the_scale_channels(selection: str, separable: bool) -> None:
    """Covariance up to sampling: the error falls as the scales, in cells, grow.

    The largest of the points that there are, under "max", comes near the largest of all more slowly.
    """
    errors = {}
    for sigma in (0.75, 3.0):
        options: Any = {"selection": selection, "separable": separable}
        net = network(sigma=sigma, scale_channels=3, channel_ratio=2, **options)
        side = round(16 * sigma / 0.75)
        with torch.no_grad():
            small = net.forward_channels(net.forward_features(scene(side)))
            large = net.forward_channels(net.forward_features(scene(2 * side)))
        errors[sigma] = rms(large[1:] - small[:-1], small)
        assert errors[sigma] < rms(large - small, small) / 3  # without the shift
    assert errors[3.0] < errors[0.75] / (2 if selection == "max" else 8)
    assert errors[3.0] < (0.15 if selection == "max" else 0.02)


@pytest.mark.parametrize("pooling", ["max", "avg", "logsumexp"])
def test_pooled_scores_are_the_same_at_both_scales(pooling: str) -> None:
    """Invariance over the channels that both images have: the ends of the set are left out."""
    errors = {}
    for sigma in (0.75, 3.0):
        net = network(sigma=sigma, scale_channels=4, channel_ratio=2, pooling=pooling)
        side = round(16 * sigma / 0.75)
        with torch.no_grad():
            small, large = net.forward_features(scene(side)), net.forward_features(scene(2 * side))
            both = net.forward_head(small[:, :-1]), net.forward_head(large[:, 1:])
        errors[sigma] = rms(both[1] - both[0], both[0])
    assert errors[3.0] < min(errors[0.75] / 8, 0.01), errors


def test_a_factor_between_two_channels_is_not_covered() -> None:
    net = network(sigma=1.5, scale_channels=3, channel_ratio=2)
    with torch.no_grad():
        small = net.forward_channels(net.forward_features(scene(32)))
        between = net.forward_channels(net.forward_features(scene(45)))
    assert (between[1:] - small[:-1]).abs().max() / small.std() > 0.02


@pytest.mark.parametrize("pooling", ["max", "avg", "logsumexp"])
def test_pooling_is_over_the_scores_of_the_channels(pooling: str) -> None:
    net = network(scale_channels=3, pooling=pooling)
    with torch.no_grad():
        features = net.forward_features(scene(16))
        scores = net.forward_channels(features).numpy()
        expected = {
            "max": scores.max(0),
            "avg": scores.mean(0),
            "logsumexp": np.log(np.exp(scores).sum(0)),
        }[pooling]
        np.testing.assert_allclose(net.forward_head(features).numpy(), expected)


def test_the_centre_is_where_the_object_is() -> None:
    """The image's outermost pixels change the average, and the centre only beyond its reach."""
    image = torch.zeros(1, 3, 65, 65, dtype=torch.float64)
    changed = image.clone()
    changed[..., 0, 0] = 1
    for selection, moved in (("center", False), ("avg", True), ("max", True)):
        net = network(scale_channels=1, dims=(4,), selection=selection)
        with torch.no_grad():
            same = torch.allclose(net(image), net(changed), rtol=0, atol=1e-9)
        assert same is not moved


@pytest.mark.parametrize("options", [{}, {"separable": True}, {"zero_order": True}])
@pytest.mark.parametrize("selection", ["center", "avg", "max"])
def test_every_parameter_gets_a_gradient(options: dict[str, bool], selection: str) -> None:
    torch.manual_seed(0)
    net = GaussDerResNet(dims=(4, 6), num_classes=2, selection=selection, pooling="avg", **options)
    net(torch.randn(8, 3, 32, 32)).logsumexp(1).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("name", NAMES)
def test_variants_are_timm_models(name: str) -> None:
    net = timm.create_model(name, num_classes=5, in_chans=1, stride=8).eval()
    net.to(memory_format=torch.channels_last)  # as training does with every model
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        out = net(x)
        assert out.shape == (2, 5)
        torch.testing.assert_close(net.forward_head(net.forward_features(x)), out)
        net.reset_classifier(0)
        assert net(x).shape == (2, net.num_features)
    assert ("single" in name) == (len(net.channel_scales) == 1)
    assert ("dw" in name) == net.last.separable


def test_images_are_independent_of_their_batch_and_may_be_oblong() -> None:
    net = network()
    x = torch.randn(3, 3, 20, 28, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net(x)[1:2], net(x[1:2]))
        turned = net(x.transpose(2, 3))
    assert turned.shape == (3, 3)


def test_inference_leaves_nothing_that_training_cannot_use() -> None:
    net = network().train()
    with torch.inference_mode():
        net(scene(16))
    net(scene(16)).sum().backward()


def test_kept_matrices_are_no_state_and_follow_type_and_copy() -> None:
    net = network().float()
    x = scene(16).float()
    with torch.no_grad():
        before = net(x)
        assert not any("kept" in key for key in net.state_dict())
        torch.testing.assert_close(copy.deepcopy(net)(x), before)
        torch.testing.assert_close(net.double()(x.double()).float(), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale_channels": 0}, ["scale_channels must be at least 1", "0"]),
        ({"sigma": 0.3}, ["sigma must be at least 0.7", "0.3"]),
        ({"sigma": float("nan")}, ["sigma must be at least 0.7", "nan"]),
        ({"channel_ratio": 1.0}, ["channel_ratio must be above 1", "1.0"]),
        ({"growth": 8.0, "scale_channels": 5}, ["must be at most 128 cells", "growth"]),
        ({"sigma": float("inf")}, ["must be at most 128 cells, got inf"]),
        ({"features_only": True}, ["no features_only"]),
        ({"growth": 0.9}, ["growth must be at least 1"]),
        ({"pooling": "maxx"}, ["pooling must be max or avg or logsumexp", "did you mean 'max'"]),
        ({"selection": "middle"}, ["selection must be center or max or avg"]),
        ({"dims": ()}, ["dims and stride"]),
    ],
)
def test_values_out_of_range_are_refused_with_the_limit(
    options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        timm.create_model("gaussderresnet_test", **options)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_few_sizes_are_kept_and_nothing_of_a_tracer() -> None:
    net = network(scale_channels=2)
    with torch.no_grad():
        for side in range(8, 8 + 2 * KEPT):
            net(torch.zeros(1, 3, side, side, dtype=torch.float64))
        assert all(len(m._kept) <= KEPT for m in net.modules() if hasattr(m, "_kept"))
        assert all(not m._kept for m in copy.deepcopy(net).modules() if hasattr(m, "_kept"))
        with FakeTensorMode(allow_non_fake_inputs=True):
            net(torch.zeros(1, 3, 50, 50, dtype=torch.float64))
        assert type(net(torch.zeros(1, 3, 50, 50, dtype=torch.float64))) is torch.Tensor


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    net = network().train()
    gradients = []
    for enable in (False, True):
        net.set_grad_checkpointing(enable)
        net.zero_grad()
        net(scene(16)).square().sum().backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


def test_turned_images_give_what_turned_weights_give() -> None:
    """Rows and columns are treated alike, of oblong images too: transposing swaps the orders."""
    layer = GaussianDerivative2d(2, 3, (0.8, 1.7), zero_order=True, pitch=2).double()
    turned = copy.deepcopy(layer)
    swapped = [layer.terms.index((q, p)) for p, q in layer.terms]
    turned.weight.data = layer.weight.data[swapped]
    x = torch.randn(2, 2, 9, 4, 14, dtype=torch.float64)
    assert layer(x).shape == (2, 3, 5, 4, 7)
    torch.testing.assert_close(turned(x.transpose(2, 4)).transpose(2, 4), layer(x))


def test_channels_that_see_little_are_counted() -> None:
    """Their scores hardly differ from image to image; those of the others do."""
    net = network(dims=(6, 8, 8, 8, 8, 8), sigma=0.75, scale_channels=5, channel_ratio=2**0.5)
    with torch.no_grad():
        spread = net.forward_channels(net.forward_features(scene(16))).std(1).mean(1)
    blind = net.blind_channels(16)
    assert 0 < blind < 5
    assert spread[-blind:].max() < spread[:-blind].min()


def test_it_compiles_to_the_same_values() -> None:
    net = network(scale_channels=2).float()
    x = scene(16).float()
    compiled = torch.compile(net, backend="aot_eager", dynamic=False, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), net(x), rtol=1e-5, atol=1e-5)

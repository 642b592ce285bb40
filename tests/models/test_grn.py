"""The fast global response normalisation against timm's."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.layers.grn import GlobalResponseNorm
from torch import nn

from dogmed.models.grn import FastGlobalResponseNorm, with_fast_grn


def layers(channels_last: bool) -> tuple[GlobalResponseNorm, FastGlobalResponseNorm]:
    torch.manual_seed(0)
    theirs = GlobalResponseNorm(6, channels_last=channels_last)
    ours = FastGlobalResponseNorm(6, channels_last=channels_last)
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_equals_timm(channels_last, dtype, bound):
    results = []
    for layer in layers(channels_last):
        torch.manual_seed(1)
        x = torch.randn(3, 7, 5, 6, dtype=dtype)
        x[1] = 0  # norms of 0
        x = (x if channels_last else x.permute(0, 3, 1, 2)).requires_grad_()
        y = layer.to(dtype)(x)
        (y * torch.linspace(-1, 2, y.numel(), dtype=dtype).view_as(y)).sum().backward()
        results.append([y, x.grad, layer.weight.grad, layer.bias.grad])
    torch.testing.assert_close(results[1], results[0], rtol=bound, atol=10 * bound)


@pytest.mark.parametrize("channels_last", [True, False])
def test_passes_gradcheck(channels_last):
    _, layer = layers(channels_last)
    shape = (2, 4, 3, 6) if channels_last else (2, 6, 4, 3)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer.double(), (x,))


def test_refuses_a_second_derivative():
    _, layer = layers(True)
    x = torch.randn(2, 3, 3, 6, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_keeps_the_memory_format():
    _, layer = layers(False)
    x = torch.randn(2, 6, 4, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_autocast_gives_timms_types():
    theirs, ours = layers(False)
    x = torch.randn(2, 6, 4, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        expected, got = theirs(x), ours(x)
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)


def test_speeds_up_convnext_v2_without_changing_it():
    torch.manual_seed(0)
    theirs = timm.create_model("convnextv2_atto", num_classes=4, drop_path_rate=0.1)
    for name, parameter in theirs.named_parameters():
        if ".grn." in name:
            nn.init.normal_(parameter, std=0.5)
    ours = with_fast_grn(copy.deepcopy(theirs))
    assert not any(type(m) is GlobalResponseNorm for m in ours.modules())
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    results = []
    for model in (theirs, ours):
        torch.manual_seed(1)
        model.double()(torch.randn(2, 3, 64, 64, dtype=torch.float64)).square().sum().backward()
        results.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)

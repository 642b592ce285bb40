"""Folded networks against the networks they were made of."""

from __future__ import annotations

import io
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from dogmed.models import DoGConv2d, DoGNeXt, reparameterize

OPTIONS: list[dict[str, Any]] = [
    {},
    {"conv_mlp": False},
    {"double_residual": True},
    {"kernel_size": 9},
    {"stem_stride": 8, "stem_kernel_size": 15},
    {"dog_bias": "kernel"},
    {"order": "d1"},
    {"downsample": "conv"},
    {"in_chans": 6},
]


def named(option: dict[str, Any]) -> str:
    return ",".join(f"{k}={v}" for k, v in option.items()) or "default"


def small(seed: int = 0, **options: Any) -> DoGNeXt:
    torch.manual_seed(seed)
    model = timm.create_model("dognext_test", **{"num_classes": 5, **options})
    for p in model.parameters():
        nn.init.normal_(p, 0.1, std=0.3) if p.ndim == 1 else None
    return model.eval()


def images(height: int = 64, width: int = 64, channels: int = 3, **like: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, height, width, generator=generator).to(**like)


@pytest.mark.parametrize("size", [(64, 64), (33, 50)], ids=str)
@pytest.mark.parametrize("option", OPTIONS, ids=named)
def test_outputs_are_equal(option, size):
    model = small(**option).double()
    folded = reparameterize(model)
    x = images(*size, option.get("in_chans", 3), dtype=torch.float64)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(folded.float()(x.float()), model(x).float(), rtol=1e-3, atol=1e-3)
    assert not any(isinstance(m, DoGConv2d) for m in folded.modules())
    assert any(isinstance(m, DoGConv2d) for m in model.modules())


def test_plain_stem_stays():
    model = small()
    model.stem.fused = False
    folded = reparameterize(model)
    assert folded.stem[0].weight.equal(model.stem[0].weight)
    torch.testing.assert_close(folded(images()), model(images()), rtol=1e-4, atol=1e-4)


def test_state_dict_fits_another_folded_network():
    folded, other = reparameterize(small()), reparameterize(small(seed=5))
    assert not torch.equal(folded(images()), other(images()))
    other.load_state_dict(folded.state_dict(), strict=True)
    assert torch.equal(folded(images()), other(images()))


def test_model_is_left_alone():
    model = small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    folded = reparameterize(model)
    with torch.no_grad():
        for p in folded.parameters():
            p.add_(1)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not folded.training and reparameterize(model.train()).training


def test_a_layer_and_a_backbone():
    folded = reparameterize(nn.Sequential(DoGConv2d(4, 5, stride=2)))
    assert isinstance(folded[0], nn.Conv2d)
    backbone = timm.create_model("dognext_test", features_only=True).eval()
    folded = reparameterize(backbone)
    for got, expected in zip(folded(images()), backbone(images()), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_bfloat16():
    model = small()
    expected = model(images())
    got = reparameterize(model.bfloat16())(images().bfloat16())
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=0.1, atol=0.1)


def test_can_be_trained():
    folded = reparameterize(small())
    folded(images()).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in folded.parameters())


def test_is_exported_with_a_free_batch():
    folded = reparameterize(small())
    exported = torch.export.export(
        folded, (images(),), dynamic_shapes=({0: torch.export.Dim.AUTO},)
    )
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    x = torch.cat([images(), -images()])[:3]
    torch.testing.assert_close(loaded(x), folded(x), rtol=1e-4, atol=1e-4)


def test_is_traced():
    folded = reparameterize(small())
    traced = torch.jit.trace(folded, images())
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    x = torch.cat([images(), -images()])[:3]
    torch.testing.assert_close(torch.jit.load(buffer)(x), folded(x), rtol=1e-4, atol=1e-4)

"""DoGNeXt against timm's ConvNeXt V2, and as a timm model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers.grn import GlobalResponseNorm
from timm.models import group_parameters
from timm.models.convnext import ConvNeXt
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import dogmed.models
from dogmed.errors import ConfigError
from dogmed.models import DoGConv2d, DoGNeXt

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = ("test", "atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")
SMALL = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"conv_mlp": False},
    {"order": "base", "downsample": "conv"},
    {"order": "d1", "downsample": "conv"},
    {"order": "d2", "downsample": "conv"},
    {"order": "d1"},
    {"kernel_size": 9},
    {"kernel_size": 11},
    {"kernel_size": 9, "extent": 2.0},
    {"stem_stride": 6, "stem_kernel_size": 11},
    {"double_residual": True},
    {"double_residual": True, "conv_mlp": False},
    {"use_grn": False},
    {"dog_init": "random"},
    {"dog_margin": 0.02},
    {"dog_bias": "kernel"},
]


def small(**options: Any) -> DoGNeXt:
    torch.manual_seed(0)
    return timm.create_model("dognext_test", **{"num_classes": 5, **options})


def images(size: int = 64, channels: int = 3, **like: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, size, size, generator=generator).to(**like)


def named(option: dict[str, Any]) -> str:
    return ",".join(f"{k}={v}" for k, v in option.items()) or "default"


@pytest.mark.parametrize("option", OPTIONS, ids=named)
def test_every_parameter_gets_a_gradient(option):
    model = small(**option)
    F.cross_entropy(model(images()), torch.tensor([1, 3])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("conv_mlp", [True, False])
def test_drop_in_equals_convnext_v2_with_the_sampled_kernels(conv_mlp):
    model = small(downsample="conv", conv_mlp=conv_mlp).double().eval()
    reference = ConvNeXt(
        num_classes=5, ls_init_value=None, use_grn=True, conv_mlp=conv_mlp, **SMALL
    )
    weights = model.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, DoGConv2d):
            for parameter in ("sigma", "mix", "mix_d1", "mix_d2", "log_scale"):
                del weights[f"{name}.{parameter}"]
            weights[f"{name}.weight"] = module.kernel().detach()
    reference.double().eval().load_state_dict(weights, strict=True)
    x = images(dtype=torch.float64)
    torch.testing.assert_close(model(x), reference(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("conv_mlp", [True, False])
@pytest.mark.parametrize("double_residual", [True, False])
def test_forward_written_out(conv_mlp, double_residual):
    """Section 3.2, step by step."""
    options = {"conv_mlp": conv_mlp, "double_residual": double_residual}
    model = small(**options).double().eval()
    for p in model.parameters():  # GRN and the biases start at 0
        nn.init.normal_(p, std=0.1) if p.ndim == 1 else None

    def norm(layer: nn.Module, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, eps=1e-6)
        return x.permute(0, 3, 1, 2)

    def pointwise(layer: nn.Module, x: Tensor) -> Tensor:
        return F.conv2d(x, layer.weight.reshape(*layer.weight.shape[:2], 1, 1), layer.bias)

    def mlp(block: nn.Module, x: Tensor) -> Tensor:
        x = F.gelu(pointwise(block.mlp.fc1, norm(block.norm, x)))
        energy = x.square().sum((2, 3), keepdim=True).sqrt()
        scaled = x * energy / (energy.mean(1, keepdim=True) + 1e-6)
        grn = block.mlp.grn
        x = x + scaled * grn.weight[:, None, None] + grn.bias[:, None, None]
        return pointwise(block.mlp.fc2, x)

    image = images(dtype=torch.float64)
    x = norm(model.stem[1], pointwise(model.stem[0], image))
    for i, stride in enumerate((4, 2, 2, 2)):
        stage = model.stages[i]
        if i:
            x = pointwise(stage.downsample[1], norm(stage.downsample[0], x))
        for j, block in enumerate(stage.blocks):
            dog, s = block.conv_dw, stride if j == 0 else 1
            conv = F.conv2d(x, dog.kernel(), dog.bias, s, padding=3, groups=x.shape[1])
            skip = F.avg_pool2d(x, s)
            if double_residual:
                x = skip + conv
                x = x + mlp(block, x)
            else:
                x = skip + mlp(block, conv)
    x = x.mean((2, 3), keepdim=True)
    expected = model.head.fc(norm(model.head.norm, x).flatten(1))
    torch.testing.assert_close(model(image), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [1, 3, 28, 33, 50, 64, 97, 224])
@pytest.mark.parametrize(
    "option", [{}, {"kernel_size": 11}, {"stem_stride": 6}, {"stem_stride": 8}], ids=named
)
def test_any_size_is_taken(size, option):
    model = small(**option).eval()
    with torch.no_grad():
        features = model.forward_intermediates(images(size), intermediates_only=True)
    for feature, info in zip(features, model.feature_info, strict=True):
        side = math.ceil(size / info["reduction"])
        assert feature.shape == (2, info["num_chs"], side, side)
        assert feature.isfinite().all()


def test_shortcut_averages_the_pixels_there_are():
    x = images(10, channels=8, dtype=torch.float64)
    pooled = small().stages[0].blocks[0].shortcut(x)  # windows of 4, 4 and 2
    for i, j in ((0, 0), (0, 2), (2, 1), (2, 2)):
        window = x[..., 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
        torch.testing.assert_close(pooled[..., i, j], window.mean((-2, -1)))


def test_larger_kernels_are_rings_round_the_same_core():
    plain, rings, resized = small(), small(kernel_size=9), small(kernel_size=9, extent=2.0)
    for a, b, c in zip(plain.modules(), rings.modules(), resized.modules(), strict=True):
        if isinstance(a, DoGConv2d):
            inner = b.kernel()[..., 1:-1, 1:-1]
            torch.testing.assert_close(inner, a.kernel(), rtol=1e-4, atol=1e-5)
            assert torch.equal(c.kernel(), a.kernel(9))


def test_options_reach_every_dogconv():
    model = small(order="d1", kernel_size=11, dog_bias="kernel", dog_init="random", dog_margin=0.2)
    convs = [m for m in model.modules() if isinstance(m, DoGConv2d)]
    assert len(convs) == 5
    assert [c.stride for c in convs] == [4, 2, 2, 1, 2]
    for conv in convs:
        assert (conv.order, conv.kernel_size, conv.bias_in) == ("d1", 11, "kernel")
        assert (conv.init, conv.margin, conv.extent) == ("random", 0.2, 22 / 7)


def test_the_stem_has_a_stride_and_a_kernel_of_its_own_and_the_same_parameters():
    """Section 4.5: the pool follows the stride, the pattern is resized at an unchanged extent."""
    plain, other = small(), small(stem_stride=8, stem_kernel_size=15)
    other.load_state_dict(plain.state_dict(), strict=True)
    convs = [m for m in other.modules() if isinstance(m, DoGConv2d)]
    assert [(c.stride, c.kernel_size) for c in convs] == [(8, 15), (2, 7), (2, 7), (1, 7), (2, 7)]
    assert {c.extent for c in convs} == {2.0}
    assert torch.equal(convs[0].kernel(), plain.stages[0].blocks[0].conv_dw.kernel(15))
    assert [info["reduction"] for info in other.feature_info] == [8, 16, 32, 64]
    shortcut = other.stages[0].blocks[0].shortcut
    assert shortcut.kernel_size == shortcut.stride == 8
    assert small(stem_stride=8, output_stride=64).feature_info[-1]["reduction"] == 64
    rings = small(kernel_size=9, stem_kernel_size=11).stages[0].blocks[0].conv_dw
    assert rings.kernel_size == 11 and rings.extent == pytest.approx(18 / 7)


def test_features_of_a_strided_stem():
    model = small(features_only=True, stem_stride=6, stem_kernel_size=11)
    assert model.feature_info.reduction() == [6, 12, 24, 48]
    assert [f.shape[-1] for f in model(images(50))] == [9, 5, 3, 2]


def test_only_dogconvs_aggregate_space():
    for module in small().modules():
        if isinstance(module, nn.Conv2d):
            assert module.kernel_size == (1, 1) and module.stride == (1, 1)


def test_no_grn_leaves_it_out():
    assert any(isinstance(m, GlobalResponseNorm) for m in small().modules())
    assert not any(isinstance(m, GlobalResponseNorm) for m in small(use_grn=False).modules())


@pytest.mark.parametrize("option", OPTIONS, ids=named)
def test_no_weight_decay_on_dogconvs_norms_biases_and_grn(option):
    model = small(**option)
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.3)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    dog = {id(p) for m in model.modules() if isinstance(m, DoGConv2d) for p in m.parameters()}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        exempt = id(parameter) in dog or parameter.ndim == 1
        assert decay[id(parameter)] == (0 if exempt else 0.3), name
    assert len(model.no_weight_decay()) == len(dog)


def test_layer_decay_groups_cover_every_parameter():
    model = small()
    grouped = group_parameters(model, model.group_matcher(), return_values=False)
    names = [name for group in grouped.values() for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.3, layer_decay=0.8)
    assert len({group["lr_scale"] for group in optimizer.param_groups}) > 3


def test_family_is_registered():
    assert timm.list_models("dognext_*") == sorted(f"dognext_{v}" for v in VARIANTS)
    assert all(timm.is_model(f"dognext_{v}") for v in VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_depths_and_widths_are_those_of_convnext_v2(variant):
    with torch.device("meta"):
        ours = timm.create_model(f"dognext_{variant}")
        theirs = timm.create_model(f"convnextv2_{variant}")
    assert [i["num_chs"] for i in ours.feature_info] == [i["num_chs"] for i in theirs.feature_info]
    assert [i["reduction"] for i in ours.feature_info] == [4, 8, 16, 32]
    assert [len(s.blocks) for s in ours.stages] == [len(s.blocks) for s in theirs.stages]
    dog = ("sigma", "mix", "mix_d1", "mix_d2", "log_scale", "weight")
    shared = {k for k in theirs.state_dict() if not k.endswith("conv_dw.weight")}
    assert shared == {k for k in ours.state_dict() if k.split("conv_dw.")[-1] not in dog}


def test_create_model_as_timm_does():
    model = timm.create_model("dognext_test", in_chans=1, num_classes=7, drop_path_rate=0.1)
    assert model.stem[0].in_channels == 1
    assert model.stages[3].blocks[0].drop_path.drop_prob == pytest.approx(0.1)
    assert model.default_cfg["classifier"] == "head.fc"
    assert model.pretrained_cfg["first_conv"] == "stem.0"
    assert model.get_classifier().out_features == 7
    x = images(channels=1)
    model.eval()
    assert model(x).shape == (2, 7)
    maps = model.forward_features(x)
    assert maps.shape == (2, 32, 2, 2)
    assert torch.equal(model.forward_head(maps), model(x))
    assert model.forward_head(maps, pre_logits=True).shape == (2, 32)
    last, steps = model.forward_intermediates(x, indices=2)
    assert torch.equal(last, maps) and torch.equal(steps[-1], maps) and len(steps) == 2
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert model(x).shape == (2, 32)


def test_atto_creates_as_the_readme_says():
    model = timm.create_model("dognext_atto", in_chans=1, drop_path_rate=0.1, features_only=True)
    assert model.feature_info.channels() == [40, 80, 160, 320]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    features = model(images(50, channels=1))
    assert [f.shape[-1] for f in features] == [13, 7, 4, 2]


def test_features_only_equals_intermediates():
    model = small().eval()
    features = small(features_only=True, out_indices=(1, 3)).eval()
    expected = model.forward_intermediates(images(), indices=[1, 3], intermediates_only=True)
    for got, want in zip(features(images()), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_gradient_checkpointing_changes_nothing():
    grads = []
    for enable in (False, True):
        model = small()
        model.set_grad_checkpointing(enable)
        model(images()).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("double_residual", [False, True])
def test_drop_path_acts_in_training_only(double_residual):
    model = small(drop_path_rate=0.9, double_residual=double_residual)
    x = images()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_bfloat16_autocast_trains():
    model = small()
    full = model(images())
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images())
        loss = F.cross_entropy(output, torch.tensor([1, 3]))
    loss.backward()
    torch.testing.assert_close(output.float(), full, rtol=0.1, atol=0.02)
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_state_dict_round_trip_is_strict():
    model, other = small().eval(), timm.create_model("dognext_test", num_classes=5).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(model(images()), other(images()))


def test_dtype_and_device_are_honoured():
    model = timm.create_model("dognext_test", dtype=torch.float64, device="meta")
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"output_stride": 16}, "output_stride must be 32, got 16"),
        ({"output_stride": 32, "stem_stride": 8}, "output_stride must be 64, got 32"),
        ({"stem_kernel_size": 8}, "stem_kernel_size must be odd, got 8"),
        ({"stem_stride": 0}, "stride must be at least 1, got 0"),
        ({"stem_stride": 8, "downsample": "conv"}, 'that strides: downsample="dog"'),
        ({"kernel_size": 8}, "kernel_size must be odd, got 8"),
        ({"downsample": "convs"}, "got 'convs' (did you mean 'conv'?)"),
        ({"order": "d4"}, "order must be base or d1 or d2, got 'd4'"),
    ],
)
def test_bad_options_are_named(option, message):
    with pytest.raises(ConfigError) as error:
        small(**option)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="kernel_sise"):
        small(kernel_sise=9)


def test_models_package_names_what_it_lacks():
    with pytest.raises(AttributeError, match="no attribute 'resnet'"):
        _ = dogmed.models.resnet

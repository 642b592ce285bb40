"""The fused stem against the plain order of the same modules."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from dogmed.models import DoGNeXt
from dogmed.models.stem import Factored, FusedStem, NormalisedMaps

OPTIONS: list[dict[str, Any]] = [
    {},
    {"conv_mlp": False},
    {"double_residual": True},
    {"kernel_size": 9},
    {"kernel_size": 11, "extent": 2.0},
    {"stem_stride": 6},
    {"stem_stride": 6, "stem_kernel_size": 11},
    {"stem_stride": 8},
    {"stem_stride": 8, "stem_kernel_size": 15},
    {"order": "base"},
    {"dog_bias": "kernel"},
    {"in_chans": 1},
    {"in_chans": 6},
]


def named(option: dict[str, Any]) -> str:
    return ",".join(f"{k}={v}" for k, v in option.items()) or "default"


def small(**options: Any) -> DoGNeXt:
    """A network in which no parameter is at its special initial value."""
    torch.manual_seed(0)
    model = timm.create_model("dognext_test", **{"num_classes": 5, **options})
    model.stem.fused = True
    for p in model.parameters():
        nn.init.normal_(p, 0.1, std=0.3) if p.ndim == 1 else None
    return model


def images(height: int = 64, width: int = 64, channels: int = 3, **like: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, height, width, generator=generator).to(**like)


def plain(model: DoGNeXt) -> DoGNeXt:
    model = copy.deepcopy(model)
    model.stem.fused = False
    return model


def values(model: DoGNeXt, x: Tensor) -> dict[str, Tensor]:
    """Output and the gradient of everything."""
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(2)  # drop path
    output = model(x)
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    (output * weights).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"output": output.detach(), "image": x.grad, **gradients}


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        scale = want.abs().max().item()
        torch.testing.assert_close(
            got[name],
            want,
            rtol=tolerance,
            atol=tolerance * scale,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("size", [(64, 64), (33, 50), (1, 1), (3, 17)], ids=str)
@pytest.mark.parametrize("option", OPTIONS, ids=named)
def test_equals_the_plain_order_in_float64(option, size):
    model = small(drop_path_rate=0.3, **option).double()
    x = images(*size, option.get("in_chans", 3), dtype=torch.float64)
    assert_equal(values(model, x), values(plain(model), x), 1e-12)


def test_equals_the_plain_order_at_initialisation():
    """A zero bias makes the affine map of the stem rank-deficient."""
    torch.manual_seed(0)
    model = timm.create_model("dognext_test", num_classes=5).double()
    assert not model.stem[0].bias.any()
    x = images(dtype=torch.float64)
    assert_equal(values(model, x), values(plain(model), x), 1e-12)


def test_equals_the_plain_order_in_float32():
    model, x = small(), images()
    exact = values(plain(model).double(), x.double())
    errors = [
        max(
            ((v.double() - exact[n]).abs().max() / exact[n].abs().max()).item()
            for n, v in got.items()
        )
        for got in (values(model, x), values(plain(model), x))
    ]
    assert errors[0] < 1e-4 and errors[0] < 4 * errors[1] + 1e-6


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_is_as_near_as_the_plain_order(autocast):
    model, x = small(), images()
    exact = values(plain(model).double(), x.double())
    errors = []
    for candidate in (copy.deepcopy(model), plain(model)):
        candidate, image = (candidate, x) if autocast else (candidate.bfloat16(), x.bfloat16())
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            got = values(candidate, image)
        assert got["output"].dtype == torch.bfloat16
        total = [((v.double() - exact[n]).norm() / exact[n].norm()).item() for n, v in got.items()]
        errors.append(sum(total) / len(total))
    assert errors[0] < 1.5 * errors[1]


def test_dark_pixels_stay_finite():
    """Where the stem's output is constant over the channels, its variance is 0 and r is largest."""
    model = small()
    nn.init.zeros_(model.stem[0].bias)
    x = images()
    x[:, :, ::2] = 0
    assert all(v.isfinite().all() for v in values(model, x).values())


def test_variance_survives_cancellation():
    """The norm of a product, not a quadratic form: close even where colours almost cancel."""
    torch.manual_seed(0)
    stem = FusedStem(*small().stem)
    luminance = torch.randn(8, 1) @ torch.full((1, 3), 1 / 3)
    with torch.no_grad():
        stem[0].weight.copy_((luminance + 1e-4 * torch.randn(8, 3))[..., None, None])
        nn.init.zeros_(stem[0].bias)
    x = torch.tensor([1.5, -0.5, -1.0]).view(1, 3, 1, 1) + 1e-3 * torch.randn(1, 3, 8, 8)
    factored = stem(x)
    got = torch.einsum("cj,bjhw->bchw", factored.matrix, factored.maps)
    stem.fused = False
    torch.testing.assert_close(got.double(), stem.double()(x.double()), rtol=1e-3, atol=1e-3)


def test_maps_pass_gradcheck():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    root = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, root: NormalisedMaps.apply(x, root, 1e-6, torch.float64), (x, root)
    )


def test_output_is_factored_and_small():
    model = small()
    output = model.stem(images())
    assert isinstance(output, Factored)
    assert output.maps.shape == (2, 5, 64, 64) and output.matrix.shape == (8, 5)
    assert model.stages[0].blocks[0].conv_dw(output).shape == (2, 8, 16, 16)


def test_state_dict_is_that_of_the_plain_order():
    names = set(small().state_dict())
    assert {"stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias"} <= names
    assert not any("root" in n or "matrix" in n for n in names)


def test_whoever_watches_the_stem_gets_the_plain_order():
    model, x = small().eval(), images()
    expected = model(x)
    seen: list[Any] = []
    for watched in (model.stem, model.stem[0], model.stem[1]):
        seen.clear()
        handle = watched.register_forward_hook(lambda *args: seen.append(args[-1]))
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
        handle.remove()
        assert len(seen) == 1 and seen[0].shape == (2, 8, 64, 64)
    handle = model.stem.register_full_backward_hook(lambda *args: seen.append(args))
    model(x.requires_grad_()).sum().backward()
    handle.remove()
    assert len(seen) == 2
    assert isinstance(model.stem(x), Factored)


def test_hooks_on_later_modules_keep_the_fused_order():
    """What Grad-CAM does."""
    model = small().eval()
    names = ("stages.0", "stages.0.blocks.0", "stages.0.blocks.0.conv_dw", "stages.3")
    modules = [model.get_submodule(name) for name in names]
    outputs: dict[Any, Tensor] = {}
    gradients: dict[Any, Tensor] = {}
    for module in modules:
        module.register_forward_hook(lambda m, _, output: outputs.update({m: output}))
        module.register_full_backward_hook(lambda m, _, output: gradients.update({m: output[0]}))
    model(images().requires_grad_()).sum().backward()
    for module in modules:
        assert outputs[module].shape == gradients[module].shape
    assert outputs[modules[2]].shape == (2, 8, 16, 16)
    assert isinstance(model.stem(images()), Factored)


def test_a_changed_stem_gets_the_plain_order():
    model, x = small().eval(), images()
    parametrizations.weight_norm(model.stem[0])
    assert isinstance(model.stem(x), Tensor)
    model = small().eval()
    model.stem[1] = nn.Identity()
    assert isinstance(model.stem(x), Tensor)
    assert torch.equal(model(x), plain(model)(x))


def test_features_and_intermediates():
    model, x = small().eval(), images(50, 33)
    reference = plain(model)
    last, steps = model.forward_intermediates(x)
    expected_last, expected_steps = reference.forward_intermediates(x)
    torch.testing.assert_close(
        [last, *steps], [expected_last, *expected_steps], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(model.forward_features(x), expected_last, rtol=1e-4, atol=1e-4)
    features = timm.create_model("dognext_test", features_only=True).eval()
    weights = {k.replace(".", "_", 1): v for k, v in model.state_dict().items() if "head" not in k}
    features.load_state_dict(weights)
    torch.testing.assert_close(features(x), expected_steps, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing():
    model, x = small().double(), images(dtype=torch.float64)
    expected = values(plain(model), x)
    model.set_grad_checkpointing()
    assert_equal(values(model, x), expected, 1e-12)


def test_frozen_stem():
    model = small()
    model.stem.requires_grad_(False)
    model(images().requires_grad_()).sum().backward()
    assert all(p.grad is None for p in model.stem.parameters())
    assert model.stages[0].blocks[0].conv_dw.sigma.grad.any()


def test_memory_format_of_the_image_changes_nothing():
    model, x = small().eval(), images()
    channels_last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(channels_last), model(x), rtol=1e-5, atol=1e-5)


def test_seeded_training_keeps_its_losses():
    losses = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = timm.create_model("dognext_test", num_classes=5).double()
        model.stem.fused = fused
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        steps = []
        for _ in range(5):
            loss = F.cross_entropy(model(images(dtype=torch.float64)), torch.tensor([1, 3]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.append(loss.item())
        losses.append(steps)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and losses[0][-1] < losses[0][0]


def test_meta_and_export():
    with torch.device("meta"):
        assert timm.create_model("dognext_test")(torch.zeros(1, 3, 64, 64)).is_meta
    model, x = small().eval(), images()
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-4)


def test_is_used_where_it_pays():
    for channels, fused in itertools.product((1, 3), (True,)):
        model = timm.create_model("dognext_atto", in_chans=channels)
        assert model.stem.fused is fused

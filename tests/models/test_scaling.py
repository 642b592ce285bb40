"""Scale augmentation: what is drawn, what is resized, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

import dogmed.models  # noqa: F401  (registers the DoGNeXt family)
from dogmed import config
from dogmed.errors import ConfigError
from dogmed.models import DoGConv2d
from dogmed.models.scaling import (
    BatchScale,
    Draw,
    TwoSpeeds,
    build_scale,
    downsample,
    nearest_odd,
    refuse_unusable,
    resized_kernels,
    usual_kernel_size,
)
from dogmed.options import ScaleAug, ScaleConfig, scale_options

STEPS = 20_000


def make(seed: int = 0, **changed: Any) -> BatchScale:
    """The thesis's, with some values changed."""
    values = {**scale_options("scale", {}), **changed}
    factors = values.pop("range")
    return BatchScale(seed, factors=factors, **values)


def draws(resize_kernels: float, seed: int = 3) -> list[Draw]:
    scale = make(seed, resize_kernels=resize_kernels)
    return [scale.draw(step) for step in range(STEPS)]


def test_factors_are_drawn_with_the_stated_probability_and_range() -> None:
    factors = np.array([draw.factor for draw in draws(0.0)])
    small = factors[factors < 1]
    assert abs(len(small) / STEPS - 0.2) < 4 * (0.2 * 0.8 / STEPS) ** 0.5
    assert 0.35 <= small.min() < 0.36 and 0.89 < small.max() <= 0.9
    counts, _ = np.histogram(small, bins=11, range=(0.35, 0.9))
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 29.6  # chi-square, 10 df, 0.1%


@pytest.mark.parametrize("resize", [0.0, 0.5, 1.0])
def test_kernels_follow_the_factor(resize: float) -> None:
    small = [draw for draw in draws(resize) if draw.factor < 1]
    for draw in small:
        assert draw.kernel_size in (None, 7 if draw.factor >= 0.6 else 5)
    resized = np.mean([draw.kernel_size is not None for draw in small])
    assert abs(resized - resize) <= 4 * (resize * (1 - resize) / len(small)) ** 0.5
    assert all(d.kernel_size is None for d in draws(resize) if d.factor == 1)


def test_draws_depend_on_seed_and_step_alone_and_modes_share_their_factors() -> None:
    assert draws(0.5) == draws(0.5)
    assert [d.factor for d in draws(0.0)] == [d.factor for d in draws(1.0)]
    assert draws(0.5) != draws(0.5, seed=4)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    make().draw(7)
    assert torch.equal(before, torch.get_rng_state())


def test_a_batch_is_downsampled_as_an_image_library_does() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 224, 200).to(memory_format=torch.channels_last)
    smaller = downsample(images, 0.35)
    assert smaller.shape == (2, 3, 78, 70)
    assert smaller.is_contiguous(memory_format=torch.channels_last)
    # every pixel counts: the mean stays, and noise is averaged away
    torch.testing.assert_close(smaller.mean(), images.mean(), rtol=0, atol=2e-3)
    plain = F.interpolate(images, (78, 70), mode="bilinear")
    assert smaller.std() < 0.75 * plain.std()
    assert downsample(images, 1.0) is images


def test_kernels_are_resized_inside_the_context_only() -> None:
    model = timm.create_model("dognext_test", kernel_size=9).eval()
    layers = [m for m in model.modules() if isinstance(m, DoGConv2d)]
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        whole = model(images)
        with resized_kernels(model, 5):
            assert {layer.kernel_size for layer in layers} == {5}
            small = model(images)
            masses = [layer.kernel().sum((1, 2, 3)) for layer in layers]
        for layer, mass in zip(layers, masses, strict=True):  # the pattern is resized, not cut
            torch.testing.assert_close(mass, layer.kernel().sum((1, 2, 3)), rtol=1e-4, atol=1e-5)
        assert not torch.equal(whole, small)
        torch.testing.assert_close(model(images), whole, rtol=0, atol=0)
    with pytest.raises(KeyError), resized_kernels(model, 7):
        raise KeyError
    assert {layer.kernel_size for layer in layers} == {9}


def test_a_first_layer_of_another_size_keeps_its_proportion() -> None:
    model = timm.create_model("dognext_test", stem_stride=8, stem_kernel_size=15)
    first, *others = [m for m in model.modules() if isinstance(m, DoGConv2d)]
    assert usual_kernel_size(model) == 7
    for size, of_first in ((7, 15), (5, 11), (3, 7), (9, 19)):
        with resized_kernels(model, size):
            assert {layer.kernel_size for layer in others} == {size}
            assert first.kernel_size == of_first
    assert first.kernel_size == 15


def test_the_nearest_odd_size_and_no_even_one() -> None:
    odd = range(-1, 61, 2)
    for x in (k / 7 for k in range(7 * 50)):
        assert abs(nearest_odd(x) - x) == min(abs(size - x) for size in odd)
    assert [nearest_odd(x) for x in (4, 13.9, 14, 14.1)] == [5, 13, 15, 15]
    model = timm.create_model("dognext_test", kernel_size=9)
    wrong = "kernels of 6 cells: expected an odd size; give 7"
    with pytest.raises(ConfigError, match=wrong), resized_kernels(model, 6):
        pass
    assert {m.kernel_size for m in model.modules() if isinstance(m, DoGConv2d)} == {9}


def test_two_speeds_share_parameters_and_names() -> None:
    model = timm.create_model("dognext_test", num_classes=3)
    calls = []
    both = TwoSpeeds(model, torch.nn.Sequential(model))
    both._compiled[0].register_forward_hook(lambda *_: calls.append("compiled"))
    assert len(list(both.parameters())) == len(list(model.parameters()))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(both(images, True), both(images, False))
    assert calls == ["compiled"]


@pytest.mark.parametrize(
    ("name", "options", "size", "said"),
    [
        ("resnet18", {"resize_kernels": 1.0}, 64, "resnet18 has no DoGConv"),
        ("dognext_test", {"resize_kernels": 1.0, "kernel_sizes": (9, 5)}, 64, "expected odd sizes"),
        ("dognext_test", {"resize_kernels": 0.5, "kernel_sizes": (5, 4)}, 64, "expected odd sizes"),
        ("convnextv2_atto", {}, 64, "cannot take 22 px images"),
    ],
)
def test_what_a_model_cannot_do_is_refused(name: str, options: dict, size: int, said: str) -> None:
    model = timm.create_model(name)
    scale = make(**options)
    with pytest.raises(ConfigError, match=said) as caught:
        refuse_unusable(model, name, scale, size)
    assert "--" not in str(caught.value), "flags are the command line's words"
    assert model.training
    refuse_unusable(model, name, make(range=(0.5, 0.9)), 128)


def test_factors_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ConfigError, match="smallest <= largest"):
        make(range=(0.9, 0.35))


def test_the_words_are_the_thesis_and_details_win() -> None:
    words = {word: scale_options(word, {}) for word in get_args(ScaleAug)}
    assert {word: v["resize_kernels"] for word, v in words.items()} == {
        "off": 0, "scale": 0, "multi-kernel": 1, "hybrid": 0.5,
    }  # fmt: skip
    assert {word: v["probability"] for word, v in words.items() if v["probability"] != 0.2} == {
        "off": 0
    }
    assert all(v["range"] == [0.35, 0.9] and v["kernel_sizes"] == [7, 5] for v in words.values())
    assert {field.name for field in dataclasses.fields(ScaleConfig)} == words["scale"].keys()
    assert set(config.recipe("scale")) == set(words)
    more = scale_options("hybrid", {"probability": 0.5, "threshold": None})
    assert more == {**words["hybrid"], "probability": 0.5}


def test_off_is_no_scale_and_a_probability_alone_is_one() -> None:
    model = timm.create_model("dognext_test")
    assert build_scale(model, "dognext_test", 64, 3, scale_options("off", {})) is None
    found = build_scale(model, "dognext_test", 64, 3, scale_options("off", {"probability": 1.0}))
    assert found == make(3, probability=1.0, range=(0.35, 0.9), kernel_sizes=(7, 5))

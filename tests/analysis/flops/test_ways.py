"""``dogmed analyze flops``: the ways to spend less, what they cost, and what of them is tried."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import dogmed.models  # noqa: F401  (registers the DoGNeXt family)
from dogmed.analysis.evaluation import Evaluation
from dogmed.analysis.flops.points import Subject
from dogmed.analysis.flops.ways import (
    Configuration,
    Cost,
    change,
    changed_stem,
    configurations,
    count_cost,
    in_proportion,
    pareto,
    strided_layer,
)
from dogmed.analysis.images import TaskImages
from dogmed.console import Console
from dogmed.data import Prepared
from dogmed.errors import ConfigError
from dogmed.models.cost import count_macs
from dogmed.models.trained import dog_layers, open_trained

STEMS = [(6, 7), (6, 11), (8, 7), (8, 15)]


@pytest.mark.parametrize(("stride", "kernel"), STEMS)
def test_a_changed_model_is_the_one_built_with_these_options(stride: int, kernel: int) -> None:
    torch.manual_seed(0)
    model = timm.create_model("dognext_test", num_classes=3).eval()
    built = timm.create_model(
        "dognext_test", num_classes=3, stem_stride=stride, stem_kernel_size=kernel
    ).eval()
    built.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(2, 3, 50, 50)
    one = Configuration("stride+kernel", 50, stride, kernel)
    with torch.no_grad():
        before = model(x)
        with change(model, one):
            assert torch.equal(model(x), built(x))
        assert torch.equal(model(x), before) and not torch.equal(before, built(x))
    cost = count_cost(model.to("meta"), one, 3)
    sampling = sum(layer.sampling_macs for layer in dog_layers(built).values())
    assert cost == Cost(count_macs(built, 50), sampling)


@pytest.mark.parametrize(("stride", "kernel"), STEMS)
@pytest.mark.parametrize("side", [28, 64])
def test_the_fused_stem_is_exact_at_other_strides(stride: int, kernel: int, side: int) -> None:
    torch.manual_seed(0)
    model = timm.create_model("dognext_test", num_classes=3).double().eval()
    model.stem.fused = True
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    with torch.no_grad(), changed_stem(model, stride, kernel):
        fused = model(x)
        model.stem.fused = False
        torch.testing.assert_close(fused, model(x), rtol=1e-10, atol=1e-10)


def test_larger_kernels_cost_more_at_the_same_stride() -> None:
    """The thesis's remark on Figure 4.5c; without a change of stride nothing is gained."""
    network = timm.create_model("dognext_test").to("meta")
    costs = {
        (stride, kernel): count_cost(network, Configuration("full", 64, stride, kernel), 3).macs
        for stride, kernel in [(4, 7), *STEMS]
    }
    assert costs[8, 7] < costs[8, 15] < costs[4, 7] and costs[6, 7] < costs[6, 11] < costs[4, 7]


def test_kernels_in_proportion_are_the_nearest_odd_ones() -> None:
    assert [in_proportion(7, 4, stride) for stride in (4, 5, 6, 7, 8)] == [7, 9, 11, 13, 15]
    for kernel in (3, 5, 7, 9, 11):
        for own in range(1, 9):
            for stride in range(own, 20):
                wanted, got = kernel * stride / own, in_proportion(kernel, own, stride)
                assert got % 2 == 1 and abs(got - wanted) == min(
                    abs(odd - wanted) for odd in range(1, 401, 2)
                )


def test_the_pareto_front_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        points = [(int(c), int(s)) for c, s in rng.integers(0, 6, (rng.integers(1, 12), 2))]
        beaten = [
            any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)
            for cost, score in points
        ]
        assert pareto(points) == [not b for b in beaten]


def test_the_usual_configurations_have_as_many_cells_each_way() -> None:
    model = timm.create_model("dognext_test")
    found = configurations(model, "it", 64, (), ())
    assert found[0] == Configuration("full", 64, 4, 7)
    by_way = {
        way: [(c.stride, c.kernel_size, c.side) for c in found if c.way == way]
        for way in ("stride", "resolution", "stride+kernel")
    }
    assert by_way == {
        "stride": [(s, 7, 64) for s in (5, 6, 7, 8)],
        "resolution": [(4, 7, side) for side in (51, 43, 37, 32)],
        "stride+kernel": [(5, 9, 64), (6, 11, 64), (7, 13, 64), (8, 15, 64)],
    }
    for stride, (_, _, side) in zip((5, 6, 7, 8), by_way["resolution"], strict=True):
        assert -(-side // 4) == -(-64 // stride)
    plain = configurations(timm.create_model("test_convnext"), "it", 64, (), ())
    assert [c.side for c in plain] == [64, 51, 43, 37, 32]
    assert {c.way for c in plain[1:]} == {"resolution"}, "a network without DoGConv has no other"
    assert {c.stride for c in plain} == {None}
    asked = configurations(model, "it", 64, (8, 4), (64, 32))
    assert [c.key for c in asked] == [
        "stride4-kernel7-64px", "stride8-kernel7-64px", "stride4-kernel7-32px", "stride8-kernel15-64px"
    ]  # fmt: skip
    assert strided_layer(timm.create_model("dognext_test", downsample="conv")) is None


@pytest.fixture
def settle(
    make_weights: Callable[..., Path], prepared: Prepared, tmp_path: Path
) -> Callable[..., Subject]:
    """Settle what is tried with a model that was trained at a size; nothing is evaluated."""

    def of(
        size: int, strides: tuple[int, ...] = (), resolutions: tuple[int, ...] = (), **facts: Any
    ) -> Subject:
        trained = open_trained(str(make_weights(data={"size": size}, **facts)))
        evaluation = Evaluation(
            trained, TaskImages(prepared, trained.record), tmp_path / "kept", Console(False),
            device=torch.device("cpu"), batch_size=1, resamples=1,
        )  # fmt: skip
        return Subject.settle("it", evaluation, strides, resolutions)

    return of


def test_no_image_is_below_the_total_stride(settle: Callable[..., Subject]) -> None:
    for strides, resolutions, said in (
        (
            (200,),
            (),
            "--strides 200: it cannot take images of 224 px (its total stride would be 1600 px)",
        ),
        (
            (4,),
            (5,),
            "--resolutions 5: it cannot take images of 5 px (its total stride is 32 px)",
        ),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            settle(224, strides, resolutions)
    assert [one.side for one in settle(64, (8,), (32,)).costs] == [64, 64, 32, 64]
    usual = settle(40)
    assert [(one.way, one.stride, one.side) for one in usual.costs] == [
        ("full", 4, 40), ("stride", 5, 40), ("resolution", 4, 32), ("stride+kernel", 5, 40)
    ]  # fmt: skip
    assert len(usual.notes) == 9
    assert (
        usual.notes[0] == "it: left out stride 6, kernel 7, 40 px: its total stride would be 48 px"
    )
    below = settle(28, (8,), (20,))
    assert len(below.costs) == 4, "trained below it: bound by the first stride alone"


def test_kernels_that_stay_in_proportion_are_no_second_point(
    settle: Callable[..., Subject],
) -> None:
    subject = settle(28, (5, 8), (28,), options={"kernel_size": 3})
    assert [(one.way, one.stride, one.kernel_size) for one in subject.costs] == [
        ("full", 4, 3), ("stride", 5, 3), ("stride", 8, 3), ("stride+kernel", 8, 7)
    ]  # fmt: skip
    assert subject.notes == ("it: left out the kernel in proportion to stride 5: it is its own",)

"""The strongest kernels of a layer against their definition, named as in the atlas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dogmed.analysis.kernels.layers import Layer
from dogmed.analysis.kernels.patterns import dog_patterns
from dogmed.inference.explain.kernels import SHOWN, strongest
from dogmed.models.dog import DoGConv2d
from dogmed.models.patterns import TITLES


@pytest.mark.parametrize("order", ["base", "d1", "d2"])
@pytest.mark.parametrize("init", ["patterns", "random"])
def test_the_strongest_are_the_largest_parts_under_the_names_of_the_atlas(
    order: Any, init: Any
) -> None:
    torch.manual_seed(0)
    conv = DoGConv2d(40, order=order, init=init).requires_grad_(False)
    if conv.mix is not None:
        conv.mix[:10], conv.sigma[:10] = 0.0, torch.tensor([0.5, 1.0])  # mixed
    conv.sigma[10:15] = 0.8  # two Gaussians that cancel
    maps, gradients = torch.randn(2, 1, 40, 6, 6).unbind()
    found = strongest(conv, maps, gradients)
    parts = maps[0].mean((1, 2)) * gradients[0].mean((1, 2))
    assert [one.channel for one in found] == parts.argsort(descending=True)[:SHOWN].tolist()
    np.testing.assert_allclose(
        [one.part for one in found], parts.sort(descending=True)[0][:SHOWN], rtol=1e-5
    )
    kernels = conv.kernel()[:, 0].double()
    names = dog_patterns(Layer("it", kernels, conv.extent, 1, 1, conv.functions()))
    assert [one.pattern for one in found] == [TITLES[names[one.channel]] for one in found]
    assert "none" in names and (order == "base" or "mixed" in names)
    for one in found:
        np.testing.assert_array_equal(one.kernel, kernels[one.channel])


def test_only_what_speaks_for_the_class_is_told() -> None:
    conv = DoGConv2d(8).requires_grad_(False)
    maps, gradients = torch.ones(1, 8, 3, 3), torch.full((1, 8, 3, 3), -1.0)
    gradients[0, 5] = 2
    (one,) = strongest(conv, maps, gradients)
    assert (one.channel, one.weight, one.activation, one.part) == (5, 2, 1, 2)

"""Patterns of kernels are named as in the atlas."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dogmed.analysis import patterns
from dogmed.analysis.layers import Layer
from dogmed.inference.explain_kernels import TITLES, name_patterns
from dogmed.models.dog import DoGConv2d


@pytest.mark.parametrize("order", ["base", "d1", "d2"])
@pytest.mark.parametrize("init", ["patterns", "random"])
def test_patterns_have_the_names_that_the_atlas_gives_them(order: Any, init: Any) -> None:
    torch.manual_seed(0)
    conv = DoGConv2d(200, order=order, init=init).requires_grad_(False)
    if conv.mix is not None:
        conv.mix[:40] = 0.0  # mixed
    conv.sigma[40:45] = 0.8  # two Gaussians that cancel
    layer = Layer("it", conv.kernel()[:, 0].double(), conv.extent, 1, 1, conv.functions())
    expected = patterns.dog_patterns(layer)
    assert name_patterns(conv) == [patterns.TITLES.get(name, name) for name in expected.tolist()]
    assert "none" in expected and (order == "base" or "mixed" in expected)
    assert TITLES == patterns.TITLES

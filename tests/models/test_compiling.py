"""Compilation that may fail."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import timm
import torch

from dogmed.models.compiling import compile_or_fall_back


def failing_backend(*_: Any, **__: Any) -> Any:
    raise RuntimeError("no such compiler\nsecond line")


@pytest.mark.parametrize("backend", ["aot_eager", failing_backend])
def test_the_trial_of_a_compiled_model_leaves_no_trace(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    model = timm.create_model("test_resnet", num_classes=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rng, said = torch.get_rng_state(), []
    example = torch.randn(6, 3, 32, 32)
    rng = torch.get_rng_state()
    compiled = compile_or_fall_back(model, example, [6, 4], said.append)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    if backend == "aot_eager":
        assert not said
        torch.testing.assert_close(compiled.eval()(example), model.eval()(example))
    else:
        assert compiled is model
        assert len(said) == 1
        assert "\n" not in said[0]
        assert "going on without" in said[0]


def test_every_size_gets_kernels_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    torch.compiler.reset()  # sizes that earlier tests have seen
    model = timm.create_model("test_resnet", num_classes=3)
    compiled = compile_or_fall_back(model, torch.randn(6, 3, 32, 32), [6, 4], print).train()
    assert len(graphs) == 2
    for size, total in ((6, 2), (4, 2), (5, 3)):
        compiled(torch.randn(size, 3, 32, 32))
        assert len(graphs) == total

"""When kernels are sampled: kept in eval mode, together in training."""

from __future__ import annotations

import copy
from typing import Any
from unittest.mock import patch

import pytest
import timm
import torch

import dogmed.models.dog as dog
from dogmed.models import DoGConv2d
from dogmed.models.dog import sampled_together


def layer(**options: Any) -> DoGConv2d:
    torch.manual_seed(0)
    return DoGConv2d(6, **options).eval()


def double_sigma(x: DoGConv2d) -> None:
    x.sigma.mul_(2)


def step(x: DoGConv2d) -> None:
    for parameter in x.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(x.parameters(), lr=0.1).step()


def load(x: DoGConv2d) -> None:
    x.load_state_dict({k: v + 0.1 for k, v in x.state_dict().items()})


def replace_data(x: DoGConv2d) -> None:
    x.sigma.data = x.sigma.data + 0.1


def replace_parameter(x: DoGConv2d) -> None:
    x.sigma = torch.nn.Parameter(x.sigma.detach() + 0.1)


def data_then_eval(x: DoGConv2d) -> None:
    x.log_scale.data.add_(1)
    x.eval()


def resize(x: DoGConv2d) -> None:
    x.kernel_size = 9


CHANGES = [double_sigma, step, load, replace_data, replace_parameter, data_then_eval, resize]
CHANGES += [torch.nn.Module.double, DoGConv2d.reset_parameters]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@torch.no_grad()
def test_kept_kernels_are_dropped_when_something_changes(change):
    x = layer()
    kept = x.current_kernel()
    assert x.current_kernel() is kept
    change(x)
    fresh = x.current_kernel()
    assert torch.equal(fresh, x.kernel()) and x.current_kernel() is fresh
    assert (
        fresh.shape != kept.shape
        or not torch.equal(fresh.double(), kept.double())
        or (fresh.dtype != kept.dtype)
    )


@pytest.mark.parametrize("together", [True, False])
def test_a_fused_step_in_eval_mode_is_noticed(together):
    model, x = timm.create_model("dognext_test", num_classes=2).eval(), torch.randn(2, 3, 32, 32)
    model.set_grad_checkpointing(not together)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    with torch.no_grad():
        model(x)
    model(x).sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert torch.equal(model(x), copy.deepcopy(model).train().eval()(x))


def test_never_kept_with_gradients_or_in_training():
    x = layer()
    assert x.current_kernel() is not x.current_kernel() and x.current_kernel().requires_grad
    with torch.no_grad():
        kept = x.current_kernel()
        assert not kept.requires_grad
        assert x.train().current_kernel() is not x.current_kernel()
    x.eval()(torch.randn(1, 6, 8, 8)).sum().backward()
    assert x.sigma.grad.any()


def test_copies_and_inference_mode():
    x = layer()
    with torch.inference_mode():
        expected = x.current_kernel()
    other = copy.deepcopy(x)
    with torch.no_grad():
        other.sigma.mul_(2)
        assert torch.equal(other.current_kernel(), other.kernel())
        assert torch.equal(x.current_kernel(), expected)
    with torch.inference_mode():
        inside = layer()
        assert inside.current_kernel() is not inside.current_kernel()
    x(torch.randn(1, 6, 8, 8)).sum().backward()


def test_together_equals_one_by_one():
    options: list[dict[str, Any]] = [{}, {}, {"order": "d1"}, {"order": "d1", "bias": "kernel"}]
    options += [{"order": "base"}, {"kernel_size": 9}, {"kernel_size": 9}, {"extent": 3.0}]
    torch.manual_seed(0)
    layers = [DoGConv2d(4 + i, **o) for i, o in enumerate(options)] + [DoGConv2d(3).double()]
    gradients = []
    kernels = [x.kernel() for x in layers]
    sum(k.square().sum() for k in kernels).backward()
    gradients.append([p.grad for x in layers for p in x.parameters()])
    for x in layers:
        x.zero_grad()
    with sampled_together(layers):
        together = [x.current_kernel() for x in layers]
        sum(k.square().sum() for k in together).backward()
    gradients.append([p.grad for x in layers for p in x.parameters()])
    for got, expected in zip(together, kernels, strict=True):
        assert torch.equal(got, expected)
    for got, expected in zip(*gradients, strict=True):
        assert (got is None) == (expected is None)  # the bias of an output
        if got is not None:
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
    assert all(x.current_kernel() is not k for x, k in zip(layers, together, strict=True))


def test_an_error_leaves_no_kernels_behind():
    x = layer()
    with pytest.raises(RuntimeError), sampled_together([x]):
        x(torch.zeros(1, 5, 8, 8))
    assert x._given is None


def test_network_samples_all_at_once_and_keeps_them_in_eval_mode():
    model, x = timm.create_model("dognext_test"), torch.randn(2, 3, 32, 32)
    with patch.object(dog, "sample_kernels", wraps=dog.sample_kernels) as sample:
        model(x).sum().backward()
        model.forward_intermediates(x)
        assert sample.call_count == 2
        model.eval()
        with torch.no_grad():
            model(x), model(x)
        assert sample.call_count == 2 + 5
        model.set_grad_checkpointing()
        model.train()(x).sum().backward()
        assert sample.call_count == 2 + 5 + 2 * 5
    assert all(p.grad is not None for n, p in model.named_parameters())


def test_compiled_and_exported_networks_follow_their_parameters():
    model, x = timm.create_model("dognext_test", num_classes=5).eval(), torch.randn(2, 3, 32, 32)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
            model.stages[1].blocks[0].conv_dw.sigma.mul_(1.5)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
    model.zero_grad()
    compiled.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())

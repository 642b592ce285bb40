"""Optimizers and schedules, against timm's own objects and the formulae they stand for."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from dogmed.errors import ConfigError
from dogmed.optim import create_optimizer, create_scheduler, describe_groups, lr_from_base


def _model(name: str = "convnextv2_atto") -> nn.Module:
    return timm.create_model(name, num_classes=2)


def _names_without_decay(model: nn.Module, optimizer: torch.optim.Optimizer) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [group for group in optimizer.param_groups if group["weight_decay"] == 0]
    return {names[id(parameter)] for group in groups for parameter in group["params"]}


def _rates(optimizer: torch.optim.Optimizer, **options: object) -> list[float]:
    """The learning rate of each of 21 steps."""
    scheduler = create_scheduler(optimizer, **options)
    rates = [optimizer.param_groups[0]["lr"]]
    for step in range(1, 21):
        scheduler.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def _sgd(lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def test_lr_from_base() -> None:
    assert lr_from_base(2e-4, 1024) == 8e-4
    assert lr_from_base(2e-4, 128) == 1e-4


def test_groups_are_those_of_timm() -> None:
    model = _model()
    ours = create_optimizer(model, lr=1e-3, weight_decay=0.3, betas=(0.8, 0.9))
    theirs = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.3, betas=(0.8, 0.9))
    assert type(ours) is type(theirs) is torch.optim.AdamW
    for our_group, their_group in zip(ours.param_groups, theirs.param_groups, strict=True):
        our_ids, their_ids = ([id(p) for p in g.pop("params")] for g in (our_group, their_group))
        assert our_ids == their_ids
        assert our_group == their_group


def test_no_decay_on_norms_biases_and_grn() -> None:
    model = _model()
    undecayed = _names_without_decay(model, create_optimizer(model, lr=1e-3, weight_decay=0.3))
    for name, parameter in model.named_parameters():
        assert (name in undecayed) == (parameter.ndim <= 1), name
    assert "stages.0.blocks.0.mlp.grn.weight" in undecayed
    assert "stages.0.blocks.0.conv_dw.weight" not in undecayed


def test_no_decay_on_dog_parameters() -> None:
    pytest.importorskip("dogmed.models.dognext")
    dog = pytest.importorskip("dogmed.models.dog")
    model = _model("dognext_test")
    undecayed = _names_without_decay(model, create_optimizer(model, lr=1e-3, weight_decay=0.3))
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, dog.DoGConv2d)]
    expected = {f"{n}.{p}" for n, m in layers for p, _ in m.named_parameters()}
    assert layers and expected <= undecayed
    assert not any(
        n in undecayed for n, p in model.named_parameters() if n not in expected and p.ndim > 1
    )


class _Named(nn.Module):
    """A matrix that asks for no decay, as DoGConv's do, beside one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = nn.Parameter(torch.ones(2, 2))
        self.decayed = nn.Parameter(torch.ones(2, 2))

    def no_weight_decay(self) -> set[str]:
        return {"kept"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.kept @ self.decayed


def test_wrappers_do_not_hide_what_is_not_decayed() -> None:
    model = _Named()
    for wrapped in (model, torch.compile(model)):
        optimizer = create_optimizer(wrapped, lr=1e-3, weight_decay=0.3)
        assert _names_without_decay(model, optimizer) == {"kept"}


def test_frozen_parameters_are_left_out() -> None:
    model = _model()
    model.stem.requires_grad_(False)
    optimizer = create_optimizer(model, lr=1e-3, weight_decay=0.3)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not held & {id(p) for p in model.stem.parameters()}
    assert {id(p) for p in model.stages.parameters()} <= held


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fused_on_cuda() -> None:
    optimizer = create_optimizer(_model().cuda(), lr=1e-3, weight_decay=0.3)
    assert optimizer.defaults["fused"]


def test_describe_groups() -> None:
    model = _Named()
    line = describe_groups(create_optimizer(model, lr=1e-3, weight_decay=0.3))
    assert line == (
        "AdamW: weight decay 0.3 on 1 tensors (4 parameters), no decay on 1 tensors (4 parameters)"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adamww"}, "unknown optimizer 'adamww' .did you mean 'adamw'"),
        ({"lr": 0.0}, "learning rate 0.0"),
        ({"lr": float("nan")}, "learning rate nan"),
        ({"weight_decay": -1.0}, "weight decay -1.0"),
        ({"name": "sgd", "betas": (0.9, 0.999)}, "'sgd' has no betas"),
        ({"betas": (0.9, 1.0)}, "betas"),
    ],
)
def test_bad_optimizer(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_optimizer(nn.Linear(2, 2), **{"lr": 1e-3, "weight_decay": 0.1, **options})


def test_cosine() -> None:
    rates = _rates(_sgd(), steps=20, min_lr=0.01)
    expected = [0.01 + 0.5 * 0.09 * (1 + math.cos(math.pi * n / 20)) for n in range(21)]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_cosine_is_timms() -> None:
    theirs = _sgd()
    scheduler = CosineLRScheduler(theirs, t_initial=20, t_in_epochs=False)
    rates = [0.1]
    for step in range(1, 21):
        scheduler.step_update(step)
        rates.append(theirs.param_groups[0]["lr"])
    assert _rates(_sgd(), steps=20) == rates


def test_linear_and_constant() -> None:
    linear = _rates(_sgd(), name="linear", steps=20, min_lr=0.01)
    assert linear == pytest.approx([0.01 + 0.09 * (1 - n / 20) for n in range(21)], rel=1e-12)
    assert _rates(_sgd(), name="constant", steps=20) == [0.1] * 21


def test_warmup_joins_without_a_jump() -> None:
    rates = _rates(_sgd(), steps=20, warmup_steps=5)
    rise = [0.1 * n / 5 for n in range(5)]
    fall = [0.5 * 0.1 * (1 + math.cos(math.pi * n / 15)) for n in range(16)]
    assert rates == pytest.approx(rise + fall, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cosin", "steps": 9}, "unknown schedule 'cosin' .did you mean 'cosine'"),
        ({"steps": 0}, "0 warm-up steps of 0"),
        ({"steps": 9, "warmup_steps": 9}, "9 warm-up steps of 9"),
        ({"steps": 9, "min_lr": 0.2}, "lowest learning rate 0.2"),
    ],
)
def test_bad_schedule(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_scheduler(_sgd(), **options)

"""The moving average: against a hand-written one, its kernels, its resume, its way into the store."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dogmed import checkpoint
from dogmed.distributed import World
from dogmed.errors import ConfigError, Interrupted
from dogmed.models import DoGConv2d, build_model
from dogmed.pretrain import build
from dogmed.pretrain.config import PretrainConfig
from dogmed.pretrain.images import open_splits
from dogmed.pretrain.loop import Loop
from dogmed.weights.records import read_record

MakeConfig = Callable[..., PretrainConfig]
RunTiny = Callable[..., dict[str, Any]]
TIMES = ("epoch_seconds", "images_per_second", "data_wait")


def assemble(config: PretrainConfig) -> Loop:
    world = World(0, 1, torch.device("cpu"))
    images = build.draw_images(config, open_splits(config.data, cache_dir=config.cache_dir))
    network = build.build_network(config, len(images[0].classes))
    model = network.model.to(memory_format=torch.channels_last)
    batches = build.build_batches(config, images, network, world)
    optimizer, scheduler = build.build_optimizer(config, model, len(batches["train"]))
    return Loop(
        model, model, optimizer, scheduler, batches, world, build.loop_settings(config), None
    )


def run(loop: Loop, path: Path, stop_after: int = 1000) -> list[dict[str, Any]]:
    taken: list[int] = []
    loop.run(
        path,
        on_step=lambda step, steps: taken.append(step),
        on_epoch=lambda row, improved: None,
        on_best=lambda: None,
        stop_requested=lambda: 15 if len(taken) >= stop_after else None,
    )
    return loop.progress.rows


def equal(first: torch.nn.Module, second: torch.nn.Module) -> None:
    theirs = second.state_dict()
    for name, ours in first.state_dict().items():
        assert torch.equal(ours, theirs[name]), name


@pytest.mark.parametrize(("decay", "warmup"), [(0.7, False), (0.7, True), (0.999, True)])
def test_the_average_is_what_its_formula_says(
    make_config: MakeConfig, decay: float, warmup: bool
) -> None:
    loop = assemble(make_config(ema__decay=decay, ema__warmup=warmup))
    assert loop.average is not None
    expected: dict[str, Tensor] = {}
    loop.train_batches.set_epoch(0)
    for step, batches in enumerate(loop.train_batches):
        loop.train_step(batches)
        keep = 0.0 if step == 0 else decay  # it begins as the network after the first step
        if warmup:
            keep = min(keep, 1 - (1 + step) ** (-2 / 3))
        for name, tensor in loop.model.state_dict().items():
            before = expected.get(name, torch.zeros_like(tensor, dtype=torch.float64))
            expected[name] = keep * before + (1 - keep) * tensor.double()
    assert step == 4
    for name, tensor in loop.average.module.state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-7)


def test_kernels_of_the_average_are_sampled_anew_after_every_step(make_config: MakeConfig) -> None:
    """Also where nothing calls ``eval()``, which would drop kept kernels."""
    loop = assemble(make_config(ema__decay=0.5))
    assert loop.average is not None
    averaged = loop.average.module
    image = torch.randn(2, 3, 32, 32)
    layers = [module for module in averaged.modules() if isinstance(module, DoGConv2d)]
    loop.train_batches.set_epoch(0)
    outputs = []
    for batches in loop.train_batches:
        with torch.no_grad():
            averaged(image)
            kept = [layer.current_kernel() for layer in layers]
            assert all(k is layer.current_kernel() for k, layer in zip(kept, layers, strict=True))
        loop.train_step(batches)
        fresh = copy.deepcopy(loop.model).eval()
        fresh.load_state_dict(averaged.state_dict())
        with torch.no_grad():
            for layer, before in zip(layers, kept, strict=True):
                assert torch.equal(layer.current_kernel(), layer.kernel())
                assert not torch.equal(layer.current_kernel(), before)
            outputs.append(averaged(image))
            assert torch.equal(outputs[-1], fresh(image))
    assert not torch.equal(outputs[0], outputs[-1])


def test_training_is_the_same_with_an_average_beside_it(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    plain, averaging = assemble(make_config()), assemble(make_config(ema__decay=0.9))
    rows = run(plain, tmp_path / "a.pt"), run(averaging, tmp_path / "b.pt")
    equal(plain.model, averaging.model)
    for first, second in zip(*rows, strict=True):
        assert set(second) - set(first) == {"ema_loss", "ema_acc1", "ema_acc5"}
        assert all(first[name] == second[name] for name in first if name not in TIMES)


def test_an_average_survives_a_stop_at_any_step(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(ema__decay=0.8, net__drop_path=0.3)
    whole = assemble(config)
    rows = run(whole, tmp_path / "whole.pt")
    stop_at = int(np.random.default_rng().integers(1, 10))  # another place at every run of the test
    with pytest.raises(Interrupted):
        run(assemble(config), tmp_path / "last.pt", stop_after=stop_at)
    again = assemble(config)
    again.load(checkpoint.load(tmp_path / "last.pt"), tmp_path / "last.pt")
    run(again, tmp_path / "last.pt")
    assert whole.average is not None and again.average is not None
    equal(whole.average.module, again.average.module)
    scores = [name for name in rows[0] if name not in TIMES]
    for ours, theirs in zip(rows, again.progress.rows, strict=True):
        assert [ours[name] for name in scores] == [theirs[name] for name in scores]


def test_the_average_goes_to_the_store_where_it_is_selected(
    run_tiny: RunTiny, tmp_path: Path
) -> None:
    result = run_tiny(ema__decay=0.9, eval__select="ema")
    (last,) = (tmp_path / "runs").glob("pretrain/*/*/seed0/checkpoints/last.pt")
    state = checkpoint.load(last)
    row = state["progress"]["rows"][-1]
    assert result["val"] == {name: row[f"ema_{name}"] for name in ("acc1", "acc5", "loss")}
    assert row["ema_loss"] != row["val_loss"]
    path = tmp_path / "weights" / "dognext_test.imagenet50ep.safetensors"
    record, saved = read_record(path), load_file(path)
    assert record is not None and record.score["val_loss"] == row["ema_loss"]
    assert record.training["ema"] == {"decay": 0.9, "warmup": True}
    model, _ = build_model("dognext_test", 4, init="imagenet50ep", weights_dir=path.parent)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[name]) and torch.equal(tensor, state["average"][name])
    assert any(not torch.equal(state["model"][name], saved[name]) for name in saved)


def test_an_average_that_is_not_kept_cannot_be_selected(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"--eval.select ema: .* give --ema.decay"):
        build.loop_settings(make_config(eval__select="ema"))

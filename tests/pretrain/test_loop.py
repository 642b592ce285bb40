"""The loop against a plain one, its micro-batches, its resume, and losses that are not finite."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dogmed import checkpoint
from dogmed.distributed import World
from dogmed.errors import Interrupted, TrainingError
from dogmed.models import DoGConv2d
from dogmed.pretrain import build
from dogmed.pretrain.config import PretrainConfig
from dogmed.pretrain.images import open_splits
from dogmed.pretrain.loop import Loop

WORLD = World(0, 1, torch.device("cpu"))
MakeConfig = Callable[..., PretrainConfig]
TIMES = ("epoch_seconds", "images_per_second", "data_wait")


def assemble(config: PretrainConfig) -> Loop:
    images = build.draw_images(config, open_splits(config.data, cache_dir=config.cache_dir))
    network = build.build_network(config, len(images[0].classes))
    model = network.model.to(memory_format=torch.channels_last)
    batches = build.build_batches(config, images, network, WORLD)
    optimizer, scheduler = build.build_optimizer(config, model, len(batches["train"]))
    scale = build.build_scale(config, model)
    settings = build.loop_settings(config)
    return Loop(model, model, optimizer, scheduler, batches, WORLD, settings, scale)


def run(loop: Loop, path: Path, stop_after: int | None = None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    taken = 0

    def after_step(step: int, steps: int) -> None:
        nonlocal taken
        taken += 1

    loop.run(
        path,
        on_step=after_step,
        on_epoch=lambda row, improved: rows.append(row),
        on_best=lambda: None,
        stop_requested=lambda: 15 if stop_after is not None and taken >= stop_after else None,
    )
    return rows


def equal(first: torch.nn.Module, second: torch.nn.Module) -> None:
    for (name, ours), theirs in zip(
        first.state_dict().items(), second.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("clip_grad", [None, 0.5])
def test_a_run_is_what_a_plain_loop_does(
    make_config: MakeConfig, tmp_path: Path, clip_grad: float | None
) -> None:
    config = make_config(optim__clip_grad=clip_grad, net__drop_path=0.0)
    loop = assemble(config)
    rows = run(loop, tmp_path / "last.pt")

    plain = assemble(config)
    model, train, val = plain.model, plain.train_batches, plain.val_batches
    assert len(train) == 5
    updates, losses, scores = 0, [], []
    for epoch in range(2):
        model.train()
        train.set_epoch(epoch)
        total = 0.0
        for (batch,) in train:
            loss = F.cross_entropy(model(batch["image"]), batch["label"], label_smoothing=0.2)
            plain.optimizer.zero_grad()
            loss.backward()
            if clip_grad is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip_grad)
            plain.optimizer.step()
            updates += 1
            plain.scheduler.step_update(updates)
            total += loss.item()
        losses.append(total / 5)
        model.eval()
        with torch.no_grad():
            (batch,) = (batch for batches in val for batch in batches)
            logits = model(batch["image"])
        label = batch["label"]
        ranks = (logits > logits.gather(1, label[:, None])).sum(1)
        scores.append((F.cross_entropy(logits, label).item(), (ranks == 0).double().mean().item()))

    for (name, ours), theirs in zip(
        loop.model.state_dict().items(), model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)
    assert [row["train_loss"] for row in rows] == pytest.approx(losses, rel=1e-5)
    assert [row["val_loss"] for row in rows] == pytest.approx([s[0] for s in scores], rel=1e-4)
    assert [row["val_acc1"] for row in rows] == [s[1] for s in scores]
    assert [row["val_acc5"] for row in rows] == [1.0, 1.0]  # of four classes


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_micro_batches_accumulate_to_the_whole_batch(
    make_config: MakeConfig, tmp_path: Path, micro_batch: int
) -> None:
    options = {"net__drop_path": 0.0, "epochs": 1}
    whole = assemble(make_config(**options))
    parts = assemble(make_config(micro_batch=micro_batch, **options))
    assert [len(batches) for batches in parts.train_batches] == [-(-8 // micro_batch)] * 5
    (first,), (second,) = run(whole, tmp_path / "a.pt"), run(parts, tmp_path / "b.pt")
    assert second["train_loss"] == pytest.approx(first["train_loss"], rel=1e-5)
    assert second["val_loss"] == pytest.approx(first["val_loss"], rel=1e-4)


def test_a_stop_at_any_step_and_a_resume_give_the_same_weights(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(
        "imagenet50ep-hybrid", epochs=2, net__drop_path=0.3, micro_batch=3, scale__probability=0.5
    )
    whole = assemble(config)
    run(whole, tmp_path / "whole.pt")
    rng = np.random.default_rng()  # another place at every run of the test
    for stop_at in rng.choice(np.arange(1, 10), size=2, replace=False):
        with pytest.raises(Interrupted, match="the state is saved"):
            run(assemble(config), tmp_path / "last.pt", stop_after=int(stop_at))
        torch.rand(7)  # whatever happens to the generators in between does not matter
        again = assemble(config)
        again.load(checkpoint.load(tmp_path / "last.pt"), tmp_path / "last.pt")
        assert again.progress.epoch * 5 + again.progress.step == stop_at
        run(again, tmp_path / "last.pt")
        equal(whole.model, again.model)
        first = checkpoint.load(tmp_path / "whole.pt")
        second = checkpoint.load(tmp_path / "last.pt")
        for state in (first, second):
            for row in state["progress"]["rows"]:
                for name in TIMES:
                    del row[name]
        assert first["progress"] == second["progress"]
        assert first["scheduler"] == second["scheduler"]


def test_a_checkpoint_is_saved_within_an_epoch_by_the_clock(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    loop = assemble(make_config(epochs=1, checkpoint__minutes=1e-9))
    seen = []
    loop.run(
        tmp_path / "last.pt",
        on_step=lambda step, steps: seen.append(
            checkpoint.load(tmp_path / "last.pt")["progress"]["step"] if step > 1 else 0
        ),
        on_epoch=lambda row, improved: None,
        on_best=lambda: None,
        stop_requested=lambda: None,
    )
    assert seen == [0, 1, 2, 3, 4]


def test_every_kernel_of_a_step_has_the_size_drawn_for_it(make_config: MakeConfig) -> None:
    loop = assemble(make_config("imagenet50ep-multikernel", scale__probability=0.7, epochs=1))
    assert loop.scale is not None
    sizes: list[set[int]] = []
    shapes: list[int] = []
    layers = [m for m in loop.model.modules() if isinstance(m, DoGConv2d)]

    def note(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        sizes.append({layer.kernel_size for layer in layers})
        shapes.append(args[0].shape[-1])

    loop.model.register_forward_pre_hook(note)
    loop.train_batches.set_epoch(0)
    for step, batches in enumerate(loop.train_batches):
        draw = loop.scale.draw(step)
        loop.train_step(batches)
        assert sizes[-1] == {draw.kernel_size or 9}
        assert shapes[-1] == round(32 * draw.factor)
        assert {layer.kernel_size for layer in layers} == {9}
    assert {5, 7, 9} >= set.union(*sizes) and len(set(shapes)) > 1


def test_images_of_the_whole_side_with_smaller_kernels_are_not_for_the_compiled_network(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(
        "imagenet50ep-multikernel", epochs=2, scale__probability=0.5, scale__range=[1, 1]
    )
    loop = assemble(config)
    layer = next(m for m in loop.model.modules() if isinstance(m, DoGConv2d))
    seen: list[tuple[int, bool]] = []
    loop.network.register_forward_pre_hook(lambda _, a: seen.append((layer.kernel_size, a[1])))
    run(loop, tmp_path / "last.pt")
    assert set(seen) == {(9, True), (7, False)}


def test_a_loss_that_is_not_finite_stops_with_epoch_step_rate_and_checkpoint(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(optim__lr=1e3, optim__weight_decay=0.0, epochs=9, checkpoint__minutes=1e-9)
    loop = assemble(config)
    with pytest.raises(TrainingError) as caught:
        run(loop, tmp_path / "last.pt")
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(r"not finite in epoch \d, step \d of 5, at learning rate|after epoch", message)
    where = re.search(r"last good checkpoint: (.*?) \(epoch (\d+), step (\d+)\)", message)
    assert where and where[1] == str(tmp_path / "last.pt")
    state = checkpoint.load(tmp_path / "last.pt")
    assert [state["progress"][k] for k in ("epoch", "step")] == [int(where[2]), int(where[3])]
    assert all(torch.isfinite(tensor.float()).all() for tensor in state["model"].values())

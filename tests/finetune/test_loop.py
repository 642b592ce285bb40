"""The loop against a plain PyTorch loop, and what it says of losses that are not finite."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dogmed import checkpoint
from dogmed.data.progress import Quiet
from dogmed.distributed import World
from dogmed.errors import Interrupted, TrainingError
from dogmed.finetune import build
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.loop import Loop, LoopSettings
from dogmed.models import DoGConv2d

WORLD = World(0, 1, torch.device("cpu"))
MakeConfig = Callable[..., FinetuneConfig]


def assemble(config: FinetuneConfig) -> dict[str, Any]:
    prepared = build.prepare_data(config, Quiet())
    objective = build.build_objective(config, prepared.task.kind, prepared.task.num_classes)
    network = build.build_network(config, objective.num_outputs)
    model = network.model
    model.to(memory_format=torch.channels_last)
    batches = build.build_batches(config, prepared, WORLD, network)
    optimizer, scheduler = build.build_optimizer(config, model, len(batches["train"]))
    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "objective": objective,
        "batches": batches,
        "scale": network.scale,
    }


def make_loop(parts: dict[str, Any], config: FinetuneConfig) -> Loop:
    settings = LoopSettings(config.epochs, "auc", config.optim.clip_grad, 0, parts["scale"])
    return Loop(
        parts["model"], parts["model"], parts["optimizer"], parts["scheduler"],
        parts["objective"], parts["batches"], WORLD, settings,
    )  # fmt: skip


def run(loop: Loop, path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    loop.run(
        path,
        on_step=lambda step, steps: None,
        on_epoch=lambda row, improved: rows.append(row),
        on_best=lambda: None,
        stop_requested=lambda: None,
    )
    return rows


@pytest.mark.parametrize("clip_grad", [None, 0.5])
def test_monai_engine_trains_as_a_plain_loop_does(
    make_config: MakeConfig, tmp_path: Path, clip_grad: float | None
) -> None:
    config = make_config(epochs=2, optim__clip_grad=clip_grad, optim__warmup_epochs=0.5)
    parts = assemble(config)
    rows = run(make_loop(parts, config), tmp_path / "last.pt")

    plain = assemble(config)
    model, objective, train = plain["model"], plain["objective"], plain["batches"]["train"]
    updates, losses = 0, []
    for epoch in range(config.epochs):
        train.set_epoch(epoch)
        model.train()
        total, count = 0.0, 0
        for batch in train:
            plain["optimizer"].zero_grad()
            per_sample = objective.loss(model(batch["image"]), batch["label"], reduction="none")
            (per_sample.sum() * (1 / len(per_sample))).backward()
            if clip_grad is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip_grad)
            plain["optimizer"].step()
            updates += 1
            plain["scheduler"].step_update(updates)
            total += float(per_sample.detach().sum())
            count += len(per_sample)
        losses.append(total / count)

    for (name, ours), (_, theirs) in zip(
        parts["model"].state_dict().items(), model.state_dict().items(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert [row["train_loss"] for row in rows] == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize("scale_aug", ["off", "hybrid"])
def test_a_stop_at_any_step_and_a_resume_give_the_same_weights(
    make_config: MakeConfig, tmp_path: Path, scale_aug: str
) -> None:
    config = make_config(
        epochs=3, net__drop_path=0.3, net__kernel_size=9, scale_aug=scale_aug,
        **({"scale__probability": 0.7} if scale_aug != "off" else {}),
    )  # fmt: skip
    whole = assemble(config)
    run(make_loop(whole, config), tmp_path / "whole.pt")
    steps = len(whole["batches"]["train"])
    rng = np.random.default_rng()  # another place at every run of the test
    for stop_at in rng.choice(np.arange(1, config.epochs * steps), size=3, replace=False):
        parts = assemble(config)
        loop = make_loop(parts, config)
        taken = 0

        def after_step(step: int, steps: int) -> None:
            nonlocal taken
            taken += 1

        with pytest.raises(Interrupted, match="the state is saved"):
            loop.run(
                tmp_path / "last.pt",
                on_step=after_step,
                on_epoch=lambda row, improved: None,
                on_best=lambda: None,
                stop_requested=lambda: 15 if taken >= stop_at else None,  # noqa: B023
            )
        torch.rand(7)  # whatever happens to the generators in between does not matter
        again = assemble(config)
        loop = make_loop(again, config)
        loop.load(checkpoint.load(tmp_path / "last.pt"))
        run(loop, tmp_path / "last.pt")
        for name, tensor in whole["model"].state_dict().items():
            assert torch.equal(tensor, again["model"].state_dict()[name]), (stop_at, name)
        first = checkpoint.load(tmp_path / "whole.pt")
        second = checkpoint.load(tmp_path / "last.pt")
        for progress in (first["progress"], second["progress"]):
            for row in progress["rows"]:
                del row["epoch_seconds"], row["images_per_second"]
        assert first["progress"] == second["progress"]


def test_every_step_has_the_scale_and_kernels_drawn_for_it_and_evaluation_is_whole(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(
        epochs=2, batch_size=32, net__kernel_size=9, scale_aug="hybrid", scale__probability=0.7
    )
    parts = assemble(config)
    loop = make_loop(parts, config)
    layers = [m for m in loop.model.modules() if isinstance(m, DoGConv2d)]
    seen: dict[bool, list[tuple[int, int]]] = {True: [], False: []}

    def note(model: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        (kernel_size,) = {layer.kernel_size for layer in layers}
        seen[model.training].append((args[0].shape[-1], kernel_size))

    loop.model.register_forward_pre_hook(note)
    run(loop, tmp_path / "last.pt")
    draws = [parts["scale"].draw(k) for k in range(2 * len(parts["batches"]["train"]))]
    expected = [(round(28 * draw.factor), draw.kernel_size or 9) for draw in draws]
    assert seen[True] == expected
    assert len({side for side, _ in expected}) > 2 and len({k for _, k in expected}) > 1
    assert set(seen[False]) == {(28, 9)}
    assert make_loop(assemble(make_config()), make_config()).settings.scale is None


def test_images_of_the_whole_side_with_smaller_kernels_are_not_for_the_compiled_network(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(
        epochs=1, batch_size=32, net__kernel_size=9, scale_aug="hybrid", scale__probability=0.7,
        scale__range=[1, 1],
    )  # fmt: skip
    loop = make_loop(assemble(config), config)
    layer = next(m for m in loop.model.modules() if isinstance(m, DoGConv2d))
    seen: list[tuple[int, bool]] = []
    loop.network.register_forward_pre_hook(lambda _, a: seen.append((layer.kernel_size, a[1])))
    run(loop, tmp_path / "last.pt")
    assert set(seen) == {(9, True), (7, False)}


def test_a_loss_that_is_not_finite_stops_with_epoch_step_and_rate(
    run_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError) as caught:
        run_tiny(optim__lr=1e3, optim__weight_decay=0.0, epochs=5, checkpoint__minutes=1e-9)
    message = str(caught.value)
    assert re.search(r"not finite in epoch \d+, step \d+ of \d+, at learning rate", message), (
        message
    )
    assert "\n" not in message
    (folder,) = (tmp_path / "runs").rglob("seed0")
    for name, tensor in checkpoint.load(folder / "checkpoints" / "last.pt")["model"].items():
        assert torch.isfinite(tensor.float()).all(), name
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["train_loss"]) for row in rows)

"""Pretraining beside a loop of timm's own functions: the same pixels, rates, losses and weights.

``benchmarks/parity.py`` compares with timm's training script itself; this needs no file of timm's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image, ImageOps
from timm.data import create_dataset, create_transform
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import random_seed
from torch import Tensor, nn

import dogmed.models  # noqa: F401  (registers dognext_test)
from dogmed.distributed import World
from dogmed.pretrain import build
from dogmed.pretrain.config import PretrainConfig
from dogmed.pretrain.images import ImageSet, open_splits
from dogmed.pretrain.loop import Loop
from dogmed.pretrain.names import shuffled
from dogmed.pretrain.transforms import seed_image

EPOCHS, BATCH, SIZE, RATE = 2, 8, 32, 1e-3


@dataclass
class Course:
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    pixels: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)  # torch's generator before each forward pass
    start: list[Tensor] = field(default_factory=list)
    end: list[Tensor] = field(default_factory=list)


def copies(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def run_dogmed(config: PretrainConfig, images: tuple[ImageSet, ImageSet], last: Path) -> Course:
    course, world = Course(), World(0, 1, torch.device("cpu"))
    network = build.build_network(config, len(images[0].classes))
    model = network.model.to(memory_format=torch.channels_last)
    course.start = copies(model)
    batches = build.build_batches(config, images, network, world)
    optimizer, scheduler = build.build_optimizer(config, model, len(batches["train"]))
    loop = Loop(
        model, model, optimizer, scheduler, batches, world, build.loop_settings(config), None
    )

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            course.pixels.append(inputs[0])
            course.states.append(torch.get_rng_state())

    def on_step(done: int, _: int) -> None:
        course.losses.append(float(loop.losses[done - 1]) / BATCH)
        course.rates.append(loop.lr)

    model.register_forward_pre_hook(before)
    loop.run(
        last,
        on_step=on_step,
        on_epoch=lambda *_: None,
        on_best=lambda: None,
        stop_requested=lambda: None,
    )
    course.end = copies(model)
    return course


def run_timm(config: PretrainConfig, images: ImageSet, states: list[Tensor]) -> Course:
    """The recipe in timm's words; order and random numbers are dogmed's."""
    course, steps = Course(), len(images) // BATCH
    random_seed(config.seed)
    model = timm.create_model(config.model, num_classes=4, drop_path_rate=0.1)
    course.start = copies(model)
    dataset = create_dataset("", root=str(images.root), split="train", is_training=True)
    dataset.transform = create_transform(
        (3, SIZE, SIZE),
        is_training=True,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        interpolation="bicubic",
        auto_augment="rand-m9-mstd0.5-inc1",
        re_prob=0.25,
        re_mode="pixel",
    )
    number = {dataset.filename(i): i for i in range(len(dataset))}
    optimizer = create_optimizer_v2(
        model, opt="adamw", lr=RATE, weight_decay=0.3, betas=(0.9, 0.999)
    )
    scheduler, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=EPOCHS, step_on_epochs=False, updates_per_epoch=steps
    )
    criterion = LabelSmoothingCrossEntropy(0.2)
    model.train()
    for step in range(EPOCHS * steps):
        epoch, place = divmod(step, steps)
        samples = []
        for i in shuffled(len(images), config.seed, epoch)[place * BATCH : (place + 1) * BATCH]:
            seed_image(config.seed, epoch, int(images.positions[i]))
            samples.append(dataset[number[images.name(i)]])
        course.pixels.append(torch.stack([image for image, _ in samples]))
        torch.set_rng_state(states[step])
        loss = criterion(model(course.pixels[-1]), torch.tensor([label for _, label in samples]))
        optimizer.zero_grad()
        loss.backward()
        course.rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step_update(step + 1)
        course.losses.append(loss.item())
    course.end = copies(model)
    return course


@pytest.mark.parametrize("name", ["convnextv2_atto", "dognext_test"])
def test_training_is_that_of_timms_own_functions(
    make_config: Callable[..., PretrainConfig],
    jpegs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    exact = ImageOps.posterize  # timm asks it for 0 bits too, which Pillow 13 refuses
    monkeypatch.setattr(
        ImageOps,
        "posterize",
        lambda image, bits: exact(image, bits) if bits else Image.new(image.mode, image.size),
    )
    config = make_config(
        model=name, size=SIZE, epochs=EPOCHS, batch_size=BATCH, optim__lr=RATE, optim__lr_base=1.0
    )
    images = open_splits(jpegs)
    ours = run_dogmed(config, images, tmp_path / "last.pt")
    theirs = run_timm(config, images[0], ours.states)
    assert len(ours.losses) == len(theirs.losses) == 10
    assert ours.rates == theirs.rates
    for a, b in zip(ours.pixels + ours.start, theirs.pixels + theirs.start, strict=True):
        assert torch.equal(a, b)
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-6)
    far = nn.utils.get_total_norm([a - b for a, b in zip(ours.end, theirs.end, strict=True)])
    way = nn.utils.get_total_norm([a - b for a, b in zip(ours.end, ours.start, strict=True)])
    assert far < 1e-5 * way

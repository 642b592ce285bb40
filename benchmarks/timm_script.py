"""timm's own training script, run as it is and watched through PyTorch's hooks.

Nothing of the script is copied here: ``run_timm`` imports the file it is given, with the script's own options in
``sys.argv``. What it may be given from outside is the order of the images, in place of its sampler's, and
the states of the random number generators before each image and each forward pass.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib.util
import io
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image, ImageOps
from timm.loss import LabelSmoothingCrossEntropy
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dogmed.pretrain import build
from dogmed.pretrain.config import PretrainConfig
from dogmed.pretrain.images import ImageSet
from dogmed.pretrain.names import shuffled
from dogmed.pretrain.transforms import seed_image


@dataclass
class Course:
    """What a training did, step by step."""

    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    """Of the gradient, after clipping."""
    pixels: list[str] = field(default_factory=list)
    """SHA-256 of each micro-batch."""
    states: list[Tensor] = field(default_factory=list)
    """torch's generator before each forward pass."""
    decayed: frozenset[str] = frozenset()
    """Names of the parameters with weight decay."""
    start: dict[str, Tensor] = field(default_factory=dict)
    end: dict[str, Tensor] = field(default_factory=dict)
    val: list[float] = field(default_factory=list)
    """Loss on val after each epoch."""


@contextlib.contextmanager
def watched(given: list[Tensor] | None = None) -> Iterator[Course]:
    """Record the training inside through hooks, and give it ``given`` as torch's generator states."""
    course = Course()
    parts: list[float] = []  # losses of this step's micro-batches
    models: list[nn.Module] = []  # the one that is trained

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not (
            module.training and hasattr(module, "pretrained_cfg")
        ):  # only a whole network has it
            return
        if not models:
            models.append(module)
            course.start = {name: p.detach().clone() for name, p in module.named_parameters()}
        course.pixels.append(hashlib.sha256(inputs[0].contiguous().numpy().tobytes()).hexdigest())
        if given is not None:
            torch.set_rng_state(given[len(course.states)])
        course.states.append(torch.get_rng_state())

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, LabelSmoothingCrossEntropy):  # timm's; dogmed's loss is a function
            parts.append(output.item())

    def step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        (rate,) = {group["lr"] for group in optimizer.param_groups}
        names = {id(p): name for name, p in models[0].named_parameters()}
        groups = [
            (p, group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
        ]
        assert {id(p) for p, _ in groups} == set(names)
        course.decayed = frozenset(names[id(p)] for p, decay in groups if decay)
        course.rates.append(rate)
        course.norms.append(float(torch.nn.utils.get_total_norm([p.grad for p, _ in groups])))
        if parts:
            course.losses.append(statistics.fmean(parts))
            parts.clear()

    hooks = [
        register_module_forward_pre_hook(before),
        register_module_forward_hook(after),
        register_optimizer_step_pre_hook(step),
    ]
    try:
        yield course
    finally:
        for hook in hooks:
            hook.remove()
    course.end = {name: p.detach().clone() for name, p in models[0].named_parameters()}


class Order:
    """dogmed's order and random numbers for a data set of timm's: its sampler, and round its reader.

    Args:
        dataset: timm's, of the same files; it is changed.
        images: dogmed's.
        seed: of order and images.
    """

    def __init__(self, dataset: Any, images: ImageSet, seed: int):
        number = {dataset.filename(i): i for i in range(len(dataset))}
        self.numbers = [number[images.name(i)] for i in range(len(images))]  # ours -> timm's
        self.positions = dict(zip(self.numbers, images.positions.tolist(), strict=True))
        self.reader, self.seed, self.epoch = dataset.reader, seed, 0
        dataset.reader, dataset.set_epoch = self, self.set_epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[int]:
        return (self.numbers[i] for i in shuffled(len(self), self.seed, self.epoch))

    def __getitem__(self, i: int) -> Any:
        seed_image(self.seed, self.epoch, self.positions[i])
        return self.reader[i]


def run_timm(
    script: Path,
    config: PretrainConfig,
    images: ImageSet,
    flags: tuple[str, ...],
    like: Course | None,
) -> Course:
    """Run timm's script with the options that mean ``config``.

    Args:
        script: its train.py.
        config: what to train.
        images: dogmed's training images, for their order.
        flags: further options of the script.
        like: dogmed's run, whose order and generator states it gets; None leaves it its own.
    """
    module = load(script)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        said = stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(said))
        stack.enter_context(patch.object(ImageOps, "posterize", posterize(ImageOps.posterize)))
        if like is not None:
            stack.enter_context(
                patch.object(
                    module, "create_loader", in_order(module.create_loader, images, config.seed)
                )
            )
        words = [
            *arguments(config, len(images.classes)),
            *flags,
            f"--output={folder}",
            "--experiment=run",
        ]
        stack.enter_context(patch.object(sys, "argv", [str(script), *words]))
        course = stack.enter_context(watched(like.states if like else None))
        module.main()
        with (Path(folder) / "run" / "summary.csv").open() as file:
            course.val = [float(row["eval_loss"]) for row in csv.DictReader(file)]
    return course


def load(script: Path) -> Any:
    """Import the script anew."""
    spec = importlib.util.spec_from_file_location("timm_train", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_order(create_loader: Callable[..., Any], images: ImageSet, seed: int) -> Callable[..., Any]:
    """The script's ``create_loader``, whose training loader then has dogmed's order."""

    def create(dataset: Any, *args: Any, **options: Any) -> Any:
        loader = create_loader(dataset, *args, **options)
        if options["is_training"]:
            loader.batch_sampler.sampler = Order(dataset, images, seed)
        return loader

    return create


def posterize(original: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
    """Pillow's, which since version 13 raises where older ones gave a black image (0 bits)."""
    return lambda image, bits: original(image, bits) if bits else Image.new(image.mode, image.size)


def arguments(config: PretrainConfig, classes: int) -> list[str]:
    """dogmed's options in the words of timm's script."""
    optim, augment = config.optim, config.augment
    at_once = min(config.micro_batch, config.batch_size)
    assert optim.betas and optim.schedule == "cosine" and not optim.warmup_epochs
    given = {
        "data-dir": config.data, "model": config.model, "num-classes": classes, "img-size": config.size,
        "crop-pct": config.eval.crop_pct, "epochs": config.epochs, "seed": config.seed,
        "batch-size": at_once, "grad-accum-steps": config.batch_size // at_once,
        "validation-batch-size": config.eval.batch_size, "opt": optim.name,
        "opt-betas": optim.betas, "lr": build.peak_lr(config), "weight-decay": optim.weight_decay,
        "clip-grad": optim.clip_grad, "sched": "cosine", "warmup-epochs": 0, "min-lr": optim.min_lr,
        "smoothing": config.loss.label_smoothing, "drop-path": config.net.drop_path,
        "scale": augment.crop_scale, "ratio": augment.crop_ratio, "hflip": augment.hflip,
        "train-interpolation": augment.interpolation, "aa": augment.auto_augment,
        "color-jitter": augment.color_jitter or 0, "reprob": augment.erase,
        "remode": augment.erase_mode, "recount": augment.erase_count,
        "device": "cpu", "workers": 0, "checkpoint-hist": 1,
    }  # fmt: skip
    words = ["--sched-on-updates"]
    for name, value in given.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words

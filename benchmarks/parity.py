"""The first 20 losses of ``dogmed pretrain`` beside those of timm's own training script.

    python -m benchmarks.parity --timm-script train.py --data DIR --write

DIR holds train and val as class folders, 160 images or more of train for the settings here. timm's script
(https://github.com/huggingface/pytorch-image-models, train.py) is run as it is, with its own options, data
set, transforms, model, optimizer, schedule and loop, in this process. From outside it is given two
things: the order of the images (in place of its sampler's), and the states of the random number generators
that dogmed's run had before each image and each forward pass. Losses, learning rates, gradients and
pixels are seen by PyTorch's global hooks. The last comparison gives it nothing: all its own numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.__main__ import ROOT, machine, replace
from benchmarks.timm_script import Course, run_timm, watched
from dogmed import config as configuration
from dogmed.distributed import World
from dogmed.pretrain import build
from dogmed.pretrain.config import PretrainConfig
from dogmed.pretrain.images import ImageSet, open_splits
from dogmed.pretrain.loop import Loop

SETTINGS = {
    "model": "convnextv2_atto", "size": 224, "epochs": 2, "batch_size": 16, "optim.lr": 8e-4,
    "device": "cpu", "loader.workers": 0, "eval.batch_size": 16,
}  # fmt: skip
PLAIN = {
    "net.drop_path": 0.0, "augment.crop_scale": [1.0, 1.0], "augment.crop_ratio": [1.0, 1.0],
    "augment.hflip": 0.0, "augment.auto_augment": None, "augment.erase": 0.0,
}  # fmt: skip
DROP = {**PLAIN, "net.drop_path": 0.1}
LIKE_OURS = ("--no-prefetcher", "--channels-last")


@dataclass(frozen=True)
class Stage:
    """One comparison: what both sides are told, and what each is told besides."""

    title: str
    options: dict[str, Any]
    flags: tuple[str, ...] = LIKE_OURS
    """Further options of timm's script."""
    fast_grn: bool = True
    """Whether dogmed computes GRN its own way."""
    table: str | None = None
    """Heading of its columns in the table of losses; None leaves it out."""


STAGES = {
    "plain, timm's GRN": Stage("no augmentation, no drop path; timm's GRN in both", PLAIN, fast_grn=False),
    "plain": Stage("no augmentation, no drop path", PLAIN, table="plain"),
    "drop path": Stage("drop path 0.1", DROP, table="drop path"),
    "recipe": Stage("the recipe's augmentation and drop path", {}, table="recipe"),
    "prefetcher": Stage("plain; timm normalises as its prefetcher does", PLAIN, ("--channels-last",)),
    "clipped": Stage("plain; gradients clipped to a norm of 1", {**PLAIN, "optim.clip_grad": 1.0}),
    "accumulated": Stage("plain; 2 micro-batches of 8", {**PLAIN, "micro_batch": 8}),
    "dognext": Stage(
        "recipe; dognext_atto, for which timm's script imports dogmed.models",
        {"model": "dognext_atto"}, (*LIKE_OURS, "--device-modules", "dogmed.models"),
    ),
    "control": Stage(
        "control: plain, but timm is told weight decay 0.29 for 0.3",
        PLAIN, (*LIKE_OURS, "--weight-decay", "0.29"),
    ),
}  # fmt: skip


def run_dogmed(config: PretrainConfig, images: tuple[ImageSet, ImageSet], fast_grn: bool) -> Course:
    """Train as ``dogmed pretrain`` does, without its run folder."""
    world = World(0, 1, torch.device("cpu"))
    with contextlib.ExitStack() as stack:
        if not fast_grn:
            stack.enter_context(patch("dogmed.models.factory.with_fast_grn", lambda model: model))
        network = build.build_network(config, len(images[0].classes))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = network.model.to(memory_format=torch.channels_last)
        batches = build.build_batches(config, images, network, world)
        optimizer, scheduler = build.build_optimizer(config, model, len(batches["train"]))
        settings = build.loop_settings(config)
        loop = Loop(model, model, optimizer, scheduler, batches, world, settings, None)
        course = stack.enter_context(watched())

        def on_step(done: int, _: int) -> None:
            course.losses.append(float(loop.losses[done - 1]) / config.batch_size)

        loop.run(
            folder / "last.pt",
            on_step=on_step,
            on_epoch=lambda row, _: course.val.append(row["val_loss"]),
            on_best=lambda: None,
            stop_requested=lambda: None,
        )
    return course


def main() -> None:
    """Run all stages, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--timm-script", type=Path, required=True, help="timm's train.py")
    parser.add_argument("--data", type=Path, required=True, help="folder with train and val")
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES))
    parser.add_argument("--size", type=int, default=SETTINGS["size"], help="pixels")
    parser.add_argument(
        "--seeds",
        type=int,
        default=10,
        help="runs with timm's own random numbers, 2 or more; 0: none",
    )
    parser.add_argument("--seeds-size", type=int, default=64, help="pixels of those")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/parity.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = open_splits(args.data)
    base = {"data": str(args.data), "size": args.size}
    texts = [described(args.timm_script, images[0])]
    if args.stages:
        texts += in_step(args.timm_script, base, images, args.stages)
    if args.seeds:
        base["size"] = args.seeds_size
        texts.append(with_own_numbers(args.timm_script, base, images, args.seeds))
    text = "\n\n".join(texts)
    print(text)
    if args.write:
        replace(ROOT / "docs" / "parity.md", "parity", text)


def settings(base: dict[str, Any], options: dict[str, Any]) -> PretrainConfig:
    """The recipe imagenet50ep with these options."""
    recipe = {"recipe": "imagenet50ep", **configuration.recipe("pretrain/imagenet50ep")}
    return configuration.build(
        PretrainConfig, configuration.merge(recipe, {**SETTINGS, **base, **options})
    )


def in_step(
    script: Path, base: dict[str, Any], images: tuple[ImageSet, ImageSet], names: list[str]
) -> list[str]:
    """Run the stages with dogmed's order and random numbers on both sides."""
    rows, curves = [], {}
    for name in names:
        stage = STAGES[name]
        config = settings(base, stage.options)
        ours = run_dogmed(config, images, stage.fast_grn)
        theirs = run_timm(script, config, images[0], stage.flags, ours)
        rows.append((stage.title, *compared(ours, theirs)))
        if stage.table:
            curves[stage.table] = theirs, ours
        print(f"{name}: done", file=sys.stderr, flush=True)
    return [summary(rows), losses(curves)] if curves else [summary(rows)]


def compared(ours: Course, theirs: Course) -> tuple[str, ...]:
    """The columns of the summary after the first."""
    for course in (ours, theirs):
        assert len(course.losses) == len(course.rates) == len(ours.rates)
    alike = sum(a == b for a, b in zip(ours.pixels, theirs.pixels, strict=True))
    start = all(torch.equal(p, theirs.start[name]) for name, p in ours.start.items())
    gaps = [abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)]
    norms = max(abs(a / b - 1) for a, b in zip(ours.norms, theirs.norms, strict=True))
    rates = max(abs(a / b - 1) for a, b in zip(ours.rates, theirs.rates, strict=True))
    far = [float((p - theirs.end[name]).norm()) for name, p in ours.end.items()]
    way = [float((p - ours.start[name]).norm()) for name, p in ours.end.items()]
    val = max(abs(a - b) for a, b in zip(ours.val, theirs.val, strict=True))
    return (
        "yes" if start and ours.start.keys() == theirs.start.keys() else "no",
        f"{alike} of {len(ours.pixels)}",
        "yes" if ours.decayed == theirs.decayed else "no",
        f"{rates:.0e}", f"{gaps[0]:.1e}", f"{max(gaps):.1e}", f"{norms:.1e}",
        f"{np.linalg.norm(far) / np.linalg.norm(way):.1e}", f"{val:.1e}",
    )  # fmt: skip


def with_own_numbers(
    script: Path, base: dict[str, Any], images: tuple[ImageSet, ImageSet], seeds: int
) -> str:
    """Let timm's script shuffle and augment with its own numbers, and compare means over seeds."""
    courses: dict[str, list[Course]] = {"timm": [], "dogmed": []}
    for seed in range(seeds):
        config = settings(base, {"seed": seed})
        courses["dogmed"].append(run_dogmed(config, images, True))
        courses["timm"].append(run_timm(script, config, images[0], ("--channels-last",), None))
        print(f"seed {seed}: done", file=sys.stderr, flush=True)
    quantities = {
        "first loss": lambda c: c.losses[0],
        "mean of the 20 losses": lambda c: statistics.fmean(c.losses),
        "mean of the last 5": lambda c: statistics.fmean(c.losses[-5:]),
        "mean gradient norm": lambda c: statistics.fmean(c.norms),
        "loss on val": lambda c: c.val[-1],
    }
    rows: list[tuple[str, ...]] = [
        (f"{seeds} seeds, {base['size']} px", "timm", "dogmed", "difference", "its standard error")
    ]
    for name, of in quantities.items():
        values = {side: [of(course) for course in found] for side, found in courses.items()}
        gaps = [a - b for a, b in zip(values["dogmed"], values["timm"], strict=True)]
        means = [statistics.fmean(v) for v in (values["timm"], values["dogmed"], gaps)]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5
        rows.append((name, *(f"{mean:.3f}" for mean in means), f"{error:.3f}"))
    return table(rows)


def described(script: Path, images: ImageSet) -> str:
    """Versions, machine and data."""
    import PIL
    import torchvision

    facts = machine("cpu", 0.0)
    digest = hashlib.sha256(script.read_bytes()).hexdigest()
    return (
        f"{facts['device']}, 1 thread; Python {facts['python']}, torch {facts['torch']}, torchvision "
        f"{torchvision.__version__}, timm {facts['timm']}, Pillow {PIL.__version__}. "
        f"train.py: SHA-256 {digest}. Data: {len(images)} training images of {len(images.classes)} classes."
    )


def summary(rows: list[tuple[str, ...]]) -> str:
    """One row a stage."""
    heading = (
        "stage", "initial weights equal", "batches equal", "decayed tensors equal", "learning rate", "first loss",
        "largest of 20", "gradient norm", "weights at the end", "loss on val",
    )  # fmt: skip
    return table([heading, *rows])


def losses(curves: dict[str, tuple[Course, Course]]) -> str:
    """The losses of all steps."""
    heading = ["step", "learning rate"]
    for name in curves:
        heading += [f"{name}: timm", "dogmed", "difference"]
    rows = [tuple(heading)]
    for i, rate in enumerate(next(iter(curves.values()))[0].rates):
        row = [str(i + 1), f"{rate:.3e}"]
        for theirs, ours in curves.values():
            a, b = theirs.losses[i], ours.losses[i]
            row += [f"{a:.7f}", f"{b:.7f}", f"{b - a:+.1e}"]
        rows.append(tuple(row))
    return table(rows)


def table(rows: list[tuple[str, ...]]) -> str:
    """Markdown; all but the first column to the right."""
    lines = [rows[0], ("---", *("---:" for _ in rows[0][1:])), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()

"""Exponential moving averages of DoGNeXt: of parameters, of |sigma|, of amplitudes, of kernels.

    python -m benchmarks.ema exact
    python -m benchmarks.ema train --data DIR --model dognext_atto --lr 8e-4 --json ema.json

``exact`` prints what follows from the formulas of the kernels alone. ``train`` trains one small
network (the atto named, but with the depths and widths below) and scores, on all of val, the network
and its averages at several decays. DIR holds images as ``dogmed pretrain`` takes them; they are
resized to ``--size``, flipped, and shifted by up to 4 px. ``w`` after a decay: with timm's warm-up.

The forms of an average differ in what is averaged of a DoGConv; all else is averaged alike:

- parameters: as timm's ModelEmaV3 does it
- folded: |sigma| in place of sigma
- amplitudes: |sigma|, and what the kernel is linear in: exp(log_scale) times the mixing weights
- kernels: the sampled kernels
- stale: nothing: the initial kernels, as where an average's kernels are sampled once and kept
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from benchmarks.__main__ import machine
from benchmarks.ema_formulas import (
    amplitudes,
    gradient_table,
    initial_weight_table,
    kernel_gap,
    set_amplitudes,
    spread_table,
)
from dogmed import optim
from dogmed.models import DoGConv2d
from dogmed.pretrain.images import ImageSet, load_rgb, open_splits

DEPTHS, DIMS = (1, 1, 2, 1), (16, 32, 64, 128)
SHIFT = 4
FORMS = ("parameters", "folded", "amplitudes", "kernels", "stale")


def main() -> None:
    """Print one part's tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("exact")
    train = parts.add_parser("train")
    train.add_argument("--data", type=Path, required=True, help="folder with train and val")
    train.add_argument("--model", choices=("dognext_atto", "convnextv2_atto"), required=True)
    train.add_argument("--lr", type=float, default=8e-4, help="peak")
    train.add_argument("--schedule", choices=("cosine", "constant"), default="cosine")
    train.add_argument("--steps", type=int, default=6000)
    train.add_argument("--batch", type=int, default=64)
    train.add_argument("--size", type=int, default=32, help="pixels")
    train.add_argument("--decays", nargs="+", default=["0.99", "0.999", "0.9999", "0.9999w"])
    train.add_argument("--score-at", type=float, nargs="+", default=[0.1, 0.5, 1], help="of steps")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.part == "exact":
        print(initial_weight_table(), gradient_table(), spread_table(), sep="\n\n")
        return
    result = {"machine": machine("cpu", 0), **vars(args), "data": None, **run(args)}
    if args.json:
        args.json.write_text(json.dumps(result, indent=2, default=str) + "\n")


class Averages:
    """One decay's averages in every form.

    Args:
        model: as initialised.
        decay: such as "0.999", or "0.999w" with timm's warm-up.
    """

    def __init__(self, model: nn.Module, decay: str) -> None:
        warm = decay.endswith("w")
        self.average = ModelEmaV3(model, decay=float(decay.removesuffix("w")), use_warmup=warm)
        self.warm = warm
        self.initial = [layer.kernel() for layer in layers(model)]
        self.kernels = [kernel.clone() for kernel in self.initial]
        self.widths = [layer.sigma.abs() for layer in layers(model)]
        self.amplitudes = [amplitudes(layer) for layer in layers(model)]

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the network after a step; steps count from 1."""
        at = step if self.warm else None
        self.average.update(model, at)
        weight = 1 - self.average.get_decay(at)
        for i, layer in enumerate(layers(model)):
            self.kernels[i].lerp_(layer.kernel(), weight)
            self.widths[i].lerp_(layer.sigma.abs(), weight)
            self.amplitudes[i].lerp_(amplitudes(layer), weight)

    @torch.no_grad()
    def form(self, name: str) -> nn.Module:
        """The averaged network of a form, ready to be scored."""
        model = copy.deepcopy(self.average.module)
        for i, layer in enumerate(layers(model)):
            if name == "folded":
                layer.sigma.copy_(self.widths[i])
            elif name == "amplitudes":
                set_amplitudes(layer, self.widths[i], self.amplitudes[i])
            elif name in ("kernels", "stale"):
                fixed = (self.kernels if name == "kernels" else self.initial)[i]
                layer.current_kernel = lambda fixed=fixed: fixed  # type: ignore[method-assign]
        return model

    @torch.no_grad()
    def gap(self, model: nn.Module) -> dict[str, float]:
        """How far the kernels of a form are from the averaged kernels."""
        kernels = torch.cat([layer.current_kernel() for layer in layers(model)])
        gaps = kernel_gap(kernels, torch.cat(self.kernels))
        return {"median": float(gaps.median()), "p90": float(gaps.quantile(0.9))}


class Changes:
    """Counts widths that change their sign and channels whose heaviest function changes."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = layers(model)
        self.first = self.last = self._now()
        self.counts = [0, 0]

    def step(self) -> None:
        """Look again."""
        now = self._now()
        for i in range(2):
            self.counts[i] += int((now[i] != self.last[i]).sum())
        self.last = now

    @torch.no_grad()
    def _now(self) -> tuple[Tensor, Tensor]:
        signs = torch.cat([layer.sigma > 0 for layer in self.layers])
        heaviest = [amplitudes(layer).flatten(1).argmax(1) for layer in self.layers]
        return signs, torch.cat(heaviest)

    def __str__(self) -> str:
        (signs, heaviest), (first_signs, first_heaviest) = self.last, self.first
        return (
            f"sign changes {self.counts[0]} ({int((signs != first_signs).sum())} of {signs.numel()} "
            f"widths differ from the start); changes of the heaviest function {self.counts[1]} "
            f"({int((heaviest != first_heaviest).sum())} of {len(heaviest)} channels differ)"
        )


def layers(model: nn.Module) -> list[DoGConv2d]:
    """A network's DoGConvs."""
    return [module for module in model.modules() if isinstance(module, DoGConv2d)]


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train and score; prints a table as it goes."""
    train, val = (pixels(images, args.size) for images in open_splits(args.data))
    torch.manual_seed(args.seed)
    classes = int(train[1].max()) + 1
    model = timm.create_model(args.model, num_classes=classes, depths=DEPTHS, dims=DIMS)
    model.to(memory_format=torch.channels_last)
    optimizer = optim.create_optimizer(model, lr=args.lr, weight_decay=0.3)
    scheduler = optim.create_scheduler(
        optimizer, name=args.schedule, steps=args.steps, warmup_steps=0, min_lr=0.0
    )
    with torch.no_grad():
        averages = {decay: Averages(model, decay) for decay in args.decays}
    changes = Changes(model) if layers(model) else None
    forms = FORMS if layers(model) else FORMS[:1]
    print(f"{args.model}, {len(train[0])} images of {args.size} px, {classes} classes")
    print("| step | average | accuracy@1, % | val loss | kernel gap: median | 90th percentile |")
    print("|--:|---|--:|--:|--:|--:|")
    rng, rows, started = np.random.default_rng(args.seed), [], time.monotonic()
    order: list[int] = []
    score_at = {round(share * args.steps) for share in args.score_at}
    for step in range(1, args.steps + 1):
        if len(order) < args.batch:
            order = rng.permutation(len(train[0])).tolist()
        batch, order = order[: args.batch], order[args.batch :]
        loss = F.cross_entropy(
            model.train()(augmented(train[0][batch], rng)), train[1][batch], label_smoothing=0.2
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step_update(step)
        for average in averages.values():
            average.update(model, step)
        if changes:
            changes.step()
        if step in score_at:
            rows.append(report(step, "none", score(model, val)))
            for decay, average in averages.items():
                for form in forms:
                    averaged = average.form(form)
                    gap = average.gap(averaged) if layers(model) else {}
                    rows.append(report(step, f"{decay} {form}", {**score(averaged, val), **gap}))
            print(f"| {step} | {changes or ''} | | | | |", flush=True)
    seconds = time.monotonic() - started
    print(f"{seconds:.0f} s, of which the averages took a part")
    return {"rows": rows, "changes": str(changes), "seconds": seconds}


def report(step: int, name: str, figures: dict[str, float]) -> dict[str, Any]:
    """Print a row; returns it."""
    cells = [f"{figures['acc1']:.2f}", f"{figures['loss']:.4f}"]
    cells += [f"{figures[key]:.4f}" if key in figures else "" for key in ("median", "p90")]
    print(f"| {step} | {name} | {' | '.join(cells)} |", flush=True)
    return {"step": step, "average": name, **figures}


def pixels(images: ImageSet, size: int) -> tuple[Tensor, Tensor]:
    """All images of a split, (N, 3, S, S) uint8, and their labels."""
    stack = [np.asarray(load_rgb(images.open(i)).resize((size, size))) for i in range(len(images))]
    return torch.from_numpy(np.stack(stack)).permute(0, 3, 1, 2), torch.from_numpy(images.labels)


def normalised(images: Tensor) -> Tensor:
    """uint8 -> float32 with ImageNet's mean and standard deviation."""
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    return ((images / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def augmented(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Flip each image or not, and shift all (round the edge) by the same."""
    flip = torch.from_numpy(rng.random(len(images)) < 0.5)[:, None, None, None]
    shifts = tuple(int(s) for s in rng.integers(-SHIFT, SHIFT + 1, 2))
    return normalised(torch.where(flip, images.flip(3), images).roll(shifts, (2, 3)))


@torch.no_grad()
def score(model: nn.Module, val: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Accuracy@1 in percent and cross-entropy."""
    model.eval()
    parts = zip(val[0].split(250), val[1].split(250), strict=True)
    logits = torch.cat([model(normalised(images)) for images, _ in parts])
    return {
        "acc1": 100 * float((logits.argmax(1) == val[1]).double().mean()),
        "loss": float(F.cross_entropy(logits, val[1])),
    }


if __name__ == "__main__":
    main()

"""Part 1: a training step and inference, DoGNeXt beside ConvNeXt V2 and ResNet-18.

Throughput is that of the median round, a ratio the median of the rounds' own ratios. Peak memory is
that of training in a process of its own: on a CPU the growth of its resident set over the imports,
on CUDA what the allocator held.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks import timing
from benchmarks.models import (
    DOGNEXT,
    FAST_GRN,
    FOLDED,
    PLAIN,
    REFERENCE,
    RESNET,
    Setting,
    build,
    inference,
    train_step,
)  # fmt: skip
from benchmarks.timing import CLOCK, PROCESSOR, median, ratio, rounds
from dogmed.models import DoGConv2d
from dogmed.models.dog import sampled_together

TRAINED = (REFERENCE, FAST_GRN, DOGNEXT, PLAIN, RESNET)
INFERRED = (REFERENCE, FAST_GRN, DOGNEXT, PLAIN, FOLDED, RESNET)
COMPILED = (REFERENCE, FAST_GRN, DOGNEXT)


def measure(
    device: str, sizes: Sequence[int], batch: int, count: int, compiled_size: int | None
) -> list[dict[str, Any]]:
    """Return a row for each model and size; ``compiled_size`` is measured under torch.compile too."""
    settings = [Setting(size, batch, device, compiled=False) for size in sizes]
    if compiled_size is not None:
        settings.append(Setting(compiled_size, batch, device, compiled=True))
    return [row for s in settings for row in compare(s, memory(s), count)]


def trained(setting: Setting) -> tuple[str, ...]:
    """Names of the models whose training is measured."""
    return COMPILED if setting.compiled else TRAINED


def inferred(setting: Setting) -> tuple[str, ...]:
    """Names of the models whose inference is measured."""
    return COMPILED if setting.compiled else INFERRED


def memory(setting: Setting) -> dict[str, float]:
    """Measure each trained model's peak memory, in MB, in a process of its own.

    Not for compiled models on a CPU, where it cannot be told from the compiler's own.
    """
    if setting.compiled and setting.device == "cpu":
        return {}
    fresh = multiprocessing.get_context("spawn")
    peaks = {}
    for name in trained(setting):
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=fresh) as pool:
            peaks[name] = pool.submit(peak_memory, name, setting).result()
    return peaks


def peak_memory(name: str, setting: Setting) -> float:
    """Return the MB that training a model takes at its peak; to be run in a fresh process."""
    before = timing.peak_memory()
    step = train_step(name, setting)
    for i in range(4):
        if i == 1 and setting.device == "cuda":
            torch.cuda.reset_peak_memory_stats()  # what compiling took is not training's
        step()
    if setting.device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return timing.peak_memory() - before


def sampling(setting: Setting) -> Callable[[], None]:
    """Return a function that samples all kernels of `dognext_atto` and backpropagates through it."""
    model = build(DOGNEXT, setting).train()
    layers = [m for m in model.modules() if isinstance(m, DoGConv2d)]

    def step() -> None:
        with sampled_together(layers):
            kernels = [layer.current_kernel() for layer in layers]
        torch.autograd.backward(kernels, [torch.ones_like(k) for k in kernels])

    return step


def compare(setting: Setting, peaks: dict[str, float], count: int) -> list[dict[str, Any]]:
    """Return a row for each model."""
    device, steps = setting.device, {n: train_step(n, setting) for n in trained(setting)}
    if not setting.compiled:
        steps["sampling"] = sampling(setting)
    training = rounds(steps, device, count)
    forward = rounds({n: inference(n, setting) for n in inferred(setting)}, device, count)
    work = CLOCK if device == "cuda" else PROCESSOR
    rows = []
    for name in inferred(setting):
        row: dict[str, Any] = {"model": name, **dataclasses.asdict(setting)}
        if name in trained(setting):
            row["train_images_per_s"] = setting.batch / median(training, name)
            row["train_time_ratio"] = ratio(training, name, REFERENCE)
            row["train_processor_ratio"] = ratio(training, name, REFERENCE, PROCESSOR)
        if name in peaks:
            row["train_peak_mb"] = peaks[name]
            row["train_memory_ratio"] = peaks[name] / peaks[REFERENCE]
        if name == DOGNEXT and "sampling" in training:
            row["sampling_share"] = ratio(training, "sampling", name, work)
        row["inference_images_per_s"] = setting.batch / median(forward, name)
        row["inference_time_ratio"] = ratio(forward, name, REFERENCE)
        row["inference_processor_ratio"] = ratio(forward, name, REFERENCE, PROCESSOR)
        rows.append(row)
    return rows

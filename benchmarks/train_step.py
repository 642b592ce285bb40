"""Time and memory of a training step and of inference: DoGNeXt beside ConvNeXt V2 and ResNet-18.

    python benchmarks/train_step.py --out train_step.json

Prints a Markdown table and writes JSON. All models take turns, round by round; a throughput is that
of the median round, a ratio the median of the rounds' own ratios, so that what else runs on the
machine weighs on all alike. Training is AdamW in float32 on a CPU and under bfloat16 autocast on
CUDA. Peak memory is that of training in a process of its own: on a CPU the growth of its resident
set over the imports, on CUDA what the allocator held.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

from dogmed.models import DoGConv2d, reparameterize
from dogmed.models.dog import sampled_together

REFERENCE = "convnextv2_atto"
PLAIN, FOLDED = "dognext_atto, plain stem", "dognext_atto, reparameterized"
TRAINED = (REFERENCE, "dognext_atto", PLAIN, "resnet18")
INFERRED = (REFERENCE, "dognext_atto", PLAIN, FOLDED, "resnet18")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
WARM_UP = 2


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all models of a comparison share."""

    size: int
    """Side of the image in pixels."""
    layout: str
    batch: int
    device: str
    compiled: bool


def build(name: str, setting: Setting) -> nn.Module:
    """Return a model of `TRAINED` or `INFERRED` with 1000 classes."""
    torch.manual_seed(0)
    model = timm.create_model(name.partition(",")[0])
    if name == PLAIN:
        model.stem.fused = False
    if name == FOLDED:
        model = reparameterize(model)
    return model.to(setting.device, memory_format=LAYOUTS[setting.layout])


def images(setting: Setting) -> torch.Tensor:
    """Return a batch of noise."""
    x = torch.randn(setting.batch, 3, setting.size, setting.size, device=setting.device)
    return x.contiguous(memory_format=LAYOUTS[setting.layout])


def train_step(name: str, setting: Setting) -> Callable[[], None]:
    """Return a function that does one training step of a model."""
    model, x = build(name, setting).train(), images(setting)
    labels = torch.arange(setting.batch, device=setting.device) % 1000
    cuda = setting.device == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=cuda)
    forward = torch.compile(model) if setting.compiled else model

    def step() -> None:
        with torch.autocast(setting.device, torch.bfloat16, enabled=cuda):
            loss = F.cross_entropy(forward(x), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference(name: str, setting: Setting) -> Callable[[], None]:
    """Return a function that does one forward pass of a model, without gradients."""
    model, x = build(name, setting).eval(), images(setting)
    forward = torch.compile(model) if setting.compiled else model

    def step() -> None:
        with (
            torch.no_grad(),
            torch.autocast(setting.device, torch.bfloat16, enabled=setting.device == "cuda"),
        ):
            forward(x)

    return step


def sampling(setting: Setting) -> Callable[[], None]:
    """Return a function that samples all kernels of `dognext_atto` and backpropagates through it."""
    model = build("dognext_atto", setting).train()
    layers = [m for m in model.modules() if isinstance(m, DoGConv2d)]

    def step() -> None:
        with sampled_together(layers):
            kernels = [layer.current_kernel() for layer in layers]
        torch.autograd.backward(kernels, [torch.ones_like(k) for k in kernels])

    return step


Times = dict[str, list[tuple[float, float]]]
"""Seconds of each step by the clock and of the processor, round by round."""
CLOCK, PROCESSOR = 0, 1


def rounds(steps: dict[str, Callable[[], None]], setting: Setting, count: int) -> Times:
    """Run the steps in turns and time each."""
    seconds: Times = {name: [] for name in steps}
    for i in range(WARM_UP + count):
        for name, step in steps.items():
            wait(setting)
            start = time.perf_counter(), time.process_time()
            step()
            wait(setting)
            end = time.perf_counter(), time.process_time()
            if i >= WARM_UP:
                seconds[name].append((end[0] - start[0], end[1] - start[1]))
    return seconds


def wait(setting: Setting) -> None:
    """Wait for the device."""
    if setting.device == "cuda":
        torch.cuda.synchronize()


def throughput(seconds: Times, name: str, setting: Setting) -> float:
    """Return a step's images a second in the median round."""
    return setting.batch / statistics.median(clock for clock, _ in seconds[name])


def ratio(seconds: Times, name: str, which: int, reference: str = REFERENCE) -> float:
    """Return the median over the rounds of one step's time over another's."""
    pairs = zip(seconds[name], seconds[reference], strict=True)
    return statistics.median(a[which] / b[which] for a, b in pairs)


def peak_memory(name: str, setting: Setting) -> float:
    """Return the MB that training a model takes at its peak; to be run in a fresh process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = train_step(name, setting)
    for _ in range(3):
        step()
    if setting.device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6


def memory(setting: Setting) -> dict[str, float]:
    """Measure each trained model's peak memory, in MB, in a process of its own."""
    fresh = multiprocessing.get_context("spawn")
    peaks = {}
    for name in TRAINED:
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=fresh) as pool:
            peaks[name] = pool.submit(peak_memory, name, setting).result()
    return peaks


def compare(setting: Setting, peaks: dict[str, float], count: int) -> list[dict[str, Any]]:
    """Return a row for each model."""
    steps = {name: train_step(name, setting) for name in TRAINED}
    training = rounds({**steps, "sampling": sampling(setting)}, setting, count)
    forward = rounds({name: inference(name, setting) for name in INFERRED}, setting, count)
    shared = CLOCK if setting.device == "cuda" else PROCESSOR
    rows = []
    for name in INFERRED:
        row = {"model": name, **dataclasses.asdict(setting)}
        if name in TRAINED:
            row["train_images_per_s"] = throughput(training, name, setting)
            row["train_time_ratio"] = ratio(training, name, CLOCK)
            row["train_processor_ratio"] = ratio(training, name, PROCESSOR)
            row["train_peak_mb"] = peaks[name]
            row["train_memory_ratio"] = peaks[name] / peaks[REFERENCE]
        if name == "dognext_atto":
            row["sampling_share"] = ratio(training, "sampling", shared, name)
        row["inference_images_per_s"] = throughput(forward, name, setting)
        row["inference_time_ratio"] = ratio(forward, name, CLOCK)
        row["inference_processor_ratio"] = ratio(forward, name, PROCESSOR)
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows in Markdown."""
    columns = {
        "train_images_per_s": ("train, img/s", "{:.1f}"),
        "train_time_ratio": ("time ratio", "{:.2f}"),
        "train_processor_ratio": ("processor ratio", "{:.2f}"),
        "train_peak_mb": ("peak MB", "{:.0f}"),
        "train_memory_ratio": ("memory ratio", "{:.2f}"),
        "inference_images_per_s": ("inference, img/s", "{:.1f}"),
        "inference_time_ratio": ("time ratio", "{:.2f}"),
        "inference_processor_ratio": ("processor ratio", "{:.2f}"),
        "sampling_share": ("kernel sampling, share of a step", "{:.1%}"),
    }
    lines = [
        "| px | layout | model | " + " | ".join(title for title, _ in columns.values()) + " |",
        "|--:|---|---|" + "--:|" * len(columns),
    ]
    for row in rows:
        cells = [shape.format(row[c]) if c in row else "" for c, (_, shape) in columns.items()]
        lines.append(f"| {row['size']} | {row['layout']} | {row['model']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def machine(device: str) -> dict[str, Any]:
    """Say what was measured on."""
    return {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 224], help="pixels")
    parser.add_argument("--layouts", choices=LAYOUTS, nargs="+", default=list(LAYOUTS))
    parser.add_argument("--batch", type=int, default=128 if cuda else 16, help="images")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="measure under torch.compile")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    settings = [
        Setting(size, layout, args.batch, args.device, args.compile)
        for size in args.sizes
        for layout in args.layouts
    ]
    # before this process grows: on Linux a child starts from its parent's peak
    peaks = [memory(setting) for setting in settings]
    rows = [
        row
        for setting, peak in zip(settings, peaks, strict=True)
        for row in compare(setting, peak, args.rounds)
    ]
    args.out.write_text(
        json.dumps({"machine": machine(args.device), "rows": rows}, indent=2) + "\n"
    )
    print(table(rows))


if __name__ == "__main__":
    main()

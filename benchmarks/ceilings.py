"""Part 5: what the machine can do, and what share of it a training step reaches.

The ceilings are measured: the rate of a copy of a large tensor, and of large products in the step's number
format. A step's work is counted: FLOPs as three times those of torch's counter for the forward pass (its count
of a depthwise convolution's backward is many times too high), and bytes as the inputs and outputs of every
operation that eager PyTorch runs. The limit is the longer of FLOPs at the one rate and bytes at the other; the
share is that time over the measured one. What finds its input in a cache needs fewer bytes than are counted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import (
    DOGNEXT,
    FAST_GRN,
    REFERENCE,
    RESNET,
    Setting,
    build,
    images,
    train_step,
)
from benchmarks.timing import median, rounds

MODELS = (REFERENCE, FAST_GRN, DOGNEXT, RESNET)


class ByteCounter(TorchDispatchMode):
    """Add up the bytes that operations read and write; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and torch.Tag.inplace_view not in func.tags:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
            self.total += sum(t.numel() * t.element_size() for t in tensors)
        return out


def measure(device: str, size: int, batch: int, count: int) -> dict[str, Any]:
    """Return the ceilings and a row for each model."""
    bandwidth, flops = copy_rate(device, count), product_rate(device, count)
    setting = Setting(size, batch, device, compiled=False)
    steps = {name: train_step(name, setting) for name in MODELS}
    seconds = rounds(steps, device, count)
    rows = []
    for name, step in steps.items():
        with ByteCounter() as moved:
            step()
        work, least = 3 * forward_flops(name, setting), moved.total
        bound = {"flops": work / flops, "bytes": least / bandwidth}
        rows.append(
            {
                "model": name,
                "size": size,
                "batch": batch,
                "gflop": work / 1e9,
                "gb": least / 1e9,
                "achieved_gflops": work / 1e9 / median(seconds, name),
                "achieved_gb_s": least / 1e9 / median(seconds, name),
                "bound_by": max(bound, key=lambda kind: bound[kind]),
                "share": max(bound.values()) / median(seconds, name),
            }
        )
    return {"copy_gb_s": bandwidth / 1e9, "matmul_gflops": flops / 1e9, "rows": rows}


def forward_flops(name: str, setting: Setting) -> int:
    """FLOPs of a forward pass, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        build(name, setting)(images(setting))
    return counter.get_total_flops()


def copy_rate(device: str, count: int) -> float:
    """Bytes read and written a second by a copy that no cache holds."""
    x = torch.empty((8 if device == "cuda" else 1) << 28, dtype=torch.float32, device=device)
    y = torch.empty_like(x)
    seconds = rounds({"copy": lambda: (y.copy_(x), None)[1]}, device, count)
    return 2 * x.numel() * x.element_size() / median(seconds, "copy")


def product_rate(device: str, count: int) -> float:
    """FLOPs a second of a large product: bfloat16 on CUDA, float32 on a CPU.

    The better of a matrix product and a 1x1 convolution, which on a CPU are different libraries.
    """
    n, dtype = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    x = torch.randn(n, n, device=device).to(dtype)
    image = torch.randn(16, 512, 64, 64, device=device).to(dtype, memory_format=torch.channels_last)
    kernel = torch.randn(512, 512, 1, 1, device=device).to(dtype, memory_format=torch.channels_last)
    products = {"matrix": lambda: (torch.mm(x, x), None)[1],
                "convolution": lambda: (torch.conv2d(image, kernel), None)[1]}  # fmt: skip
    work = {"matrix": 2 * n**3, "convolution": 2 * 512 * image.numel()}
    seconds = rounds(products, device, count)
    return max(work[name] / median(seconds, name) for name in products)

"""Part 6: what keeping freed memory brings to a training step on a CPU.

The same step in fresh processes, with and without ``dogmed.distributed.keep_freed_memory``, in turns.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import statistics
from typing import Any

from benchmarks.models import DOGNEXT, REFERENCE, RESNET, Setting, train_step
from benchmarks.timing import median, peak_memory, rounds
from dogmed.distributed import keep_freed_memory

MODELS = (REFERENCE, DOGNEXT, RESNET)
STEPS = 5


def measure(size: int, batch: int, count: int) -> list[dict[str, Any]]:
    """Return a row for each model."""
    setting, fresh = (
        Setting(size, batch, "cpu", compiled=False),
        multiprocessing.get_context("spawn"),
    )
    rows = []
    for name in MODELS:
        pairs = []
        for _ in range(count):
            for keep in (False, True):
                with concurrent.futures.ProcessPoolExecutor(1, mp_context=fresh) as pool:
                    pairs.append(pool.submit(once, name, setting, keep).result())
        default, kept = pairs[::2], pairs[1::2]
        rows.append(
            {
                "model": name,
                "size": size,
                "batch": batch,
                "default_s": statistics.median(seconds for seconds, _ in default),
                "kept_s": statistics.median(seconds for seconds, _ in kept),
                "time_ratio": statistics.median(
                    k[0] / d[0] for k, d in zip(kept, default, strict=True)
                ),
                "memory_ratio": statistics.median(
                    k[1] / d[1] for k, d in zip(kept, default, strict=True)
                ),
            }
        )
    return rows


def once(name: str, setting: Setting, keep: bool) -> tuple[float, float]:
    """Return a step's median seconds and the process's peak memory over its start, in MB."""
    before = peak_memory()
    if keep:
        keep_freed_memory()
    seconds = rounds({name: train_step(name, setting)}, setting.device, STEPS)
    return median(seconds, name), peak_memory() - before

"""Turns: all candidates run once a round, so that what else the machine does weighs on all alike."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Times = dict[str, list[tuple[float, float]]]
"""Seconds of each candidate by the clock and of the processor, round by round."""
CLOCK, PROCESSOR = 0, 1


def rounds(
    candidates: Mapping[str, Callable[[], None]], device: str, count: int, warm_up: int = 2
) -> Times:
    """Run the candidates in turns, ``count`` times each after the warm-up."""
    seconds: Times = {name: [] for name in candidates}
    for i in range(warm_up + count):
        for name, run in candidates.items():
            wait(device)
            start = time.perf_counter(), time.process_time()
            run()
            wait(device)
            end = time.perf_counter(), time.process_time()
            if i >= warm_up:
                seconds[name].append((end[0] - start[0], end[1] - start[1]))
    return seconds


def wait(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        import torch  # here, so that a fresh process that measures its memory starts small

        torch.cuda.synchronize()


def median(seconds: Times, name: str, which: int = CLOCK) -> float:
    """Seconds of the median round."""
    return statistics.median(pair[which] for pair in seconds[name])


def ratio(seconds: Times, name: str, reference: str, which: int = CLOCK) -> float:
    """Median over the rounds of one candidate's time over another's of the same round."""
    pairs = zip(seconds[name], seconds[reference], strict=True)
    return statistics.median(a[which] / b[which] for a, b in pairs)


def peak_memory() -> float:
    """The most memory in MB that this process ever held; on Linux not counting its parent's."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6

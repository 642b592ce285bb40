"""Part 4a: how long ``dogmed --help`` takes, beside Python itself."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "dogmed --help": [sys.executable, "-m", "dogmed", "--help"],
    "dogmed finetune --help": [sys.executable, "-m", "dogmed", "finetune", "--help"],
}


def measure(count: int) -> dict[str, float]:
    """Return the seconds of each command in the median of ``count`` turns."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(count):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}

"""Where a result comes from: versions, commit, machine, memory."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from dogmed import __version__


def peak_memory(device: torch.device) -> dict[str, int]:
    """Largest memory of this process so far, in bytes, on the host and on the device."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peak["device_bytes"] = torch.cuda.max_memory_allocated(device)
    return peak


def provenance(device: torch.device, libraries: Iterable[str]) -> dict[str, Any]:
    """Versions, commit and machine: what one needs to know to run it again.

    Args:
        device: that the run computes on.
        libraries: names of the installed packages that matter to it.
    """
    versions = {"dogmed": __version__, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in libraries}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "versions": versions,
        "git_commit": _git_commit(),
        "device": name,
        "threads": torch.get_num_threads(),
    }


def _git_commit() -> str | None:
    """The commit this code was checked out from, with ``+`` if files differ from it."""
    here = Path(__file__).resolve().parent
    try:
        _git(here, "ls-files", "--error-unmatch", Path(__file__).name)  # not just in someone's tree
        commit = _git(here, "rev-parse", "HEAD")
        return commit + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

"""Jobs as processes of this machine."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

from dogmed.finetune.executors.base import Job

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Local:
    """Processes of this machine, each alone on its device.

    They end with this process, however it ends (on Linux; elsewhere they outlive its violent death), and
    a Ctrl-C at the terminal reaches this process only.

    Args:
        devices: one slot each: the job's ``CUDA_VISIBLE_DEVICES``, or None to leave it as it is.
        threads: of a job, its ``OMP_NUM_THREADS``, or None to leave it as it is.
    """

    def __init__(self, devices: Sequence[str | None], threads: int | None = None):
        self.slots = len(devices)
        self._threads = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        self._free = list(devices)
        self._running: dict[str, tuple[subprocess.Popen[bytes], str | None]] = {}

    def start(self, job: Job) -> None:
        assert self._free and job.name not in self._running, job
        device = self._free.pop(0)
        chosen = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
        with job.log.open("ab") as log:
            process = subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self._threads | chosen,
                start_new_session=True,
                preexec_fn=end_with_parent(),
            )
        self._running[job.name] = process, device

    def ended(self) -> dict[str, int]:
        codes = {}
        for name, (process, device) in list(self._running.items()):
            if (code := process.poll()) is not None:
                codes[name] = code
                self._free.append(device)
                del self._running[name]
        return codes

    def stop(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        for process, _ in self._running.values():
            process.wait()

    def waiting(self) -> set[str]:
        return set()

    def close(self) -> None:
        self.kill()

    def _signal(self, number: int) -> None:
        for process, _ in self._running.values():
            process.send_signal(number)


def local_devices(device: str, jobs: int | None = None) -> list[str | None]:
    """One slot for each GPU that ``--device`` leaves open, else a single one.

    Args:
        device: auto, cpu, cuda or cuda:N.
        jobs: as many slots as this in place of that, the GPUs in turn.
    """
    names = _gpus(device)
    slots: list[str | None] = [*names] if len(names) > 1 else [None]
    return [slots[i % len(slots)] for i in range(jobs or len(slots))]


def local_threads(device: str, jobs: int) -> int | None:
    """A job's fair share of the processors; None where one is alone, on GPUs, or where the user has said.

    Args:
        device: auto, cpu, cuda or cuda:N.
        jobs: how many run at once.
    """
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ or (device != "cpu" and _cuda_is_there()):
        return None
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, cores // jobs)


def _gpus(device: str) -> list[str]:
    """GPUs to choose from, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    count = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))
    return [name.strip() for name in visible.split(",")][:count]


def _cuda_is_there() -> bool:
    import torch

    return torch.cuda.is_available()


def end_with_parent() -> Callable[[], None] | None:
    """What a child does first: have the system send it SIGTERM when its parent dies."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # found before the fork, after which little is safe

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    return ask

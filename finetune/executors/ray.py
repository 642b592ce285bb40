"""Jobs as tasks of a Ray cluster, one that is there or one of this machine for as long as it takes.

Ray is an extra and is imported by this module only.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from dogmed.errors import ConfigError, reason
from dogmed.finetune.executors.base import Job
from dogmed.finetune.executors.remote import KILL, STOP, Remote, run_job

REACH_SECONDS = 5
KILL_SECONDS = 10
STORE_BYTES = 100_000_000  # jobs pass files, not objects


class Ray(Remote):
    """Tasks of a Ray cluster that run a process each; those of a lost worker are begun again.

    Args:
        address: of a cluster; None starts one on this machine, which ends with this executor.
        cpus: processors of a job.
        gpus: GPUs of a job, a fraction to share one; None is one where ``device`` and the cluster allow it.
        device: auto, cpu, cuda or cuda:N, as the jobs are told.
        retries: how often a job is begun again after its worker was lost.
        jobs: at once; None is as many as fit now.

    Raises:
        ConfigError: Ray is not installed, there is no cluster, or no machine of it can run such a job.
    """

    def __init__(
        self,
        *,
        address: str | None,
        cpus: float,
        gpus: float | None,
        device: str,
        retries: int,
        jobs: int | None,
    ):
        self._ray = _connect(address)
        try:
            machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            if gpus is None:
                there = any(machine.get("GPU", 0) for machine in machines)
                gpus = float(device != "cpu" and there)
            room = _room(machines, cpus, gpus)
        except BaseException:
            self._ray.shutdown()
            raise
        super().__init__(jobs or room)
        self._run = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=retries)(run_job)
        self._tasks: dict[str, Any] = {}

    def start(self, job: Job) -> None:
        self._give(job)
        self._tasks[job.name] = self._run.remote(job, Path.cwd(), dict(os.environ))

    def ended(self) -> dict[str, int]:
        if not self._tasks:
            return {}
        names = {task: name for name, task in self._tasks.items()}
        ready, _ = self._ray.wait(list(names), num_returns=len(names), timeout=0)
        codes = {}
        for task in ready:
            name = names[task]
            codes[name] = self._code(name, task)
            self._take_back(name)
            del self._tasks[name]
        return codes

    def stop(self) -> None:
        waiting = self.waiting()
        for name, task in self._tasks.items():
            self._ask(name, STOP)
            if name in waiting:
                self._ray.cancel(task)

    def kill(self) -> None:
        for name in self._tasks:
            self._ask(name, KILL)
        tasks = list(self._tasks.values())
        if tasks:
            _, left = self._ray.wait(tasks, num_returns=len(tasks), timeout=KILL_SECONDS)
            for task in left:
                self._ray.cancel(task, force=True)

    def close(self) -> None:
        self.kill()
        self._ray.shutdown()

    def _code(self, name: str, task: Any) -> int:
        """A task's exit code, or what became of it in its log."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(task)
        except errors.TaskCancelledError:
            return -signal.SIGTERM
        except errors.RayTaskError as error:
            self._add_words(name, f"the Ray task failed: {reason(error.cause)}")
        except errors.RayError as error:
            self._add_words(name, f"Ray gave the run up: {reason(error)}")
        return 1


def _connect(address: str | None) -> Any:
    """Join a cluster, or start one on this machine."""
    # Ray reads these when it is first imported; what the user has set stays
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS") or None
    unsaid = not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & os.environ.keys()
    if address is None and unsaid and "ray" not in sys.modules:
        # Ray listens on all of this machine's addresses: only who has the token of this call may enter
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        import ray
    except ImportError:
        raise ConfigError("--executor ray needs Ray: pip install 'dogmed[ray]'") from None
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    if address is None:
        ray.init("local", include_dashboard=False, object_store_memory=STORE_BYTES, **quiet)
        return ray
    _reach(address)
    try:
        ray.init(address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"--ray.address {address}: no Ray cluster ({reason(error)})") from None
    return ray


def _reach(address: str) -> None:
    """Try an address: Ray itself tries a wrong one for minutes."""
    if address == "auto":
        return
    place = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address)
    if place is None:
        raise ConfigError(
            f"--ray.address: expected HOST:PORT, ray://HOST:PORT or auto, got '{address}'"
        )
    host, port = place[1], int(place[2])
    try:
        socket.create_connection((host, port), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--ray.address {address}: nothing answers ({reason(error)})") from None


def _room(machines: list[dict[str, float]], cpus: float, gpus: float) -> int:
    """How many such jobs fit.

    Raises:
        ConfigError: none, ever: Ray would wait without a word.
    """
    if gpus > 1 and gpus != int(gpus):
        raise ConfigError(f"--ray.gpus: expected a whole number or a fraction of one, got {gpus:g}")
    room = 0
    for machine in machines:
        fits = int(machine.get("CPU", 0) / cpus)
        if gpus:
            there = int(machine.get("GPU", 0))
            fits = min(fits, int(there / gpus) if gpus >= 1 else there * int(1 / gpus))
        room += fits
    if not room:
        most = {kind: max((m.get(kind, 0) for m in machines), default=0) for kind in ("CPU", "GPU")}
        raise ConfigError(
            f"--ray.cpus {cpus:g} --ray.gpus {gpus:g}: no machine of the Ray cluster has that much (at "
            f"most {most['CPU']:g} CPUs, {most['GPU']:g} GPUs); a run would wait for ever"
        )
    return room

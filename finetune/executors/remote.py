"""Jobs on other machines that see the same files: how one is run there, and how it is told to stop.

A cluster's own ways to stop a task differ, and none of them waits until a run has saved its state. A
file beside the job's log does: whoever runs the command there sees it and passes the word on.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dogmed.finetune.executors.base import BEGUN, Job
from dogmed.finetune.executors.local import end_with_parent
from dogmed.runs import write_atomic

LOOK_SECONDS = 0.5
STOP, KILL = "stop", "kill"


class Remote:
    """What is known of jobs that were given to a cluster.

    Args:
        slots: how many are given to it at once.
    """

    def __init__(self, slots: int):
        self.slots = slots
        self._given: dict[str, tuple[Job, int]] = {}  # with the size of its log at that time

    def waiting(self) -> set[str]:
        return {name for name, (job, size) in self._given.items() if _size(job.log) <= size}

    def _give(self, job: Job) -> None:
        assert job.name not in self._given, job
        _request(job.log).unlink(missing_ok=True)
        self._given[job.name] = job, _size(job.log)

    def _take_back(self, name: str) -> None:
        job, _ = self._given.pop(name)
        _request(job.log).unlink(missing_ok=True)

    def _give_up(self, name: str) -> None:
        """Forget a job that may still begin; the file that asks it to end stays."""
        del self._given[name]

    def _ask(self, name: str, what: str) -> None:
        write_atomic(_request(self._given[name][0].log), what)

    def _add_words(self, name: str, words: str) -> None:
        """Say in a job's log what it cannot say itself."""
        with self._given[name][0].log.open("a") as log:
            log.write(f"dogmed: {words}\n")


def run_job(
    job: Job, folder: Path, environment: Mapping[str, str], all_signalled: bool = False
) -> int:
    """Run a job's command here and wait for it.

    Its end is asked for by SIGTERM, by SIGUSR2 (Slurm's warning of the time limit) or by the file.

    Args:
        job: its log is on a file system that both machines see.
        folder: where relative paths begin.
        environment: variables for those that this process lacks.
        all_signalled: the cluster sends signals to every process of the job, as Slurm does. SIGTERM is then
            not passed on: a second one would end the command before its state is saved.

    Returns:
        The exit code; minus the signal's number where one ended it.
    """
    own = {name: environment[name] for name in ("OMP_NUM_THREADS",) if name in environment}
    request = _request(job.log)
    with job.log.open("ab") as log:
        log.write(f"{BEGUN}{platform.node()}, process {os.getpid()}\n".encode())
        log.flush()
        if request.is_file():  # told before it began
            return -signal.SIGTERM
        process = subprocess.Popen(
            job.command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**environment, **os.environ, **own},
            start_new_session=not all_signalled,
            preexec_fn=_prepare(),
        )
    with _passing_on(process, but=signal.SIGTERM if all_signalled else None):
        asked = None
        try:
            while True:
                try:
                    return process.wait(LOOK_SECONDS)
                except subprocess.TimeoutExpired:
                    what = request.read_text() if request.is_file() else None
                if what != asked and what in (STOP, KILL):
                    asked = what
                    process.send_signal(signal.SIGKILL if what == KILL else signal.SIGTERM)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def _prepare() -> Callable[[], None]:
    """What a child does first: SIGUSR2 would end it, and is turned into SIGTERM by its parent."""
    end = end_with_parent()

    def prepare() -> None:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        if end is not None:
            end()

    return prepare


@contextmanager
def _passing_on(process: subprocess.Popen[bytes], but: int | None) -> Iterator[None]:
    """Turn the signals that tell this process to end into SIGTERM for the child, but for one."""

    def tell(number: int, _: Any) -> None:
        if number != but:
            process.terminate()

    previous = {number: signal.signal(number, tell) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _request(log: Path) -> Path:
    """The file that asks the job of this log to end."""
    return log.with_suffix(".stop")


def _size(log: Path) -> int:
    return log.stat().st_size if log.is_file() else 0

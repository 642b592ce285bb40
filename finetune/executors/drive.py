"""The loop of whoever has jobs to be done: start them while there is room, collect them, stop on a signal."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Protocol

from dogmed.console import Console, Stopper
from dogmed.finetune.executors.base import BEGUN, Executor, Job

POLL_SECONDS = 0.5
SHOW_SECONDS = 1.0


@dataclass(frozen=True)
class Started:
    """A job under way, or one that has just ended."""

    job: Job
    written: int
    """Bytes that its log had before."""

    def last_words(self, code: int) -> str:
        """What it said at the end: its error message if there is one, else its last line, and its code."""
        with self.job.log.open("rb") as file:
            file.seek(self.written)
            lines = [
                line
                for line in file.read().decode(errors="replace").splitlines()
                if line.strip() and not line.startswith(BEGUN)
            ]
        told = [line for line in lines if line.startswith("dogmed: ")]
        last = (told or lines or ["it said nothing"])[-1].removeprefix("dogmed: ").strip()
        return f"{last}; exit code {code}" if code >= 0 else f"{last}; ended by signal {-code}"


class Source(Protocol):
    """Who has jobs to be done."""

    def left(self) -> bool:
        """Whether some job is still to be started, now or later."""

    def fill(self) -> None:
        """Start jobs with ``Drive.start``, while there is room."""

    def ended(self, started: Started, code: int, *, stopping: bool) -> None:
        """Take note of a job that has ended; ``stopping``, jobs were asked to end before that."""

    def show(self) -> None:
        """Show how far things are; called now and then."""


class Drive:
    """Jobs of one source on an executor, from its first to its last or to a stop.

    Args:
        executor: where they go.
        console: where it is told that a signal came.
    """

    def __init__(self, executor: Executor, console: Console):
        self.executor, self.console = executor, console
        self.running: dict[str, Started] = {}

    def start(self, job: Job) -> None:
        """Give a job to the executor; what its log holds already are other attempts' words."""
        written = job.log.stat().st_size if job.log.is_file() else 0
        self.running[job.name] = Started(job, written)
        self.executor.start(job)

    def run(self, source: Source) -> int | None:
        """Run until nothing is left. A first signal asks all jobs to save and end, a second ends them.

        Whatever ends this, no job is under way after it.

        Returns:
            The number of the signal that stopped it, or None.

        Raises:
            Interrupted: a second signal came.
        """
        shown, asked = -math.inf, False
        with Stopper(self.console) as stopper:
            stopper.deferring = True
            try:
                while self.running or (source.left() and not stopper.requested):
                    for name, code in self.executor.ended().items():
                        source.ended(self.running.pop(name), code, stopping=asked)
                    if stopper.requested and not asked:
                        asked = True
                        self.executor.stop()
                    if not asked:
                        source.fill()
                    if time.monotonic() - shown > SHOW_SECONDS:
                        shown = time.monotonic()
                        source.show()
                    time.sleep(POLL_SECONDS)
            finally:
                if self.running:
                    self.executor.kill()
        return stopper.requested

"""What runs jobs: the interface between those who have work and the places where it is done.

An executor starts jobs and tells which have ended; it knows nothing of what they do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

BEGUN = "-- begun on "
"""What a cluster's executor writes into the log before the job itself: a line that names the machine."""


@dataclass(frozen=True)
class Job:
    """A command that can be repeated: what it did before it was stopped, it does not do again."""

    name: str
    command: tuple[str, ...]
    log: Path
    """What the command prints is appended here."""


class Executor(Protocol):
    """What runs jobs, at most ``slots`` of them at once."""

    slots: int

    def start(self, job: Job) -> None:
        """Run a job; its name is that of no job under way."""

    def ended(self) -> dict[str, int]:
        """Exit codes, by name, of the jobs that have ended since this was last asked."""

    def stop(self) -> None:
        """Ask all jobs to save what they have done and to end."""

    def kill(self) -> None:
        """End all jobs at once."""

    def waiting(self) -> set[str]:
        """Names of the jobs that were started and that the place has not begun yet."""

    def close(self) -> None:
        """Leave nothing behind; no job is under way."""

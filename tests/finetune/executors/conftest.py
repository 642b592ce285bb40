"""Small jobs, and waiting for what becomes of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dogmed.finetune.executors.base import BEGUN, Executor, Job


class Small:
    """Jobs of a few lines, their logs in one folder."""

    # saves when asked to end, once it has said that it runs
    saves = (
        "import signal, sys, time\n"
        "def save(*_):\n    print('saved', flush=True); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('runs', flush=True)\n"
        "time.sleep(60)\n"
    )

    def __init__(self, folder: Path):
        self.folder = folder

    def job(self, name: str, code: str) -> Job:
        return Job(name, (sys.executable, "-c", code), self.folder / f"{name}.log")

    def words(self, job: Job) -> list[str]:
        """What the job has printed, without the line of who began it."""
        lines = job.log.read_text().splitlines() if job.log.is_file() else []
        return [line for line in lines if not line.startswith(BEGUN)]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "nothing came of it"
            time.sleep(0.02)

    def end_all(self, executor: Executor, count: int) -> dict[str, int]:
        codes: dict[str, int] = {}
        self.wait_for(lambda: bool(codes.update(executor.ended())) or len(codes) == count)
        return codes


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small(tmp_path)

"""The loop over jobs: what is started, told and left; its stops are tested where it is used."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from dogmed.console import Console
from dogmed.finetune.executors.base import Job
from dogmed.finetune.executors.drive import Drive, Started
from dogmed.finetune.executors.local import Local


class Source:
    """A list of jobs; what comes of them is kept, and ``then`` is called with it."""

    def __init__(self, drive: Drive, jobs: list[Job], then: Callable[[str], None]):
        self.drive, self.jobs, self.then = drive, jobs, then
        self.said: dict[str, tuple[str, bool]] = {}

    def left(self) -> bool:
        return bool(self.jobs)

    def fill(self) -> None:
        while self.jobs and len(self.drive.running) < self.drive.executor.slots:
            self.drive.start(self.jobs.pop(0))

    def ended(self, started: Started, code: int, *, stopping: bool) -> None:
        self.said[started.job.name] = started.last_words(code), stopping
        self.then(started.job.name)

    def show(self) -> None: ...


def test_all_jobs_are_done_and_their_last_words_are_told(small: Any) -> None:
    jobs = {
        "silent": small.job("silent", ""),
        "line": small.job("line", "print('one'); print('two')"),
        "error": small.job("error", "print('dogmed: no such file'); print('and more'); exit(2)"),
        "killed": small.job("killed", "import os; os.kill(os.getpid(), 9)"),
    }
    jobs["killed"].log.write_text("dogmed: of an earlier attempt\n")
    drive = Drive(Local([None, None]), Console(False))
    source = Source(drive, list(jobs.values()), lambda name: None)
    assert drive.run(source) is None
    assert source.said == {
        "silent": ("it said nothing; exit code 0", False),
        "line": ("two; exit code 0", False),
        "error": ("no such file; exit code 2", False),
        "killed": ("it said nothing; ended by signal 9", False),
    }


def test_a_signal_has_jobs_save_and_starts_no_others(small: Any) -> None:
    def stop(name: str) -> None:
        if name == "first":
            small.wait_for(lambda: small.words(jobs[1]) == ["runs"])
            os.kill(os.getpid(), signal.SIGTERM)

    jobs = [small.job("first", ""), small.job("saves", small.saves), small.job("never", "")]
    drive = Drive(Local([None, None]), Console(False))
    source = Source(drive, list(jobs), stop)
    assert drive.run(source) == signal.SIGTERM
    assert source.said["saves"] == ("saved; exit code 143", True)
    assert source.jobs == jobs[2:]
    assert not jobs[2].log.exists()


def test_whatever_ends_it_no_job_goes_on(small: Any) -> None:
    def fail(name: str) -> None:
        raise ValueError(name)

    drive = Drive(local := Local([None, None]), Console(False))
    source = Source(drive, [small.job("short", ""), small.job("long", small.saves)], fail)
    with pytest.raises(ValueError, match="short"):
        drive.run(source)
    small.wait_for(lambda: local.ended() != {})

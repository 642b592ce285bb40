"""Jobs as processes of this machine: where they run, how they end, and that they end with us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dogmed.finetune.executors.base import Job
from dogmed.finetune.executors.local import Local

SAVES = (  # a job that saves when asked to end, once it has said that it runs
    "import signal, sys, time\n"
    "def save(*_):\n    print('saved', flush=True); sys.exit(143)\n"
    "signal.signal(signal.SIGTERM, save)\n"
    "print('runs', flush=True)\n"
    "time.sleep(60)\n"
)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "nothing came of it"
        time.sleep(0.02)


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    def make(name: str, code: str) -> Job:
        return Job(name, (sys.executable, "-c", code), tmp_path / f"{name}.log")

    return make


def end_all(executor: Local, count: int) -> dict[str, int]:
    codes: dict[str, int] = {}
    wait_for(lambda: bool(codes.update(executor.ended())) or len(codes) == count)
    return codes


def test_jobs_end_with_their_codes_and_their_words_in_the_log(job: Callable[..., Job]) -> None:
    executor = Local([None, None])
    assert executor.slots == 2
    jobs = [job("good", "print('hello')"), job("bad", "import sys; sys.exit('wrong')")]
    for each in jobs:
        executor.start(each)
    assert end_all(executor, 2) == {"good": 0, "bad": 1}
    assert executor.ended() == {}
    executor.start(jobs[0])
    assert end_all(executor, 1) == {"good": 0}
    assert [each.log.read_text() for each in jobs] == ["hello\nhello\n", "wrong\n"]


def test_each_slot_is_a_device_and_is_free_again_after_a_job(job: Callable[..., Job]) -> None:
    executor = Local(["2", "GPU-7"])
    tell = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    told = set()
    for _ in range(2):
        jobs = [job(name, tell) for name in ("a", "b")]
        for each in jobs:
            executor.start(each)
        end_all(executor, 2)
        told |= {each.log.read_text().splitlines()[-1] for each in jobs}
    assert told == {"2", "GPU-7"}


def test_asked_to_stop_a_job_saves_and_killed_it_does_not(job: Callable[..., Job]) -> None:
    executor = Local([None, None])
    first, second = job("first", SAVES), job("second", SAVES)
    executor.start(first)
    wait_for(lambda: "runs" in first.log.read_text())
    executor.stop()
    assert end_all(executor, 1) == {"first": 143}
    executor.start(second)
    wait_for(lambda: "runs" in second.log.read_text())
    executor.kill()
    assert executor.ended() == {"second": -signal.SIGKILL}
    assert [j.log.read_text() for j in (first, second)] == ["runs\nsaved\n", "runs\n"]


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a process of its parent's death"
)
def test_jobs_are_asked_to_end_when_the_benchmark_is_killed(
    job: Callable[..., Job], tmp_path: Path
) -> None:
    log = job("orphan", "").log
    code = (
        "import sys, time; from pathlib import Path\n"
        "from dogmed.finetune.executors.base import Job\n"
        "from dogmed.finetune.executors.local import Local\n"
        f"local = Local([None]); local.start(Job('orphan', {(sys.executable, '-c', SAVES)!r}, "
        f"Path({str(log)!r})))\n"
        "print(local._running['orphan'][0].pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    wait_for(lambda: "runs" in log.read_text())
    assert os.getpgid(child.pid) != os.getpgid(parent.pid)  # a Ctrl-C does not reach it
    parent.kill()
    parent.wait()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert log.read_text() == "runs\nsaved\n"

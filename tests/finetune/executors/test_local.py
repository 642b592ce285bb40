"""Jobs as processes of this machine: where they run, how they end, and that they end with us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from dogmed.finetune.executors.local import Local, local_devices, local_threads


def test_jobs_end_with_their_codes_and_their_words_in_the_log(small: Any) -> None:
    executor = Local([None, None])
    assert executor.slots == 2
    jobs = [small.job("good", "print('hello')"), small.job("bad", "import sys; sys.exit('wrong')")]
    for each in jobs:
        executor.start(each)
    assert small.end_all(executor, 2) == {"good": 0, "bad": 1}
    assert executor.ended() == {}
    executor.start(jobs[0])
    assert small.end_all(executor, 1) == {"good": 0}
    assert [each.log.read_text() for each in jobs] == ["hello\nhello\n", "wrong\n"]


def test_each_slot_is_a_device_and_is_free_again_after_a_job(small: Any) -> None:
    executor = Local(["2", "GPU-7"])
    tell = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    told = set()
    for _ in range(2):
        jobs = [small.job(name, tell) for name in ("a", "b")]
        for each in jobs:
            executor.start(each)
        small.end_all(executor, 2)
        told |= {each.log.read_text().splitlines()[-1] for each in jobs}
    assert told == {"2", "GPU-7"}


def test_asked_to_stop_a_job_saves_and_killed_it_does_not(small: Any) -> None:
    executor = Local([None, None])
    first, second = small.job("first", small.saves), small.job("second", small.saves)
    executor.start(first)
    small.wait_for(lambda: "runs" in first.log.read_text())
    executor.stop()
    assert small.end_all(executor, 1) == {"first": 143}
    executor.start(second)
    small.wait_for(lambda: "runs" in second.log.read_text())
    executor.kill()
    assert executor.ended() == {"second": -signal.SIGKILL}
    assert [j.log.read_text() for j in (first, second)] == ["runs\nsaved\n", "runs\n"]


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a process of its parent's death"
)
def test_jobs_are_asked_to_end_when_the_benchmark_is_killed(small: Any, tmp_path: Path) -> None:
    log = small.job("orphan", "").log
    code = (
        "import sys, time; from pathlib import Path\n"
        "from dogmed.finetune.executors.base import Job\n"
        "from dogmed.finetune.executors.local import Local\n"
        f"local = Local([None]); local.start(Job('orphan', {(sys.executable, '-c', small.saves)!r}, "
        f"Path({str(log)!r})))\n"
        "print(local._running['orphan'][0].pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    small.wait_for(lambda: "runs" in log.read_text())
    assert os.getpgid(child.pid) != os.getpgid(parent.pid)  # a Ctrl-C does not reach it
    parent.kill()
    parent.wait()
    small.wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert log.read_text() == "runs\nsaved\n"


def test_jobs_share_gpus_in_turn_and_processors_fairly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for count, jobs, slots in ((0, None, 1), (0, 3, 3), (1, 2, 2)):
        monkeypatch.setattr("torch.cuda.device_count", lambda count=count: count)
        assert local_devices("auto", jobs) == [None] * slots
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert local_devices("auto") == ["0", "1"]
    assert local_devices("auto", 3) == ["0", "1", "0"]
    assert local_devices("cpu", 2) == local_devices("cuda:1", 2) == [None, None]

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(psutil.Process().cpu_affinity()) if sys.platform == "linux" else os.cpu_count()
    assert local_threads("cpu", 1) is None
    assert local_threads("cpu", 2) == max(1, cores // 2)
    assert local_threads("cpu", 10_000) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert local_threads("cpu", 2) is None  # as the user has said


def test_each_of_several_jobs_is_told_its_share_of_the_processors(small: Any) -> None:
    executor = Local([None, None], threads=5)
    jobs = [small.job(n, "import os; print(os.environ['OMP_NUM_THREADS'])") for n in ("a", "b")]
    for each in jobs:
        executor.start(each)
    assert executor.waiting() == set()
    small.end_all(executor, 2)
    assert [small.words(each) for each in jobs] == [["5"], ["5"]]
    executor.close()

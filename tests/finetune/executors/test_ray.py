"""Jobs as tasks of a Ray cluster of this machine; skipped where Ray is not installed."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dogmed import config
from dogmed.errors import ConfigError
from dogmed.finetune.benchmark.matrix import BenchmarkConfig, combine
from dogmed.finetune.benchmark.sitting import benchmark
from dogmed.finetune.executors.options import ExecutorConfig, RayConfig, build_executor
from dogmed.finetune.executors.ray import Ray, _room

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def need_ray() -> None:
    if (
        importlib.util.find_spec("ray") is None
    ):  # not imported: the executor sets its variables first
        pytest.skip("Ray is not installed: pip install 'dogmed[ray]'")


def processes() -> set[psutil.Process]:
    ours = psutil.Process().children(recursive=True)
    return {p for p in ours if p.is_running() and p.status() != psutil.STATUS_ZOMBIE}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Ray]:
    need_ray()
    others = processes()  # of earlier tests
    executor = build_executor(ExecutorConfig(executor="ray"), "cpu")
    assert isinstance(executor, Ray)
    yield executor
    executor.close()
    assert processes() <= others  # nothing lingers


def test_jobs_end_with_their_codes_and_those_of_a_lost_worker_are_begun_again(
    cluster: Ray, small: Any
) -> None:
    lost = (
        "import os, signal, sys, time\n"
        f"from pathlib import Path; told = Path({str(small.folder / 'told')!r})\n"
        "if told.exists(): print('again'); sys.exit()\n"
        "told.touch(); print('first', flush=True)\n"
        "os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)\n"
    )
    jobs = [small.job("bad", "import sys; sys.exit('wrong')"), small.job("lost", lost)]
    for job in jobs:
        cluster.start(job)
    assert small.end_all(cluster, 2) == {"bad": 1, "lost": 0}
    assert [small.words(job) for job in jobs] == [["wrong"], ["first", "again"]]


def test_asked_to_stop_jobs_save_and_those_that_wait_never_begin(cluster: Ray, small: Any) -> None:
    count = cluster.slots + 1
    jobs = [small.job(f"{i}", small.saves) for i in range(count)]
    for job in jobs:
        cluster.start(job)
    small.wait_for(lambda: sum(small.words(job) == ["runs"] for job in jobs) == cluster.slots)
    (last,) = cluster.waiting()
    cluster.stop()
    codes = small.end_all(cluster, count)
    assert codes.pop(last) == -signal.SIGTERM
    assert set(codes.values()) == {143}
    said = {job.name: small.words(job) for job in jobs}
    assert said.pop(last) == []
    assert list(said.values()) == [["runs", "saved"]] * cluster.slots


def test_killed_jobs_end_at_once_and_leave_no_process(cluster: Ray, small: Any) -> None:
    code = "import os; print(os.getpid(), flush=True)\n" + small.saves
    job = small.job("killed", code)
    cluster.start(job)
    small.wait_for(lambda: len(small.words(job)) == 2)
    cluster.kill()
    assert small.end_all(cluster, 1) == {"killed": -signal.SIGKILL}
    assert small.words(job)[1:] == ["runs"]
    assert not psutil.pid_exists(int(small.words(job)[0]))


def test_cells_of_a_benchmark_run_on_it(cluster: Ray, tmp_path: Path) -> None:
    argv = [
        "--task=breastmnist", "--data=synthetic", "--model=dognext_test", "--init=scratch",
        "--size=28", "--epochs=1", "--batch-size=64", "--tracking=off", "--eval.resamples=20",
        "--device=cpu", f"--out={tmp_path / 'runs'}", f"--cache-dir={tmp_path}",
    ]  # fmt: skip
    recipe = config.recipe("finetune/benchmark")
    runs = combine(config.parse(BenchmarkConfig, argv, prog="dogmed benchmark", base=recipe))
    assert benchmark(runs, cluster) == 0
    assert len(list(tmp_path.glob("runs/finetune/*/*/seed*/result.json"))) == 1
    logs = list(tmp_path.glob("runs/benchmark/cells/*.log"))
    assert len(logs) == 1 and "epoch 1/1" in logs[0].read_text()


def test_a_wrong_address_is_refused_within_seconds() -> None:
    need_ray()
    began = time.monotonic()
    for address, why in (
        ("127.0.0.1:1", "nothing answers"),
        ("ray://127.0.0.1:1", "nothing answers"),
        ("cluster", "expected HOST:PORT"),
    ):
        with pytest.raises(ConfigError, match=f"--ray.address.*{why}"):
            build_executor(ExecutorConfig(executor="ray", ray=RayConfig(address=address)), "cpu")
    assert time.monotonic() - began < 60


def test_without_the_extra_one_line_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(ConfigError, match=r"needs Ray: pip install 'dogmed\[ray\]'$"):
        build_executor(ExecutorConfig(executor="ray"), "cpu")


def test_jobs_that_no_machine_can_hold_are_refused() -> None:
    machines = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 2.0}]
    assert _room(machines, 1, 0) == 10
    assert _room(machines, 0.5, 0) == 20
    assert _room(machines, 1, 1) == 2
    assert _room(machines, 1, 0.3) == 6
    assert _room(machines, 2, 0.25) == 4
    assert _room(machines, 1, 2) == 1
    for cpus, gpus in ((16, 0), (1, 4), (1, 1.5)):
        with pytest.raises(ConfigError, match=r"--ray\.gpus"):
            _room(machines, cpus, gpus)
    with pytest.raises(ConfigError, match="would wait for ever"):
        _room([{"CPU": 4.0}], 1, 1)

"""A worker's trials: what they read, and what is stopped, killed and continued."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState

from dogmed.data.prepared import Prepared
from dogmed.errors import Interrupted
from dogmed.finetune import build
from dogmed.finetune.tune.options import TuneConfig
from dogmed.finetune.tune.study import last_attempts, trial_of
from dogmed.finetune.tune.tuning import tune
from dogmed.finetune.tune.worker import Work, open_work, work

Make = Callable[..., TuneConfig]
ValuesOf = Callable[[Work], list[tuple[dict[str, Any], float | None]]]
ReadTrials = Callable[[Work], list[dict[str, str]]]

DEADLINE = 60  # seconds


def when_an_epoch_is_done(metrics: Path, then: Callable[[], None]) -> threading.Thread:
    def watch() -> None:
        until = time.monotonic() + DEADLINE
        while not (metrics.is_file() and metrics.read_bytes().count(b"\n")):
            if time.monotonic() > until:
                return
            time.sleep(0.005)
        then()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_the_test_split_is_never_read(
    make_tuning: Make,
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values_of: ValuesOf,
) -> None:
    undisturbed = make_tuning(tmp_path / "b", "--trials=2")
    work(undisturbed, "breastmnist")
    cache = tmp_path / "cache"
    shutil.copytree(cache_dir, cache)
    (images,) = cache.glob("prepared/breastmnist-28-*/test_images.npy")
    content = images.read_bytes()
    images.write_bytes(content[:128] + bytes(len(content) - 128))  # all black behind the header
    read = Prepared._array

    def guarded(self: Prepared, name: str, mode: Any) -> np.ndarray:
        assert not name.startswith("test"), f"{name} was read"
        return read(self, name, mode)

    monkeypatch.setattr(Prepared, "_array", guarded)
    config = make_tuning(tmp_path / "a", f"--cache-dir={cache}", "--trials=2")
    work(config, "breastmnist")
    assert values_of(open_work(config, "breastmnist")) == values_of(
        open_work(undisturbed, "breastmnist")
    )


def test_a_stopped_study_goes_on_as_if_nothing_had_been(
    make_tuning: Make, tmp_path: Path, values_of: ValuesOf
) -> None:
    whole, stopped = (make_tuning(tmp_path / name) for name in ("whole", "stopped"))
    work(whole, "breastmnist")
    job = open_work(stopped, "breastmnist")
    thread = when_an_epoch_is_done(
        job.files.trial(1).metrics, lambda: os.kill(os.getpid(), signal.SIGINT)
    )
    with pytest.raises(Interrupted):
        work(stopped, "breastmnist")
    thread.join(DEADLINE)
    assert len(last_attempts(job.study)) == 2
    work(stopped, "breastmnist")
    assert values_of(job) == values_of(open_work(whole, "breastmnist"))
    assert len(job.study.trials) in (
        3,
        4,
    )  # the stopped trial has a second attempt, unless it was done


@pytest.mark.slow
@pytest.mark.parametrize("place", ["file", "database"])
def test_two_workers_on_one_study_outlive_the_death_of_one(
    place: str,
    make_tuning: Make,
    forked: Any,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    read_trials: ReadTrials,
) -> None:
    url = request.getfixturevalue("postgresql") if place == "database" else None
    storage = [f"--storage={url}", "--heartbeat=5"] if url else []
    config = make_tuning(
        tmp_path, "--trials=4", "--epochs=4", "--pruner=none", "--jobs=2", *storage
    )
    job = open_work(config, "breastmnist")
    killed: list[int] = []
    over = threading.Event()

    def kill_a_worker() -> None:
        while not over.is_set():
            for number, attempt in last_attempts(job.study).items():
                metrics = job.files.trial(number).metrics
                saved = metrics.is_file() and metrics.read_bytes().count(b"\n") > 1
                if saved and attempt.state == TrialState.RUNNING:
                    os.kill(int(attempt.user_attrs["worker"].partition(":")[2]), signal.SIGKILL)
                    killed.append(number)
                    return
            time.sleep(0.02)

    thread = threading.Thread(target=kill_a_worker, daemon=True)
    thread.start()
    try:
        assert tune(config, forked) == 0
    finally:
        over.set()
        thread.join(DEADLINE)
    assert killed
    rows = read_trials(job)
    assert len(rows) == 4, "exactly as many as were asked for"
    assert {row["state"] for row in rows} == {"complete"}
    assert [row["trial"] for row in rows if row["deaths"] == "1"] == [str(killed[0])]
    first, again = [attempt for attempt in job.study.trials if trial_of(attempt) == killed[0]]
    assert (first.state, again.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert again.params == first.params
    log = next(job.files.root.glob("workers/*worker*.log")).parent
    assert any("continuing after" in file.read_text() for file in log.iterdir())
    workers = {a.user_attrs["worker"] for a in job.study.trials}
    assert len(workers) >= 2


def test_nothing_of_a_finished_trial_stays(
    make_tuning: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[weakref.ref[Any]] = []
    build_network = build.build_network

    def watched(*args: Any, **options: Any) -> Any:
        assert [model() for model in models] == [None] * len(models)
        network = build_network(*args, **options)
        models.append(weakref.ref(network.model))
        return network

    monkeypatch.setattr(build, "build_network", watched)
    work(make_tuning(tmp_path, "--trials=2", "--epochs=1"), "breastmnist")
    assert len(models) == 2

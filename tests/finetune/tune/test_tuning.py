"""One call directs a study: to its end, past trials that fail and workers that are stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from dogmed.errors import ConfigError, TrainingError
from dogmed.finetune.executors.base import Job
from dogmed.finetune.tune.options import TuneConfig
from dogmed.finetune.tune.tuning import tune
from dogmed.finetune.tune.worker import Work, open_work

Make = Callable[..., TuneConfig]
ValuesOf = Callable[[Work], list[tuple[dict[str, Any], float | None]]]
ReadTrials = Callable[[Work], list[dict[str, str]]]


def test_a_finished_study_tells_its_outcome_again(
    whole: tuple[TuneConfig, Work],
    here: Any,
    capsys: pytest.CaptureFixture[str],
    values_of: ValuesOf,
) -> None:
    tuning, job = whole
    before = values_of(job)
    assert tune(tuning, here) == 0
    assert here.started == []
    assert "tuned - default on test" in capsys.readouterr().out
    assert values_of(job) == before


def test_a_failing_trial_says_why_and_the_others_go_on(
    make_tuning: Make, here: Any, tmp_path: Path, read_trials: ReadTrials
) -> None:
    space = {"optim.name": ["adamw", "adamv"]}
    config = make_tuning(tmp_path, "--trials=4", "--epochs=1", space=space)
    assert tune(config, here) == 0
    rows = read_trials(open_work(config, "breastmnist"))
    assert {(row["optim.name"], row["state"]) for row in rows} == {
        ("adamw", "complete"),
        ("adamv", "fail"),
    }
    assert all("adamv" in row["note"] for row in rows if row["state"] == "fail")
    assert len(here.started) == 1


def test_a_study_without_a_finished_trial_says_why(
    make_tuning: Make, here: Any, tmp_path: Path
) -> None:
    config = make_tuning(tmp_path, "--trials=2", space={"optim.name": ["adamv"]})
    with pytest.raises(TrainingError, match=r"no trial of study .* was finished: .*adamv"):
        tune(config, here)
    assert not (tmp_path / "tuned").exists()


def test_a_dry_run_trains_nothing(
    make_tuning: Make, here: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(make_tuning(tmp_path, "--dry-run"), here) == 0
    said = capsys.readouterr().out
    assert "0 of 3 trials begun so far" in said
    assert "0.0001 to 0.01 (log)" in said
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


def test_workers_that_a_cluster_stops_are_no_deaths(
    make_tuning: Make,
    make_here: Callable[[], Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = make_here()
    start, stopped = here.start, []

    def start_at_last(job: Job) -> None:
        if len(stopped) == 5:
            start(job)
            return
        stopped.append(job.name)
        job.log.touch()
        here.codes[job.name] = 143

    here.start = start_at_last
    assert tune(make_tuning(tmp_path, "--trials=1", "--epochs=1"), here) == 0
    said = capsys.readouterr().out
    assert said.count("a worker was stopped (exit code 143)") == 5
    assert "has died" not in said


def test_one_call_directs_a_study_and_sync_sees_it_at_work(
    make_tuning: Make, here: Any, tmp_path: Path
) -> None:
    tuning = make_tuning(tmp_path)
    job = open_work(tuning, "breastmnist")
    with job.files.directed():
        with pytest.raises(Timeout), FileLock(job.files.root / ".lock", timeout=0):
            pass
        with job.files.claim:  # a worker does not need it
            pass
        with pytest.raises(ConfigError, match=r"another process directs it .*--worker"):
            tune(tuning, here)
    assert not here.started

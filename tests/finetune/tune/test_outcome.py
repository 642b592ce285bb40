"""What comes of a study: its trials, what stays of them, the pictures, the runs in MLflow."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from optuna.trial import TrialState

from dogmed.finetune.tune.options import TuneConfig
from dogmed.finetune.tune.worker import Work

ReadTrials = Callable[[Work], list[dict[str, str]]]


def test_there_are_as_many_trials_as_were_asked_for(
    whole: tuple[TuneConfig, Work], read_trials: ReadTrials
) -> None:
    _, job = whole
    rows = read_trials(job)
    assert len(rows) == len(job.study.trials) == 4
    assert {row["state"] for row in rows} == {"complete", "pruned"}
    for row in rows:
        assert 1e-4 <= float(row["optim.lr_base"]) <= 1e-2
        assert row["batch_size"] in ("32", "64")


def test_a_trials_value_is_val_auc_of_the_epoch_that_it_selected(
    whole: tuple[TuneConfig, Work],
) -> None:
    _, job = whole
    complete = job.study.get_trials(states=(TrialState.COMPLETE,))
    assert complete
    for trial in complete:
        rows = map(json.loads, job.files.trial(trial.number).metrics.read_text().splitlines())
        curve = {row["epoch"]: row["val_auc"] for row in rows}
        assert trial.value == pytest.approx(max(curve.values()), abs=1e-6)
        assert trial.intermediate_values == pytest.approx(curve)


def test_what_stays_of_a_trial_is_small_and_knows_nothing_of_test(
    whole: tuple[TuneConfig, Work],
) -> None:
    _, job = whole
    for trial in job.study.trials:
        folder = job.files.trial(trial.number)
        names = {path.name for path in folder.root.rglob("*") if path.is_file()}
        assert not {
            name for name in names if name.endswith((".pt", ".safetensors", ".csv", ".png"))
        }
        assert sum(path.stat().st_size for path in folder.root.rglob("*")) < 100_000
        if trial.state == TrialState.COMPLETE:
            result = json.loads(folder.result.read_text())
            assert not {"test", "trivial_test_acc"} & result.keys()
            assert result["last_epoch"].keys() == {"val"}


def test_the_pictures_need_nothing_but_their_file(whole: tuple[TuneConfig, Work]) -> None:
    _, job = whole
    page = (job.files.root / "plots.html").read_text()
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    assert page.count('class="plotly-graph-div"') == 3
    assert "optim.lr_base" in page


def test_trials_are_nested_under_their_study_in_mlflow(whole: tuple[TuneConfig, Work]) -> None:
    from mlflow import MlflowClient

    tuning, job = whole
    client = MlflowClient(f"sqlite:///{tuning.out / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "dogmed-tune"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == job.files.name]
    assert parent.info.status == "FINISHED"
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len(runs) - 1 == 4 + 4  # trials, cells of the comparison
    trials = [run for run in children if "test_acc" not in run.data.metrics]
    assert len(trials) == 4
    assert not [key for run in trials for key in run.data.metrics if key.startswith("test")]

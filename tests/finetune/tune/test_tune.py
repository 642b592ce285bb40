"""The study: its trials, what is pruned, failed, stopped and continued, and what comes of it."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from filelock import FileLock, Timeout
from optuna.trial import TrialState

from dogmed import cli, config, stats
from dogmed.data.prepared import Prepared
from dogmed.errors import ConfigError, Interrupted, TrainingError
from dogmed.finetune import build
from dogmed.finetune.benchmark.matrix import BenchmarkConfig, combine
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.executors.base import Job
from dogmed.finetune.executors.options import ExecutorConfig
from dogmed.finetune.tune.comparison import difference_of, usual_runs, verdict
from dogmed.finetune.tune.options import TuneConfig, base_of
from dogmed.finetune.tune.recipe import take_tuned
from dogmed.finetune.tune.study import build_pruner, last_attempts, trial_of
from dogmed.finetune.tune.tuning import tune
from dogmed.finetune.tune.worker import Work, open_work, work

Make = Callable[..., TuneConfig]
SYNTHETIC = "breastmnist-synthetic"
SETUP = "dognext_test-scratch-28-fraction0.2"
DEADLINE = 60  # seconds
PRUNE_SOON = ("--prune-after-trials=1", "--prune-after-epochs=0")


def values_of(job: Work) -> list[tuple[dict[str, Any], float | None]]:
    """What each trial tried and reached, in the order in which they were begun."""
    last = sorted(last_attempts(job.study).items())
    return [(attempt.params, attempt.value) for _, attempt in last]


def read_trials(job: Work) -> list[dict[str, str]]:
    with (job.files.root / "trials.csv").open() as file:
        return list(csv.DictReader(file))


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


@pytest.fixture(scope="module")
def whole(
    make_tuning: Make, make_here: Callable[[], Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[TuneConfig, Work]:
    """A study of four trials, some pruned, tracked and compared with the usual options."""
    out = tmp_path_factory.mktemp("whole")
    more = ("--trials=4", "--compare-seeds=2", "--tracking=mlflow", *PRUNE_SOON)
    config = make_tuning(out, *more)
    assert tune(config, make_here()) == 0
    return config, open_work(config, "breastmnist")


def test_there_are_as_many_trials_as_were_asked_for(whole: tuple[TuneConfig, Work]) -> None:
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


def test_pruning_is_optunas_decision(whole: tuple[TuneConfig, Work]) -> None:
    """Each trial again in a study in memory, told epoch by epoch after those before it."""
    config, job = whole
    fresh = optuna.create_study(direction="maximize", pruner=build_pruner(config))
    for done in job.study.trials:
        trial = fresh.ask()
        pruned_after = None
        for epoch, auc in done.intermediate_values.items():
            trial.report(auc, epoch)
            if trial.should_prune():
                pruned_after = epoch
                break
        assert (pruned_after is not None) == (done.state == TrialState.PRUNED)
        assert pruned_after in (None, done.last_step)
        value = done.value if done.state == TrialState.COMPLETE else None
        fresh.tell(trial, value, state=done.state)


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


def test_the_recipe_is_one_that_finetune_and_benchmark_take(
    whole: tuple[TuneConfig, Work],
) -> None:
    tuning, job = whole
    file = tuning.out / "tuned" / SYNTHETIC / f"{SETUP}.yaml"
    text = file.read_text()
    best = job.study.best_trial
    for fact in ("# made by: dogmed tune --task breastmnist", job.files.name, "val AUC", "# cost"):
        assert fact in text
    run = config.parse(
        FinetuneConfig, ["--config", str(file)], prog="", base=config.recipe("finetune/default")
    )
    assert (run.task, run.model, run.size) == ("breastmnist", "dognext_test", 28)
    assert re.fullmatch("tuned-[0-9a-f]{6}", run.label)
    assert run.optim.lr_base == best.params["optim.lr_base"]
    assert run.batch_size == best.params["batch_size"]
    usual = config.flatten(config.recipe("finetune/default"))
    for name, value in config.flatten(yaml.safe_load(text)).items():
        assert value != usual[name], f"{name} is as it always is"


def test_a_cell_takes_its_own_recipe_and_the_seed_of_the_search_is_told(
    whole: tuple[TuneConfig, Work], capsys: pytest.CaptureFixture[str]
) -> None:
    tuning, job = whole
    best = job.study.best_trial
    argv = [
        "--task=breastmnist", "--data=synthetic", "--init=scratch", "--size=28", "--seeds=2", "--tuned",
        "--model=dognext_test,resnet18", "--train-fraction=0.2", "--epochs=2", f"--out={tuning.out}",
        f"--cache-dir={tuning.cache_dir}",
    ]  # fmt: skip
    base = config.recipe("finetune/benchmark")
    runs = combine(config.parse(BenchmarkConfig, argv, prog="", base=base))
    with pytest.raises(ConfigError, match=r"no tuned recipe of breastmnist resnet18 scratch \("):
        take_tuned(runs, skip_missing=False)
    capsys.readouterr()
    taken = take_tuned(runs, skip_missing=True)
    assert [(run.model, run.seed) for run in taken] == [("dognext_test", 0), ("dognext_test", 1)]
    assert {run.optim.lr_base for run in taken} == {best.params["optim.lr_base"]}
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert told[1].startswith("--tuned: seed 0 is the search's own")
    report = json.loads((tuning.out / "tuned" / SYNTHETIC / f"{SETUP}.json").read_text())
    assert {run.label for run in taken} == {report["labels"]["tuned"]}  # the comparison's cells
    runs = combine(config.parse(BenchmarkConfig, [*argv, "--epochs=7"], prog="", base=base))
    longer = take_tuned(runs, skip_missing=True)
    assert {run.epochs for run in longer} == {7}
    assert {run.label for run in longer} != {run.label for run in taken}


def test_the_outcome_is_compared_seed_by_seed(whole: tuple[TuneConfig, Work]) -> None:
    tuning, _ = whole
    report = json.loads((tuning.out / "tuned" / SYNTHETIC / f"{SETUP}.json").read_text())
    assert report["search_seed"] == 0
    assert report["seeds"] == [1, 2], "not the seed of the search"
    assert report["epochs"] == 2
    assert report["labels"]["default"] == ""  # the cells of any benchmark
    for side, label in report["labels"].items():
        cells = tuning.out / "finetune" / SYNTHETIC / (SETUP + (f"-{label}" if label else ""))
        results = [json.loads((cells / f"seed{k}" / "result.json").read_text()) for k in (1, 2)]
        assert report[side]["acc"] == [result["test"]["acc"] for result in results]
        assert {result["epochs"] for result in results} == {2}
    pairs = zip(report["tuned"]["auc"], report["default"]["auc"], strict=True)
    assert report["difference"]["auc"]["mean"] == pytest.approx(np.mean([a - b for a, b in pairs]))
    assert report["interval_covers"] == "test images and training seeds"
    assert "2 seeds tell little" in report["verdict"]


def test_a_comparison_over_other_epochs_says_so_in_its_label(
    make_tuning: Make, tmp_path: Path
) -> None:
    base = base_of(make_tuning(tmp_path), "breastmnist")
    assert {(run.label, run.epochs) for run in usual_runs(base, 20, 2)} == {("default-20ep", 20)}
    assert [(run.label, run.seed) for run in usual_runs(base, 2, 2)] == [("", 1), ("", 2)]


@pytest.mark.parametrize(
    ("by_seed", "known"), [([0.01], False), ([0.01, 0.01, 0.01], False), ([0.01, 0.02], True)]
)
def test_equal_differences_or_one_alone_give_no_interval(by_seed: list[float], known: bool) -> None:
    found = stats.Difference(value=0.01, low=0.005, high=0.015, p=0.01, covers="")
    difference = difference_of(np.array(by_seed), found)
    assert difference["interval"] == ((0.005, 0.015) if known else None)
    said = verdict({"acc": difference}, len(by_seed))
    assert ("tuning helped" in said and "cannot be told" not in said) == known


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((0.01, 0.03), "ACC +0.0200 [+0.0100, +0.0300]: tuning helped"),
        ((-0.01, 0.05), "it cannot be told whether tuning helped"),
        ((-0.03, -0.01), "tuning did harm"),
        (None, "cannot be told from seeds that all differ alike"),
    ],
)
def test_the_verdict_is_in_plain_words(interval: tuple[float, float] | None, said: str) -> None:
    assert said in verdict({"acc": {"mean": 0.02, "interval": interval}, "auc": None}, 3)


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


def test_a_finished_study_tells_its_outcome_again(
    whole: tuple[TuneConfig, Work], here: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tuning, job = whole
    before = values_of(job)
    assert tune(tuning, here) == 0
    assert here.started == []
    assert "tuned - default on test" in capsys.readouterr().out
    assert values_of(job) == before


def test_the_test_split_is_never_read(
    make_tuning: Make, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_a_stopped_study_goes_on_as_if_nothing_had_been(make_tuning: Make, tmp_path: Path) -> None:
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


def test_a_failing_trial_says_why_and_the_others_go_on(
    make_tuning: Make, here: Any, tmp_path: Path
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


@pytest.mark.slow
@pytest.mark.parametrize("place", ["file", "database"])
def test_two_workers_on_one_study_outlive_the_death_of_one(
    place: str, make_tuning: Make, forked: Any, tmp_path: Path, request: pytest.FixtureRequest
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


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--task=",), "which tasks? --all, or for example --task breastmnist"),
        (("--all",), "--all is all twelve tasks, --task breastmnist some: give one"),
        (("--task=brestmnist",), "did you mean 'breastmnist'?"),
        (("--space=wdie",), "--space wdie: no such space (did you mean 'wide'?)"),
        (("--space=missing.yaml",), "--space missing.yaml: cannot be read"),
        (("--storage=nosql://u:secret@h/d",), "--storage nosql://u:***@h/d: no database URL"),
        (("--storage=postgresql://u@127.0.0.1:9/d",), "cannot be used"),
        (("--resume=never",), "a study is always continued; give another --study"),
        (("--init=nosuch",), "nosuch"),
        (("--trails=3",), "did you mean '--trials'?"),
        (("--pruner=mean",), "--pruner"),
    ],
)
def test_wrong_options_are_told_in_one_line_before_any_trial(
    flags: tuple[str, ...],
    said: str,
    make_flags: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = [
        word
        for word in make_flags(tmp_path)
        if "--space" not in " ".join(flags) or "space" not in word
    ]
    assert cli.main(["tune", *argv, *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.rglob("trial0*"))


def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(
    make_flags: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("x")
    assert cli.main(["tune", *make_flags(tmp_path), f"--storage={mine}"]) == 2
    assert f"--storage {mine}: this file is no journal" in capsys.readouterr().err
    assert mine.read_text() == "x"


def test_a_study_takes_no_trials_with_other_options(make_tuning: Make, tmp_path: Path) -> None:
    open_work(make_tuning(tmp_path), "breastmnist")
    with pytest.raises(ConfigError, match=r"made with other options \(epochs 2 -> 3\).*--study"):
        open_work(make_tuning(tmp_path, "--epochs=3"), "breastmnist")
    with pytest.raises(ConfigError, match="made with other space"):
        open_work(make_tuning(tmp_path, space={"batch_size": [16]}), "breastmnist")
    open_work(make_tuning(tmp_path, "--epochs=3", "--study=longer"), "breastmnist")


def test_a_study_older_than_an_option_goes_on_with_its_usual_value(
    make_tuning: Make, tmp_path: Path
) -> None:
    study = open_work(make_tuning(tmp_path), "breastmnist").study
    young = {"scale_aug", "scale.probability", "net.order"}
    options = study.user_attrs["options"]
    assert young <= options.keys()
    study.set_user_attr("options", {k: v for k, v in options.items() if k not in young})
    open_work(make_tuning(tmp_path), "breastmnist")
    with pytest.raises(ConfigError, match="scale_aug off -> scale"):
        open_work(make_tuning(tmp_path, "--scale-aug=scale"), "breastmnist")


def test_a_dry_run_trains_nothing(
    make_tuning: Make, here: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(make_tuning(tmp_path, "--dry-run"), here) == 0
    said = capsys.readouterr().out
    assert "0 of 3 trials begun so far" in said
    assert "0.0001 to 0.01 (log)" in said
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


def test_tuned_names_the_tasks_without_a_recipe(make_tuning: Make, tmp_path: Path) -> None:
    folder = tmp_path / "tuned" / SYNTHETIC
    folder.mkdir(parents=True)
    (folder / "dognext_atto-scratch-28.yaml").write_text("batch_size: 16\nlabel: tuned\n")
    argv = ["--task=breastmnist,bloodmnist", "--data=synthetic", "--size=28", "--init=scratch",
            "--model=dognext_atto", f"--out={tmp_path}"]  # fmt: skip
    base = config.recipe("finetune/benchmark")
    runs = combine(config.parse(BenchmarkConfig, argv, prog="", base=base))
    with pytest.raises(
        ConfigError, match=r"no tuned recipe of bloodmnist dognext_atto .*--skip-missing"
    ):
        take_tuned(runs, skip_missing=False)
    taken = take_tuned(runs, skip_missing=True)
    assert {(run.task, run.batch_size) for run in taken} == {("breastmnist", 16)}


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


def test_tune_takes_the_options_of_finetune_and_its_own() -> None:
    shared = [*config.flags(FinetuneConfig), *config.flags(ExecutorConfig)]
    more = [
        "--all", "--trials", "--space", "--storage", "--heartbeat", "--study", "--pruner",
        "--prune-after-trials", "--prune-after-epochs", "--sampler-seed", "--compare-seeds", "--worker",
    ]  # fmt: skip
    assert config.flags(TuneConfig) == [*shared, *more]

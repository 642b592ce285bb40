"""The recipe that comes of a study, and how it is found again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dogmed import config
from dogmed.errors import ConfigError
from dogmed.finetune.benchmark.matrix import BenchmarkConfig, combine
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.tune.options import TuneConfig
from dogmed.finetune.tune.recipe import take_tuned
from dogmed.finetune.tune.worker import Work

Make = Callable[..., TuneConfig]


def test_the_recipe_is_one_that_finetune_and_benchmark_take(
    whole: tuple[TuneConfig, Work], recipe_file: Path
) -> None:
    _, job = whole
    text = recipe_file.read_text()
    best = job.study.best_trial
    for fact in ("# made by: dogmed tune --task breastmnist", job.files.name, "val AUC", "# cost"):
        assert fact in text
    run = config.parse(
        FinetuneConfig,
        ["--config", str(recipe_file)],
        prog="",
        base=config.recipe("finetune/default"),
    )
    assert (run.task, run.model, run.size) == ("breastmnist", "dognext_test", 28)
    assert re.fullmatch("tuned-[0-9a-f]{6}", run.label)
    assert run.optim.lr_base == best.params["optim.lr_base"]
    assert run.batch_size == best.params["batch_size"]
    usual = config.flatten(config.recipe("finetune/default"))
    for name, value in config.flatten(yaml.safe_load(text)).items():
        assert value != usual[name], f"{name} is as it always is"


def test_a_cell_takes_its_own_recipe_and_the_seed_of_the_search_is_told(
    whole: tuple[TuneConfig, Work], recipe_file: Path, capsys: pytest.CaptureFixture[str]
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
    report = json.loads(recipe_file.with_suffix(".json").read_text())
    assert {run.label for run in taken} == {report["labels"]["tuned"]}  # the comparison's cells
    runs = combine(config.parse(BenchmarkConfig, [*argv, "--epochs=7"], prog="", base=base))
    longer = take_tuned(runs, skip_missing=True)
    assert {run.epochs for run in longer} == {7}
    assert {run.label for run in longer} != {run.label for run in taken}


def test_tuned_names_the_tasks_without_a_recipe(make_tuning: Make, tmp_path: Path) -> None:
    folder = tmp_path / "tuned" / "breastmnist-synthetic"
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

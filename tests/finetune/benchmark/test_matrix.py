"""The flags of the benchmark and the runs they stand for."""

from __future__ import annotations

import itertools

import pytest

from dogmed import config
from dogmed.data.tasks import official_tasks
from dogmed.errors import ConfigError
from dogmed.finetune.benchmark.matrix import BenchmarkConfig, combine
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.executors.options import ExecutorConfig

RECIPE = config.recipe("finetune/benchmark")


def parse(*argv: str) -> BenchmarkConfig:
    return config.parse(BenchmarkConfig, argv, prog="dogmed benchmark", base=RECIPE)


def test_it_has_the_flags_of_finetune_and_these() -> None:
    more = ["--seeds", "--all", "--skip-missing", "--tuned"]
    shared = [*config.flags(FinetuneConfig), *config.flags(ExecutorConfig)]
    assert config.flags(BenchmarkConfig) == [*shared, *more]


def test_all_is_the_matrix_of_the_thesis_with_the_recipe_of_finetune() -> None:
    runs = combine(parse("--all"))
    assert [(run.task, run.model, run.init) for run in runs] == list(
        itertools.product(
            official_tasks(), ("dognext_atto", "convnextv2_atto"), ("scratch", "imagenet50ep")
        )
    )
    default = config.recipe("finetune/default")
    given = {"task": "pathmnist", "model": "dognext_atto", "init": "scratch"}
    given["experiment"] = "dogmed-benchmark"
    assert runs[0] == config.build(FinetuneConfig, default | given)


def test_lists_stand_apart_by_commas_or_spaces_and_everything_is_combined_once() -> None:
    lists = ["--task", "breastmnist,retinamnist", "--model", "resnet18", "dognext_test", "resnet18"]
    more = ["--seed=3", "--seeds=2", "--train-fraction", "0.01,0.1", "1", "--init=scratch"]
    runs = combine(parse(*lists, *more, "--epochs=7", "--optim.lr-base=0.001"))
    assert len(runs) == len(set(map(repr, runs))) == 2 * 2 * 2 * 3
    assert [run.seed for run in runs] == [3] * 12 + [4] * 12  # a whole table for the first seed
    assert {run.train_fraction for run in runs} == {0.01, 0.1, 1.0}
    assert {run.model for run in runs} == {"resnet18", "dognext_test"}
    assert {(run.epochs, run.optim.lr_base) for run in runs} == {(7, 0.001)}
    assert all(type(run) is FinetuneConfig for run in runs)
    again = [config.build(FinetuneConfig, config.to_dict(run)) for run in runs]
    assert again == runs


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "which tasks? --all, or for example --task"),
        (["--all", "--task", "breastmnist"], "--all is all twelve tasks"),
        (["--all", "--model", ","], "--model: expected at least one"),
        (["--all", "--train-fraction", "0.1,x"], "up to 1, got 'x'"),
        (["--all", "--train-fraction", "0"], "up to 1, got '0.0'"),
        (["--all", "--train-fraction", "1.5"], "up to 1, got '1.5'"),
        (["--all", "--tasks", "x"], "unknown option --tasks (did you mean '--task'?)"),
        (["--all", "--seeds", "0"], "seeds: Input should be greater than 0"),
    ],
)
def test_wrong_lists_are_told_in_one_line(argv: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        combine(parse(*argv))
    assert said in str(caught.value) and "\n" not in str(caught.value)

"""Small studies that take seconds, their trials in this process."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dogmed import config
from dogmed.finetune.tune.options import TuneConfig
from dogmed.finetune.tune.study import last_attempts
from dogmed.finetune.tune.tuning import tune
from dogmed.finetune.tune.worker import Work, open_work

TINY = (
    "--task=breastmnist", "--data=synthetic", "--model=dognext_test", "--size=28", "--epochs=2",
    "--eval.resamples=20", "--device=cpu", "--trials=3", "--compare-seeds=0", "--tracking=off",
    "--train-fraction=0.2",
)  # fmt: skip
SPACE = {
    "optim.lr_base": {"low": 1e-4, "high": 1e-2, "log": True},
    "loss": {"label-smoothing": {"low": 0, "high": 0.3, "step": 0.1}},
    "batch_size": [32, 64],
}


@pytest.fixture(scope="session")
def make_flags(
    cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., list[str]]:
    folder = tmp_path_factory.mktemp("space")

    def make(out: Path, *more: str, space: dict[str, Any] = SPACE) -> list[str]:
        file = folder / f"{abs(hash(str(space)))}.yaml"
        file.write_text(yaml.safe_dump(space))
        given = {flag.partition("=")[0] for flag in more}
        usual = [flag for flag in TINY if flag.partition("=")[0] not in given]
        return [*usual, f"--out={out}", f"--cache-dir={cache_dir}", f"--space={file}", *more]

    return make


@pytest.fixture(scope="session")
def make_tuning(make_flags: Callable[..., list[str]]) -> Callable[..., TuneConfig]:
    recipe = config.recipe("finetune/tune")

    def make(out: Path, *more: str, space: dict[str, Any] = SPACE) -> TuneConfig:
        argv = make_flags(out, *more, space=space)
        return config.parse(TuneConfig, argv, prog="dogmed tune", base=recipe)

    return make


@pytest.fixture(scope="session")
def whole(
    make_tuning: Callable[..., TuneConfig],
    make_here: Callable[[], Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[TuneConfig, Work]:
    """A study of four trials, some pruned, tracked and compared with the usual options."""
    out = tmp_path_factory.mktemp("whole")
    prune_soon = ("--prune-after-trials=1", "--prune-after-epochs=0")
    config = make_tuning(out, "--trials=4", "--compare-seeds=2", "--tracking=mlflow", *prune_soon)
    assert tune(config, make_here()) == 0
    return config, open_work(config, "breastmnist")


@pytest.fixture(scope="session")
def recipe_file(whole: tuple[TuneConfig, Work]) -> Path:
    """The recipe that came of the whole study; the report on it lies beside."""
    name = "dognext_test-scratch-28-fraction0.2.yaml"
    return whole[0].out / "tuned" / "breastmnist-synthetic" / name


@pytest.fixture(scope="session")
def values_of() -> Callable[[Work], list[tuple[dict[str, Any], float | None]]]:
    """What each trial tried and reached, in the order in which they were begun."""

    def read(job: Work) -> list[tuple[dict[str, Any], float | None]]:
        last = sorted(last_attempts(job.study).items())
        return [(attempt.params, attempt.value) for _, attempt in last]

    return read


@pytest.fixture(scope="session")
def read_trials() -> Callable[[Work], list[dict[str, str]]]:
    """The rows of a study's table of trials."""

    def read(job: Work) -> list[dict[str, str]]:
        with (job.files.root / "trials.csv").open() as file:
            return list(csv.DictReader(file))

    return read

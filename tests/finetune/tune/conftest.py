"""A small study that takes seconds, its trials in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dogmed import config
from dogmed.finetune.tune.options import TuneConfig

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

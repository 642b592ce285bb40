"""The options of ``dogmed tune``, and what is told of wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dogmed import cli, config
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.executors.options import ExecutorConfig
from dogmed.finetune.tune.options import TuneConfig


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


def test_tune_takes_the_options_of_finetune_and_its_own() -> None:
    shared = [*config.flags(FinetuneConfig), *config.flags(ExecutorConfig)]
    more = [
        "--all", "--trials", "--space", "--storage", "--heartbeat", "--study", "--pruner",
        "--prune-after-trials", "--prune-after-epochs", "--sampler-seed", "--compare-seeds", "--worker",
    ]  # fmt: skip
    assert config.flags(TuneConfig) == [*shared, *more]

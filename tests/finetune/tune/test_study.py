"""A study: what is pruned, and whom it takes trials from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from dogmed import cli
from dogmed.errors import ConfigError
from dogmed.finetune.tune.options import TuneConfig
from dogmed.finetune.tune.study import build_pruner
from dogmed.finetune.tune.worker import Work, open_work

Make = Callable[..., TuneConfig]


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

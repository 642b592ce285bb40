"""Search spaces: what they hold, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from dogmed import config
from dogmed.errors import ConfigError
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.tune.space import Option, space_of, tunable, with_values


@pytest.fixture(scope="module")
def base() -> FinetuneConfig:
    return config.build(FinetuneConfig, config.recipe("finetune/default"))


def write(folder: Path, values: Any) -> str:
    (folder / "space.yaml").write_text(
        values if isinstance(values, str) else yaml.safe_dump(values)
    )
    return str(folder / "space.yaml")


@pytest.mark.parametrize("name", config.recipes("tune"))
@pytest.mark.parametrize("task", ["pathmnist", "retinamnist"])  # one with, one without own ranges
def test_finetune_takes_all_that_a_shipped_space_suggests(
    name: str, task: str, base: FinetuneConfig
) -> None:
    space = space_of(name, task, base)
    assert ("loss.ordinal" in space) == (task == "retinamnist")
    for number in range(3):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(number))
        trial = study.ask()
        values = {key: option.suggest(trial, key) for key, option in space.items()}
        with_values(base, values, name)
        for key, option in space.items():
            if option.choices:
                assert values[key] in option.choices
            else:
                assert option.low <= values[key] <= option.high


def test_only_what_does_not_change_the_task_can_be_varied() -> None:
    assert {"optim.lr_base", "net.drop_path", "batch_size", "epochs"} <= set(tunable())
    assert not {"task", "size", "seed", "model", "init", "eval.select", "out"} & set(tunable())


def test_a_key_is_a_flag_dotted_or_in_its_group(tmp_path: Path, base: FinetuneConfig) -> None:
    space = space_of(
        write(tmp_path, {"optim": {"lr-base": {"low": 1e-5, "high": 1e-3, "log": True}},
                         "optim.weight_decay": [0, 0.1], "epochs": {"low": 2, "high": 8, "step": 2}}),
        "breastmnist", base,
    )  # fmt: skip
    assert space == {
        "optim.lr_base": Option(low=1e-5, high=1e-3, log=True),
        "optim.weight_decay": Option(choices=(0.0, 0.1)),
        "epochs": Option(low=2, high=8, step=2, whole=True),
    }


def test_a_tasks_own_range_wins_and_a_file_extends_a_shipped_space(
    tmp_path: Path, base: FinetuneConfig
) -> None:
    values = {
        "extends": "default",
        "batch_size": [16],
        "tasks": {"bloodmnist": {"batch_size": [512], "epochs": [3, 4]}},
    }
    name = write(tmp_path, values)
    shipped = space_of("default", "breastmnist", base)
    assert space_of(name, "breastmnist", base) == shipped | {"batch_size": Option(choices=(16,))}
    blood = space_of(name, "bloodmnist", base)
    assert blood["batch_size"] == Option(choices=(512,))
    assert blood["epochs"] == Option(choices=(3, 4))
    assert "loss.ordinal" in space_of(name, "retinamnist", base)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"optim.lr_bse": [1]}, "'optim.lr_bse' is no option of dogmed finetune (did you mean"),
        ({"size": [28, 64]}, "'size' cannot be varied by a study"),
        ({"optim.lr_base": {"low": -1.0, "high": 1.0}}, "optim.lr_base: Input should be greater"),
        ({"optim.lr_base": {"low": 1.0, "high": 0.1}}, "low must be below high"),
        ({"optim.lr_base": {"low": 0.1, "hihg": 1.0}}, "unknown key 'hihg' (did you mean 'high'?)"),
        ({"optim.lr_base": {"low": 0.1}}, "a range needs low and high"),
        ({"optim.lr_base": 0.1}, "expected a list of choices or a range"),
        ({"net.drop_path": {"low": 0.0, "high": 0.3, "log": True}}, "log needs low above 0"),
        ({"net.drop_path": {"low": 0.0, "high": 0.3, "step": 1}}, "step 1 does not fit"),
        (
            {"net.drop_path": {"low": 0.0, "high": 0.4, "step": 0.15}},
            "end at 0.3, not at high, 0.4",
        ),
        ({"epochs": {"low": 10, "high": 25, "step": 10}}, "end at 20, not at high, 25"),
        ({"optim.betas": [[0.9, 0.99]]}, "expected words and numbers"),
        ({"optim.schedule": ["cosinus"]}, "optim.schedule: Input should be 'cosine'"),
        ({"optim.schedule": {"low": "cosine", "high": "linear"}}, "give a list of choices"),
        ({"batch_size": []}, "the list of choices is empty"),
        ({"batch_size": [8, 8]}, "a choice is given twice"),
        ({"tasks": {"brestmnist": {}}}, "unknown task 'brestmnist' (did you mean 'breastmnist'?)"),
        ({"tasks": {"retinamnist": {"epochs": [1]}}}, "holds no option to vary for breastmnist"),
        ({"extends": "defualt"}, "no such space (did you mean 'default'?)"),
        ("optim.lr_base: [1", "not valid YAML"),
    ],
)
def test_a_wrong_space_is_told_in_one_line(
    values: Any, said: str, tmp_path: Path, base: FinetuneConfig
) -> None:
    with pytest.raises(ConfigError) as error:
        space_of(write(tmp_path, values), "breastmnist", base)
    assert said in str(error.value)
    assert str(error.value).startswith("--space ")
    assert "\n" not in str(error.value)


def test_steps_leave_no_rounding_in_a_value() -> None:
    option = Option(low=0.0, high=0.4, step=0.1)
    trial = optuna.trial.FixedTrial({"net.drop_path": 0.30000000000000004})
    assert option.suggest(trial, "net.drop_path") == 0.3
    assert [option.clean(k * 0.1) for k in range(5)] == [0.0, 0.1, 0.2, 0.3, 0.4]
    exact = 0.123456789012345678
    assert Option(low=0.1, high=0.2, log=True).clean(exact) == exact


def test_a_learning_rate_that_would_do_nothing_is_refused(base: FinetuneConfig) -> None:
    fixed = with_values(base, {"optim.lr": 1e-3}, "flags")
    with pytest.raises(ConfigError, match="does nothing while"):
        space_of("default", "breastmnist", fixed)

"""Configuration: recipes, files, flags, and what is said of wrong ones."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import yaml

from dogmed import cli, config
from dogmed.errors import ConfigError
from dogmed.finetune.config import FinetuneConfig
from dogmed.pretrain.config import PretrainConfig

RECIPE = config.recipe("finetune/default")


def parse(*argv: str) -> FinetuneConfig:
    return config.parse(FinetuneConfig, argv, prog="dogmed finetune", base=RECIPE)


def shipped_recipes() -> list[str]:
    """Those of options; the ranges that tuning searches are checked with it."""
    return [f"{of}/{name}" for of in ("finetune", "pretrain") for name in config.recipes(of)]


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_valid(name: str) -> None:
    values = config.recipe(name)
    if name.startswith("pretrain/"):  # their own name is no value of theirs
        config.build(PretrainConfig, {"recipe": name.removeprefix("pretrain/"), **values})
        return
    (of,) = [command.config for command in cli.COMMANDS.values() if command.recipe == name]
    config.build(cli._resolve(of), values)


def test_the_default_recipe_names_every_field_and_no_class_has_defaults() -> None:
    def leaves(values: dict, prefix: str = "") -> set[str]:
        nested = [
            leaves(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k}
            for k, v in values.items()
        ]
        return set(itertools.chain.from_iterable(nested))

    assert leaves(RECIPE) == set(config._leaves(FinetuneConfig))
    for cls in (FinetuneConfig, *config._groups(FinetuneConfig).values()):
        for field in dataclasses.fields(cls):
            assert field.default is dataclasses.MISSING, field.name


def test_every_flag_is_listed_here_so_that_a_new_one_is_a_decision() -> None:
    assert config.flags(FinetuneConfig) == [
        "--task", "--kind", "--data", "--model", "--init", "--size", "--upsample-from", "--epochs",
        "--batch-size", "--seed", "--train-fraction", "--scale-aug", "--device", "--compile", "--cache",
        "--data-dir", "--cache-dir", "--weights-dir", "--label", "--out", "--resume", "--tracking",
        "--experiment", "--parent-run", "--dry-run",
        "--optim.name", "--optim.lr-base", "--optim.lr", "--optim.weight-decay", "--optim.betas",
        "--optim.schedule", "--optim.warmup-epochs", "--optim.min-lr", "--optim.clip-grad",
        "--loss.label-smoothing", "--loss.ordinal", "--net.drop-path", "--net.kernel-size",
        "--net.extent", "--net.order", "--net.downsample", "--net.double-residual", "--net.use-grn",
        "--net.dog-init", "--net.dog-margin", "--net.dog-bias", "--net.stride", "--net.sigma", "--net.growth",
        "--net.scale-channels", "--net.channel-ratio", "--net.zero-order", "--net.separable",
        "--net.pooling", "--net.selection", "--augment.hflip",
        "--scale.probability", "--scale.range", "--scale.resize-kernels", "--scale.kernel-sizes",
        "--scale.threshold", "--eval.select", "--eval.batch-size", "--eval.resamples", "--checkpoint.minutes",
    ]  # fmt: skip


def test_flags_win_over_the_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("task: bloodmnist\nepochs: 7\noptim: {lr: 5e-4}\nnet.drop_path: 0\n")
    parsed = parse("--config", str(file), "--epochs", "3", "--optim.betas", "0.8", "0.9")
    assert (parsed.task, parsed.epochs, parsed.optim.lr) == ("bloodmnist", 3, 5e-4)
    assert (parsed.net.drop_path, parsed.optim.betas) == (0.0, (0.8, 0.9))
    assert parsed.optim.lr_base == RECIPE["optim"]["lr_base"]


def test_a_resolved_configuration_reads_back_equal(tmp_path: Path) -> None:
    first = parse("--task", "chestmnist", "--data-dir", "some/where", "--optim.lr", "0.001")
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(first))
    assert parse("--config", str(file)) == first
    assert yaml.safe_load(file.read_text())["data_dir"] == str(Path("some/where"))


def pretraining(*argv: str) -> PretrainConfig:
    base = config.base_values(argv, "pretrain/imagenet50ep", choice=True)
    return config.parse(PretrainConfig, argv, prog="dogmed pretrain", base=base)


def test_a_file_of_ones_own_extends_a_shipped_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: tiny64\nepochs: 7\n")
    flags = ("--config", str(file))
    tiny = config.recipe("pretrain/tiny64")
    parsed = pretraining(*flags)
    assert (parsed.recipe, parsed.epochs, parsed.size) == ("tiny64", 7, tiny["size"])
    assert pretraining(*flags, "--recipe", "shells").recipe == "shells"
    file.write_text("extends: tiny64\nrecipe: cells\n")
    parsed = pretraining(*flags)
    assert (parsed.recipe, parsed.epochs, parsed.size) == ("cells", tiny["epochs"], tiny["size"])
    written = tmp_path / "config.yaml"
    written.write_text(config.to_yaml(parsed))  # a run's: it names every value, and extends nothing
    assert pretraining("--config", str(written)) == parsed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extends: tiny46", "unknown recipe 'tiny46' (did you mean 'tiny64'?)"),
        ("recipe: cells", "unknown recipe 'cells'; there are"),
        ("recipe: cells", "a --config FILE with 'extends:' (one of these) and 'recipe:'"),
        ("extends: [tiny64]", "unknown recipe '['tiny64']'"),
        ("extends: tiny64\nrecipe: imagenet50ep", "cannot be called imagenet50ep"),
        ("extends: tiny64\nepoch: 1", "unknown key 'epoch' (did you mean 'epochs'?)"),
    ],
)
def test_recipes_that_cannot_be_extended(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        pretraining("--config", str(file))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_where_there_is_no_choice_a_file_extends_what_holds_anyway(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: default\nepochs: 7\n")
    for name in ("finetune/default", "finetune/benchmark"):
        argv = ["--config", str(file)]
        assert config.base_values(argv, name, choice=False) == config.recipe(name)
    assert parse("--config", str(file)).epochs == 7
    file.write_text("extends: defalt\n")
    with pytest.raises(ConfigError, match="expected benchmark or default here, got 'defalt'"):
        config.base_values(["--config", str(file)], "finetune/benchmark", choice=False)


def test_a_tilde_is_the_users_home_in_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my.yaml").write_text("cache_dir: ~/cache\n")
    parsed = parse("--config=~/my.yaml", "--data-dir=~/x", "--weights-dir", "~", "--out", "~/a~b")
    assert (parsed.cache_dir, parsed.data_dir) == (tmp_path / "cache", tmp_path / "x")
    assert (parsed.weights_dir, parsed.out) == (tmp_path, tmp_path / "a~b")
    for argv in (["--out=~nobody-of-this-name/x"], ["--config=~nobody-of-this-name/x"]):
        with pytest.raises(ConfigError, match="~nobody-of-this-name"):
            parse(*argv)


@pytest.mark.parametrize("word", ["off", "no", "false", "'off'"])
def test_off_may_stand_unquoted_in_a_file(tmp_path: Path, word: str) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(f"tracking: {word}\ncompile: {word}\ndry_run: {word.strip(chr(39))}\n")
    parsed = parse("--config", str(file))
    assert (parsed.tracking, parsed.compile, parsed.dry_run) == ("off", "off", False)
    file.write_text("compile: on\ndry_run: on\n")
    parsed = parse("--config", str(file))
    assert (parsed.compile, parsed.dry_run) == ("on", True)


def test_booleans_are_switches() -> None:
    assert parse("--dry-run").dry_run is True
    assert parse("--dry-run", "--no-dry-run").dry_run is False


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--epoch", "3"], ["--epoch", "did you mean '--epochs'"]),
        (["--optim.lrr", "3"], ["did you mean '--optim.lr'"]),
        (["--lr", "3"], ["unknown option --lr (did you mean '--optim.lr'?)"]),
        (["--learning-rate=3"], ["(did you mean '--optim.lr'?)"]),
        (["--weight_decay", "3"], ["(did you mean '--optim.weight-decay'?)"]),
        (["--wd", "3"], ["(did you mean '--optim.weight-decay'?)"]),
        (["--label-smoothing", "3"], ["(did you mean '--loss.label-smoothing'?)"]),
        (["--epochs", "five"], ["--epochs: expected a whole number, got 'five'"]),
        (["--epochs", "1.5"], ["--epochs: expected a whole number, got '1.5'"]),
        (["--augment.hflip", "x"], ["--augment.hflip: expected a number, got 'x'"]),
        (["--optim.lr", "x"], ["--optim.lr: expected a number or None, got 'x'"]),
        (["--upsample-from", "x"], ["--upsample-from: expected a whole number or None, got 'x'"]),
        (
            ["--optim.betas", "a", "b"],
            ["--optim.betas: expected two numbers or None, got 'a', 'b'"],
        ),
        (["--seed", str(2**63)], ["seed", "less than or equal to 9223372036854775807"]),
        (["--optim.warmup-epochs", "inf"], ["--optim.warmup-epochs", "finite number"]),
        (["--optim.weight-decay", "nan"], ["--optim.weight-decay", "finite number"]),
        (["--optim.lr", "1001"], ["optim.lr", "less than or equal to 1000"]),
        (["--eval.resamples", "1000001"], ["eval.resamples", "less than or equal to 1000000"]),
        (["--size", "100000"], ["size", "less than or equal to 16384"]),
        (["--epochs", "0"], ["epochs", "greater than 0", "got 0"]),
        (["--train-fraction", "1.5"], ["--train-fraction", "less than or equal to 1"]),
        (["--cache", "dsk"], ["--cache", "'dsk'", "did you mean 'disk'"]),
        (["--task"], ["--task"]),
        (["stray"], ["stray"]),
        (["--config", "missing.yaml"], ["missing.yaml", "cannot be read"]),
        (["--config"], ["--config needs a YAML file"]),
    ],
)
def test_wrong_flags_are_told_in_one_line(argv: list[str], said: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*argv)
    message = str(caught.value)
    assert "\n" not in message
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 3", "unknown key 'epoch' (did you mean 'epochs'?)"),
        ("optim: {lrr: 1}", "unknown key 'optim.lrr' (did you mean 'lr'?)"),
        ("optim.lrr: 1", "unknown key 'optim.lrr'"),
        ("epochs: many", "epochs: Input should be a valid integer"),
        ("optim: {lr: -1}", "optim.lr: Input should be greater than 0"),
        ("optim: 3", "optim"),
        ("label_smoothing: 0.1", "unknown key 'label_smoothing' (did you mean 'loss.label_smo"),
        ("optim: {learning_rate: 1}", "unknown key 'optim.learning_rate' (did you mean 'lr'?)"),
        ("epochs: 1\nepochs: 2", "at line 2: 'epochs' is given twice"),
        ("optim: {lr: 1, lr: 2}", "at line 1: 'lr' is given twice"),
        ("optim.lr: 1\noptim: {lr: 2}", "'optim.lr' is given twice"),
        ("on: 1", "at line 1: the name of an option must be a word"),
        ("epochs: true", "epochs: expected no boolean (got True)"),
        ("optim: {lr: yes}", "optim.lr: expected no boolean (got True)"),
        ("optim.betas: [no, 0.9]", "optim.betas: expected no boolean (got [False, 0.9])"),
        ("task: off", "task: expected no boolean (got False)"),
        ("tracking: on", "tracking: Input should be 'mlflow' or 'off' (got 'on')"),
        ("optim.lr: .nan", "optim.lr: Input should be a finite number (got nan)"),
        ("model: 2020-13-45", "at line 1: '2020-13-45' is not a valid timestamp"),
        ("seed: !!int 'x'", "'x' is not a valid int"),
        ("seed: !!int ''", "'' is not a valid int"),
        ("seed: !!float 'x'", "'x' is not a valid float"),
        ("seed: !!bool 'x'", "'x' is not a valid bool"),
        ("seed: !!timestamp 'x'", "'x' is not a valid timestamp"),
        ("seed: " + "1" * 5000, "is not a valid int"),
        ("seed: 0x" + "f" * 5000, "(got a huge number)"),
        ("seed: " + "[" * 3000, "not valid YAML: nested too deeply"),
        ("optim: {betas: &x [*x, *x]}", "optim.betas.0: Input should be a valid number"),
        ("model: \0", "unacceptable character #x0000"),
        ("a: [1", "not valid YAML at line"),
        ("- a", "expected 'option: value' lines"),
    ],
)
def test_wrong_files_are_told_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse("--config", str(file))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert said in str(caught.value)
    assert "bad.yaml" in str(caught.value)

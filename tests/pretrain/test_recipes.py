"""The recipes of the thesis, what extends what, and the flags."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dogmed import cli, config
from dogmed.errors import ConfigError
from dogmed.pretrain.config import PretrainConfig

SCALE = {"net.kernel_size": 9, "scale_aug": "scale"}
CHANGED: dict[str, dict[str, Any]] = {
    "imagenet50ep": {},
    "imagenet600ep": {"epochs": 600},
    "imagenet200perclass": {"epochs": 200, "subset.per_class": 200},
    "imagenet50classes": {"epochs": 600, "subset.classes": 50},
    "imagenet50ep-scale": SCALE,
    "imagenet50ep-multikernel": {**SCALE, "scale_aug": "multi-kernel"},
    "imagenet50ep-hybrid": {**SCALE, "scale_aug": "hybrid"},
}


def leaves(name: str) -> dict[str, Any]:
    return config.flatten(config.recipe(f"pretrain/{name}"))


def test_the_recipes_are_those_of_the_thesis_and_a_small_one() -> None:
    assert set(config.recipes("pretrain")) == {*CHANGED, "tiny64"}


def test_the_first_recipe_is_table_41_and_names_every_field() -> None:
    values = leaves("imagenet50ep")
    assert {"recipe", *values} == set(config._leaves(PretrainConfig))
    for cls in (PretrainConfig, *config._groups(PretrainConfig).values()):
        for field in dataclasses.fields(cls):
            assert field.default is dataclasses.MISSING, field.name
    table = {
        "optim.name": "adamw", "optim.lr_base": 2e-4, "optim.lr": None, "optim.weight_decay": 0.3,
        "optim.betas": [0.9, 0.999], "batch_size": 1024, "optim.schedule": "cosine",
        "optim.warmup_epochs": 0, "epochs": 50, "loss.label_smoothing": 0.2, "net.drop_path": 0.1,
        "augment.crop_scale": [0.08, 1.0], "augment.auto_augment": "rand-m9-mstd0.5-inc1",
        "augment.erase": 0.25, "augment.hflip": 0.5, "size": 224, "scale_aug": "off",
    }  # fmt: skip
    assert {name: values[name] for name in table} == table
    assert values["augment.crop_ratio"] == pytest.approx([3 / 4, 4 / 3])


@pytest.mark.parametrize("name", CHANGED)
def test_a_recipe_is_valid_and_differs_as_the_thesis_says(name: str) -> None:
    base, values = leaves("imagenet50ep"), leaves(name)
    assert {key: v for key, v in values.items() if v != base[key]} == CHANGED[name]
    built = config.build(PretrainConfig, {"recipe": name, **config.recipe(f"pretrain/{name}")})
    assert built.recipe == name


@pytest.mark.parametrize("name", CHANGED)
def test_a_recipe_opens_with_its_command_cost_and_expectation(name: str) -> None:
    text = (Path(config.__file__).parent / "configs" / "pretrain" / f"{name}.yaml").read_text()
    comment = "".join(itertools.takewhile(lambda line: line[0] == "#", text.splitlines(True)))
    assert f"dogmed pretrain --recipe {name} --model" in comment
    for word in ("steps", "images seen", "not measured", "Expect", "thesis"):
        assert word in comment, word


def test_every_flag_is_listed_here_so_that_a_new_one_is_a_decision() -> None:
    assert config.flags(PretrainConfig) == [
        "--recipe", "--data", "--model", "--num-classes", "--size", "--epochs", "--batch-size",
        "--micro-batch", "--seed", "--scale-aug", "--device", "--compile", "--cache-dir", "--weights-dir",
        "--overwrite-weights", "--out", "--resume", "--tracking", "--dry-run", "--subset.per-class",
        "--subset.classes", "--subset.seed", "--optim.name", "--optim.lr-base", "--optim.lr",
        "--optim.weight-decay", "--optim.betas", "--optim.schedule", "--optim.warmup-epochs",
        "--optim.min-lr", "--optim.clip-grad", "--loss.label-smoothing", "--net.drop-path",
        "--net.kernel-size", "--net.extent", "--net.order", "--net.downsample",
        "--net.double-residual", "--net.use-grn", "--net.dog-init", "--net.dog-margin",
        "--net.dog-bias", "--net.stride", "--net.sigma", "--net.growth", "--net.scale-channels",
        "--net.channel-ratio", "--net.zero-order", "--net.separable", "--net.pooling", "--net.selection",
        "--augment.crop-scale", "--augment.crop-ratio", "--augment.interpolation",
        "--augment.hflip", "--augment.auto-augment", "--augment.color-jitter", "--augment.erase",
        "--augment.erase-mode", "--augment.erase-count", "--loader.workers", "--loader.decode",
        "--loader.max-bad", "--scale.probability", "--scale.range", "--scale.resize-kernels",
        "--scale.kernel-sizes", "--scale.threshold", "--ema.decay", "--ema.warmup",
        "--eval.crop-pct", "--eval.batch-size", "--eval.select", "--checkpoint.minutes", "--record.data",
        "--record.data-licence", "--record.licence",
    ]  # fmt: skip


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PretrainConfig]:
    """What ``dogmed pretrain`` makes of its flags."""

    def parse(*argv: str) -> PretrainConfig:
        caught: dict[str, Any] = {}
        resolve = cli._resolve

        def intercept(path: str) -> Any:
            if path.endswith(":command"):
                return lambda **fields: caught.update(fields)
            return resolve(path)

        monkeypatch.setattr(cli, "_resolve", intercept)
        cli._dispatch(["pretrain", *argv])
        return PretrainConfig(**caught)

    return parse


def test_the_flag_chooses_the_recipe_and_a_file_merges_on_top(
    parsed: Callable[..., PretrainConfig], tmp_path: Path
) -> None:
    assert parsed("--recipe", "imagenet600ep").epochs == 600
    assert parsed("--recipe=imagenet50classes", "--epochs", "3").subset.classes == 50
    file = tmp_path / "my.yaml"
    file.write_text("recipe: imagenet50ep-hybrid\nscale.probability: 0.3\n")
    both = parsed("--config", str(file), "--seed", "4")
    assert (both.recipe, both.net.kernel_size, both.seed) == ("imagenet50ep-hybrid", 9, 4)
    assert (both.scale_aug, both.scale.probability) == ("hybrid", 0.3)
    over = parsed("--config", str(file), "--recipe", "imagenet200perclass")
    assert (over.recipe, over.subset.per_class, over.net.kernel_size) == (
        "imagenet200perclass", 200, None,
    )  # fmt: skip
    file.write_text(config.to_yaml(both))  # as a run keeps it
    assert parsed("--config", str(file)) == both


def test_an_unknown_recipe_is_told_with_the_nearest(parsed: Callable[..., PretrainConfig]) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'imagenet50ep'\?\); there are imagenet2"):
        parsed("--recipe", "imagenet50epp")


def test_recipes_that_extend_nothing_or_themselves_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config.resources, "files", lambda _: tmp_path)
    (tmp_path / "a.yaml").write_text("extends: b\nx: 1\n")
    (tmp_path / "b.yaml").write_text("extends: a\n")
    (tmp_path / "c.yaml").write_text("extends: d\n")
    with pytest.raises(ConfigError, match=r"recipe a: extends in a circle \(a -> b -> a\)"):
        config.recipe("a")
    with pytest.raises(ConfigError, match=r"no recipe 'd', which recipe c extends,"):
        config.recipe("c")
    (tmp_path / "b.yaml").write_text("x: 2\ny: {z: 3}\n")
    assert config.recipe("a") == {"x": 1, "y": {"z": 3}}

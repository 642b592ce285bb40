"""Whole runs: every recipe, the weights it leaves, what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dogmed import config as configuration
from dogmed import tracking
from dogmed.errors import DogmedError
from dogmed.models import build_model
from dogmed.models.weights import verify
from dogmed.pretrain import command as commands
from dogmed.pretrain.config import PretrainConfig
from dogmed.pretrain.folder import PretrainFolder
from dogmed.pretrain.run import pretrain
from dogmed.weights.records import read_record

RunTiny = Callable[..., dict[str, Any]]
MakeConfig = Callable[..., PretrainConfig]
SHORT = {
    "imagenet200perclass": {"subset__per_class": 8},
    "imagenet50classes": {"subset__classes": 3},
}


def folder_of(tmp_path: Path) -> Path:
    (config,) = (tmp_path / "runs").glob("pretrain/*/*/seed*/config.yaml")
    return config.parent


@pytest.mark.parametrize("recipe", configuration.recipes("pretrain"))
def test_every_recipe_ends_in_weights_that_init_loads(
    run_tiny: RunTiny, tmp_path: Path, recipe: str
) -> None:
    scale = {"scale__probability": 0.6} if "-" in recipe else {}
    result = run_tiny(recipe, **SHORT.get(recipe, {}), **scale)
    path = tmp_path / "weights" / f"dognext_test.{recipe}.safetensors"
    record = read_record(path)
    assert record is not None
    classes = result["data"]["classes"]
    assert classes == len(record.data.classes) == (3 if recipe == "imagenet50classes" else 4)
    assert (record.recipe, record.epochs, record.data.size) == (recipe, 2, 32)
    assert record.data.images == {"imagenet200perclass": 32, "imagenet50classes": 30}.get(
        recipe, 40
    )
    assert record.score["val_acc1"] == result["val"]["acc1"]
    assert record.options == ({"kernel_size": 9} if "-" in recipe else {})
    assert json.loads(path.with_suffix(".json").read_text())["sha256"] == result["weights_sha256"]
    assert (folder_of(tmp_path) / "train_files.txt").is_file() == (recipe in SHORT)

    model, loaded = build_model(
        "dognext_test",
        classes,
        init=recipe,
        weights_dir=tmp_path / "weights",
        options=record.options,
    )
    assert loaded.not_taken == ()
    saved = load_file(path)
    last = torch.load(folder_of(tmp_path) / "checkpoints/last.pt", weights_only=True)["state"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[name]), name
        assert torch.equal(tensor, last["model"][name]), name


def test_what_a_run_leaves_behind(run_tiny: RunTiny, tmp_path: Path) -> None:
    result = run_tiny(eval__select="acc1", tracking="mlflow", epochs=3)
    folder = folder_of(tmp_path)
    assert folder == tmp_path / "runs/pretrain/imagenet50ep/dognext_test-32/seed0"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [list(row) for row in rows] == [[
        "epoch", "train_loss", "val_loss", "val_acc1", "val_acc5", "lr", "epoch_seconds",
        "images_per_second", "data_wait",
    ]] * 3  # fmt: skip
    assert json.loads((folder / "result.json").read_text()) == result
    best = max(rows, key=lambda row: row["val_acc1"])  # the first of equals
    assert result["epoch"] == result["best_epoch"] == best["epoch"]
    assert result["val"]["acc1"] == best["val_acc1"]
    final, kept = (
        load_file(folder / "checkpoints" / f"{n}.safetensors") for n in ("final", "best")
    )
    assert all(torch.equal(final[name], kept[name]) for name in final)
    again = configuration.read_yaml(folder / "config.yaml")
    assert configuration.build(PretrainConfig, again).epochs == 3

    client = tracking.open_store(tracking.default_uri(tmp_path / "runs"), tmp_path / "runs")
    run = client.get_run(result["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["final_acc1"] == best["val_acc1"]
    history = client.get_metric_history(run.info.run_id, "train_loss")
    assert [m.value for m in history] == [row["train_loss"] for row in rows]
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert model.name == "dognext_test-imagenet50ep"


def test_a_finished_run_is_left_alone_and_its_weights_are_put_back(
    run_tiny: RunTiny,
    make_config: MakeConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = run_tiny(epochs=1)
    assert "imagenet50ep: 1 epoch of 5 steps of 8 images" in capsys.readouterr().out
    assert pretrain(make_config(epochs=1, dry_run=True)) is None
    assert "seed0 is finished already" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "weights")
    assert run_tiny(epochs=1) == first
    assert "already finished" in capsys.readouterr().out
    path = tmp_path / "weights" / "dognext_test.imagenet50ep.safetensors"
    record = read_record(path)
    assert record is not None and record.sha256 == first["weights_sha256"]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    run_tiny(epochs=1)
    assert verify(path) == read_record(path)
    shutil.rmtree(tmp_path / "weights")
    folder = folder_of(tmp_path)
    (folder / "checkpoints" / "final.safetensors").unlink()
    with pytest.raises(ValueError, match=r"delete .*result.json to write them again"):
        run_tiny(epochs=1)
    (folder / "result.json").unlink()
    assert run_tiny(epochs=1)["weights_sha256"] == first["weights_sha256"]
    with pytest.raises(ValueError, match=r"other settings \(--epochs 1 -> 2\)"):
        run_tiny(epochs=2)


def test_nobody_loses_weights_unasked(run_tiny: RunTiny, tmp_path: Path) -> None:
    first = run_tiny(epochs=1)
    path = tmp_path / "weights" / "dognext_test.imagenet50ep.safetensors"
    with pytest.raises(ValueError, match=r"holds weights of another run: .*--overwrite-weights"):
        run_tiny(epochs=1, seed=1)
    assert read_record(path).sha256 == first["weights_sha256"]
    second = run_tiny(epochs=1, seed=1, overwrite_weights=True)
    assert read_record(path).sha256 == second["weights_sha256"] != first["weights_sha256"]


def test_what_is_refused_moves_no_earlier_run(run_tiny: RunTiny, tmp_path: Path) -> None:
    run_tiny(epochs=1)
    for overrides in ({}, {"batch_size": 41}):  # the store has the earlier run's weights
        with pytest.raises(DogmedError):
            run_tiny(epochs=1, resume="never", **overrides)
    assert folder_of(tmp_path).joinpath("result.json").is_file()
    assert not list(tmp_path.rglob("*.old1"))
    run_tiny(epochs=1, resume="never", overwrite_weights=True)
    assert list(tmp_path.rglob("*.old1"))


def test_files_of_any_name_train(run_tiny: RunTiny, jpegs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(jpegs, copy)
    name = b"\xff\n.JPEG".decode(errors="surrogateescape")
    next(copy.rglob("*.JPEG")).rename(copy / "train" / "n01440764" / name)
    assert run_tiny(epochs=1, data=str(copy))["epochs"] == 1


def test_a_run_from_before_the_word_of_its_scale_augmentation_counts(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    hybrid = make_config("imagenet50ep-hybrid")
    folder = PretrainFolder(tmp_path / "old")
    folder.begin(configuration.to_dict(hybrid))
    folder.last.touch()
    options = configuration.read_yaml(folder.config)
    assert options.pop("scale_aug") == "hybrid"
    assert options["scale"]["probability"] == 0.2  # such a file had the details alone
    folder.config.write_text(yaml.safe_dump(options))
    folder.refuse_other_settings(configuration.to_dict(hybrid))
    for word, details in (("off", "--scale.probability 0.2 -> 0.0"), ("scale", "0.5 -> 0.0")):
        other = dataclasses.replace(hybrid, scale_aug=word)
        with pytest.raises(DogmedError, match=rf"other settings \(.*{details}"):
            folder.refuse_other_settings(configuration.to_dict(other))


def test_other_models_train_with_plain_scale_augmentation(run_tiny: RunTiny) -> None:
    result = run_tiny("imagenet50ep-scale", model="resnet18", epochs=1, scale__probability=0.6)
    assert result["options"] == {}  # kernels of 9 are DoGConv's


def test_a_dry_run_tries_steps_and_writes_nothing(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(make_config("imagenet50ep-hybrid", dry_run=True, subset__per_class=9)) is None
    printed = capsys.readouterr().out
    for part in (
        "4 classes, 36 training (drawn by seed 0) and 12 val images",
        "2 epochs × 4 steps of 8 images = 8 steps",
        "2 steps took",
        " s for all steps, validation not counted",
        "/seed0 begins",
        "parameters",
        "peak in the trial",
        "dognext_test.imagenet50ep-hybrid.safetensors",
        "nothing was written",
    ):
        assert part in printed, (part, printed)
    assert not (tmp_path / "runs").exists() and not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"model": "dognext_ato"}, "did you mean 'dognext_atto'"),
        ({"model": "convnextv2_atto", "size": 28}, "convnextv2_atto cannot take 28 px images"),
        ({"num_classes": 1000}, "has 4 classes to train on, .* a classifier of 1000"),
        ({"subset__classes": 5}, "4"),
        ({"batch_size": 41}, "batch"),
        ({"optim__warmup_epochs": 2}, "10 warm-up steps of 10 in all: .*--optim.warmup-epochs"),
        ({"eval__select": "ema"}, "give --ema.decay"),
        ({"model": "resnet18", "batch_size": 9, "micro_batch": 8}, "leaves one image alone"),
        ({"augment__crop_scale": [0.9, 0.2]}, "expected 0 < smallest <= largest"),
        ({"optim__name": "adamww"}, "did you mean 'adamw'"),
        ({"device": "cuda:99"}, "--device cuda:99"),
        (
            {"scale__probability": 0.2, "scale__resize_kernels": 1.0, "model": "resnet18"},
            "no DoGConv",
        ),
        ({"net__kernel_size": 8}, "kernel_size must be odd"),
        ({"net__order": "d1", "model": "resnet18"}, "resnet18 has no option order"),
    ],
)
def test_wrong_requests_are_one_line_and_leave_no_weights(
    run_tiny: RunTiny, tmp_path: Path, overrides: dict[str, Any], said: str
) -> None:
    with pytest.raises(DogmedError, match=said) as caught:
        run_tiny(**overrides)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_is_told_before_training(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        DogmedError, match=r"has 1.0 kB free, and the checkpoints of this model take"
    ):
        run_tiny()


@pytest.mark.parametrize("name", ["../mine", "scratch", "mine.pt", ""])
def test_a_recipe_of_ones_own_needs_a_name_that_init_takes(
    make_config: MakeConfig, tmp_path: Path, name: str
) -> None:
    config = dataclasses.replace(make_config(), recipe=name)
    for start in (pretrain, lambda config: commands.command(**vars(config))):
        with pytest.raises(DogmedError, match="cannot be a name for --init"):
            start(config)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("data", "said"), [(None, "--data FOLDER"), ("nowhere", "nowhere: there is no such folder")]
)
def test_the_command_refuses_missing_data(
    make_config: MakeConfig, tmp_path: Path, data: str | None, said: str
) -> None:
    config = make_config(data=data and str(tmp_path / data))
    with pytest.raises(DogmedError, match=said):
        commands.command(**vars(config))

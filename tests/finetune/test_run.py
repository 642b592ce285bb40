"""Whole runs: every kind of task, what they leave behind, what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dogmed import config as configuration
from dogmed.data.store import prepare
from dogmed.data.tasks import evaluator_task
from dogmed.errors import DataError, DogmedError
from dogmed.finetune.config import FinetuneConfig
from dogmed.metrics import read_predictions
from dogmed.models.weights import read_record

RunTiny = Callable[..., dict[str, Any]]
KINDS = {
    "breastmnist": "binary",
    "pathmnist": "multi-class",
    "chestmnist": "multi-label",
    "retinamnist": "ordinal",
}


def folder_of(tmp_path: Path) -> Path:
    (config,) = (tmp_path / "runs").glob("finetune/*/*/seed0/config.yaml")
    return config.parent


@pytest.mark.parametrize(("task", "kind"), KINDS.items())
def test_every_kind_of_task_runs_and_scores_as_medmnist_does(
    run_tiny: RunTiny,
    make_config: Callable[..., FinetuneConfig],
    tmp_path: Path,
    task: str,
    kind: str,
) -> None:
    from medmnist.evaluator import getACC, getAUC

    result = run_tiny(task=task)
    assert result["kind"] == kind
    config = make_config(task=task)
    prepared = prepare(task, size=28, data="synthetic", cache_dir=config.cache_dir)
    probabilities = read_predictions(folder_of(tmp_path) / "predictions_test.csv")
    labels, name = prepared.labels("test"), evaluator_task(kind)
    assert result["test"]["acc"] == getACC(labels, probabilities, name)
    assert result["test"]["auc"] == getAUC(labels, probabilities, name)
    low, high = result["test"]["intervals_95"]["acc"]
    assert low <= result["test"]["acc"] <= high


def test_what_a_run_leaves_behind(run_tiny: RunTiny, tmp_path: Path) -> None:
    result = run_tiny(epochs=3)
    folder = folder_of(tmp_path)
    assert folder == tmp_path / "runs/finetune/breastmnist-synthetic/dognext_test-scratch-28/seed0"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names >= {
        "config.yaml", "metrics.jsonl", "result.json", "predictions_test.csv",
        "checkpoints/last.pt", "checkpoints/best.safetensors",
        "learning_curves.png", "confusion_matrix.png", "roc.png",
    }  # fmt: skip
    for name in names:
        assert not name.endswith(".tmp"), name
    for picture in folder.glob("*.png"):
        with Image.open(picture) as image:
            assert min(image.size) > 200
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [list(row) for row in rows] == [[
        "epoch", "train_loss", "val_loss", "val_acc", "val_auc", "lr", "epoch_seconds",
        "images_per_second",
    ]] * 3  # fmt: skip
    assert json.loads((folder / "result.json").read_text()) == result
    best = max(rows, key=lambda row: row["val_auc"])  # the first of equals
    assert result["best_epoch"] == best["epoch"]
    assert result["val"]["auc"] == best["val_auc"]
    assert result["last_epoch"]["val"]["auc"] == rows[-1]["val_auc"]
    record = read_record(folder / "checkpoints" / "best.safetensors")
    assert record is not None
    assert (record.model, record.epochs) == ("dognext_test", best["epoch"])
    assert (record.data.name, record.data.size, record.data.source) == (
        "breastmnist",
        28,
        "synthetic",
    )
    assert record.data.classes == tuple(result["classes"])
    again = configuration.read_yaml(folder / "config.yaml")
    assert configuration.build(FinetuneConfig, again).epochs == 3


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    run_tiny: RunTiny, tmp_path: Path
) -> None:
    def test_loss(**options: Any) -> float:
        return run_tiny(**options)["test"]["loss"]

    first = test_loss(out=str(tmp_path / "a"))
    assert test_loss(out=str(tmp_path / "b")) == first
    assert test_loss(out=str(tmp_path / "c"), cache="disk", eval__batch_size=50) == pytest.approx(
        first, rel=1e-5
    )
    assert test_loss(out=str(tmp_path / "d"), seed=1) != first


def test_a_small_network_learns_the_synthetic_task(run_tiny: RunTiny) -> None:
    result = run_tiny(task="bloodmnist", epochs=12, batch_size=32, optim__lr_base=2e-2)
    assert result["test"]["intervals_95"]["auc"][0] > 0.6  # chance is 0.5


def test_fine_tuning_starts_from_the_weights_of_another_run(
    run_tiny: RunTiny, tmp_path: Path
) -> None:
    run_tiny(task="pathmnist")
    source = folder_of(tmp_path) / "checkpoints" / "best.safetensors"
    result = run_tiny(init=str(source), out=str(tmp_path / "second"))
    theirs = "adipose, background, debris, ..."
    assert f"new classifier (theirs is for {theirs}), not taken: head.fc" in result["weights"]
    assert "best-28" in str(next((tmp_path / "second").glob("finetune/*/*/seed0")))


def test_a_user_npz_and_a_user_folder_are_tasks(run_tiny: RunTiny, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, n in (("train", 40), ("val", 16), ("test", 16)):
        labels = np.arange(n) % 3
        images = rng.integers(0, 120, (n, 32, 32, 3)) + 60 * labels[:, None, None, None] // 2
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels[:, None]}
        for i, (image, label) in enumerate(zip(arrays[f"{split}_images"], labels, strict=True)):
            target = tmp_path / "mine" / split / f"grade{label}" / f"{i}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(target)
    np.savez(tmp_path / "my.npz", **arrays)
    for task in (tmp_path / "my.npz", tmp_path / "mine"):
        result = run_tiny(task=str(task), data="official", batch_size=16)
        assert result["kind"] == "multi-class"
        assert (result["data"]["source_size"], result["data"]["size"]) == (32, 28)
        assert result["test"]["n"] == 16


def test_a_train_fraction_trains_on_so_many_images(run_tiny: RunTiny, tmp_path: Path) -> None:
    result = run_tiny(train_fraction=0.25)
    assert result["data"]["train_images"] == pytest.approx(128, abs=2)
    assert "fraction0.25" in str(next((tmp_path / "runs").glob("finetune/*/*/seed0")))


def test_the_continuation_ratio_head_runs(run_tiny: RunTiny, tmp_path: Path) -> None:
    run_tiny(task="retinamnist", loss__ordinal="continuation-ratio")
    probabilities = read_predictions(folder_of(tmp_path) / "predictions_test.csv")
    assert probabilities.shape[1] == 5
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize(
    "model", ["convnextv2_atto", "resnet18", "mobilenetv3_small_050", "gaussderresnet_test"]
)
def test_other_backbones_train(run_tiny: RunTiny, model: str) -> None:
    result = run_tiny(model=model, epochs=1, train_fraction=0.1, batch_size=26, size=32)
    assert result["model"] == model
    assert np.isfinite(result["test"]["loss"])


def test_a_dry_run_touches_nothing(
    make_config: Callable[..., FinetuneConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dogmed.finetune.run import finetune

    cache = tmp_path / "no-cache"
    assert finetune(make_config(dry_run=True, cache_dir=str(cache), task="octmnist")) is None
    printed = capsys.readouterr().out
    for word in ("octmnist", "generate", "dognext_test", "parameters", "steps", "memory"):
        assert word in printed
    assert not cache.exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"task": "pathmnits"}, "did you mean 'pathmnist'"),
        ({"model": "dognext_ato"}, "did you mean 'dognext_atto'"),
        ({"model": "convnextv2_atto"}, "convnextv2_atto cannot take 28 px images"),
        ({"init": "imagenet50epp"}, "did you mean 'imagenet50ep'"),
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"device": "tpu"}, "expected auto, cpu, cuda or cuda:N"),
        ({"optim__name": "adamww"}, "did you mean 'adamw'"),
        ({"data": "official", "size": 50}, "28, 64, 128, 224 px, not 50"),
        (
            {"loss__ordinal": "continuation-ratio", "kind": "ordinal"},
            "binary by MedMNIST's definition",
        ),
    ],
)
def test_wrong_requests_are_one_line_and_leave_nothing(
    run_tiny: RunTiny, tmp_path: Path, overrides: dict[str, Any], said: str
) -> None:
    with pytest.raises(DogmedError) as caught:
        run_tiny(**overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "runs").rglob("config.yaml"))


def test_a_val_split_of_one_class_cannot_select_by_auc(run_tiny: RunTiny, tmp_path: Path) -> None:
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.zeros((8, 28, 28), np.uint8)
        arrays[f"{split}_labels"] = (np.arange(8)[:, None] % 2) * (split != "val")
    np.savez(tmp_path / "my.npz", **arrays)
    with pytest.raises(DataError, match=r"--eval.select acc"):
        run_tiny(task=str(tmp_path / "my.npz"), data="official")
    result = run_tiny(task=str(tmp_path / "my.npz"), data="official", eval__select="acc")
    assert result["val"]["auc"] is None

"""Titles of trained models: what tables call them must tell them apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from dogmed.errors import WeightsError
from dogmed.models.trained import open_trained
from dogmed.models.weights import save_weights
from dogmed.weights.records import DataRecord, WeightsRecord

DATA = DataRecord(
    name="bloodmnist", size=28, source_size=28, interpolation=None, mean=(0.5,) * 3, std=(0.5,) * 3, licence=None,
)  # fmt: skip


def save(path: Path, **facts: object) -> Path:
    options = facts.get("options", {})
    torch.manual_seed(0)
    network = timm.create_model("dognext_test", num_classes=8, **options)  # type: ignore[arg-type]
    told = {
        "model": "dognext_test", "num_classes": 8, "params": 1, "recipe": "finetune", "init": "scratch",
        "epochs": 1, "score": {}, "data": DATA, "licence": None, "seed": 2,
    }  # fmt: skip
    save_weights(path, network.state_dict(), WeightsRecord(**{**told, **facts}))  # type: ignore[arg-type]
    return path


def test_a_title_tells_what_was_trained_on_what_and_how(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for facts, details in (
        ({}, "scratch, seed 2"),
        ({"init": "weights/mine.safetensors"}, "mine, seed 2"),
        ({"training": {"scale_aug": "hybrid", "label": ""}}, "scratch, seed 2, scale-aug hybrid"),
        ({"training": {"scale_aug": "hybrid", "label": "h"}}, "scratch, seed 2, h"),
        ({"options": {"kernel_size": 9}}, "scratch, seed 2, kernel_size 9"),
    ):
        title = open_trained(str(save(path, **facts))).title
        assert title == f"dognext_test bloodmnist ({details})"
    assert open_trained(str(save(path, recipe="tiny64"))).title == "dognext_test tiny64"


def test_a_run_that_has_not_ended_is_no_trained_model(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    best = save(tmp_path / "run" / "checkpoints" / "best.safetensors")
    with pytest.raises(WeightsError, match="has not ended"):
        open_trained(str(tmp_path / "run"))
    assert open_trained(str(best)).path == best
    (tmp_path / "run" / "result.json").write_text("{}")
    assert open_trained(str(tmp_path / "run")).path == best


def test_an_opened_model_is_the_one_that_was_saved(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", options={"kernel_size": 9, "order": "d1"})
    torch.manual_seed(0)
    network = timm.create_model("dognext_test", num_classes=8, kernel_size=9, order="d1").eval()
    trained = open_trained(str(path))
    images = torch.randn(2, 3, 32, 32)
    assert not trained.model.training
    assert not any(p.requires_grad for p in trained.model.parameters())
    torch.testing.assert_close(trained.model(images), network(images).detach(), rtol=0, atol=1e-6)

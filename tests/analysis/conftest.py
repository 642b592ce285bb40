"""Tiny models with random weights, and generated images to try them on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from dogmed.data import Prepared, prepare
from dogmed.models.weights import save_weights
from dogmed.weights.records import DataRecord, WeightsRecord

SIZE = 28
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def prepared(cache_dir: Path) -> Prepared:
    """Synthetic BreastMNIST, as ``open_images`` finds it for a model trained on it."""
    return prepare("breastmnist", size=SIZE, data="synthetic", cache_dir=cache_dir)


@pytest.fixture
def make_weights(tmp_path: Path, prepared: Prepared) -> Callable[..., Path]:
    """Write random weights of a network, with the record of a fine-tuning on ``prepared``."""

    def make(
        name: str = "a",
        *,
        model: str = "dognext_test",
        seed: int = 0,
        classes: tuple[str, ...] = prepared.task.classes,
        data: dict[str, Any] | None = None,
        **record: Any,
    ) -> Path:
        torch.manual_seed(seed)
        options = record.get("options", {})
        network = timm.create_model(model, num_classes=len(classes), **options)
        with torch.no_grad():  # random networks answer all images alike
            network.get_classifier().weight.mul_(30)
        facts = {
            "name": prepared.task.name, "size": SIZE, "source_size": SIZE, "interpolation": None,
            "mean": MEAN, "std": STD, "licence": None, "source": "synthetic",
            "kind": prepared.task.kind, "classes": classes,
        }  # fmt: skip
        told = {
            "model": model, "num_classes": len(classes), "params": 1, "recipe": "finetune",
            "init": "scratch", "epochs": 1, "score": {}, "licence": None, "seed": seed,
            "data": DataRecord(**{**facts, **(data or {})}),
        }  # fmt: skip
        path = tmp_path / f"{name}.safetensors"
        save_weights(path, network.state_dict(), WeightsRecord(**{**told, **record}))
        return path

    return make

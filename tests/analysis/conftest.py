"""Tiny models with random weights, and generated images to try them on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from dogmed import cli
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


@pytest.fixture(scope="session")
def write_weights(prepared: Prepared) -> Callable[..., Path]:
    """Write random weights of a network, with the record of a fine-tuning on ``prepared``."""

    def write(
        folder: Path,
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
        path = folder / f"{name}.safetensors"
        save_weights(path, network.state_dict(), WeightsRecord(**{**told, **record}))
        return path

    return write


@pytest.fixture
def make_weights(write_weights: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """``write_weights`` into the test's folder."""
    return lambda *args, **facts: write_weights(tmp_path, *args, **facts)


@pytest.fixture(scope="session")
def analyze(cache_dir: Path) -> Callable[..., int]:
    """``dogmed analyze WHAT`` into OUT, with few resamples and not logged unless that is asked for."""

    def run(what: str, out: Path, *words: object) -> int:
        given = [*map(str, words), "--out", str(out), "--cache-dir", str(cache_dir)]
        given += [] if "--resamples" in words else ["--resamples", "40"]
        given += [] if "--tracking" in words else ["--tracking", "off"]
        return cli.main(["analyze", what, *given])

    return run


class Done(NamedTuple):
    """What a call left behind."""

    weights: tuple[Path, ...]
    out: Path
    folder: Path
    printed: str
    found: dict[str, Any]


@pytest.fixture(scope="session")
def analyzed(analyze: Callable[..., int]) -> Callable[..., Done]:
    """``analyze``, and what it left behind; weights are paths among the words."""

    def run(what: str, out: Path, *words: object) -> Done:
        lines: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "builtins.print", lambda *said, **_: lines.append(" ".join(map(str, said)))
            )
            assert analyze(what, out, *words) == 0
        (path,) = out.rglob(f"{what}.json")
        weights = tuple(word for word in words if isinstance(word, Path))
        return Done(weights, out, path.parent, "\n".join(lines), json.loads(path.read_text()))

    return run


@pytest.fixture
def scale(analyze: Callable[..., int], tmp_path: Path) -> Callable[..., int]:
    return lambda *words: analyze("scale", tmp_path / "out", *words)


@pytest.fixture
def flops(analyze: Callable[..., int], tmp_path: Path) -> Callable[..., int]:
    return lambda *words: analyze("flops", tmp_path / "out", *words)


@pytest.fixture
def imagenet(tmp_path: Path, make_weights: Callable[..., Path]) -> tuple[Path, Path]:
    """Weights of 120 classes, and a folder whose val has twelve images of three of them."""
    classes = tuple(f"n{number:03d}" for number in range(120))
    rng = np.random.default_rng(0)
    for name in classes[:3]:
        folder = tmp_path / "imagenet" / "val" / name
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    data = {"name": "imagenet", "kind": "multi-class"}
    return make_weights(classes=classes, recipe="tiny", data=data), tmp_path / "imagenet"

"""One tiny network that was really fine-tuned, on images of an odd shape."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dogmed import config
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.run import finetune
from dogmed.inference.classifier import Classifier, load

SIZE = 28


def make_images(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Coloured noise whose hue tells the class: (N, 40, 36, 3) uint8."""
    hue = np.array([[90, 60, 60], [60, 90, 60], [60, 60, 90]])[labels % 3]
    noise = rng.normal(0, 25, (len(labels), 40, 36, 3)) + rng.normal(0, 12, (len(labels), 1, 1, 3))
    return np.clip(hue[:, None, None] + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "hues.npz"
    rng, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 60), ("val", 30), ("test", 21)):
        labels = np.arange(count) % 3
        arrays |= {f"{split}_images": make_images(rng, labels), f"{split}_labels": labels[:, None]}
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="session")
def run(npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run."""
    folder = tmp_path_factory.mktemp("runs")
    options = {
        "task": str(npz), "model": "dognext_test", "size": SIZE, "epochs": 6, "batch_size": 10,
        "tracking": "off", "optim.lr_base": 5e-2, "eval.resamples": 20, "device": "cpu",
        "out": str(folder), "cache_dir": str(folder / "cache"),
    }  # fmt: skip
    values = config.merge(config.recipe("finetune/default"), options)
    assert finetune(config.build(FinetuneConfig, values)) is not None
    return folder / "finetune" / "hues" / f"dognext_test-scratch-{SIZE}" / "seed0"


@pytest.fixture(scope="session")
def classifier(run: Path) -> Classifier:
    return load(run, device="cpu")


@pytest.fixture(scope="session")
def answers(classifier: Classifier) -> Any:
    """What a server says of the network."""
    pytest.importorskip("gradio", reason="the extra dogmed[serve] is missing")
    from dogmed.inference.serve.answers import Answers

    return Answers(classifier)


@pytest.fixture(scope="session")
def images(npz: Path) -> list[np.ndarray]:
    """Three of test."""
    with np.load(npz) as file:
        return list(file["test_images"][:3])


@pytest.fixture(scope="session")
def as_png() -> Callable[[np.ndarray], bytes]:
    def save(pixels: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    return save


@pytest.fixture(scope="session")
def as_tiff() -> Callable[[Sequence[np.ndarray]], bytes]:
    """A page each."""

    def save(images: Sequence[np.ndarray]) -> bytes:
        file, pages = io.BytesIO(), [Image.fromarray(image) for image in images]
        pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
        return file.getvalue()

    return save


@pytest.fixture(scope="session")
def pixels_of() -> Callable[[str], np.ndarray]:
    """The pixels of an image file in base64."""
    return lambda text: np.asarray(Image.open(io.BytesIO(base64.b64decode(text))), dtype=int)

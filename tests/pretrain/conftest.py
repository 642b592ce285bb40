"""A handful of generated JPEGs in class folders, and a run over them that takes seconds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from dogmed import config
from dogmed.pretrain.config import PretrainConfig
from dogmed.pretrain.images import ImageSet, open_images
from dogmed.pretrain.loader import ImageBatches
from dogmed.pretrain.transforms import (
    EvalTransform,
    TrainTransform,
    eval_transform,
    train_transform,
)

CLASSES = ("n01440764", "n01443537", "n01484850", "n01491361")
TINY = {
    "model": "dognext_test",
    "size": 32,
    "epochs": 2,
    "batch_size": 8,
    "optim.lr_base": 1e-2,
    "loader.workers": 0,
    "tracking": "off",
    "device": "cpu",
}
SIZE = 24  # of what the loader gives, in pixels
TIMM: dict[str, Any] = {
    "scale": (0.08, 1.0),
    "ratio": (3 / 4, 4 / 3),
    "interpolation": "random",
    "hflip": 0.5,
    "color_jitter": None,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "re_prob": 0.5,
    "re_mode": "pixel",
    "re_count": 2,
}


@pytest.fixture(scope="session")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train`` with 4 classes of 10 images and ``val`` with 3 each, of 40 x 36 px."""
    root, rng = tmp_path_factory.mktemp("jpegs"), np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 3)):
        for label, wnid in enumerate(CLASSES):
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (36, 40, 3)) + 30 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{wnid}_{i}.JPEG")
    return root


@pytest.fixture
def train(jpegs: Path) -> ImageSet:
    return open_images(jpegs, "train")


@pytest.fixture(scope="session")
def timm_options() -> dict[str, Any]:
    """What timm's ``create_transform`` takes to do as ``augment`` does."""
    return {"input_size": SIZE, **TIMM}


@pytest.fixture(scope="session")
def augment() -> Callable[..., TrainTransform]:
    def make(size: int = SIZE, **changed: Any) -> TrainTransform:
        return train_transform(size, **{"decode": "full", **TIMM, **changed})

    return make


@pytest.fixture
def plain() -> EvalTransform:
    return eval_transform(
        SIZE, mean=TIMM["mean"], std=TIMM["std"], crop_pct=0.875, interpolation="bicubic"
    )


@pytest.fixture
def batches(
    train: ImageSet, augment: Callable[..., TrainTransform], plain: EvalTransform
) -> Iterator[Callable[..., ImageBatches]]:
    """Make loaders; those of the training images augment them."""
    made = []

    def make(images: ImageSet = train, **changed: Any) -> ImageBatches:
        options = {
            "batch_size": 12, "micro_batch": None, "device": "cpu", "train": True, "seed": 7,
            "workers": 0, "max_bad_share": 0.0, **changed,
        }  # fmt: skip
        transform = options.pop("transform", None) or (augment() if options["train"] else plain)
        made.append(ImageBatches(images, transform, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def make_config(tmp_path: Path, jpegs: Path) -> Callable[..., PretrainConfig]:
    """The tiny run of a recipe; options are given with ``__`` for the dot."""

    def make(recipe: str = "imagenet50ep", **overrides: Any) -> PretrainConfig:
        own = {key.replace("__", "."): value for key, value in overrides.items()}
        values = {
            **TINY,
            "data": str(jpegs),
            "out": str(tmp_path / "runs"),
            "weights_dir": str(tmp_path / "weights"),
            "cache_dir": str(tmp_path / "cache"),
            **own,
        }
        base = {"recipe": recipe, **config.recipe(f"pretrain/{recipe}")}
        return config.build(PretrainConfig, config.merge(base, values))

    return make


@pytest.fixture
def run_tiny(make_config: Callable[..., PretrainConfig]) -> Callable[..., dict[str, Any]]:
    from dogmed.pretrain.run import pretrain

    def run(recipe: str = "imagenet50ep", **overrides: Any) -> dict[str, Any]:
        result = pretrain(make_config(recipe, **overrides))
        assert result is not None
        return result

    return run


@pytest.fixture
def command(jpegs: Path) -> Callable[..., list[str]]:
    """The tiny run as a command line, for tests of several processes."""

    def build(out: Path, *flags: str) -> list[str]:
        options = {
            **TINY,
            "data": str(jpegs),
            "out": str(out / "runs"),
            "weights_dir": str(out / "weights"),
            "cache_dir": str(out / "cache"),
        }
        words = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        return [sys.executable, "-m", "dogmed", "pretrain", *words, *flags]

    return build


@pytest.fixture
def torchrun(command: Callable[..., list[str]]) -> Callable[..., subprocess.Popen]:
    """Start the tiny run as two processes of one machine."""

    def start(out: Path, *flags: str, restarts: int = 0) -> subprocess.Popen:
        words = command(out, *flags)
        launcher = [
            sys.executable,
            *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            f"--max-restarts={restarts}",
        ]
        return subprocess.Popen(
            [*launcher, *words[words.index("-m") :]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start

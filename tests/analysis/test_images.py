"""Images at other sizes: what the network sees of them, and which are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dogmed.analysis.images import ImageNetVal, TaskImages
from dogmed.analysis.subject import SubjectConfig, open_images
from dogmed.config import build
from dogmed.data import Prepared
from dogmed.data.progress import Quiet
from dogmed.errors import ConfigError, DataError
from dogmed.models.trained import open_trained
from dogmed.weights.records import read_record

CPU = torch.device("cpu")


@pytest.fixture
def images(prepared: Prepared, make_weights: Callable[..., Path]) -> TaskImages:
    record = read_record(make_weights())
    assert record is not None
    return TaskImages(prepared, record)


def seen(images: TaskImages | ImageNetVal, split: str, side: int, fit: str) -> torch.Tensor:
    """All that the network sees of a split."""
    return torch.cat(list(images.batches(split, side=side, fit=fit, batch_size=50, device=CPU)))  # type: ignore[arg-type]


def reference(prepared: Prepared, split: str) -> torch.Tensor:
    """The split normalised, by the definition."""
    pixels = torch.from_numpy(prepared.images(split).copy()).float()[:, None] / 255
    mean, std = (
        torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    return (pixels.expand(-1, 3, -1, -1) - mean) / std


@pytest.mark.parametrize("split", ["val", "test"])
def test_resized_images_are_the_whole_image_at_another_size(
    prepared: Prepared, images: TaskImages, split: str
) -> None:
    whole = reference(prepared, split)
    assert len(images.labels(split)) == len(whole)
    torch.testing.assert_close(seen(images, split, 28, "resize"), whole)
    torch.testing.assert_close(seen(images, split, 28, "pad"), whole)
    for side in (17, 40):
        expected = F.interpolate(whole, (side, side), mode="bilinear", antialias=True)
        torch.testing.assert_close(seen(images, split, side, "resize"), expected)


@pytest.mark.parametrize("side", [1, 13, 16])
def test_a_smaller_image_stands_in_the_middle_of_black(
    prepared: Prepared, images: TaskImages, side: int
) -> None:
    padded = seen(images, "test", side, "pad")
    assert padded.shape[-2:] == (28, 28)
    before = (28 - side) // 2
    inside = padded[..., before : before + side, before : before + side]
    torch.testing.assert_close(inside, seen(images, "test", side, "resize"))
    outside = torch.ones(28, 28, dtype=torch.bool)
    outside[before : before + side, before : before + side] = False
    black = torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    torch.testing.assert_close(
        padded[:, :, outside], black[None, :, None].expand(len(padded), 3, int(outside.sum()))
    )


@pytest.mark.parametrize("side", [29, 40, 57])
def test_of_a_larger_image_the_middle_is_seen(images: TaskImages, side: int) -> None:
    start = (side - 28) // 2
    expected = seen(images, "test", side, "resize")[..., start : start + 28, start : start + 28]
    torch.testing.assert_close(seen(images, "test", side, "pad"), expected)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A val of two classes, two images each."""
    rng = np.random.default_rng(0)
    for name in ("n01", "n02"):
        place = tmp_path / "imagenet" / "val" / name
        place.mkdir(parents=True)
        for number in range(2):
            pixels = rng.integers(0, 256, (40, 52, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    return tmp_path / "imagenet"


def test_imagenet_is_labelled_with_the_models_outputs(
    folder: Path, make_weights: Callable[..., Path]
) -> None:
    classes = ("n00", "n01", "n02", "n03")
    record = read_record(
        make_weights(classes=classes, data={"kind": "multi-class", "crop_pct": 1.0})
    )
    assert record is not None
    images = ImageNetVal.open(folder, record, cache_dir=None, workers=0)
    assert images.labels("val").tolist() == [[1], [1], [2], [2]]
    for side, fit, shape in ((16, "resize", 16), (16, "pad", 28), (40, "pad", 28), (28, "pad", 28)):
        assert seen(images, "val", side, fit).shape == (4, 3, shape, shape)
    resized = seen(images, "val", 9, "resize").numpy()
    around = ((0, 0), (0, 0), (9, 10), (9, 10))  # more than the image itself
    np.testing.assert_array_equal(
        seen(images, "val", 9, "mirror").numpy(), np.pad(resized, around, mode="symmetric")
    )
    assert torch.equal(seen(images, "val", 40, "mirror"), seen(images, "val", 40, "pad"))
    start = (40 - 28) // 2
    torch.testing.assert_close(
        seen(images, "val", 40, "pad"),
        seen(images, "val", 40, "resize")[..., start : start + 28, start : start + 28],
    )


def test_imagenet_of_other_classes_is_refused(
    folder: Path, make_weights: Callable[..., Path]
) -> None:
    record = read_record(make_weights(classes=("n1", "n2", "n3")))
    assert record is not None
    with pytest.raises(DataError, match="2 of its 2 classes are none of the model's 3"):
        ImageNetVal.open(folder, record, cache_dir=None, workers=0)


@pytest.fixture
def opened(cache_dir: Path) -> Callable[..., TaskImages]:
    """Open the images for weights."""

    def images(weights: Path, **options: object) -> TaskImages:
        config = build(SubjectConfig, {"cache_dir": str(cache_dir), **options})
        return open_images(config, open_trained(str(weights)), Quiet())  # type: ignore[return-value]

    return images


def test_images_must_be_of_the_models_task(
    opened: Callable[..., TaskImages], make_weights: Callable[..., Path]
) -> None:
    path = make_weights()
    assert isinstance(opened(path), TaskImages)
    with pytest.raises(DataError, match=r"tells 2 classes \(.*\) apart, and retinamnist has 5"):
        opened(path, task="retinamnist")
    with pytest.raises(DataError, match=r"and pneumoniamnist has 2 classes \(normal, pneumonia\)"):
        opened(path, task="pneumoniamnist", data="synthetic")
    with pytest.raises(ConfigError, match="give one"):
        opened(path, task="breastmnist", imagenet="somewhere")
    nameless = make_weights("b", data={"name": "mine", "source": "npz"})
    with pytest.raises(ConfigError, match="'mine', which is no official task: give --task"):
        opened(nameless)


def test_ones_own_images_are_found_where_the_training_found_them(
    opened: Callable[..., TaskImages], make_weights: Callable[..., Path], tmp_path: Path
) -> None:
    best = tmp_path / "run" / "checkpoints" / "best.safetensors"
    best.parent.mkdir(parents=True)
    made = make_weights("b", data={"name": "mine", "source": "npz", "kind": "binary"})
    shutil.copy(made, best)
    rng, arrays = np.random.default_rng(0), {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (4, 64, 64), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.array([[0], [1], [0], [1]])
    settings = best.parent.parent / "config.yaml"
    settings.write_text(f"task: {tmp_path / 'mine.npz'}\n")
    with pytest.raises(
        ConfigError, match=r"no official task, and .*mine\.npz is not there any more"
    ):
        opened(best)
    np.savez(tmp_path / "mine.npz", **arrays)
    images = opened(best)
    assert (images.name, images.kind) == ("mine", "binary")
    with pytest.raises(ConfigError, match="no official task: give --task"):
        opened(made)


def test_what_is_not_published_is_told_without_options_that_are_not_there(
    opened: Callable[..., TaskImages], make_weights: Callable[..., Path], tmp_path: Path
) -> None:
    odd = make_weights(data={"size": 96, "source_size": 96, "source": "folder"})
    with pytest.raises(ConfigError, match="trained at 96 px, and breastmnist is published at 28, "):
        opened(odd, task="breastmnist")
    with pytest.raises(DataError, match=r"has no breastmnist\.npz, which .*; leave --data-dir out"):
        opened(make_weights(data={"source": "official"}), data_dir=str(tmp_path))


@pytest.fixture
def own_npz(tmp_path: Path) -> Callable[..., Path]:
    """Write one's own task of so many classes."""

    def write(classes: int) -> Path:
        rng, arrays = np.random.default_rng(0), {}
        for split in ("train", "val", "test"):
            arrays[f"{split}_images"] = rng.integers(0, 256, (12, 20, 20), dtype=np.uint8)
            arrays[f"{split}_labels"] = np.arange(12)[:, None] % classes
        path = tmp_path / f"own{classes}.npz"
        np.savez(path, **arrays)
        return path

    return write


def test_ones_own_images_may_name_the_classes_otherwise(
    opened: Callable[..., TaskImages],
    make_weights: Callable[..., Path],
    own_npz: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = opened(make_weights(), task=str(own_npz(2)))
    assert (images.name, images.size, images.classes) == ("own2", 28, ("0", "1"))
    (told,) = [line for line in caplog.messages if "other names" in line]
    assert told.endswith("they are matched by number: malignant = 0, normal, benign = 1")
    with pytest.raises(DataError, match=r"2 classes .* apart, and own3 has 3 classes"):
        opened(make_weights(), task=str(own_npz(3)))
    swapped = make_weights(classes=("1", "0"), data={"name": "mine", "source": "npz"})
    with pytest.raises(DataError, match="in another order, 2 classes \\(0, 1\\) in place of"):
        opened(swapped, task=str(own_npz(2)))

"""The rules that tell an image which is unlike the training images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dogmed.data.pixels import measure, ranges
from dogmed.inference.likeness import channels, unlike
from dogmed.inference.reading.pictures import Picture
from dogmed.weights.records import DataRecord

PLAIN = {"brightness": (0.3, 0.5), "contrast": (0.1, 0.3), "colour": (0.0, 0.0)}


def seen(**facts: Any) -> DataRecord:
    told = {
        "name": "x", "size": 28, "source_size": 100, "interpolation": None, "mean": (0.5,) * 3,
        "std": (0.5,) * 3, "licence": None, "sides": (100, 200), "pixels": PLAIN,
    }  # fmt: skip
    return DataRecord(**{**told, **facts})


def picture(height: int = 100, width: int = 100, mean: float = 0.4, std: float = 0.2) -> Picture:
    """Grey noise of exactly this brightness and nearly this contrast."""
    values = np.where(np.indices((28, 28)).sum(0) % 2, mean + std, mean - std)
    pixels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return Picture("x", pixels[..., None].repeat(3, -1), height, width, ())


@pytest.mark.parametrize(
    "facts, words",
    [
        ({}, []),
        ({"height": 50, "width": 50}, []),
        ({"height": 49, "width": 50}, ["50×49 px, training images had 100 to 200"]),
        ({"height": 800, "width": 900}, []),
        ({"height": 801, "width": 900}, ["900×801 px, training"]),
        ({"height": 100, "width": 200}, []),
        ({"height": 100, "width": 201}, ["stretched to a square"]),
        ({"mean": 0.59}, []),
        ({"mean": 0.62}, ["brightness 0.62, training images had 0.30 to 0.50"]),
        ({"mean": 0.18, "std": 0.15}, ["brightness 0.18"]),
        ({"std": 0.39}, []),
        ({"mean": 0.45, "std": 0.43}, ["contrast 0.43, training images had 0.10 to 0.30"]),
        ({"std": 0.0}, ["all its pixels are the same"]),
    ],
)
def test_each_rule_has_its_bound(facts: dict[str, Any], words: list[str]) -> None:
    found = unlike(picture(**facts), seen())
    assert len(found) == len(words), found
    assert all(word in said for word, said in zip(words, found, strict=True)), found


def test_colours_are_unlike_images_that_had_none() -> None:
    vivid = np.zeros((28, 28, 3), np.uint8)
    vivid[::2, :, 0] = 200
    (said,) = unlike(Picture("x", vivid, 100, 100, ()), seen(pixels={"colour": (0.0, 0.0)}))
    assert said.startswith("colour 0.39, training images had 0.00 to 0.00")


def test_a_grey_image_is_unlike_images_that_all_had_colours() -> None:
    wide = seen(pixels={"colour": (0.05, 0.43)})
    assert unlike(picture(), wide) == ["colour 0.00, training images had 0.05 to 0.43"]
    assert unlike(picture(), seen(pixels={"colour": (0.005, 0.43)})) == [], "some were grey"


def test_older_records_are_judged_by_what_they_tell() -> None:
    old = seen(sides=None, pixels={})
    assert unlike(picture(mean=0.9), old) == []
    (said,) = unlike(picture(height=401, width=401), old)
    assert said == "401×401 px, training images had 100"
    assert unlike(picture(height=9, width=9), seen(sides=None, pixels={}, source_size=None)) == []


def test_the_channels_of_official_tasks_are_known_without_the_record() -> None:
    assert channels(seen()) is None
    assert channels(seen(channels=3)) == 3
    assert channels(seen(name="breastmnist", source="official")) == 1
    assert channels(seen(name="bloodmnist", source="variant")) == 3
    assert channels(seen(name="breastmnist", source="npz")) is None


def test_the_figures_are_what_they_are_called() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 9, 8, 3), dtype=np.uint8)
    found = measure(images[0])
    scaled = images[0] / 255
    assert found["brightness"] == pytest.approx(scaled.mean())
    assert found["contrast"] == pytest.approx(scaled.mean(2).std())
    assert found["colour"] == pytest.approx((scaled.max(2) - scaled.min(2)).mean(), rel=1e-5)
    assert measure(images[0, ..., 0])["colour"] == 0
    bounds = ranges(images)
    assert all(
        bounds[k][0] <= measure(image)[k] <= bounds[k][1] for k in bounds for image in images
    )

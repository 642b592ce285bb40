"""The transforms: timm's own pixels, and those of reduced decoding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from dogmed.pretrain.images import ImageSet, open_image
from dogmed.pretrain.loader import ImageBatches
from dogmed.pretrain.transforms import (
    TrainTransform,
    generators_kept,
    seed_image,
)

Batches = Callable[..., ImageBatches]
Augment = Callable[..., TrainTransform]


def test_training_pixels_are_those_of_timm(
    train: ImageSet, batches: Batches, timm_options: dict[str, Any]
) -> None:
    reference = create_transform(**timm_options, is_training=True)
    erased, loader = 0, batches()
    loader.set_epoch(3)
    for step in loader:
        for image, label, index in zip(
            *(step[0][k] for k in ("image", "label", "index")), strict=True
        ):
            with generators_kept():
                seed_image(7, 3, int(index))
                expected = reference(train.open(int(index)))
            assert torch.equal(image, expected)
            assert label == train.labels[index]
            erased += int((expected.abs() > 2.65).any())  # beyond what a pixel can be
    assert erased >= 5


@pytest.mark.parametrize("mode", ["const", "rand"])
def test_other_erasing_is_that_of_timm(
    train: ImageSet, batches: Batches, augment: Augment, timm_options: dict[str, Any], mode: str
) -> None:
    reference = create_transform(**{**timm_options, "re_mode": mode}, is_training=True)
    (micro,) = next(iter(batches(transform=augment(re_mode=mode))))
    for image, index in zip(micro["image"], micro["index"], strict=True):
        with generators_kept():
            seed_image(7, 0, int(index))
            assert torch.equal(image, reference(train.open(int(index))))


def test_evaluation_pixels_are_those_of_timm(
    train: ImageSet, batches: Batches, timm_options: dict[str, Any]
) -> None:
    options = {name: timm_options[name] for name in ("input_size", "mean", "std")}
    reference = create_transform(**options, crop_pct=0.875, interpolation="bicubic")
    found = torch.cat([micro["image"] for (micro,) in batches(train=False)])
    assert torch.equal(found, torch.stack([reference(train.open(i)) for i in range(len(train))]))


def test_reduced_decoding_takes_the_same_crop_of_fewer_pixels(
    tmp_path: Path, augment: Augment
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "x.jpg", quality=95)
    data = (tmp_path / "x.jpg").read_bytes()
    options = {"auto_augment": None, "re_prob": 0.0}
    full, reduced = (augment(32, decode=d, **options) for d in ("full", "reduced"))
    decoded = set()
    with generators_kept():
        for index in range(60):
            pictures = []
            for transform in (full, reduced):
                seed_image(0, 0, index)
                image = open_image(data)
                pictures.append(transform(image).image.float())
            decoded.add(image.size)
            shifted = (pictures[0] - pictures[0].roll(1, dims=1))[:, 1:].abs().mean()
            assert (pictures[0] - pictures[1]).abs().mean() < shifted / 3  # a third of a pixel
    assert {(200, 150), (100, 75)} <= decoded


def test_reduced_decoding_is_full_decoding_where_the_crop_is_small(
    batches: Batches, augment: Augment
) -> None:
    reduced = batches(transform=augment(decode="reduced"))
    for (found,), (expected,) in zip(reduced, batches(), strict=True):
        assert torch.equal(found["image"], expected["image"])


def test_posterizing_to_no_bits_is_black_as_it_used_to_be(
    train: ImageSet, augment: Augment
) -> None:
    image, seen = train.open(0), 0
    for policy in ("rand-m10-inc1", "original", "v0", "augmix-m10"):
        steps = augment(auto_augment=policy).rest.transforms
        ops = [op for step in steps for op in getattr(step, "ops", [])]
        ops += [op for step in steps for pair in getattr(step, "policy", []) for op in pair]
        for op in (op for op in ops if op.name.startswith("Posterize")):
            for bits in range(9):  # the definition of Pillow until version 12
                table = [i & ~(2 ** (8 - bits) - 1) for i in range(256)] * 3
                assert op.aug_fn(image, bits).tobytes() == image.point(table).tobytes()
            seen += 1
    assert seen >= 4


def test_every_operation_of_the_recipe_works_at_its_highest_level(
    train: ImageSet, augment: Augment
) -> None:
    (policy,) = (
        s for s in augment(auto_augment="rand-m10-inc1").rest.transforms if hasattr(s, "ops")
    )
    assert len(policy.ops) == 15
    with generators_kept():
        for op in policy.ops:
            op.prob = 1.0
            assert op(train.open(0)).size == train.open(0).size

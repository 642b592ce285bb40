"""From a file to pixels: timm's transforms, with every random number tied to the image.

The transforms are timm's own (``create_transform``, ``RandomErasing``); the same seeds give the same
pixels as timm's pipeline, bit for bit. Two things are ours. Pixels leave the worker as uint8, a quarter
of the traffic: an erased rectangle, which timm fills with normal noise after normalisation, travels
beside them and is put in on the device. And JPEGs may be decoded at a reduced size (``decode``).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment as policies
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_pil_interp
from torchvision.transforms import Compose
from torchvision.transforms import functional as F

from dogmed.errors import ConfigError
from dogmed.pretrain.images import load_rgb

Decode = Literal["full", "reduced"]


class Pixels(NamedTuple):
    """One image before normalisation.

    ``erased`` (n,) int64 are the places (row · width + column) that are overwritten after
    normalisation, ``noise`` (n, 3) float32 what is written there; None when nothing is.
    """

    image: torch.Tensor  # (H, W, 3) uint8
    erased: torch.Tensor | None = None
    noise: torch.Tensor | None = None


class Transform(Protocol):
    """Decode and transform an image of which only the header has been read; ImageError if damaged."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> Pixels: ...


class TrainTransform:
    """A random crop, then the rest of timm's training transforms, then random erasing.

    Args:
        crop: timm's random resized crop.
        rest: what follows it; ends in a uint8 tensor (3, H, W).
        erasing: timm's random erasing, or None.
        mean: per channel, 0..1, for the normalisation on the device.
        std: likewise.
        decode: "full" decodes the whole JPEG and is timm's own pipeline. "reduced" lets the decoder
            halve (quarter, ...) the picture when the crop stays at least as large as the
            output: the same crop box, but its pixels are averaged in the JPEG's blocks before
            the interpolation, so they differ by a few grey levels.
    """

    def __init__(
        self,
        crop: RandomResizedCropAndInterpolation,
        rest: Compose,
        erasing: RandomErasing | None,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        decode: Decode,
    ):
        self.crop, self.rest, self.erasing = crop, rest, erasing
        self.mean, self.std, self.decode = mean, std, decode
        self.size: int = crop.size[0]

    def __call__(self, image: Image.Image) -> Pixels:
        full = self.decode == "full"
        cropped = self.crop(load_rgb(image)) if full else self._crop_reduced(image)
        pixels = self.rest(cropped).permute(1, 2, 0)  # (3, H, W) -> (H, W, 3)
        return Pixels(pixels) if self.erasing is None else self._erase(pixels, self.erasing)

    def _crop_reduced(self, image: Image.Image) -> Image.Image:
        """timm's crop (the same random numbers in the same order), decoded no larger than needed."""
        crop, size = self.crop, self.size
        top, left, height, width = crop.get_params(image, crop.scale, crop.ratio)
        mode = crop.interpolation
        if isinstance(mode, list | tuple):
            mode = random.choice(mode)
        shrink = next((k for k in (8, 4, 2) if min(height, width) >= k * size), 1)
        if shrink == 1 or image.format != "JPEG":
            return F.resized_crop(load_rgb(image), top, left, height, width, [size, size], mode)
        image.draft("RGB", (image.width // shrink, image.height // shrink))
        box = (left / shrink, top / shrink, (left + width) / shrink, (top + height) / shrink)
        return load_rgb(image).resize((size, size), str_to_pil_interp(mode.value), box=box)

    @staticmethod
    def _erase(pixels: torch.Tensor, erasing: RandomErasing) -> Pixels:
        """Let timm erase a canvas of NaN, and keep what it wrote."""
        height, width, channels = pixels.shape
        canvas = torch.full((channels, height, width), torch.nan)
        erasing(canvas)
        erased = (~canvas[0].isnan()).flatten().nonzero()[:, 0]
        if not len(erased):
            return Pixels(pixels)
        return Pixels(pixels, erased, canvas.flatten(1)[:, erased].T.contiguous())


class EvalTransform:
    """timm's resize and centre crop; always decoded fully, so that figures compare with others'.

    Args:
        transform: ends in a uint8 tensor (3, H, W).
        size: side of the crop.
        mean: per channel, 0..1.
        std: likewise.
    """

    def __init__(
        self, transform: Compose, size: int, *, mean: tuple[float, ...], std: tuple[float, ...]
    ):
        self.transform, self.size, self.mean, self.std = transform, size, mean, std

    def __call__(self, image: Image.Image) -> Pixels:
        return Pixels(self.transform(load_rgb(image)).permute(1, 2, 0))


def train_transform(
    size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    interpolation: str,
    hflip: float,
    color_jitter: float | None,
    auto_augment: str | None,
    re_prob: float,
    re_mode: Literal["pixel", "rand", "const"],
    re_count: int,
    decode: Decode,
) -> TrainTransform:
    """Build ``TrainTransform``; arguments are those of ``timm.data.create_transform``.

    Raises:
        ConfigError: timm does not know the augmentation policy, or a range falls.
    """
    for flag, (low, high) in (("crop-scale", scale), ("crop-ratio", ratio)):
        if not 0 < low <= high:
            raise ConfigError(
                f"--augment.{flag} {low:g} {high:g}: expected 0 < smallest <= largest"
            )
    try:
        pipeline = create_transform(
            size,
            is_training=True,
            scale=scale,
            ratio=ratio,
            interpolation=interpolation,
            hflip=hflip,
            color_jitter=color_jitter,
            auto_augment=auto_augment,
            mean=tuple(mean),
            std=tuple(std),
            normalize=False,
        )
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise ConfigError(
            f"augmentation policy '{auto_augment}': timm does not understand it "
            f"({error or 'malformed'}); for example rand-m9-mstd0.5-inc1"
        ) from error
    crop, *rest = pipeline.transforms
    for step in rest:
        _mend_posterize(step)
    erasing = RandomErasing(re_prob, mode=re_mode, max_count=re_count, device="cpu")
    return TrainTransform(
        crop,
        Compose(rest),
        erasing if re_prob else None,
        mean=tuple(mean),
        std=tuple(std),
        decode=decode,
    )


def _mend_posterize(step: Any) -> None:
    """Let an augmentation policy keep 0 bits, where timm's fails with Pillow 13.

    RandAugment's m9-mstd0.5-inc1 draws that for about one image in 300 (a magnitude of 10 or more). Before
    Pillow 13 it gave a black image, which published results were trained with; now it raises.
    """
    if isinstance(step, policies.AutoAugment):
        ops = list(chain.from_iterable(step.policy))
    elif isinstance(step, policies.RandAugment | policies.AugMixAugment):
        ops = list(step.ops)
    else:
        return
    for op in ops:
        if op.aug_fn is policies.posterize:
            op.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    if bits < 1:
        return Image.new(image.mode, image.size)
    return policies.posterize(image, bits, **options)


def eval_transform(
    size: int, *, mean: Sequence[float], std: Sequence[float], crop_pct: float, interpolation: str
) -> EvalTransform:
    """Build ``EvalTransform``; arguments are those of ``timm.data.create_transform``."""
    pipeline = create_transform(
        size, is_training=False, crop_pct=crop_pct, interpolation=interpolation, normalize=False
    )
    return EvalTransform(pipeline, size, mean=tuple(mean), std=tuple(std))


def seed_image(seed: int, epoch: int, position: int) -> None:
    """Seed Python's, numpy's and torch's CPU generators for one image of one epoch."""
    words = np.random.SeedSequence((seed, epoch, position)).generate_state(4, np.uint64)
    first, second, third, fourth = (int(word) for word in words)
    random.seed(first)
    np.random.seed([second & 0xFFFFFFFF, second >> 32, third & 0xFFFFFFFF, third >> 32])
    torch.default_generator.manual_seed(fourth)  # torch.manual_seed would also queue CUDA's


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put Python's, numpy's and torch's CPU generators back as they were."""
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])

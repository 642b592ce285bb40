"""Corruptions of images: compression, noise, blur, light and dirt, as in MedMNIST-C but without ImageMagick.

Di Salvo, Doerrich, Ledig, "MedMNIST-C", arXiv 2406.17536, whose list of corruptions and severities
``configs/stress.yaml`` holds; written anew from that description. As there, a grey image is corrupted as
an RGB image and turned grey again, so that its noise is the luma of three channels' noise. Our own are:
lengths in proportion to the image's side, the same draws at all severities, rounding in place of
truncation, and the pictures of stains, bubbles and characters (``docs/stress.md``).

What is drawn depends on the seed, the corruption's name and the image's place in its split alone, and
every image is worked out by itself on the CPU: batches and devices have no part in it.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFont
from scipy import ndimage, signal

VERSION = 1  # raised whenever the same seed gives other images
SIDE = 224  # pixels of the images that lengths are given for
LETTERS = "abcdefghijklmnopqrstuvwxyz"

Pixels: TypeAlias = NDArray[np.uint8]
Cells: TypeAlias = NDArray[Any]
Corruption: TypeAlias = Callable[[Pixels, Any, Generator], Pixels]


def corrupt(image: Pixels, name: str, strength: Any, *, seed: int, index: int) -> Pixels:
    """Corrupt one image.

    Args:
        image: (H, H) or (H, H, 3) uint8.
        name: one of ``CORRUPTIONS``.
        strength: as ``configs/stress.yaml`` has it at a severity; None leaves the image as it is.
        seed: of all draws.
        index: the image's place in its split.
    """
    if strength is None:
        return image.copy()
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), index])
    colour = np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image
    found = CORRUPTIONS[name](np.ascontiguousarray(colour), strength, rng)
    assert found.shape == colour.shape and found.dtype == np.uint8, name
    return np.asarray(Image.fromarray(found).convert("L")) if image.ndim == 2 else found


def lower_resolution(image: Pixels, side: int) -> Pixels:
    """Shrink an image to ``side`` and enlarge it again, bilinear with antialiasing (Pillow's)."""
    small = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(small.resize(image.shape[1::-1], Image.Resampling.BILINEAR))


# ---- digital ---------------------------------------------------------------------------------


def _pixelate(image: Pixels, share: float, rng: Generator) -> Pixels:
    """Average over boxes, down to a share of the side, and enlarge the boxes again."""
    height, width = image.shape[:2]
    small = max(1, int(width * share)), max(1, int(height * share))
    boxes = Image.fromarray(image).resize(small, Image.Resampling.BOX)
    return np.asarray(boxes.resize((width, height), Image.Resampling.BOX))


def _jpeg(image: Pixels, quality: int, rng: Generator) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


# ---- noise -----------------------------------------------------------------------------------


def _gaussian_noise(image: Pixels, deviation: float, rng: Generator) -> Pixels:
    return _to_pixels(image / 255 + deviation * rng.standard_normal(image.shape))


def _speckle_noise(image: Pixels, deviation: float, rng: Generator) -> Pixels:
    return _to_pixels(image / 255 * (1 + deviation * rng.standard_normal(image.shape)))


def _impulse_noise(image: Pixels, share: float, rng: Generator) -> Pixels:
    """Salt and pepper, half each, in every channel by itself."""
    hit, salt = rng.random(image.shape) < share, rng.random(image.shape) < 0.5
    return np.where(hit, np.where(salt, 255, 0), image).astype(np.uint8)


def _shot_noise(image: Pixels, photons: float, rng: Generator) -> Pixels:
    """Poisson noise of a sensor that counts so many photons where it is white."""
    return _to_pixels(rng.poisson(image / 255 * photons) / photons)


# ---- blur ------------------------------------------------------------------------------------


def _gaussian_blur(image: Pixels, cells: int, rng: Generator) -> Pixels:
    """Blur by a Gaussian cut off after ``cells`` cells, whose sigma is torchvision's (and OpenCV's) for it."""
    sigma, reach = 0.3 * ((cells - 1) / 2 - 1) + 0.8, cells // 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return _blurred(image, y, x, np.exp(-(x**2 + y**2) / (2 * sigma**2)), "reflect")


def _defocus_blur(image: Pixels, lens: tuple[float, float], rng: Generator) -> Pixels:
    """Blur by a disk, smoothed over 3×3 cells.

    Args:
        image: (H, W, 3).
        lens: radius, and sigma of the smoothing in cells.
        rng: not needed.
    """
    radius, smooth = lens
    reach = math.floor(radius) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (x**2 + y**2 <= radius**2).astype(float)
    disk = ndimage.gaussian_filter(disk, smooth, mode="constant", radius=1)
    return _blurred(image, y, x, disk, "reflect")


def _motion_blur(image: Pixels, path: tuple[float, float], rng: Generator) -> Pixels:
    """Blur along a line to one side, weighted by half a Gaussian, at an angle of -45 to 45 degrees.

    Args:
        image: (H, W, 3).
        path: radius and sigma; the line has 2 * ceil(radius) + 1 steps, as in ImageMagick.
        rng: of the angle.
    """
    radius, sigma = path
    angle = math.radians(rng.uniform(-45, 45))
    steps = np.arange(2 * math.ceil(radius) + 1)
    y, x = np.rint(steps * math.sin(angle)), np.rint(steps * math.cos(angle))
    return _blurred(image, y, x, np.exp(-(steps**2) / (2 * sigma**2)), "edge")


def _zoom_blur(image: Pixels, zoom: tuple[float, float], rng: Generator) -> Pixels:
    """Average an image with copies of it enlarged about the middle, by 1 up to a factor in steps."""
    last, step = zoom
    height, width = image.shape[:2]
    picture, total = Image.fromarray(image), 2.0 * image  # the image itself, and factor 1
    count = round((last - 1) / step)
    for factor in 1 + step * np.arange(1, count + 1):
        left, top = width / 2 * (1 - 1 / factor), height / 2 * (1 - 1 / factor)
        box = (left, top, width - left, height - top)
        total += np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box=box))
    return _to_pixels(total / (255 * (count + 2)))


# ---- colour ----------------------------------------------------------------------------------


def _brightness(image: Pixels, factor: float, rng: Generator) -> Pixels:
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(image)).enhance(factor))


def _contrast(image: Pixels, factor: float, rng: Generator) -> Pixels:
    """Spread the values about the mean of the luma by a factor."""
    return np.asarray(ImageEnhance.Contrast(Image.fromarray(image)).enhance(factor))


def _saturate(image: Pixels, added: float, rng: Generator) -> Pixels:
    """Add to the saturation of every pixel (HSV); a grey one has the hue of red, by convention."""
    from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

    hsv = rgb_to_hsv(image / 255)
    hsv[..., 1] = np.clip(hsv[..., 1] + added, 0, 1)
    return _to_pixels(hsv_to_rgb(hsv))


def _gamma(image: Pixels, gamma: float, rng: Generator) -> Pixels:
    table = np.minimum(255, np.floor((256 - 1e-3) * (np.arange(256) / 255) ** gamma))
    return table.astype(np.uint8)[image]


# ---- task-specific ---------------------------------------------------------------------------


def _stain_deposit(image: Pixels, most: int, rng: Generator) -> Pixels:
    """Lay one up to ``most`` dark spots of uneven outline over an image."""
    count = 1 + int(rng.random() * most)
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    passed = np.ones((height, width))
    for _ in range(count):
        radius = rng.uniform(8, 14) * _scale(image)
        middle = rng.uniform(0.1, 0.9, 2) * (height, width)
        around = np.arctan2(y - middle[0], x - middle[1])
        outline = np.ones((height, width))
        for wave in range(2, 6):
            outline += rng.normal(0, 0.12) * np.cos(wave * around + rng.uniform(0, 2 * math.pi))
        far = np.hypot(y - middle[0], x - middle[1]) - radius * outline
        passed *= 1 - 0.9 / (1 + np.exp(np.clip(far, -30, 30)))
    return _to_pixels(image / 255 * passed[..., None])


def _bubble(image: Pixels, bubbles: tuple[int, int], rng: Generator) -> Pixels:
    """Lay translucent white disks with a rim over an image.

    Args:
        image: (H, W, 3).
        bubbles: the largest radius, from 3 on, and the largest number, from 7 on.
        rng: of number, radii and places.
    """
    largest, most = bubbles
    height, width = image.shape[:2]
    rim = 2 * _scale(image)
    sheet = Image.new("RGBA", (width, height), (255, 255, 255, 0))
    draw = ImageDraw.Draw(sheet)
    for _ in range(7 + int(rng.random() * (most - 6))):
        size, *place = rng.random(3)
        radius = (3 + size * (largest - 3)) * _scale(image)
        x, y = radius + place[0] * (width - 2 * radius), radius + place[1] * (height - 2 * radius)
        for r, opacity in ((radius + rim, 130), (radius, 100)):
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 255, opacity))
    under = Image.fromarray(image)
    under.paste(sheet, (0, 0), sheet)
    return np.asarray(under)


def _black_corner(image: Pixels, factor: float, rng: Generator) -> Pixels:
    """Blacken what lies outside a circle whose radius is half the side times a factor."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    far = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2)
    return image * (far <= min(height, width) / 2 * factor)[..., None].astype(np.uint8)


def _characters(image: Pixels, text: tuple[int, int, float], rng: Generator) -> Pixels:
    """Write random words in random colours.

    Args:
        image: (H, W, 3).
        text: the most words, the most letters, and the largest scale of the font, from 0.14 on; 1 is
            letters of 30 px.
        rng: of all that is random.
    """
    words, letters, largest = text
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    for _ in range(1 + int(rng.random() * words)):
        count, size, *place = rng.random(4)
        word = "".join(rng.choice(list(LETTERS), 3 + int(count * (letters - 2))))
        pixels = max(4.0, 30 * (0.14 + size * (largest - 0.14)) * _scale(image))
        font = ImageFont.load_default(pixels)
        left, top, right, bottom = draw.textbbox((0, 0), word, font=font)
        x, y = place[0] * (picture.width - right), place[1] * (picture.height - bottom)
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        draw.text((max(-left, x), max(-top, y)), word, fill=colour, font=font)
    return np.asarray(picture)


CORRUPTIONS: dict[str, Corruption] = {
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg,
    "gaussian_noise": _gaussian_noise,
    "speckle_noise": _speckle_noise,
    "impulse_noise": _impulse_noise,
    "shot_noise": _shot_noise,
    "defocus_blur": _defocus_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "gaussian_blur": _gaussian_blur,
    "brightness_up": _brightness,
    "brightness_down": _brightness,
    "contrast_up": _contrast,
    "contrast_down": _contrast,
    "saturate": _saturate,
    "stain_deposit": _stain_deposit,
    "bubble": _bubble,
    "black_corner": _black_corner,
    "characters": _characters,
    "gamma_corr_up": _gamma,
    "gamma_corr_down": _gamma,
}
"""Each takes an image, (H, W, 3) uint8, how strongly, and what its draws come from."""


def _scale(image: Pixels) -> float:
    """By which lengths are multiplied that are given for images of ``SIDE``."""
    return image.shape[0] / SIDE


def _blurred(image: Pixels, y: Cells, x: Cells, weights: Cells, border: Any) -> Pixels:
    """Move an image by every offset and average, weighted.

    Args:
        image: (H, W, 3).
        y: offsets in whole pixels of an image of ``SIDE``; scaled to this one's they fall between pixels,
            and each is shared out between its four neighbours.
        x: as ``y``.
        weights: of the offsets.
        border: what ``np.pad`` continues the image by.
    """
    y, x = y * _scale(image), x * _scale(image)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    reach = int(max(np.abs(y).max(), np.abs(x).max())) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    for row, share_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, share_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            share = weights * share_y * share_x
            there = share > 0  # what has no share may lie outside
            np.add.at(kernel, (reach + row[there], reach + column[there]), share[there])
    around = np.pad(image / 255, ((reach, reach), (reach, reach), (0, 0)), mode=border)
    found = signal.fftconvolve(around, kernel[..., None] / kernel.sum(), "valid", axes=(0, 1))
    return _to_pixels(found)


def _to_pixels(shares: NDArray[Any]) -> Pixels:
    """From 0..1 to 0..255, rounded and cut off."""
    return np.rint(255 * np.clip(shares, 0, 1)).astype(np.uint8)

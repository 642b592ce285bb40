"""Corruptions of images, against other implementations of the same definition, or by what they must do."""

from __future__ import annotations

import colorsys
import io
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as reference
from PIL import Image
from scipy import ndimage

from dogmed.analysis.stress.corruptions import CORRUPTIONS, SIDE, corrupt, lower_resolution
from dogmed.config import recipe

FACTS = recipe("stress")
RANDOM = {
    "gaussian_noise", "speckle_noise", "impulse_noise", "shot_noise", "motion_blur", "stain_deposit",
    "bubble", "characters",
}  # fmt: skip
LUMA = np.array([0.299, 0.587, 0.114])
LUMA_NOISE = float(np.sqrt((LUMA**2).sum()))  # deviation of the luma of three channels' noise


def picture(side: int, *, colour: bool, seed: int = 0) -> np.ndarray:
    """Smooth shapes with edges and texture, in the middle of the range."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.standard_normal((side, side, 3)), (side / 25, side / 25, 0))
    fine = ndimage.gaussian_filter(
        rng.standard_normal((side, side, 3)), (side / 200, side / 200, 0)
    )
    y, x = np.mgrid[:side, :side] / side
    disk = (np.hypot(y - 0.45, x - 0.55) < 0.25)[..., None] * 60
    pixels = 110 + 30 * noise / noise.std() + disk + 12 * fine / fine.std()
    pixels = np.clip(pixels, 5, 250).astype(np.uint8)
    return pixels if colour else pixels[..., 0].copy()


def of(image: np.ndarray, name: str, strength: object, *, seed: int = 0, index: int = 0):
    return corrupt(image, name, strength, seed=seed, index=index)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b).mean())


@pytest.mark.parametrize("quality", [50, 7])
def test_jpeg_is_pillows_at_that_quality(quality: int) -> None:
    for colour in (True, False):
        image, file = picture(64, colour=colour), io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        expected = np.asarray(Image.open(file))
        assert distance(of(image, "jpeg_compression", quality), expected) == 0


def test_pixels_are_averages_over_boxes() -> None:
    image = picture(SIDE, colour=False)
    means = image.reshape(56, 4, 56, 4).mean((1, 3))
    np.testing.assert_allclose(
        of(image, "pixelate", 0.25), np.kron(means, np.ones((4, 4))), atol=1.01
    )


@pytest.mark.parametrize(
    ("name", "strength", "deviation"),
    [
        ("gaussian_noise", 0.08, 0.08),
        ("speckle_noise", 0.15, 0.15 * 0.5),
        ("shot_noise", 60, np.sqrt(0.5 / 60)),
    ],
)
def test_noise_has_the_mean_and_deviation_that_its_name_stands_for(
    name: str, strength: float, deviation: float
) -> None:
    for image, share in (
        (np.full((SIDE, SIDE, 3), 128), 1),
        (np.full((SIDE, SIDE), 128), LUMA_NOISE),
    ):
        found = of(image.astype(np.uint8), name, strength) / 255.0
        assert found.mean() == pytest.approx(128 / 255, abs=0.002)
        assert found.std() == pytest.approx(deviation * share, rel=0.02)


def test_impulses_are_salt_and_pepper_in_a_share_of_the_values() -> None:
    image = np.full((SIDE, SIDE, 3), 128, dtype=np.uint8)
    found = of(image, "impulse_noise", 0.09)
    assert set(np.unique(found)) == {0, 128, 255}
    assert (found == 0).mean() == pytest.approx(0.045, rel=0.05)
    assert (found == 255).mean() == pytest.approx(0.045, rel=0.05)


@pytest.mark.parametrize("cells", [3, 9, 21])
def test_gaussian_blur_is_torchvisions(cells: int) -> None:
    image = picture(SIDE, colour=True)
    expected = reference.gaussian_blur(torch.from_numpy(image).permute(2, 0, 1), cells)
    found = of(image, "gaussian_blur", cells)
    assert np.abs(found - expected.permute(1, 2, 0).numpy().astype(int)).max() <= 1


@pytest.mark.parametrize("radius", [3, 6])
def test_defocus_is_a_mean_over_a_disk(radius: int) -> None:
    image = picture(SIDE, colour=False)
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x * x + y * y <= radius * radius).astype(float)
    expected = ndimage.convolve(image.astype(float), disk / disk.sum(), mode="mirror")
    assert np.abs(of(image, "defocus_blur", (radius, 0.01)) - expected).max() <= 1


@pytest.mark.parametrize("index", range(4))
def test_motion_leaves_a_trail_on_one_side_with_half_a_gaussian(index: int) -> None:
    image = np.zeros((SIDE, SIDE), dtype=np.uint8)
    image[112, 112] = 255
    radius, sigma = 8, 5
    found = of(image, "motion_blur", (radius, sigma), index=index)
    y, x = np.nonzero(found)
    y, x = y - 112, x - 112
    assert (x >= 0).all() and (np.abs(y) <= x + 1).all()  # to the right, within 45 degrees
    far = np.hypot(y, x)
    assert far.max() <= 2 * radius + 1
    expected = np.exp(-(far**2) / (2 * sigma**2))
    values = found[112 + y, 112 + x]
    np.testing.assert_allclose(values / values.max(), expected, atol=0.1)
    assert found.sum() == pytest.approx(255, rel=0.1)


def test_zoom_is_the_mean_of_enlarged_copies() -> None:
    image = picture(SIDE, colour=False)
    factors, total = np.arange(0, 16) * 0.01 + 1, image.astype(float)
    middle = (SIDE - 1) / 2
    for factor in factors:
        total += ndimage.affine_transform(
            image.astype(float), [1 / factor] * 2, middle * (1 - 1 / factor), order=1, mode="nearest"
        )  # fmt: skip
    found = of(image, "zoom_blur", (1.15, 0.01))
    np.testing.assert_allclose(found, total / (len(factors) + 1), atol=1.5)


def test_light_is_scaled_about_black_or_the_mean() -> None:
    image = picture(64, colour=True)
    bright = np.clip(image * 1.4, 0, 255)
    np.testing.assert_allclose(of(image, "brightness_up", 1.4), bright, atol=1)
    np.testing.assert_allclose(of(image, "brightness_down", 0.5), image * 0.5, atol=1)
    mean = np.asarray(Image.fromarray(image).convert("L")).mean()
    np.testing.assert_allclose(
        of(image, "contrast_down", 0.4), mean + 0.4 * (image - mean), atol=1.5
    )
    for name in ("contrast_up", "contrast_down", "brightness_up", "gamma_corr_up"):
        assert distance(of(image, name, 1), image) == 0


@pytest.mark.parametrize("gamma", [0.4, 1.6])
def test_gamma_is_torchvisions(gamma: float) -> None:
    image = picture(64, colour=True)
    expected = np.asarray(reference.adjust_gamma(Image.fromarray(image), gamma))
    assert distance(of(image, "gamma_corr_up", gamma), expected) == 0


def test_saturation_is_added_in_hsv() -> None:
    image = picture(8, colour=True)
    image[0, 0] = 77  # grey
    found = of(image, "saturate", 0.2)
    for pixel, seen in zip(image.reshape(-1, 3), found.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        expected = colorsys.hsv_to_rgb(hue, min(1, saturation + 0.2), value)
        np.testing.assert_allclose(seen, 255 * np.array(expected), atol=0.51)


def test_dirt_darkens_bubbles_lighten_corners_are_black_and_words_are_small() -> None:
    image = picture(SIDE, colour=True)
    stained, bubbled, cornered, written = (
        of(image, name, FACTS["generic"][name][4], index=1).astype(int)
        for name in ("stain_deposit", "bubble", "black_corner", "characters")
    )
    assert (stained <= image).all() and 0.001 < (stained < image - 10).mean() < 0.1
    assert (bubbled >= image).all() and 0.01 < (bubbled > image).mean() < 0.5
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    inside = np.hypot(y, x) < 0.9 * SIDE / 2
    assert (cornered[~inside] == 0).all() and (cornered[inside] == image[inside]).all()
    assert 0 < (written != image).any(-1).mean() < 0.05


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_draws_depend_on_seed_and_place_alone(name: str) -> None:
    image = picture(64, colour=True)
    before, strength = image.copy(), FACTS["generic"][name][4]
    first = of(image, name, strength, index=3)
    of(image, name, strength, index=4)  # whatever was drawn between
    np.testing.assert_array_equal(of(image, name, strength, index=3), first)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(of(image, name, None), image)
    others = [of(image, name, strength, index=k) for k in (4, 5, 6)]
    others += [of(image, name, strength, index=3, seed=k) for k in (1, 2, 3)]
    same = [np.array_equal(first, other) for other in others]
    assert not all(same[:3]) and not all(same[3:]) if name in RANDOM else all(same)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("side", [28, 96, SIDE])
def test_the_higher_the_severity_the_further_from_the_image(name: str, side: int) -> None:
    images = [picture(side, colour=True, seed=k) for k in range(5 if side < SIDE else 3)]
    found = [
        np.mean([distance(of(image, name, s, index=k), image) for k, image in enumerate(images)])
        for s in (None, *FACTS["generic"][name])
    ]
    assert found[0] == 0
    if side > 28 or name != "characters":  # letters of 4 px may fall on their own colour
        assert found[5] > 0.02
    assert all(b >= 0.97 * a for a, b in pairwise(found)), found


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_grey_image_is_corrupted_as_an_rgb_image_and_turned_grey(name: str) -> None:
    grey = picture(48, colour=False)
    strength = FACTS["generic"][name][2]
    found = of(grey, name, strength)
    colour = of(np.repeat(grey[..., None], 3, 2), name, strength)
    assert found.shape == grey.shape and found.dtype == np.uint8
    np.testing.assert_allclose(found, colour @ LUMA, atol=1)


def test_a_lower_resolution_keeps_the_shape_and_what_is_constant() -> None:
    for colour in (True, False):
        image = picture(64, colour=colour)
        distances = [distance(lower_resolution(image, side), image) for side in (64, 32, 16, 8)]
        assert distances[0] == 0 and distances == sorted(distances)
        assert lower_resolution(image, 16).shape == image.shape
    flat = np.full((64, 64), 93, dtype=np.uint8)
    np.testing.assert_array_equal(lower_resolution(flat, 28), flat)


def test_the_tables_name_what_there_is_at_five_severities() -> None:
    grouped = [name for names in FACTS["groups"].values() for name in names]
    assert sorted(grouped) == sorted(CORRUPTIONS) == sorted(FACTS["generic"])
    assert set(FACTS["usual"]) <= set(CORRUPTIONS)
    for strengths in (FACTS["generic"], *FACTS["tasks"].values()):
        assert set(strengths) <= set(CORRUPTIONS)
        assert {len(listed) for listed in strengths.values()} == {5}
    for task, figures in FACTS["alexnet"].items():
        assert set(figures) == {"clean", *FACTS["tasks"][task]}
        assert all(0 < figure < 1 for figure in figures.values())

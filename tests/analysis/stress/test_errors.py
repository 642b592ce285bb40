"""What follows from the points of ``dogmed stress``, against numbers worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dogmed import stats
from dogmed.analysis.stress.errors import (
    Known,
    Reference,
    averaged,
    compare,
    conclude,
    published_for,
    reference_of,
)
from dogmed.analysis.stress.points import ERROR, Measured, Point, _with_error
from dogmed.analysis.stress.sets import RESOLUTION, Stress, chosen, published
from dogmed.errors import ConfigError

LABELS = np.array([[0]] * 4 + [[1]] * 4)
NOISE = Stress("gaussian_noise", "noise", (0.1, 0.2))
BLUR = Stress("gaussian_blur", "blur", (3, 5))
LOW = Stress("14 px", RESOLUTION, (14,))


def answers(wrong: int) -> np.ndarray:
    """Probabilities of which the first so many are wrong: the balanced error is wrong / 8."""
    right = np.where(LABELS == 1, 0.9, 0.1)
    right[:wrong] = 1 - right[:wrong]
    return np.hstack([1 - right, right])


def scored(wrong: int, labels: np.ndarray = LABELS, resamples: int = 200) -> stats.Resampled:
    return _with_error(stats.resample("binary", labels, [answers(wrong)], resamples=resamples))


def subject(title: str = "a", **facts: Any) -> Any:
    usual = {"title": title, "told": True, "reference": False, "corruptions": [NOISE, BLUR]}
    prepared = SimpleNamespace(task=SimpleNamespace(name="own"), source="npz")
    images = SimpleNamespace(prepared=prepared, size=28, title="own")
    config = SimpleNamespace(reference=None, seed=0)
    return SimpleNamespace(**{**usual, "images": images, "config": config, **facts})


def points(of: Any, clean: int, noise: tuple[int, int], blur: tuple[int, int], low: int) -> list:
    """Measured points with so many wrong answers."""
    wrong = {(None, 0): clean, (LOW, 1): low}
    wrong |= {(NOISE, k + 1): n for k, n in enumerate(noise)}
    wrong |= {(BLUR, k + 1): n for k, n in enumerate(blur)}
    return [Measured(of, Point(*place), scored(n)) for place, n in wrong.items()]


def test_the_balanced_error_is_one_minus_balanced_accuracy() -> None:
    found = scored(3)
    assert found.scores[ERROR][0] == pytest.approx((3 / 4 + 0) / 2)
    plain = stats.resample("binary", LABELS, [answers(3)], resamples=200)
    np.testing.assert_allclose(found.replicates[ERROR], 1 - plain.replicates["balanced_accuracy"])


def test_errors_are_normalised_as_published() -> None:
    """E: clean 1/8; noise 2/8, 4/8; blur 1/8, 2/8. R: clean 1/8; noise 3/8, 3/8; blur 2/8, 2/8."""
    mine, theirs = subject(), subject("r", told=False, reference=True)
    measured = points(mine, 1, (2, 4), (1, 2), 3) + points(theirs, 1, (3, 3), (2, 2), 8)
    reference = reference_of(measured)
    assert reference is not None and not reference.published
    assert reference.errors["gaussian_noise"].value == pytest.approx(3 / 8)
    (told,) = conclude(measured, reference)
    rows = {row.stress.name: row for row in told.rows if row.stress}
    noise, blur = rows["gaussian_noise"], rows["gaussian_blur"]
    assert noise.score(ERROR).value == pytest.approx(3 / 8)  # type: ignore[union-attr]
    assert noise.ratio.value == pytest.approx((2 + 4) / (3 + 3))  # type: ignore[union-attr]
    assert blur.ratio.value == pytest.approx((1 + 2) / (2 + 2))  # type: ignore[union-attr]
    assert noise.relative.value == pytest.approx((1 + 3) / (2 + 2))  # type: ignore[union-attr]
    assert blur.relative.value == pytest.approx((0 + 1) / (1 + 1))  # type: ignore[union-attr]
    assert told.overall.ratio.value == pytest.approx((1 + 3 / 4) / 2)  # type: ignore[union-attr]
    assert told.overall.relative.value == pytest.approx((1 + 1 / 2) / 2)  # type: ignore[union-attr]
    assert told.overall.score(ERROR).value == pytest.approx((3 + 1.5) / 2 / 8)  # type: ignore[union-attr]
    assert rows["14 px"].ratio is None and rows["14 px"].relative is None
    assert told.left_out == ()


def test_published_figures_are_constants_that_share_no_luck() -> None:
    mine = subject()
    measured = points(mine, 0, (2, 2), (4, 4), 0)
    errors = {"gaussian_noise": Known(0.5, 0.5), "gaussian_blur": Known(0.25, 0.25)}
    (told,) = conclude(measured, Reference("published", True, Known(0.25, 0.25), errors))
    noise, blur = (row for row in told.rows if row.stress in (NOISE, BLUR))
    assert noise.ratio.value == pytest.approx(0.25 / 0.5)  # type: ignore[union-attr]
    low, high = np.quantile(noise.mean.replicates[ERROR], [0.025, 0.975]) / 0.5
    assert noise.ratio[1:] == pytest.approx((low, high))  # type: ignore[index]
    assert blur.ratio.value == pytest.approx(2)  # type: ignore[union-attr]
    assert blur.relative is None and told.left_out == ("gaussian_blur",)  # not worse than clean
    assert told.overall.relative == noise.relative
    assert told.overall.ratio.value == pytest.approx((0.5 + 2) / 2)  # type: ignore[union-attr]


def test_without_a_reference_and_with_one_that_makes_no_errors_nothing_is_normalised() -> None:
    mine, perfect = subject(), subject("r", told=False, reference=True)
    measured = points(mine, 1, (2, 4), (1, 2), 3)
    assert reference_of(measured) is None
    (told,) = conclude(measured, None)
    assert told.overall.ratio is None and told.left_out == ()
    measured += points(perfect, 0, (0, 0), (0, 0), 0)
    (told,) = conclude(measured, reference_of(measured))
    assert told.overall.ratio is None and told.overall.relative is None
    assert told.left_out == ("gaussian_noise", "gaussian_blur")


def test_a_model_is_exactly_its_own_reference() -> None:
    measured = points(subject(reference=True), 1, (2, 4), (1, 2), 3)
    (told,) = conclude(measured, reference_of(measured))
    assert told.overall.ratio == (1, 1, 1)
    assert told.overall.relative is not None and told.overall.relative.value == 1


def test_differences_are_paired_and_adjusted_over_all_stresses() -> None:
    mine, other = subject(), subject("b")
    measured = points(mine, 0, (3, 5), (0, 0), 6) + points(other, 0, (0, 0), (0, 0), 0)
    a, b = conclude(measured, None)
    noise, blur, low = (next(row for row in a.rows if row.stress == s) for s in (NOISE, BLUR, LOW))
    change = noise.changes[ERROR]
    assert change.difference.value == pytest.approx(4 / 8) and change.word == "worse"
    paired = stats.differences(noise.mean, a.clean.resampled)[ERROR]
    assert change.difference == paired
    assert noise.changes["acc"].difference.value == pytest.approx(-4 / 8)
    assert noise.changes["acc"].word == "worse"
    assert blur.changes[ERROR].word == "noise" and blur.changes[ERROR].difference.value == 0
    p = [row.changes[ERROR].difference.p for row in (noise, blur, low)]
    adjusted = [row.changes[ERROR].p_holm for row in (noise, blur, low)]
    np.testing.assert_allclose(adjusted, stats.holm(p))
    assert a.overall.changes[ERROR].family == 1
    pair = compare(a, b)
    assert set(pair) == {"clean", "gaussian_noise", "gaussian_blur", "14 px", "mean"}
    assert pair["gaussian_noise"][ERROR].difference.value == pytest.approx(4 / 8)
    assert compare(b, a)["gaussian_noise"][ERROR].word == "better"


def test_a_mean_has_the_interval_of_the_mean_on_each_resample() -> None:
    parts = [scored(1), scored(5)]
    mean = averaged(parts)
    assert mean.scores["acc"][0] == pytest.approx(1 - 3 / 8)
    expected = (parts[0].replicates["auc"] + parts[1].replicates["auc"]) / 2
    np.testing.assert_allclose(mean.replicates["auc"], expected)


def test_published_figures_are_for_their_own_images_and_corruptions_alone() -> None:
    def of(task: str, size: int, source: str, names: list[str], asked: str | None = None) -> Any:
        prepared = SimpleNamespace(task=SimpleNamespace(name=task), source=source)
        images = SimpleNamespace(prepared=prepared, size=size, title=task)
        stresses = chosen("breastmnist", names, colour=False)
        config = SimpleNamespace(reference=asked)
        return subject(images=images, corruptions=stresses, config=config)

    figures = published("breastmnist")
    assert published_for(of("breastmnist", 224, "official", ["pixelate"])) == figures
    for other in (
        ("breastmnist", 64, "official", ["pixelate"]),
        ("breastmnist", 224, "synthetic", ["pixelate"]),
        ("breastmnist", 224, "npz", ["pixelate"]),
        ("breastmnist", 224, "official", ["pixelate", "zoom_blur"]),
        ("breastmnist", 224, "official", ["octmnist"]),  # names that are known, other severities
    ):
        assert published_for(of(*other)) is None
        with pytest.raises(ConfigError, match=r"--reference alexnet: .*; give a model, or leave"):
            published_for(of(*other, asked="alexnet"))

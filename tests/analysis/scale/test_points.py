"""``dogmed analyze scale``: which kernel sizes are chosen where, what is compared, and at which sizes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dogmed import stats
from dogmed.analysis.evaluation import Score
from dogmed.analysis.scale.command import (
    Protocol,
    ScaleConfig,
    read_factors,
    read_protocol,
)
from dogmed.analysis.scale.curves import curves
from dogmed.analysis.scale.points import (
    Measured,
    Point,
    Subject,
    _kernels,
    _sides,
    changes,
    choices,
)
from dogmed.analysis.scale.tables import thesis_rows
from dogmed.config import build
from dogmed.errors import ConfigError
from dogmed.references import imagenet_tables

LABELS = np.arange(200)[:, None] % 2


def by_hand(right: dict[tuple[str, int], float], resamples: int = 200) -> list[Measured]:
    """Points at one side whose accuracy is ``right[split, kernel]``."""
    images = SimpleNamespace(splits=("val", "test"), name="by hand", size=28)
    evaluation: Any = SimpleNamespace(images=images)
    subject = Subject("model", evaluation, 9, (9, 7, 5), {}, False, ())
    found = []
    for (split, kernel), share in right.items():
        answers = np.where(np.arange(200) < share * 200, LABELS[:, 0], 1 - LABELS[:, 0])
        probabilities = np.eye(2)[answers]
        resampled = stats.resample("binary", LABELS, [probabilities], resamples=resamples)
        score = Score(float(resampled.scores["acc"][0]), 0.0, 1.0)
        point = Point(split, "resize", 14, 0.5, kernel)
        found.append(Measured(subject, point, {"acc": score}, resampled))
    return found


def test_kernels_are_chosen_on_val_alone() -> None:
    test = {("test", 9): 0.5, ("test", 7): 0.9, ("test", 5): 0.7}
    (choice,) = choices(by_hand({("val", 9): 0.5, ("val", 7): 0.4, ("val", 5): 0.6, **test}))
    assert choice.test.point.kernel == 5 and choice.best_on_test.point.kernel == 7
    assert choice.flattery == pytest.approx(0.2)
    assert choice.change is not None
    assert choice.change.difference.value == pytest.approx(0.2) and choice.change.word == "better"
    (tied,) = choices(by_hand({("val", 9): 0.4, ("val", 7): 0.6, ("val", 5): 0.6, **test}))
    assert tied.test.point.kernel == 7, "equal ones: nearest to its own"
    (own,) = choices(by_hand({("val", 9): 0.6, ("val", 7): 0.6, ("val", 5): 0.6, **test}))
    assert own.test.point.kernel == 9 and own.change is None


def test_differences_are_paired_and_adjusted_together() -> None:
    measured = by_hand({("test", 9): 0.5, ("test", 7): 0.9, ("test", 5): 0.5})
    seven, five = changes(measured)
    assert (seven.word, five.word) == ("better", "noise")
    expected = stats.differences(measured[1].resampled, measured[0].resampled)["acc"]
    assert seven.difference == expected and seven.family == 2
    assert seven.p_holm == pytest.approx(2 * expected.p)
    assert five.difference.value == 0 and five.p_holm == 1


@pytest.mark.parametrize(("resamples", "words"), [(80, "better noise"), (79, "too few resamples")])
def test_what_no_resamples_could_show_is_not_called_noise(resamples: int, words: str) -> None:
    seven, five = changes(
        by_hand({("test", 9): 0.0, ("test", 7): 1.0, ("test", 5): 0.0}, resamples)
    )
    assert " ".join(dict.fromkeys((seven.word, five.word))) == words


def test_a_curve_without_a_score_at_1_has_no_ratio() -> None:
    measured = by_hand({("test", 9): 0.0, ("test", 7): 0.5, ("test", 5): 0.5})
    moved = [
        Measured(m.subject, m.point._replace(at=at), m.scores, m.resampled)
        for m in measured
        for at in (0.5, 1.0)
    ]
    own, seven, _ = curves([measured[0].subject], moved, [], "acc")
    assert own.kept is None and own.average.value == 0
    assert seven.kept is not None and seven.kept[:2] == (1.0, 1.0)


@pytest.mark.parametrize(
    ("words", "factors", "named"),
    [
        (["0.5..2"], [2 ** (k / 4) for k in range(-4, 5)], "rescale_0.5..2"),
        (["0.71..1"], [2**-0.5, 2**-0.25, 1], "rescale_0.71..1"),
        (["0.5,0.71,1,1.41,2"], [0.5, 0.71, 1, 1.41, 2], "rescale_0.5_0.71_1_1.41_2"),
        (["2,", "0.5"], [0.5, 1, 2], "rescale_0.5_1_2"),
        ([2, 0.5], [0.5, 1, 2], "rescale_0.5_1_2"),
    ],
)
def test_factors(words: list[str | float], factors: list[float], named: str) -> None:
    assert read_factors(words) == pytest.approx(factors)
    protocol = read_protocol(build(ScaleConfig, {"rescale": words}))
    assert protocol.factors == pytest.approx(factors) and protocol.request == named


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *(
            (t, "expected LOW..HIGH")
            for t in ("", "half", "0.5..", "0..2", "1e9", "nan", "0.5..2 3")
        ),
        ("1.5..2", "a range around 1"),
        ("1..1", "a range around 1"),
        ("2..0.5", r"the smaller factor first: 0\.5\.\.2"),
    ],
)
def test_wrong_factors(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"--rescale .*{said}"):
        read_factors([text])


def test_defaults_are_the_thesis_in_proportion() -> None:
    protocol = read_protocol(build(ScaleConfig, {}))
    assert protocol.fits == ("resize", "pad")
    thesis = [64, 96, 128, 156, 192, 224, 312, 384, 448]
    assert [side for _, side in _sides(protocol, 224)[0]] == thesis
    assert [side for _, side in _sides(protocol, 64)[0]] == [18, 27, 37, 45, 55, 64, 89, 110, 128]
    assert _kernels(protocol, 9) == (9, 7, 5)
    assert _kernels(protocol, 3) == (3,)
    rescaled = Protocol("rescale", ("pad",), read_factors(["0.5..2"]), (), ())
    assert _kernels(rescaled, 7) == (15, 11, 9, 7, 5, 3)  # 14 is as near to 13
    assert min(_kernels(rescaled, 3)) == 3


def test_the_thesis_is_quoted_as_it_is() -> None:
    rows = thesis_rows()
    assert len(rows) == 12  # of 13; kernel 9 of Tables 4.6 and 4.7 is one
    for title, name, values in rows:
        number = title.split()[2].rstrip(",")
        assert tuple(values) == imagenet_tables()[number].rows[name]
    first = thesis_rows(differences=True)[0]
    assert first[1] == "DoGNeXt K9 -> 7" and first[2][0] == pytest.approx(4.99 - 2.48)


def test_factors_of_the_same_pixels_are_one_point_and_told() -> None:
    protocol = read_protocol(build(ScaleConfig, {"rescale": ["0.5,0.51,1.01,2"]}))
    assert _sides(protocol, 28) == (
        [(0.5, 14), (1.0, 28), (2.0, 56)],
        [
            "×0.51 makes 14 px, as ×0.5 does, and is left out",
            "×1.01 makes 28 px, as ×1 does, and is left out",
        ],
    )
    assert len(_sides(protocol, 224)[0]) == 5


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({}, ""),
        ({"fit": "both"}, ""),
        ({"resolutions": ["40,28", "28"], "fit": "pad"}, "resolutions_28_40-fit_pad"),
        ({"kernel_sizes": [5, "7"], "resamples": 99}, "kernels_7_5-resamples_99"),
        ({"rescale": ["0.5..2"], "fit": "resize"}, "rescale_0.5..2-fit_resize"),
        ({"rescale": ["0.5..2"], "fit": "pad"}, "rescale_0.5..2"),
    ],
)
def test_a_request_has_a_name(asked: dict[str, Any], named: str) -> None:
    assert read_protocol(build(ScaleConfig, asked)).request == named

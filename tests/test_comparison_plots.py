"""The critical-difference diagram: what it shows is what the statistics say."""

from __future__ import annotations

import numpy as np
import pytest

from dogmed import comparison_plots as plots
from dogmed import stats
from dogmed.errors import DataError


def texts(figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


@pytest.mark.parametrize("models", [2, 3, 7, 12])
def test_every_model_has_its_rank_and_every_group_its_bar(models):
    scores = np.random.default_rng(models).random((12, models)) + 0.08 * np.arange(models)
    ranks = stats.average_ranks(scores)
    width = stats.critical_difference(models, 12)
    names = [f"model {k}" for k in range(models)]
    figure = plots.critical_difference_figure(names, ranks, width)
    written = " ".join(texts(figure))
    for name, rank in zip(names, ranks, strict=True):
        assert name in written and f"{rank:.2f}" in written
    assert f"CD = {width:.2f}" in written
    (ax,) = figure.axes
    bars = [line.get_xdata() for line in ax.lines if line.get_linewidth() > 4]
    dots = np.sort([line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"])
    groups = stats.groups(ranks, width)
    for (start, end), group in zip(bars, groups, strict=True):
        assert ((dots >= start) & (dots <= end)).sum() == len(group)


def test_a_tie_is_joined_and_what_lies_far_apart_is_not():
    for ranks, width, bars in (([1.5, 1.5], 1.96, 1), ([1, 2, 3], 0.1, 0)):
        figure = plots.critical_difference_figure(["a", "b", "c"][: len(ranks)], ranks, width)
        assert sum(line.get_linewidth() > 4 for line in figure.axes[0].lines) == bars


def test_what_does_not_fit_is_refused():
    for models, ranks in ((["a", "b"], [1.0]), (["a"], [1.0])):
        with pytest.raises(DataError, match="rank of each"):
            plots.critical_difference_figure(models, ranks, 1.0)

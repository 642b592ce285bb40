"""Pictures of comparisons: what they show is what the statistics say."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dogmed import comparison_plots as plots
from dogmed import stats
from dogmed.errors import DataError
from dogmed.stats import Difference


@pytest.fixture
def drawn(monkeypatch):
    """The figures saved, kept for a look inside."""
    figures, save = [], plots._save

    def keep(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "_save", keep)
    return figures


def texts(figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def opened(path) -> tuple[float, float]:
    with Image.open(path) as image:
        image.verify()
        return image.width / 160, image.height / 160  # inches


def difference(low: float, high: float, p: float) -> Difference:
    return Difference(value=(low + high) / 2, low=low, high=high, p=p, covers="test images")


@pytest.mark.parametrize("models", [2, 3, 7, 12])
def test_every_model_has_its_rank_and_every_group_its_bar(models, drawn, tmp_path):
    scores = np.random.default_rng(models).random((12, models)) + 0.08 * np.arange(models)
    ranks = stats.average_ranks(scores)
    width = stats.critical_difference(models, 12)
    names = [f"model {k}" for k in range(models)]
    plots.critical_difference_diagram(names, ranks, width, tmp_path / "cd.png")
    written = " ".join(texts(drawn[0]))
    for name, rank in zip(names, ranks, strict=True):
        assert name in written and f"{rank:.2f}" in written
    assert f"CD = {width:.2f}" in written
    (ax,) = drawn[0].axes
    bars = [line.get_xdata() for line in ax.lines if line.get_linewidth() > 4]
    dots = np.sort([line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"])
    groups = stats.groups(ranks, width)
    for (start, end), group in zip(bars, groups, strict=True):
        assert ((dots >= start) & (dots <= end)).sum() == len(group)
    assert 5 < opened(tmp_path / "cd.png")[0] < 10


def test_a_diagram_of_ties_and_of_a_wide_difference(tmp_path):
    plots.critical_difference_diagram(["a", "b"], [1.5, 1.5], 1.96, tmp_path / "tie.png")
    plots.critical_difference_diagram(["a", "b", "c"], [1, 2, 3], 0.1, tmp_path / "apart.png")
    assert opened(tmp_path / "tie.png") and opened(tmp_path / "apart.png")


def test_a_forest_fills_what_excludes_zero_and_writes_what_it_draws(drawn, tmp_path):
    rows = [
        difference(0.01, 0.03, 0.004),
        difference(-0.02, 0.01, 0.3),
        difference(-0.05, -0.01, 0.0001),
    ]
    plots.forest(["one", "two", "three"], rows, ("A", "B"), tmp_path / "forest.png", metric="AUC")
    (ax,) = drawn[0].axes
    squares = [line for line in ax.lines if line.get_marker() == "s"]
    filled = [line.get_markerfacecolor() != "white" for line in squares]
    assert filled == [True, False, True]
    assert [line.get_xdata()[0] for line in squares] == pytest.approx([2.0, -0.5, -3.0])
    written = texts(drawn[0])
    for text in (
        "+2.00",
        "[+1.00, +3.00]",
        "p = 0.004",
        "[−2.00, +1.00]",
        "p < 0.001",
        "← B higher",
    ):
        assert text in written, text
    low, high = ax.get_xlim()
    assert low == -high and "AUC" in ax.get_xlabel()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["one", "two", "three"]
    assert 6 < opened(tmp_path / "forest.png")[0] < 10


def test_adjusted_p_values_are_written_instead(drawn, tmp_path):
    plots.forest(["x"], [difference(0, 0, 1)], ("A", "B"), tmp_path / "f.png", p_values=[0.5])
    assert "p = 0.500" in texts(drawn[0])


def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(DataError, match="rank of each"):
        plots.critical_difference_diagram(["a", "b"], [1.0], 1.0, tmp_path / "cd.png")
    with pytest.raises(DataError, match="as many labels"):
        plots.forest(["a", "b"], [difference(0, 1, 1)], ("A", "B"), tmp_path / "f.png")
    with pytest.raises(DataError, match="one at least"):
        plots.forest([], [], ("A", "B"), tmp_path / "f.png")
    assert not list(tmp_path.iterdir())

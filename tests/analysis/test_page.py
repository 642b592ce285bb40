"""Pages of analyses in a browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from dogmed.analysis.page import page
from dogmed.analysis.tables import Table


def test_a_wide_picture_scrolls_in_its_box_and_can_be_read_on_a_phone(
    look_at: Callable[..., dict[int, dict[str, Any]]],
) -> None:
    figure = Figure(figsize=(10, 3), layout="constrained")
    for ax in figure.subplots(1, 4):
        ax.plot([0, 1])
        ax.set_title("$1^$", fontsize=8)
        ax.tick_params(labelsize=7)
    table = Table("scores", [f"column {k}" for k in range(20)], [["a score"] * 20])
    text = page("Scores", ["What must be known."], [table], [figure])
    for width, seen in look_at(text).items():
        assert seen["scroll"] <= width and not seen["outside"], seen
        assert seen["smallest"] > 8 and seen["texts"] > 8

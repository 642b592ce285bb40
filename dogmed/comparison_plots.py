"""Picture of a comparison over tasks: the critical-difference diagram."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dogmed.errors import DataError
from dogmed.stats import groups

ROW = 0.3  # height of a line of text, inches
INK, FAINT = "black", "0.55"


def critical_difference_figure(
    models: Sequence[str],
    ranks: Sequence[float],
    width: float,
    *,
    ink: str = INK,
    faint: str = FAINT,
    accent: str = "C0",
) -> Figure:
    """Draw average ranks on a line, the best at the left; a bar joins what is not told apart.

    After Demšar (2006), figure 1: models whose ranks lie within the critical difference of one
    another are joined, and the difference itself stands above the line.

    Args:
        models: M names.
        ranks: (M,) average ranks, 1 the best.
        width: the critical difference, as of ``stats.critical_difference``.
        ink: colour of the line and the names.
        faint: of what leads to the names.
        accent: of the bars.

    Raises:
        DataError: not one rank a model, or fewer than two models.
    """
    if len(models) != len(ranks) or len(models) < 2:
        raise DataError(
            f"expected a rank of each of 2 or more models: {len(ranks)} of {len(models)}"
        )
    order = np.argsort(ranks, kind="stable")
    half = (len(models) + 1) // 2
    joined = groups(ranks, width)
    bars = 0.22 * len(joined)  # inches that the bars take below the line
    height = 1.15 + bars + ROW * half
    figure = Figure(figsize=(8.2, height))
    ax = figure.add_axes((0, 0, 1, 1))
    lowest, highest = 1, max(len(models), int(np.ceil(max(ranks))))
    left, right = 2.4, 5.8  # of the line, inches; names stand outside it

    def at(rank: float) -> float:
        return left + (right - left) * (rank - lowest) / (highest - lowest)

    line = height - 0.75
    ax.plot([left, right], [line, line], color=ink, lw=1.2)
    for rank in range(lowest, highest + 1):
        ax.plot([at(rank)] * 2, [line, line + 0.09], color=ink, lw=1)
        ax.text(at(rank), line + 0.14, f"{rank}", ha="center", va="bottom", fontsize=9, color=ink)
    length = at(lowest + width) - at(lowest)
    _ruler(ax, left, length, height - 0.25, f"CD = {width:.2f}", accent)
    for number, index in enumerate(order):
        side = number < half
        row = number if side else len(models) - 1 - number
        x, y = at(ranks[index]), line - 0.3 - bars - ROW * row
        edge = left - 0.15 if side else right + 0.15
        ax.plot([x, x, edge], [line, y, y], color=faint, lw=0.8, solid_joinstyle="miter", zorder=1)
        ax.plot(x, line, "o", color=ink, ms=4)
        text = (
            f"{models[index]}  {ranks[index]:.2f}"
            if side
            else f"{ranks[index]:.2f}  {models[index]}"
        )
        ax.text(
            edge + (-0.06 if side else 0.06), y, text,
            ha="right" if side else "left", va="center", fontsize=9, color=ink,
        )  # fmt: skip
    for number, group in enumerate(joined):
        y = line - 0.16 - 0.22 * number
        ends = [at(min(ranks[i] for i in group)) - 0.05, at(max(ranks[i] for i in group)) + 0.05]
        ax.plot(ends, [y, y], color=accent, lw=4.5, solid_capstyle="butt", zorder=3)
    ax.set(xlim=(0, 8.2), ylim=(0, height))
    ax.set_axis_off()
    return figure


def _ruler(ax: Axes, start: float, length: float, y: float, text: str, colour: str) -> None:
    """A measure of ``length`` with its ends marked and its name above it."""
    ax.plot([start, start + length], [y, y], color=colour, lw=1.4)
    for x in (start, start + length):
        ax.plot([x, x], [y - 0.05, y + 0.05], color=colour, lw=1.4)
    ax.text(start + length + 0.1, y, text, va="center", fontsize=9, color=colour)

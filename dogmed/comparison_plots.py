"""Pictures of comparisons: a critical-difference diagram over tasks, a forest of paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dogmed.errors import DataError
from dogmed.plots import _light, _save, _wrap
from dogmed.stats import Difference, groups

ROW = 0.3  # height of a line of text, inches
INK, FAINT = "black", "0.55"


def critical_difference_diagram(
    models: Sequence[str], ranks: Sequence[float], width: float, path: Path
) -> None:
    """Draw average ranks on a line, the best at the left; a bar joins what is not told apart.

    After Demšar (2006), figure 1: models whose ranks lie within the critical difference of one
    another are joined, and the difference itself stands above the line.

    Args:
        models: M names.
        ranks: (M,) average ranks, 1 the best.
        width: the critical difference, as of ``stats.critical_difference``.
        path: of the PNG.

    Raises:
        DataError: not one rank a model, or fewer than two models.
    """
    _save(critical_difference_figure(models, ranks, width), path)


def critical_difference_figure(
    models: Sequence[str],
    ranks: Sequence[float],
    width: float,
    *,
    ink: str = INK,
    faint: str = FAINT,
    accent: str = "C0",
) -> Figure:
    """Draw as ``critical_difference_diagram``, in colours of one's own; returns the figure."""
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


def forest(
    labels: Sequence[str],
    differences: Sequence[Difference],
    models: tuple[str, str],
    path: Path,
    *,
    metric: str = "ACC",
    p_values: Sequence[float] | None = None,
) -> None:
    """Draw paired differences with their intervals, one a line; those that exclude zero are filled.

    Args:
        labels: K names, of tasks for example, from top to bottom.
        differences: K, of scores from 0 to 1; drawn in percentage points.
        models: the first and the second, of which the difference is first minus second.
        path: of the PNG.
        metric: written on the axis.
        p_values: K to be written instead of the differences' own, adjusted ones for example.

    Raises:
        DataError: not as many labels, differences and p-values, or none.
    """
    p_values = [d.p for d in differences] if p_values is None else p_values
    if not len(labels) or not len(labels) == len(differences) == len(p_values):
        raise DataError(
            f"expected as many labels ({len(labels)}) as differences ({len(differences)}) and "
            f"p-values ({len(p_values)}), one at least"
        )
    figure = Figure(figsize=(8.2, 1.3 + ROW * len(labels)), layout="constrained")
    ax = figure.subplots()
    ax.axvline(0, color="0.4", lw=1)
    rows = ax.get_yaxis_transform()  # x in widths of the axes, y a row
    for y, (d, p) in enumerate(zip(differences, p_values, strict=True)):
        value, low, high = 100 * d.value, 100 * d.low, 100 * d.high
        clear = low > 0 or high < 0
        colour = "C0" if clear else FAINT
        ax.plot([low, high], [y, y], color=colour, lw=1.6, solid_capstyle="butt")
        ax.plot(value, y, "s", color=colour, mfc=colour if clear else "white", ms=6)
        for x, side, text in (
            (1.09, "right", f"{value:+.2f}"),
            (1.11, "left", f"[{low:+.2f}, {high:+.2f}]"),
            (1.33, "left", "p < 0.001" if p < 0.001 else f"p = {p:.3f}"),
        ):
            text = text.replace("-", "−")
            ax.text(x, y, text, ha=side, va="center", fontsize=8, transform=rows)
    ax.set_yticks(range(len(labels)), [_wrap(label, 30) for label in labels])
    ax.set(ylim=(len(labels) - 0.4, -0.6))
    reach = 1.05 * max(abs(x) for x in ax.get_xlim())
    ax.set_xlim(-reach, reach)
    ax.set_xlabel(f"difference in {metric}, percentage points")
    for x, place, name in (
        (0.0, "left", f"← {models[1]} higher"),
        (1.0, "right", f"{models[0]} higher →"),
    ):
        ax.text(x, 1.02, name, transform=ax.transAxes, ha=place, va="bottom", fontsize=9)
    _light(ax)
    ax.tick_params(axis="y", length=0)
    _save(figure, path)


def _ruler(ax: Axes, start: float, length: float, y: float, text: str, colour: str) -> None:
    """A measure of ``length`` with its ends marked and its name above it."""
    ax.plot([start, start + length], [y, y], color=colour, lw=1.4)
    for x in (start, start + length):
        ax.plot([x, x], [y - 0.05, y + 0.05], color=colour, lw=1.4)
    ax.text(start + length + 0.1, y, text, va="center", fontsize=9, color=colour)

"""The pictures of ``dogmed stress``: errors against severity, and what the corruptions look like."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dogmed.analysis.evaluation import Score
from dogmed.analysis.stress.errors import Row, Told
from dogmed.analysis.stress.images import StressedImages
from dogmed.analysis.stress.points import ERROR, SPLIT, Subject
from dogmed.analysis.stress.sets import SEVERITIES, Stress

PANEL = (2.5, 2.0)  # inches
COLUMNS = 4
ALONE = 3.3  # inches across, of a panel in a column of its own
TILE = 0.9  # inches
SHOWN = 0  # image of the split


def curves(told: Sequence[Told], title: str, columns: int = COLUMNS) -> Figure:
    """A panel a corruption, and one for the resolutions: balanced error with its interval.

    Args:
        told: a line a model.
        title: of the picture.
        columns: of panels, at most; 1 is for a phone.
    """
    names = [stress.name for stress in told[0].subject.corruptions]
    lowered = any(not row.stress.corrupts for one in told for row in one.rows if row.stress)
    count = len(names) + lowered
    alone = columns == 1
    columns = min(count, columns)
    rows = -(-count // columns)
    size = (ALONE if alone else PANEL[0] * columns, PANEL[1] * rows + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for ax, name in zip(grid, names, strict=False):
        for k, one in enumerate(told):
            (row,) = [r for r in one.rows if r.stress is not None and r.stress.name == name]
            scores = [one.clean.score(ERROR), *(m.score(ERROR) for m in row.points)]
            _line(ax, range(SEVERITIES + 1), scores, k, one.subject.title)
        ax.set_title(name.replace("_", " "), fontsize=8)
        ax.set_xticks(range(SEVERITIES + 1), ["clean", *map(str, range(1, SEVERITIES + 1))])
    if lowered:
        _resolutions(grid[len(names)], told)
    for k, ax in enumerate(grid):
        ax.set_axis_on() if k < count else ax.set_axis_off()
        ax.tick_params(labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="0.92", lw=0.6)
        ax.set_axisbelow(True)
        if k % columns == 0:
            ax.set_ylabel("balanced error, %", fontsize=8)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=1 if alone else min(2, len(labels)),
        frameon=False, fontsize=8,
    )  # fmt: skip
    figure.suptitle("\n".join(textwrap.wrap(title, 15 * round(size[0]))), fontsize=10)
    return figure


def examples(subject: Subject, title: str) -> Figure:
    """One image as it is and at each severity, a row a corruption; lowered resolutions in a row of their own."""
    lowered = [stress for stress in subject.stresses if not stress.corrupts]
    strips = [(s.title, [(s, k) for k in range(1, SEVERITIES + 1)]) for s in subject.corruptions]
    if lowered:
        sides = ", ".join(str(stress.strengths[0]) for stress in lowered)
        strips.append((f"{sides} px", [(stress, 1) for stress in lowered]))
    clean = np.asarray(subject.images.prepared.images(SPLIT)[SHOWN])
    side, columns = len(clean), 1 + max(len(tiles) for _, tiles in strips)
    step = side + max(1, side // 12)
    canvas = np.full((step * len(strips), step * columns, *clean.shape[2:]), 255, dtype=np.uint8)
    for row, (_, tiles) in enumerate(strips):
        for column, pixels in enumerate([clean, *(_stressed(subject, *tile) for tile in tiles)]):
            top, left = row * step, column * step
            canvas[top : top + side, left : left + side] = pixels
    size = (TILE * columns + 1.2, TILE * len(strips) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    ax = figure.subplots()
    ax.imshow(canvas, cmap="gray" if canvas.ndim == 2 else None, vmin=0, vmax=255)
    heads = ["clean", *map(str, range(1, columns))]
    ax.set_xticks([column * step + side / 2 for column in range(columns)], heads)
    ax.set_yticks([row * step + side / 2 for row in range(len(strips))], [n for n, _ in strips])
    ax.tick_params(length=0, labelsize=7, top=True, labeltop=True, bottom=False, labelbottom=False)
    ax.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=9)
    return figure


def _stressed(subject: Subject, stress: Stress, severity: int) -> np.ndarray:
    seen = subject.evaluation.trained.record.data
    images = StressedImages(
        subject.images, seen, stress, severity, seed=subject.config.seed, workers=1
    )
    return images.image(SPLIT, SHOWN)


def _resolutions(ax: Axes, told: Sequence[Told]) -> None:
    shown: set[int] = set()
    for k, one in enumerate(told):
        rows: list[Row] = [r for r in one.rows if r.stress is not None and not r.stress.corrupts]
        sides = [r.stress.strengths[0] for r in rows if r.stress is not None]
        sides.append(one.subject.images.size)
        scores = [*(r.score(ERROR) for r in rows), one.clean.score(ERROR)]
        _line(ax, sides, scores, k, one.subject.title)
        shown |= set(sides)
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted(shown), [str(side) for side in sorted(shown)])
    ax.minorticks_off()
    ax.set_title("resolution, px", fontsize=8)


def _line(ax: Axes, xs: Sequence[float], scores: Sequence[Score | None], k: int, name: str) -> None:
    """A curve with the band of its intervals."""
    there = [(x, s) for x, s in zip(xs, scores, strict=True) if s is not None]
    x = [x for x, _ in there]
    ax.plot(
        x, [100 * s.value for _, s in there], color=f"C{k}", marker="o", ms=3, lw=1.3, label=name
    )
    ax.fill_between(
        x, [100 * s.low for _, s in there], [100 * s.high for _, s in there],
        color=f"C{k}", alpha=0.12, lw=0,
    )  # fmt: skip

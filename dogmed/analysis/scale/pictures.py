"""The pictures of ``dogmed analyze scale``: scores against the scale of the images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from dogmed.analysis.scale.curves import Curve
from dogmed.analysis.scale.points import Measured, Subject
from dogmed.analysis.scale.tables import kernel_name, metric_name, thesis_places, thesis_rows

if TYPE_CHECKING:
    from dogmed.analysis.scale.report import Found

PANEL = (4.6, 3.5)  # inches
DASHES = ("-", "--", ":", "-.", (0, (1, 3)), (0, (5, 5)))
THESIS_TABLES = ("4.6", "4.7")  # of vanilla training


def figure_of(found: Found, title: str) -> Figure:
    """Scores against factors, or against resolutions."""
    figure = _rescale_figure(found) if found.protocol.factors else _resolutions_figure(found)
    figure.suptitle(title, fontsize=10)
    return figure


def _resolutions_figure(found: Found) -> Figure:
    """Rows: fits; columns: scores, and the thesis's curves where the network sees another size."""
    fits, metrics = found.protocol.fits, found.metrics
    thesis = "resize" in fits
    columns = len(metrics) + thesis
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * len(fits) + 0.4), layout="constrained")
    grid = figure.subplots(len(fits), columns, squeeze=False)
    for row, fit in zip(grid, fits, strict=True):
        told = found.of_fit(fit)
        for ax, metric in zip(row, metrics, strict=False):
            for k, subject in enumerate(found.subjects):
                for kernel, dash in zip(subject.kernels, _dashes(subject), strict=True):
                    points = [m for m in told if m.subject is subject and m.point.kernel == kernel]
                    name = f"{subject.title}, {_kernel_words(subject, kernel)}"
                    _line(ax, points, metric, f"C{k}", dash, name)
            _axes(ax, [m.point.at for m in told], metric_name(metric, found.many), fit)
            _pixels(ax, told)
        if thesis and fit == "resize":
            _thesis_panel(row[-1])
        elif thesis:
            row[-1].set_axis_off()
    _legend(figure, grid[0][0])
    return figure


def _rescale_figure(found: Found) -> Figure:
    """A panel a score: own kernels, those chosen on val, and faintly all others of a single model."""
    figure = Figure(
        figsize=(PANEL[0] * len(found.metrics) * 1.15, PANEL[1] * 1.25), layout="constrained"
    )
    (fit,) = found.protocol.fits
    grid = figure.subplots(1, len(found.metrics), squeeze=False)[0]
    for ax, metric in zip(grid, found.metrics, strict=True):
        drawn = [c for c in found.curves if c.metric == metric]
        for k, subject in enumerate(found.subjects):
            _subject_curves(
                ax, [c for c in drawn if c.subject is subject], f"C{k}", len(found.subjects) == 1
            )
        _axes(ax, found.protocol.factors, metric_name(metric, found.many), fit)
    _legend(figure, grid[0])
    return figure


def _subject_curves(ax: Axes, drawn: Sequence[Curve], colour: str, others: bool) -> None:
    plain = [c for c in drawn if not (c.own or c.chosen)]
    choosing = any(c.chosen for c in drawn)
    for curve in drawn:
        name = f"{curve.subject.title}, {curve.name}"
        if curve.own:
            _line(ax, curve.points, curve.metric, colour, "-", name)
        elif curve.chosen:
            _line(ax, curve.points, curve.metric, "C3" if others else colour, "--", name)
            if others:
                for m in curve.points:
                    y = 100 * m.scores[curve.metric].value
                    ax.annotate(
                        str(m.point.kernel), (m.point.at, y), xytext=(0, 7), ha="center",
                        textcoords="offset points", fontsize=7, color="C3",
                    )  # fmt: skip
        elif others or not choosing:
            shade = 0.45 + 0.4 * plain.index(curve) / max(1, len(plain) - 1)
            xs = [m.point.at for m in curve.points]
            ys = [100 * m.scores[curve.metric].value for m in curve.points]
            ax.plot(xs, ys, color=str(shade), lw=0.9, ls=DASHES[plain.index(curve) % 6], label=name)


def _line(
    ax: Axes, points: Sequence[Measured], metric: str, colour: str, dash: object, name: str
) -> None:
    """A curve with the band of its intervals."""
    ordered = sorted(points, key=lambda m: m.point.at)
    xs = [m.point.at for m in ordered]
    scores = [m.scores[metric] for m in ordered]
    ax.plot(
        xs,
        [100 * s.value for s in scores],
        color=colour,
        ls=dash,
        marker="o",
        ms=3,
        lw=1.4,
        label=name,
    )
    ax.fill_between(
        xs,
        [100 * s.low for s in scores],
        [100 * s.high for s in scores],
        color=colour,
        alpha=0.1,
        lw=0,
    )


def _thesis_panel(ax: Axes) -> None:
    """Tables 4.6 and 4.7: other data, so a panel of their own."""
    dashes = itertools.cycle(DASHES)
    for where, name, values in _vanilla():
        colour = "C1" if name.startswith("ConvNeXt") else "C0"
        dash = "-" if colour == "C1" else next(dashes)
        number = where.removeprefix("thesis, ").partition(",")[0]
        ax.plot(
            thesis_places(), values, color=colour, ls=dash, marker="o", ms=3, lw=1.2,
            label=f"{name} ({number})",
        )  # fmt: skip
    _axes(ax, thesis_places(), "accuracy@1", "resize")
    ax.set_title("the thesis, ImageNet-1K at 224 px (other data)", fontsize=9)
    ax.legend(frameon=False, fontsize=7)


def _vanilla() -> list[tuple[str, str, list[float]]]:
    return [row for row in thesis_rows() if any(f"Table {n}," in row[0] for n in THESIS_TABLES)]


def _axes(ax: Axes, factors: Sequence[float], name: str, fit: str) -> None:
    ticks = sorted(set(factors))
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(ticks, [f"×{tick:.2f}".rstrip("0").rstrip(".") for tick in ticks])
    ax.tick_params(axis="x", labelsize=7, rotation=90 if len(ticks) > 6 else 0)
    ax.tick_params(axis="y", labelsize=8)
    ax.axvline(1, color="0.75", lw=0.8, zorder=0)
    ax.set_ylabel(f"{name}, %", fontsize=9)
    ax.set_xlabel("side of the image / side at training", fontsize=9)
    ax.set_title(f"{name}, {fit}", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92", lw=0.6)
    ax.set_axisbelow(True)


def _pixels(ax: Axes, told: Sequence[Measured]) -> None:
    """Pixels below the factors, where all models were trained at one size."""
    by_factor = {m.point.at: m.point.side for m in told}
    if len({m.subject.images.size for m in told}) == 1:
        ticks = sorted(by_factor)
        ax.set_xticks(ticks, [f"{by_factor[tick]} px" for tick in ticks])
        ax.set_xlabel("side of the image (line: at training)", fontsize=9)


def _legend(figure: Figure, ax: Axes) -> None:
    handles, names = ax.get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=min(3, len(names)),
        frameon=False,
        fontsize=8,
    )


def _kernel_words(subject: Subject, kernel: int | None) -> str:
    return "its kernels" if kernel is None else f"kernel {kernel_name(subject, kernel)}"


def _dashes(subject: Subject) -> list[object]:
    """Own kernels drawn through, others dashed."""
    others = itertools.cycle(DASHES[1:])
    return ["-" if kernel == subject.own else next(others) for kernel in subject.kernels]

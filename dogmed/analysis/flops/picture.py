"""Picture of scores against the cost of a forward pass, as the thesis's Figures 4.4 and 4.5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from dogmed.analysis.flops.points import Found, Measured, Unit, unit_of
from dogmed.analysis.flops.ways import WAYS, Configuration
from dogmed.plots import save_figure

NAMES = {
    "stride": "stride",
    "resolution": "resolution",
    "stride+kernel": "stride, kernel in proportion",
}
STYLES = {"stride": ("--", "s"), "resolution": ("-", "o"), "stride+kernel": (":", "^")}
PANEL = (5.6, 4.0)


def draw(found: Sequence[Found], names: dict[str, str], path: Path) -> list[Path]:
    """Draw as ``<path>.png`` and ``<path>.svg``, a panel for each score; returns both.

    Args:
        found: models on the same images.
        names: of the scores, by key.
        path: without suffix.
    """
    figure = Figure(figsize=(PANEL[0] * len(names), PANEL[1] + 0.5), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    told, unit = found[0].told_on, unit_of(found)
    for ax, (metric, name) in zip(axes, names.items(), strict=True):
        for k, one in enumerate(found):
            _front(ax, one, metric, unit)
            _lines(ax, one, metric, unit, None if len(found) == 1 else f"C{k}")
        _axes(ax, f"{name} on {told}, %", unit)
    figure.suptitle(
        f"{found[0].subject.title if len(found) == 1 else f'{len(found)} models'} on "
        f"{found[0].subject.images.title}",
        fontsize=10,
    )
    handles, labels = axes[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        unique.values(),
        unique.keys(),
        loc="outside lower center",
        ncols=min(4, len(unique)) if len(found) == 1 else 2,
        frameon=False,
        fontsize=8,
    )
    return save_figure(figure, path)


def _lines(ax: Axes, found: Found, metric: str, unit: Unit, colour: str | None) -> None:
    """A line for each way, from the full model on, with the 95% intervals as a band."""
    for number, way in enumerate(WAYS):
        points = [found.full, *(m for m in found.measured if m.configuration.way == way)]
        if len(points) == 1:
            continue
        points.sort(key=lambda m: m.cost.macs)
        scores = [m.scores[found.told_on][metric] for m in points]
        x, y = [m.cost.macs / unit.macs for m in points], [100 * s.value for s in scores]
        used, (dash, marker) = colour or f"C{number}", STYLES[way]
        label = NAMES[way] if colour is None else f"{found.subject.title}: {NAMES[way]}"
        low, high = [100 * s.low for s in scores], [100 * s.high for s in scores]
        ax.fill_between(x, low, high, color=used, alpha=0.07, lw=0)
        ax.plot(x, y, color=used, ls=dash, marker=marker, ms=4, lw=1.2, label=label)
        for m, at, height in zip(points, x, y, strict=True):
            if colour is None and m is not found.full:
                _annotate(ax, m.configuration, at, height, used)
    if colour is None:
        value = 100 * found.full.scores[found.told_on][metric].value
        ax.annotate(
            f"full: {found.full.configuration.side} px", (found.full.cost.macs / unit.macs, value),
            (0, 9), textcoords="offset points", ha="right", fontsize=7,
        )  # fmt: skip


def _annotate(ax: Axes, one: Configuration, x: float, y: float, colour: str) -> None:
    texts = {
        "resolution": (f"{one.side} px", (-7, 5), "right"),
        "stride": (f"s{one.stride}", (7, 4), "left"),
        "stride+kernel": (f"s{one.stride} k{one.kernel_size}", (6, -10), "left"),
    }
    text, offset, side = texts[one.way]
    ax.annotate(
        text, (x, y), offset, textcoords="offset points", ha=side, fontsize=6.5, color=colour,
        bbox={"fc": "white", "ec": "none", "alpha": 0.75, "pad": 0.6}, zorder=4,
    )  # fmt: skip


def _front(ax: Axes, found: Found, metric: str, unit: Unit) -> None:
    """Rings round what no other configuration beats on val."""
    points: list[Measured] = [m for m in found.measured if m.front]
    ax.plot(
        [m.cost.macs / unit.macs for m in points],
        [100 * m.scores[found.told_on][metric].value for m in points],
        ls="", marker="o", ms=10, mfc="none", mec="0.45", mew=0.9,
        label=f"Pareto front, by {found.subject.metric} on {found.chosen_on}", zorder=3,
    )  # fmt: skip


def _axes(ax: Axes, name: str, unit: Unit) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.tick_params(labelsize=8)
    ax.set_xlabel(f"{unit.name} of a forward pass of one image (1 MAC = 2 FLOPs)", fontsize=9)
    ax.set_ylabel(name, fontsize=9)
    ax.margins(x=0.12, y=0.12)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92", lw=0.6)
    ax.set_axisbelow(True)

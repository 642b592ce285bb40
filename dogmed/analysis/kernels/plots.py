"""Charts of ``dogmed analyze kernels``: drawn once for files, once with a page's own colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from dogmed.analysis.kernels.patterns import BINS, FREQUENCIES, counts
from dogmed.analysis.kernels.study import Kernels, LayerStudy, Study
from dogmed.models.patterns import FUNCTIONS, NAMES, TITLES

WIDTH = 4.4  # inches: a phone's, so that text can be read there
COLUMNS = 3  # of small charts
REST_EDGES = np.geomspace(1e-4, 1, BINS + 1)
"""Of the histograms of 1 - largest mixing weight."""
FUNCTION_TITLES = ("n", *(TITLES[name] for name in FUNCTIONS[1:]))
_AS = ("on_center", "dx", "dy", "dxx", "dyy", "dxy")  # patterns whose colours the functions have


class Ink(NamedTuple):
    """Colours of a chart."""

    text: str
    faint: str
    grid: str
    patterns: dict[str, str]


FILE = Ink("#1b1f24", "#6b737c", "#e3e6ea", dict(zip(NAMES, (
    "#1f5fbf", "#86b3f0", "#0b7a53", "#74c9a5", "#c2570c", "#f0a868", "#7b2fa0", "#b07fd0", "#d9589c",
    "#8a8f96", "#b9bec5", "#d8dce1"), strict=True)))  # fmt: skip
DARK = FILE.patterns | {
    "on_center": "#4d8fe8", "on_cross": "#2aa877", "dx": "#e07b2f", "dxx": "#a55fce", "none": "#3d444c",
}  # fmt: skip
"""Of the patterns, on a dark page."""
PAGE = Ink("#01ff01", "#01ff02", "#01ff03", {n: f"#01ff{k + 16:02x}" for k, n in enumerate(NAMES)})
VARIABLES = {PAGE.text: "var(--ink)", PAGE.faint: "var(--faint)", PAGE.grid: "var(--grid)"} | {
    colour: f"var(--p-{name.replace('_', '-')})" for name, colour in PAGE.patterns.items()
}


class Chart(NamedTuple):
    """A chart by the name of its file; ``draw`` makes it with given colours."""

    name: str
    title: str
    note: str
    draw: Callable[[Ink], Figure]


def charts(study: Study) -> list[Chart]:
    """List the charts that there are of a network."""
    found = [
        Chart("patterns", "Share of each pattern", "Kernels of each layer by pattern"
              + (", before above after" if _has_before(study) else "") + ".",
              lambda ink: shares(study, ink)),
        Chart("radius", "Radius of a kernel", "Median and quartiles over a layer's kernels, in px "
              "of the image" + (", hollow: before" if _has_before(study) else "") + ".",
              lambda ink: radii(study, ink)),
        Chart("response", "Frequency response", "Mean magnitude over all directions of kernels of unit energy, "
              "all layers" + (", dashed: before" if _has_before(study) else "") + ".",
              lambda ink: responses(study, ink)),
    ]  # fmt: skip
    if study.dog:
        found += [
            Chart("sigma", "Widths |σ|", "Narrow (dark) and wide (light) Gaussian of each kernel, by layer"
                  + ("; lines: before" if _has_before(study) else "") + ".",
                  lambda ink: widths(study, ink)),
            Chart("mixing", "Mixing weights", "Weight left to the functions other than the largest, by which "
                  "that is" + ("; line: before" if _has_before(study) else "") + ".",
                  lambda ink: mixing(study, ink)),
        ]  # fmt: skip
    if study.fitted:
        found.append(
            Chart("explained", "Energy explained by DoG kernels", "Median and quartiles over a layer's kernels; "
                  "the band is that of random kernels" + (", hollow: before" if _has_before(study) else "") + ".",
                  lambda ink: explained(study, ink))
        )  # fmt: skip
    return found


def short_names(names: Sequence[str]) -> list[str]:
    """Leave out of dotted names the parts that all share."""
    parts = [name.split(".") for name in names]
    if len({len(part) for part in parts}) != 1 or len(parts) < 2:
        return list(names)
    varied = [k for k, values in enumerate(zip(*parts, strict=True)) if len(set(values)) > 1]
    return [".".join(part[k] for k in varied) for part in parts]


def shares(study: Study, ink: Ink) -> Figure:
    """A bar a layer, in parts by pattern."""
    both = _has_before(study)
    figure, ax = _axes(len(study.layers) * (0.27 if both else 0.2) + 1.1, ink)
    present: dict[str, None] = {}
    for row, layer in enumerate(study.layers):
        times = [(layer.before, -0.21), (layer.after, 0.21)] if both else [(layer.after, 0.0)]
        for kernels, offset in times:
            if kernels is None:
                continue
            left = 0.0
            for name, count in counts(kernels.patterns).items():
                share = 100 * count / len(kernels)
                ax.barh(row + offset, share, 0.36 if both else 0.7, left, color=ink.patterns[name])
                left += share
                present[name] = None
    _rows(ax, study)
    ax.set(xlim=(0, 100), xlabel="% of the layer's kernels")
    names = [name for name in NAMES if name in present]
    handles = [Patch(color=ink.patterns[name]) for name in names]
    _legend(figure, handles, [TITLES[name] for name in names], ink, 5)
    return figure


def radii(study: Study, ink: Ink) -> Figure:
    """Median and quartiles of each layer's radii."""
    figure, ax = _axes(len(study.layers) * 0.2 + 0.8, ink)
    _spans(ax, study, lambda k: k.radius, ink.patterns["on_center"])
    ax.set_xscale("log", base=2)
    ax.set_xlabel("radius of a kernel, px of the image", color=ink.text)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return figure


def explained(study: Study, ink: Ink) -> Figure:
    """Median and quartiles of the energy that mixtures and single functions explain."""
    figure, ax = _axes(len(study.fitted) * 0.3 + 1.1, ink)
    colours = ink.patterns["on_center"], ink.patterns["dx"]
    for number, colour in enumerate(colours):
        pooled = np.concatenate([pair[number].explained.numpy() for pair in study.random.values()])
        ax.axvspan(*np.quantile(pooled, [0.25, 0.75]), color=colour, alpha=0.18, lw=0)
    _spans(
        ax, study, lambda k: None if k.fit is None else k.fit.explained.numpy(), colours[0], -0.16
    )
    _spans(
        ax,
        study,
        lambda k: None if k.single is None else k.single.explained.numpy(),
        colours[1],
        0.16,
    )
    ax.set(xlim=(0, 1), xlabel="share of a kernel's energy")
    handles = [ax.plot([], [], "o-", color=colour, ms=4)[0] for colour in colours]
    _legend(figure, handles, ["mixture of DoG functions", "single function"], ink, 2)
    return figure


def responses(study: Study, ink: Ink) -> Figure:
    """The mean response of each pattern's kernels."""
    figure, ax = _axes(3.3, ink)
    times = [(False, "-")] + ([(True, "--")] if _has_before(study) else [])
    present: dict[str, Any] = {}
    for before, dash in times:
        names = study.pooled(lambda k: k.patterns, before=before)
        curves = study.pooled(lambda k: k.response, before=before)
        for name in counts(names):
            if name != "none":
                (line,) = ax.plot(FREQUENCIES, np.nanmean(curves[names == name], 0), ls=dash,
                                  color=ink.patterns[name], lw=1.5 if dash == "-" else 1)  # fmt: skip
                present.setdefault(name, line)
    ax.set(xlim=(0, 0.5), xlabel="cycles per pixel of the layer's input", ylabel="magnitude")
    ax.set_ylim(bottom=0)
    ax.grid(axis="y", color=ink.grid, lw=0.6)
    names = [name for name in NAMES if name in present]
    _legend(figure, [present[n] for n in names], [TITLES[n] for n in names], ink, 5)
    return figure


def widths(study: Study, ink: Ink) -> Figure:
    """Histograms of both widths, a small chart a layer."""
    top = max(float(k.widths.max()) for k in _all(study) if k.widths is not None)
    edges = np.linspace(0, top * 1.001, BINS + 1)
    colours = ink.patterns["on_center"], ink.patterns["off_center"]

    def draw(ax: Axes, layer: LayerStudy) -> None:
        for column, colour in enumerate(colours):
            if layer.after.widths is not None:
                ax.hist(layer.after.widths[:, column], list(edges), color=colour, alpha=0.75)
            if layer.before is not None and layer.before.widths is not None:
                ax.hist(
                    layer.before.widths[:, column],
                    list(edges),
                    histtype="step",
                    color=ink.faint,
                    lw=0.8,
                )

    return _small(study, ink, draw, "|σ|")


def mixing(study: Study, ink: Ink) -> Figure:
    """Histograms of the weight that the largest leaves to the others, a small chart a layer."""
    colours = [ink.patterns[name] for name in _AS]

    def draw(ax: Axes, layer: LayerStudy) -> None:
        rest, which = left_over(layer.after)
        ax.hist([rest[which == k] for k in range(6)], list(REST_EDGES), stacked=True, color=colours)
        if layer.before is not None:
            ax.hist(
                left_over(layer.before)[0],
                list(REST_EDGES),
                histtype="step",
                color=ink.text,
                lw=0.8,
            )
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator([1e-4, 1e-2, 1]))
        ax.xaxis.set_major_formatter(FixedFormatter(["≤1e-4", "0.01", "1"]))
        ax.xaxis.set_minor_locator(NullLocator())

    figure = _small(study, ink, draw, "1 − largest weight")
    handles = [Patch(color=colour) for colour in colours]
    _legend(figure, handles, FUNCTION_TITLES, ink, 6)
    return figure


def left_over(kernels: Kernels) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """1 - largest mixing weight of each kernel, at least the histogram's first edge, and which it is."""
    assert kernels.weights is not None and kernels.weights.shape[1] == len(FUNCTIONS)
    largest = kernels.weights.max(1)
    return np.clip(1 - largest, REST_EDGES[0], 1), kernels.weights.argmax(1)


def _all(study: Study) -> list[Kernels]:
    return [k for layer in study.layers for k in (layer.after, layer.before) if k is not None]


def _has_before(study: Study) -> bool:
    return study.origin.model is not None


def _axes(height: float, ink: Ink) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    ax = figure.subplots()
    _plain(ax, ink)
    return figure, ax


def _plain(ax: Axes, ink: Ink) -> None:
    ax.tick_params(colors=ink.faint, labelcolor=ink.text, labelsize=8, length=0)
    ax.xaxis.label.set(color=ink.text, size=8.5)
    ax.yaxis.label.set(color=ink.text, size=8.5)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(ink.faint)
    ax.grid(axis="x", color=ink.grid, lw=0.6)
    ax.set_axisbelow(True)


def _rows(ax: Axes, study: Study) -> None:
    """A line a layer, the first on top."""
    names = short_names([layer.name for layer in study.layers])
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)


def _spans(
    ax: Axes, study: Study, of: Callable[[Kernels], Any], colour: str, offset: float = 0.0
) -> None:
    for row, layer in enumerate(study.layers):
        for kernels, shift in ((layer.before, -0.08), (layer.after, 0.08)):
            values = None if kernels is None else of(kernels)
            if values is None or not np.isfinite(values).any():
                continue
            low, middle, high = np.nanquantile(values, [0.25, 0.5, 0.75])
            y = row + offset + (shift if layer.before is not None else 0)
            hollow: dict[str, Any] = {"mfc": "none", "mew": 0.9} if kernels is layer.before else {}
            ax.plot([low, high], [y, y], color=colour, lw=0.9 if hollow else 1.6)
            ax.plot(middle, y, "o", color=colour, ms=4, **hollow)
    _rows(ax, study)


def _small(study: Study, ink: Ink, draw: Callable[[Axes, LayerStudy], None], label: str) -> Figure:
    """A small chart for each DoGConv, on common axes."""
    rows = -(-len(study.dog) // COLUMNS)
    figure = Figure(figsize=(WIDTH, 0.95 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, sharex=True, squeeze=False).ravel()
    names = short_names([layer.name for layer in study.dog])
    for ax, layer, name in zip(grid, study.dog, names, strict=False):
        _plain(ax, ink)
        draw(ax, layer)
        ax.set_title(name, fontsize=8, color=ink.text, loc="left", pad=2)
        ax.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        ax.tick_params(labelsize=7)
    for ax in grid[len(study.dog) :]:
        ax.set_axis_off()
    figure.supxlabel(label, fontsize=8.5, color=ink.text)
    return figure


def _legend(figure: Figure, handles: Any, names: Sequence[str], ink: Ink, columns: int) -> None:
    figure.legend(
        handles, names, loc="outside upper center", ncols=columns, frameon=False, fontsize=7.5,
        labelcolor=ink.text, handlelength=1.1, columnspacing=1.0, handletextpad=0.4,
    )  # fmt: skip

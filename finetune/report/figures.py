"""The report's pictures as SVG elements: a model has a colour and a width, its initial weights a dash,
its options and share of train a marker, in all of them; no two setups look alike.

Colours are names that the page's stylesheet gives a value, so that a picture suits light and dark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import MaxNLocator

from dogmed.comparison_plots import critical_difference_figure
from dogmed.finetune.report.analysis import Analysis
from dogmed.finetune.report.details import hours, on_gpu
from dogmed.finetune.report.grouping import Group, Setup, TestSet
from dogmed.finetune.report.over_tasks import Ranks
from dogmed.finetune.report.tables import NAMES
from dogmed.finetune.report.task_tables import field_name
from dogmed.metrics import Ints
from dogmed.plots import reliability, risk_coverage, to_svg

INK, FAINT, GRID = "#01ff01", "#01ff02", "#01ff03"
PALETTE = [f"#01ff1{k}" for k in range(8)]
COLOURS = {INK: "var(--ink)", FAINT: "var(--faint)", GRID: "var(--grid)"} | {
    colour: f"var(--c{k})" for k, colour in enumerate(PALETTE)
}
WIDTH, WIDER = 1.6, 1.4  # of a line in points; what is added where the colours begin again
MARKERS: list[Any] = ["o", "s", "^", "D", "v", "P", "X"]  # then stars, of ever more points
SIZE = (4.3, 2.75)  # inches: a phone's width, so that its text can be read there


@dataclass(frozen=True)
class Picture:
    """An SVG element; ``alt`` says in words what is drawn."""

    svg: str
    title: str
    alt: str


class Style:
    """Colour, width, dash and marker of each setup.

    Args:
        setups: of the whole report, so that a setup looks the same everywhere.
    """

    def __init__(self, setups: Sequence[Setup]):
        self.setups = list(setups)
        self._models = list(dict.fromkeys(s.model for s in setups))
        self._inits = list(dict.fromkeys((s.theirs, s.init) for s in setups))
        self._rest = list(dict.fromkeys((s.options, s.fraction) for s in setups))

    def colour(self, setup: Setup) -> str:
        return PALETTE[self._models.index(setup.model) % len(PALETTE)]

    def marker(self, setup: Setup) -> Any:
        """Circle for the first options and share of train, another for each of the others."""
        number = self._rest.index((setup.options, setup.fraction))
        return MARKERS[number] if number < len(MARKERS) else (number, 1, 0)

    def line(self, setup: Setup) -> dict[str, Any]:
        """A line without markers, for ``Axes.plot``."""
        dash = self._dash(setup)
        return {
            "color": self.colour(setup),
            "ls": (0, dash) if dash else "-",
            "lw": self._width(setup),
        }

    def keys(self, setups: Sequence[Setup]) -> list[dict[str, str]]:
        """What the page draws as the legend: name, CSS colour, width, dash array, path of the marker."""
        return [
            {
                "name": setup.name,
                "colour": COLOURS[self.colour(setup)],
                "width": f"{1.5 * self._width(setup):.1f}",
                "dash": " ".join(f"{1.5 * part:g}" for part in self._dash(setup)),
                "marker": _path(self.marker(setup)),
            }
            for setup in setups
        ]

    def _width(self, setup: Setup) -> float:
        return WIDTH + WIDER * (self._models.index(setup.model) // len(PALETTE))

    def _dash(self, setup: Setup) -> tuple[float, ...]:
        """None, short strokes, dots; then a long stroke and ever more dots."""
        number = self._inits.index((setup.theirs, setup.init))
        few: list[tuple[float, ...]] = [(), (4, 2), (1.2, 1.5)]
        return few[number] if number < len(few) else (6, 2) + (1.2, 2) * (number - len(few) + 1)


def _path(marker: Any) -> str:
    """The outline of a marker in the middle of the legend's 30 by 10 pixels."""
    style = MarkerStyle(marker)
    (outline,) = style.get_path().transformed(style.get_transform()).to_polygons()
    scale = 3.6 / np.abs(outline).max()
    return "M" + "L".join(f"{15 + scale * x:.1f} {5 - scale * y:.1f}" for x, y in outline) + "Z"


def curves(where: TestSet, style: Style, name: str) -> list[Picture]:
    """Validation scores over the epochs: a line a seed, thin, and their mean."""
    found = []
    for metric in ("acc", "auc"):
        figure, ax = _axes("epoch", f"val {NAMES[metric]}")
        drawn = False
        for group in where.groups:
            lines = [[_number(row.get(f"val_{metric}")) for row in run.rows] for run in group.runs]
            lines = [line for line in lines if line]
            if not lines:
                continue
            drawn = True
            line = style.line(group.setup)
            for values in lines if len(lines) > 1 else []:
                ax.plot(range(1, len(values) + 1), values, **{**line, "lw": 0.5}, alpha=0.45)
            shortest = min(map(len, lines))
            mean = np.mean([values[:shortest] for values in lines], axis=0)
            ax.plot(range(1, shortest + 1), mean, **line, marker=style.marker(group.setup), ms=3.5,
                    markevery=max(1, shortest // 6))  # fmt: skip
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if drawn:
            found.append(_done(figure, f"{name}-val-{metric}", f"Validation {NAMES[metric]}",
                               f"{NAMES[metric]} on val over the epochs, a line for each of "
                               f"{len(where.groups)} setups, the mean of its seeds"))  # fmt: skip
    return found


def calibration(where: TestSet, labels: Ints, style: Style, name: str) -> list[Picture]:
    """Reliability diagram and risk-coverage curve, the seeds of a setup pooled."""
    figure, ax = _axes("confidence", "share correct")
    risk, bx = _axes("share answered, most confident first", "error")
    ax.plot([0, 1], [0, 1], color=FAINT, lw=0.8, ls=":")
    drawn = []
    for group in where.groups:
        runs = [run for run in group.runs if run.probabilities is not None]
        if not runs:
            continue
        line = style.line(group.setup)
        y = np.concatenate([labels] * len(runs))
        p = np.concatenate([run.probabilities for run in runs if run.probabilities is not None])
        confidence, right, count = reliability(where.kind, y, p)
        ax.plot(confidence, right, **line)
        sizes = 4 + 26 * count / count.max()
        marker = style.marker(group.setup)
        ax.scatter(confidence, right, s=sizes, color=line["color"], lw=0, marker=marker)
        coverage, error = risk_coverage(where.kind, y, p)
        few = np.unique(np.linspace(0, len(coverage) - 1, 200).astype(int))
        few = few[coverage[few] >= min(0.05, 20 / len(labels))] if len(labels) > 20 else few
        bx.plot(coverage[few], error[few], **line, marker=marker, ms=3.5, markevery=0.2)
        drawn.append(group)
    bx.set_xlim(0, 1.01)
    bx.set_ylim(bottom=0)
    if not drawn:
        return []
    return [
        _done(figure, f"{name}-reliability", "Reliability",
              "share of correct answers against their confidence in 15 bins; on the dotted diagonal they agree"),
        _done(risk, f"{name}-risk", "Risk and coverage",
              "error among the answers of highest confidence against their share of all answers"),
    ]  # fmt: skip


def costs(where: TestSet, found: Analysis, style: Style, name: str) -> list[Picture]:
    """Accuracy against multiply-accumulates, and against device-hours of a run."""
    ours = [group for group in where.groups if "macs" in group.runs[0].result]
    if not ours:
        return []
    unit = "GPU-hours" if all(on_gpu(run) for g in ours for run in g.runs) else "device-hours"
    by: list[tuple[str, str, Callable[[Group], float]]] = [
        ("macs", "GMAC an image", lambda group: group.runs[0].result["macs"] / 1e9),
        (
            "hours",
            f"{unit} a run",
            lambda group: float(np.mean([hours(run) for run in group.runs])),
        ),
    ]
    pictures = []
    for key, label, of in by:
        figure, ax = _axes(label, "test ACC, %")
        for group in ours:
            e = found.of(where, group.setup)["acc"]
            low, high = (e.low, e.high) if not np.isnan(e.low) else (e.value, e.value)
            x, y = of(group), 100 * e.value
            colour = style.colour(group.setup)
            ax.plot([x, x], [100 * low, 100 * high], **style.line(group.setup))
            ax.plot(
                x,
                y,
                ls="",
                marker=style.marker(group.setup),
                color=colour,
                ms=6,
                mew=1.4,
                mfc=colour if group.setup.pretrained else "none",
            )
        ax.margins(x=0.25)
        pictures.append(_done(figure, f"{name}-{key}", f"ACC against {label}",
                              f"test accuracy with 95% interval against {label}, a point a setup"))  # fmt: skip
    return pictures


def fractions(where: TestSet, found: Analysis, style: Style, name: str) -> list[Picture]:
    """Scores against the share of the training split, where there are several."""
    if len({group.setup.fraction for group in where.groups if not group.setup.theirs}) < 2:
        return []
    lines: dict[tuple[str, str, str], list[Group]] = {}
    for group in where.groups:
        if not group.setup.theirs:
            lines.setdefault((group.setup.model, group.setup.init, group.setup.options), []).append(
                group
            )
    pictures = []
    for metric in ("acc", "auc"):
        figure, ax = _axes("share of the training images", f"test {NAMES[metric]}, %")
        ax.set_xscale("log")
        for groups in lines.values():
            known = [g for g in groups if metric in found.of(where, g.setup)]
            known.sort(key=lambda group: group.setup.fraction)
            if not known:
                continue
            of = [found.of(where, g.setup)[metric] for g in known]
            x, line = [g.setup.fraction for g in known], style.line(known[0].setup)
            ax.fill_between(x, [100 * e.low for e in of], [100 * e.high for e in of],
                            color=line["color"], alpha=0.13, lw=0)  # fmt: skip
            ax.plot(x, [100 * e.value for e in of], **line)
            for g, e in zip(known, of, strict=True):
                marker = style.marker(g.setup)
                ax.plot(g.setup.fraction, 100 * e.value, color=line["color"], marker=marker, ms=4.5)
        every = sorted({group.setup.fraction for group in where.groups})
        ax.set_xticks(every, [f"{100 * share:g}%" for share in every])
        ax.minorticks_off()
        pictures.append(_done(figure, f"{name}-fractions-{metric}", f"{NAMES[metric]} and training images",
                              f"test {NAMES[metric]} with 95% band against share of train"))  # fmt: skip
    return pictures


def ranks(of: Ranks, name: str) -> Picture | None:
    """The critical-difference diagram, or None where Friedman's test does not say that any differ."""
    if not of.width:
        return None
    figure = critical_difference_figure(
        [_short(setup) for setup in of.setups],
        of.ranks,
        of.width,
        ink=INK,
        faint=FAINT,
        accent=PALETTE[0],
    )
    told = ", ".join(f"{s.name} {r:.2f}" for s, r in zip(of.setups, of.ranks, strict=True))
    return _done(figure, name, f"Average ranks by {NAMES[of.metric]}: {field_name(of)}",
                 f"critical-difference diagram over {len(of.tasks)} tasks: {told}; CD {of.width:.2f}")  # fmt: skip


def _short(setup: Setup) -> str:
    """One line where it fits beside the diagram, else two."""
    if len(setup.name) <= 32:
        return setup.name
    return "\n".join([setup.model, setup.name.removeprefix(f"{setup.model}, ")])


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    ax = figure.subplots()
    ax.set_xlabel(x, fontsize=9, color=INK)
    ax.set_ylabel(y, fontsize=9, color=INK)
    ax.tick_params(colors=FAINT, labelcolor=INK, labelsize=8.5, length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(FAINT)
    ax.grid(color=GRID, lw=0.6)
    ax.set_axisbelow(True)
    return figure, ax


def _done(figure: Figure, name: str, title: str, alt: str) -> Picture:
    return Picture(to_svg(figure, name, COLOURS), title, alt)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)

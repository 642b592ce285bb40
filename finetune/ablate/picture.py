"""Picture of an ablation: how much each variant differs from DoGNeXt, with its interval."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dogmed.finetune.ablate.comparison import Study
from dogmed.finetune.ablate.variants import BASELINE
from dogmed.finetune.report.tables import NAMES
from dogmed.finetune.report.verdicts import METRICS

LOOKS = {"better": ("C2", "^"), "worse": ("C3", "v"), "noise": ("0.35", "o")}
ROW = 0.32  # inches a variant


def draw(study: Study) -> Figure:
    """Draw a forest of differences, one panel a metric.

    The thesis's differences in accuracy@1 on ImageNet-1K stand in the first panel as hollow diamonds.
    """
    rows = [row for row in study.rows if row.variant.name != BASELINE]
    figure = Figure(figsize=(9.5, 1.5 + ROW * max(1, len(rows))), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, len(METRICS), sharey=True))
    base = next(r.variant.thesis for r in study.rows if r.variant.name == BASELINE)
    for ax, metric in zip(panels, METRICS, strict=True):
        ax.axvline(0, color="0.7", lw=1, zorder=0)
        for y, row in enumerate(rows):
            if against := row.against.get(metric):
                d, (colour, marker) = against.difference, LOOKS[against.verdict]
                ax.plot([100 * d.low, 100 * d.high], [y, y], color=colour, lw=1.6)
                ax.plot(100 * d.value, y, marker, color=colour, ms=6)
            if metric == "acc" and base and row.variant.thesis:
                ax.plot(row.variant.thesis.acc1 - base.acc1, y, "D", mfc="none", mec="C0", ms=5)
        ax.set_xlabel(f"{NAMES[metric]} minus DoGNeXt's, points")
        ax.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(rows)), [row.variant.title for row in rows])
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    keys = [Line2D([], [], color=c, marker=m, ms=6, label=word) for word, (c, m) in LOOKS.items()]
    if any(row.variant.thesis for row in rows):
        keys.append(Line2D([], [], ls="", marker="D", mfc="none", mec="C0", ms=5,
                           label="thesis, ImageNet-1K accuracy@1"))  # fmt: skip
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False)
    seeds = {len(row.runs) for row in study.rows}
    figure.suptitle(
        f"{study.shared.model} and its variants on {study.title}, {study.shared.size} px, "
        f"{'–'.join(map(str, sorted({min(seeds), max(seeds)})))} seed{'s' * (seeds != {1})}",
        fontsize=11,
    )
    return figure

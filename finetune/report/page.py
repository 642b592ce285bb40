"""The report as one HTML page that asks for nothing from outside: style, pictures and tables are in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from dogmed.finetune.report import details, figures
from dogmed.finetune.report.assembly import Report
from dogmed.finetune.report.cells import MARKS, Cell, Table
from dogmed.finetune.report.grouping import TestSet, setups
from dogmed.finetune.report.verdicts import WORDS
from dogmed.htmlpage import document

FOREST = (150, 18)  # of a line of the forest, CSS pixels


@dataclass(frozen=True)
class Room:
    """All that is drawn of one test set."""

    where: TestSet
    legend: list[dict[str, str]]
    pictures: list[figures.Picture]
    metrics: Table
    confusions: list[Table]


def page(report: Report) -> str:
    """Write the report as HTML."""
    files = resources.files(__package__)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"forest": forest, "marks": MARKS, "tint": tint, "words": WORDS}
    template = environment.from_string(files.joinpath("page.html").read_text(encoding="utf-8"))
    style = figures.Style(setups(report.sets))
    cost = [
        (one, pictures)
        for number, one in enumerate(report.sets)
        if (pictures := figures.costs(one, report.analysis, style, f"cost{number}"))
    ]
    text = template.render(
        report=report,
        rooms=[_room(report, one, style, f"set{number}") for number, one in enumerate(report.sets)],
        ranks=[
            picture
            for number, of in enumerate(report.analysis.ranks)
            if (picture := figures.ranks(of, f"ranks{number}"))
        ],
        cost=cost,
        keys=style.keys(style.setups),
    )
    css = files.joinpath("page.css").read_text(encoding="utf-8")
    return document("dogmed report", css, re.sub(r"\n\s*\n+", "\n", text).strip())


def _room(report: Report, where: TestSet, style: figures.Style, name: str) -> Room:
    labels = report.analysis.labels.get(where.name)
    pictures = figures.curves(where, style, name)
    if labels is not None:
        pictures += figures.calibration(where, labels, style, name)
    pictures += figures.fractions(where, report.analysis, style, name)
    confusions = [details.confusion(where, group, labels) for group in where.groups]
    return Room(
        where=where,
        legend=style.keys([group.setup for group in where.groups]),
        pictures=pictures,
        metrics=details.metrics_table(where, report.analysis),
        confusions=[table for table in confusions if table is not None],
    )


def tint(cell: Cell) -> Markup:
    """The strength of a cell's colour as a style attribute; nothing for a plain cell."""
    return Markup(f' style="--s:{abs(cell.shade):.2f}"') if cell.shade else Markup("")


def forest(interval: tuple[float, float, float], reach: float, verdict: str) -> Markup:
    """One line of a forest: zero in the middle, the interval as a line, the difference as a square."""
    width, height = FOREST
    middle, y = width / 2, height / 2

    def at(x: float) -> str:
        return f"{middle + x / reach * (middle - 5):.1f}"

    value, low, high = map(at, interval)
    line: Any = (
        f'<svg class="forest {verdict}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'aria-hidden="true"><line class="zero" x1="{middle}" x2="{middle}" y1="0" y2="{height}"/>'
        f'<line class="reach" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>'
        f'<rect x="{float(value) - 3.5:.1f}" y="{y - 3.5}" width="7" height="7"/></svg>'
    )
    return Markup(line)

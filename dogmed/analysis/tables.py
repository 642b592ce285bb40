"""Tables of scores with their intervals: on the terminal and in Markdown; ``page`` makes a page of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dogmed import stats
from dogmed.analysis.changes import Change
from dogmed.analysis.evaluation import Score
from dogmed.console import Console
from dogmed.console import table as terminal_table
from dogmed.markdown import markdown_table

FEW = "too few resamples"
"""Of ``stats.verdict``."""


class Cell(str):
    """What a cell says, and what a page has room for besides: the interval."""

    detail = ""

    @classmethod
    def of(cls, text: str, detail: str) -> Cell:
        cell = cls(text)
        cell.detail = detail
        return cell


@dataclass
class Table:
    title: str
    head: list[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""
    printed: bool = True
    """Whether the terminal shows it too."""
    note_printed: bool = False
    """Whether it shows the note with it."""


def few_resamples(table: Table) -> str:
    """A sentence for the note of a table that has such a cell, "" for others."""
    if any(cell.endswith(FEW) for row in table.rows for cell in row):
        return f" {FEW.capitalize()}: no p could be below {stats.ALPHA}; --resamples takes more."
    return ""


def markdown(title: str, lead: Sequence[str], tables: Sequence[Table]) -> str:
    """All tables as one Markdown text."""
    parts = [f"# {title}", *lead]
    for table in tables:
        parts += [f"## {table.title}", markdown_table(table.head, table.rows)]
        parts += [table.note] if table.note else []
    return "\n\n".join(parts) + "\n"


def tell(output: Console, title: str, tables: Sequence[Table], lead: Sequence[str]) -> None:
    """Show the tables that are for the terminal, and below them what must be known."""
    output.line(f"\n{title}")
    for table in tables:
        if table.printed:
            output.line(f"\n{table.title}")
            terminal_table([tuple(row) for row in [table.head, *table.rows]])
            if table.note_printed:
                output.line(table.note)
    for line in lead:
        output.line(f"\n{line}" if line is lead[0] else line)


def interval(score: Score) -> str:
    """Percent with its interval."""
    return f"{100 * score.value:.2f} [{100 * score.low:.2f}, {100 * score.high:.2f}]"


def percent(score: Score | None) -> str:
    """Percent; its interval where there is room."""
    if score is None:
        return "–"
    return Cell.of(f"{100 * score.value:.2f}", f"[{100 * score.low:.2f}, {100 * score.high:.2f}]")


def changed(change: Change | None) -> str:
    """Points with a word; interval and p-value where there is room."""
    if change is None:
        return "–"
    d = change.difference
    detail = f"[{100 * d.low:+.2f}, {100 * d.high:+.2f}], p {change.p_holm:.2g}"
    return Cell.of(f"{100 * d.value:+.2f} {change.word}", detail)

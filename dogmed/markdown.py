"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False
) -> str:
    """Write a table; a bar within a cell is escaped, for it would end the cell.

    Args:
        head: names of the columns.
        rows: as many cells as there are columns.
        numbers: set all columns but the first to the right.
    """
    rule = ["---", *["--:" if numbers else "---"] * (len(head) - 1)]
    return "\n".join([_line(head), _line(rule), *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

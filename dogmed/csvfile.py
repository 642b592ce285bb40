"""Tables as CSV files that a spreadsheet takes for text and numbers, never for formulas."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how OWASP's "CSV Injection" says that one begins


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Write rows as CSV with a head.

    A text that a spreadsheet would run as a formula gets a leading apostrophe; numbers stay as they are.

    Args:
        columns: names; a row may lack some.
        rows: cells by column.

    Raises:
        ValueError: a row has a cell of no column.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writerow({name: plain(name) for name in columns})
    writer.writerows({name: plain(cell) for name, cell in row.items()} for row in rows)
    return text.getvalue()


def plain(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell

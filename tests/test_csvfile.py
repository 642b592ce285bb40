"""Cells of a CSV file as a spreadsheet takes them."""

from __future__ import annotations

import csv
import io

from dogmed.csvfile import csv_text


def test_no_cell_of_a_table_is_a_formula() -> None:
    row = {"a": "=cmd|x", "b": "@x", "c": -1.5, "d": "\t=1", "e": "1-2", "f": None}
    text = csv_text(list(row), [row])
    (read,) = csv.DictReader(io.StringIO(text))
    assert read == {"a": "'=cmd|x", "b": "'@x", "c": "-1.5", "d": "'\t=1", "e": "1-2", "f": ""}
    assert csv_text(["+x"], []) == "'+x\n"

"""Tables as Markdown: a cell stays one cell."""

from __future__ import annotations

import re

from dogmed.markdown import markdown_table


def test_a_bar_in_a_cell_or_a_name_ends_no_cell() -> None:
    lines = markdown_table(["a|b", "n"], [["|x|", "1"], ["", "2"]], numbers=True).splitlines()
    assert [len(re.split(r"(?<!\\)\|", line)) for line in lines] == [4] * 4
    assert lines[1] == "| --- | --: |"
    assert lines[2] == r"| \|x\| | 1 |"

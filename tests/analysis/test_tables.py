"""Notes of tables."""

from __future__ import annotations

import pytest

from dogmed.analysis.tables import Cell, Table, few_resamples
from dogmed.stats import verdict


@pytest.mark.parametrize("enough", [True, False])
def test_too_few_resamples_are_explained_where_a_cell_says_it(enough: bool) -> None:
    cell = Cell.of(f"+1.00 {verdict(0.5, 1, enough=enough)}", "[-1.00, +3.00], p 0.5")
    table = Table("title", ["what", "minus clean"], [["pixelate", cell]])
    assert few_resamples(table).startswith(" Too few resamples: no p") == (not enough)
    assert bool(few_resamples(table)) == (not enough)

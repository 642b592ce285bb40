"""The look of setups in pictures and legend."""

from __future__ import annotations

import itertools

from matplotlib.markers import MarkerStyle

from dogmed.finetune.report.figures import Style
from dogmed.finetune.report.grouping import Setup


def test_no_two_setups_look_alike() -> None:
    """More of each than there are colours, dashes and named markers."""
    setups = [
        Setup(False, f"model{m}", i > 0, f"init{i}" if i else "scratch", label, "", fraction)
        for m, i, label, fraction in itertools.product(
            range(10), range(6), ("", "default", "tuned"), (1.0, 0.25, 0.05)
        )
    ]
    style = Style(sorted(setups))
    lines = {
        (
            *map(str, style.line(one).values()),
            str(style.marker(one)),
        )
        for one in setups
    }
    keys = {tuple(v for k, v in key.items() if k != "name") for key in style.keys(setups)}
    assert len(lines) == len(keys) == len(setups)
    assert all(MarkerStyle(style.marker(one)).get_path().vertices.size for one in setups)

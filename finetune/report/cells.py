"""Tables as the report's four formats need them, and how numbers are written in all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from dogmed.stats import Estimate

MARKS = {"better": "▲", "worse": "▼", "noise": "≈", "unequal": "≠", "best": "★"}


@dataclass(frozen=True)
class Cell:
    """One entry of a table."""

    text: str = ""
    sub: str = ""
    """A second, smaller line: an interval, a count."""
    mark: str = ""
    """better, worse, noise, unequal or best: coloured, and told by a sign besides."""
    shade: float = 0.0
    """From -1 (worse) to 1 (better): how strongly the cell is tinted."""
    interval: tuple[float, float, float] | None = None
    """Value, low and high of a difference, drawn as a line of a forest in HTML."""
    number: bool = True

    @property
    def plain(self) -> str:
        """In one line, without colours."""
        sign = MARKS.get(self.mark, "")
        return " ".join(part for part in (sign, self.text, self.sub) if part)


@dataclass
class Row:
    """A row: its header and its cells; ``kind`` tells published rows (``reference``) from measured ones."""

    head: Cell
    cells: list[Cell]
    kind: str = "measured"


@dataclass
class Table:
    """A table of the report with what must be read beside it."""

    key: str
    title: str
    corner: str
    columns: list[Cell]
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    """Of the published rows."""
    reach: float = 0.0
    """Half the width of the forest's axis, where there is one."""


def text(value: str, sub: str = "", mark: str = "") -> Cell:
    """A cell of words."""
    return Cell(value, sub, mark, number=False)


def percent(value: float | None, digits: int = 2) -> str:
    """A share in percent, or a dash."""
    if value is None or math.isnan(value):
        return "–"
    return f"{100 * value:.{digits}f}"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return signed(100 * value)


def signed(value: float, digits: int = 2) -> str:
    shown = f"{value:+.{digits}f}"
    if float(shown) == 0:
        shown = f"{0:.{digits}f}"
    return shown.replace("-", "−")


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def mean_sd(estimate: Estimate) -> str:
    """``84.12 ± 0.53``, in percent; of one seed there is no standard deviation."""
    spread = f" ± {percent(estimate.sd)}" if estimate.sd is not None else ""
    return percent(estimate.value) + spread


def interval(low: float, high: float) -> str:
    if math.isnan(low):
        return ""
    return f"[{percent(low)}, {percent(high)}]"


def between(low: float, high: float) -> str:
    """An interval of a difference, in points."""
    return f"[{points(low)}, {points(high)}]"

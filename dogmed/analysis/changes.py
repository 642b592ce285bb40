"""Differences of scores on the same images, and what Holm's adjustment leaves of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dogmed import stats


@dataclass(frozen=True)
class Change:
    """A difference, and what may be said of it."""

    difference: stats.Difference
    p_holm: float
    family: int
    """How many differences were adjusted together."""
    word: str

    @property
    def numbers(self) -> dict[str, Any]:
        """All of it, unrounded."""
        d = self.difference
        return {
            "value": d.value, "low": d.low, "high": d.high, "p": d.p, "p_holm": self.p_holm,
            "family": self.family, "word": self.word,
        }  # fmt: skip

    @property
    def cells(self) -> dict[str, Any]:
        """Of a row of a CSV file."""
        d = self.difference
        return {
            "difference": d.value, "difference_low": d.low, "difference_high": d.high,
            "p": d.p, "p_holm": self.p_holm, "word": self.word,
        }  # fmt: skip


def judge(
    family: Sequence[stats.Difference], resamples: int, *, lower_is_better: bool = False
) -> list[Change]:
    """Adjust the p-values of one family by Holm, and name each difference.

    Args:
        family: in any order.
        resamples: behind each of them.
        lower_is_better: of an error.
    """
    if not family:
        return []
    enough = resamples >= stats.resamples_for(len(family))
    sign = -1 if lower_is_better else 1
    return [
        Change(d, float(p), len(family), stats.verdict(float(p), sign * d.value, enough=enough))
        for d, p in zip(family, stats.holm([d.p for d in family]), strict=True)
    ]

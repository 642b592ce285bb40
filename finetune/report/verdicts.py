"""What is compared, the words for what was found, and the adjustment for how often it is asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

from dogmed import stats

METRICS = ("acc", "auc")
WORDS = {"better": "better", "worse": "worse", "noise": "noise", "unequal": "not comparable"}


def adjust(p_values: Sequence[float], families: Sequence[Hashable]) -> list[tuple[float, int]]:
    """Adjust p-values by Holm within each family; returns each with the size of its family."""
    members: dict[Hashable, list[int]] = defaultdict(list)
    for number, family in enumerate(families):
        members[family].append(number)
    found = [(1.0, 0)] * len(p_values)
    for numbers in members.values():
        for number, p in zip(numbers, stats.holm([p_values[k] for k in numbers]), strict=True):
            found[number] = float(p), len(numbers)
    return found

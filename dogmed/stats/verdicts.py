"""What may be said of a difference."""

from __future__ import annotations

ALPHA = 0.05


def verdict(adjusted: float, direction: float, *, enough: bool = True) -> str:
    """Name a difference whose p-value is ``adjusted`` and whose sign is that of ``direction``.

    Args:
        adjusted: p-value, for how often it is asked.
        direction: above 0 is better.
        enough: whether there are resamples enough for such a p-value to be below ``ALPHA``.
    """
    if adjusted >= ALPHA:
        return "noise" if enough else "too few resamples"
    return "better" if direction > 0 else "worse"


def resamples_for(family: int) -> int:
    """How many resamples let Holm's adjustment over a family find p < ``ALPHA``.

    The least p-value of R resamples is 2 / (R + 1), and the least of the family is multiplied by its size.
    """
    return round(2 * family / ALPHA)

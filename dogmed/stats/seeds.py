"""What other training seeds would have given: mean, standard deviation, and the share in an interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from dogmed.errors import ConfigError, DataError
from dogmed.metrics import Floats


@dataclass(frozen=True)
class SeedSummary:
    """Mean of ``n`` seeds; ``sd`` (n - 1 in the denominator) and ``interval`` are None if n = 1."""

    n: int
    mean: float
    sd: float | None
    interval: tuple[float, float] | None


def summarize(scores: ArrayLike, *, level: float = 0.95) -> SeedSummary:
    """Give mean ± sd and Student's t interval of the mean over seeds; of one seed, its score alone.

    The interval is about seeds on these very test images; ``compare.estimates`` adds the images.

    Args:
        scores: (S,), one a seed.
        level: nominal coverage, in (0, 1).

    Raises:
        ConfigError: a level outside (0, 1).
        DataError: no scores, or some are not finite.
    """
    x = _checked(scores)
    check_level(level)
    if len(x) == 1:
        return SeedSummary(1, float(x[0]), None, None)
    return SeedSummary(len(x), float(x.mean()), float(x.std(ddof=1)), t_interval(x, level=level))


def t_interval(scores: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """Give Student's t interval of the mean of scores (S,), S > 1.

    Raises: as ``summarize``; DataError for a single score.
    """
    x = _checked(scores)
    check_level(level)
    if len(x) < 2:
        raise DataError(
            "one seed has no standard deviation: an interval over seeds needs 2 or more"
        )
    half = scipy.stats.t(len(x) - 1).ppf((1 + level) / 2) * x.std(ddof=1) / np.sqrt(len(x))
    return float(x.mean() - half), float(x.mean() + half)


def seed_variance(scores: Floats, replicates: Floats) -> float:
    """Estimate the variance of the seeds' own effect on a score, 0 for one seed.

    Seeds and images are crossed: score s = mean + effect of seed s + effect of the images on all
    seeds + their effect on seed s alone. Of the variance s² between the scores of S seeds a part v
    is the last of these, answers that differ on the images that happen to be in the test set. The
    bootstrap over images knows v and has v/S of it in the variance of the mean already, so that
    what seeds add is s² - v, cut at zero.

    Args:
        scores: (S,), of each seed on the whole test set.
        replicates: (S, R), of each seed on the same resamples of the images; NaN if undefined.
    """
    if len(scores) == 1:
        return 0.0
    whole = replicates[:, ~np.isnan(replicates).any(0)]
    v = (whole - whole.mean(0)).var(1).sum() / (len(scores) - 1) if whole.size else 0.0
    return float(max(0.0, scores.var(ddof=1) - v))


def check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"the level of an interval must be in (0, 1), received {level}")


def _checked(scores: ArrayLike) -> Floats:
    x = np.asarray(scores, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise DataError(f"expected finite scores, one a seed, received {x.tolist()}")
    return x

"""Models over several tasks, after Demšar, "Statistical comparisons of classifiers over multiple data
sets", JMLR 7 (2006): a task counts once, however many images it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from dogmed.errors import ConfigError, DataError
from dogmed.metrics import Floats

EXACT_TASKS = 13  # up to which all 2^n signs are tried, ties and all


@dataclass(frozen=True)
class Wilcoxon:
    """Sums of the ranks for and against the first, two-sided p-value, tasks compared and tasks that tie.

    Which of the two is better is in ``plus`` and ``minus``; the mean difference may say otherwise.
    """

    plus: float
    minus: float
    p: float
    tasks: int
    ties: int

    @property
    def smallest_p(self) -> float:
        """What the exact test can give at best, with every task in favour of one: 2/2^tasks."""
        return min(1.0, 2.0 ** (1 - self.tasks))


@dataclass(frozen=True)
class Friedman:
    """Friedman's χ² and, less conservative, Iman and Davenport's F, with their p-values."""

    chi2: float
    p: float
    f: float
    p_f: float


def wilcoxon(a: ArrayLike, b: ArrayLike) -> Wilcoxon:
    """Test by signed ranks whether one of two models tends to be better over tasks (Wilcoxon 1945).

    Tasks on which both score the same are left out; the p-value is exact up to ``EXACT_TASKS``
    tasks, also where differences tie. One difference or none: p = 1.

    Args:
        a: (T,) scores of one model, one a task.
        b: (T,) scores of the other.

    Raises:
        DataError: not the same number of tasks, or scores that are not finite.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise DataError(
            f"expected one score a task of both models, received {x.shape} and {y.shape}"
        )
    if not np.isfinite(x).all() or not np.isfinite(y).all():
        raise DataError(
            "scores over tasks must be finite: leave out a task for both models or none"
        )
    difference = (x - y).round(12)  # 0.3 - 0.2 and 0.2 - 0.1 tie
    difference = difference[difference != 0]
    ranks = scipy.stats.rankdata(np.abs(difference))
    plus, minus = (float(ranks[side].sum()) for side in (difference > 0, difference < 0))
    ties = len(x) - len(difference)
    p = 1.0  # of a single difference or none, which scipy refuses
    if len(difference) > 1:
        exact = len(difference) <= EXACT_TASKS
        method = scipy.stats.PermutationMethod(n_resamples=2**EXACT_TASKS) if exact else "auto"
        p = float(scipy.stats.wilcoxon(difference, method=method).pvalue)
    return Wilcoxon(plus, minus, p, len(difference), ties)


def friedman(scores: ArrayLike) -> Friedman:
    """Test whether any of three or more models differs from the others over tasks.

    F = (T - 1)χ² / (T(M - 1) - χ²) with M - 1 and (M - 1)(T - 1) degrees of freedom (Iman and
    Davenport 1980; Demšar, section 3.2.2). Models that tie on every task: p = 1.

    Args:
        scores: (T, M), one row a task, one column a model.

    Raises:
        DataError: fewer than 3 models or 2 tasks, or scores that are not finite.
    """
    x = _table(scores)
    tasks, models = x.shape
    if models < 3 or tasks < 2:
        raise DataError(
            f"Friedman's test needs 3 or more models on 2 or more tasks, received {models} on {tasks}"
        )
    if (x == x[:, :1]).all():
        return Friedman(0.0, 1.0, 0.0, 1.0)
    result = scipy.stats.friedmanchisquare(*x.T)
    chi2 = float(result.statistic)
    rest = tasks * (models - 1) - chi2
    f = (tasks - 1) * chi2 / rest if rest > 1e-9 else np.inf
    p_f = scipy.stats.f(models - 1, (models - 1) * (tasks - 1)).sf(f)
    return Friedman(chi2, float(result.pvalue), float(f), float(p_f))


def holm(p_values: ArrayLike) -> Floats:
    """Adjust p-values (K,) so that the chance of any false alarm among them keeps its level (Holm 1979).

    Raises:
        DataError: not numbers from 0 to 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not len(p) or not ((p >= 0) & (p <= 1)).all():
        raise DataError(f"expected p-values from 0 to 1, received {p.tolist()}")
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return (
        adjusted  # statsmodels collects garbage first, which takes seconds where PyTorch is loaded
    )


def average_ranks(scores: ArrayLike, *, higher_is_better: bool = True) -> Floats:
    """Average over tasks the rank of each model, 1 the best, ties sharing their mean rank: (M,).

    Args:
        scores: (T, M), one row a task, one column a model.
        higher_is_better: false for losses, Brier scores and calibration errors.

    Raises:
        DataError: not a table, or scores that are not finite.
    """
    x = _table(scores)
    ranks = scipy.stats.rankdata(-x if higher_is_better else x, axis=1)
    return np.asarray(ranks.mean(0))


def critical_difference(models: int, tasks: int, *, alpha: float = 0.05) -> float:
    """By how much two average ranks must differ to be significant (Nemenyi 1963).

    q √(M(M + 1) / 6T), q the studentized range for M groups and infinite freedom over √2.

    Raises:
        ConfigError: ``alpha`` outside (0, 1).
        DataError: fewer than 2 models or 1 task.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha must be in (0, 1), received {alpha}")
    if models < 2 or tasks < 1:
        raise DataError(f"expected 2 or more models and a task, received {models} and {tasks}")
    q = scipy.stats.studentized_range(models, np.inf).ppf(1 - alpha) / np.sqrt(2)
    return float(q * np.sqrt(models * (models + 1) / (6 * tasks)))


def groups(ranks: Sequence[float] | Floats, width: float) -> list[tuple[int, ...]]:
    """Find the largest sets of models whose average ranks lie within ``width`` of one another.

    These are what a critical-difference diagram joins by a bar: indices into ``ranks``, best first;
    no set within another, none of a single model.

    Args:
        ranks: (M,) average ranks.
        width: the critical difference.
    """
    order = np.argsort(ranks, kind="stable")
    ordered = np.asarray(ranks, dtype=np.float64)[order]
    ends = np.searchsorted(ordered, ordered + width, side="right")
    found: list[tuple[int, ...]] = []
    reached = 0
    for start, end in enumerate(ends):
        if end - start > 1 and end > reached:
            found.append(tuple(int(i) for i in order[start:end]))
            reached = int(end)
    return found


def _table(scores: ArrayLike) -> Floats:
    x = np.asarray(scores, dtype=np.float64)
    if x.ndim != 2 or not x.size or not np.isfinite(x).all():
        raise DataError(
            f"expected finite scores (tasks, models), received shape {x.shape} with "
            f"{int((~np.isfinite(x)).sum())} not finite"
        )
    return x.round(12)  # 0.1 + 0.2 and 0.3 tie

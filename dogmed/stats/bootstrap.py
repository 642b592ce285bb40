"""How much of a score is chance: bootstrap over the test samples.

The percentile bootstrap (Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter
13) on one set of resamples shared by all metrics. A resample is a vector of integer weights, and
every metric is computed from weights, so that nothing is sorted more than once: AUC by weighted
ranks with ties counted as one half, which equals ``roc_auc_score`` on the resampled arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from dogmed.errors import ConfigError
from dogmed.metrics import (
    Floats,
    Ints,
    brier_per_sample,
    check,
    decide,
    nan_mean,
    one_vs_rest,
    rates,
)

CHUNK = 2**20  # weights held at a time, 8 MB of them: a chunk stays near the cache

Evaluator: TypeAlias = Callable[[Floats], dict[str, Floats]]
Ranked: TypeAlias = Callable[[Floats], tuple[Floats, Floats]]


def bootstrap_intervals(
    kind: str,
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Give the percentile interval of each metric; a metric that is never defined has none.

    ``ece`` is left out: resampling adds to it, so that its percentiles can miss the score itself.

    Args:
        kind: one of ``metrics.KINDS``.
        labels: (N, L) integers, L = 1 unless multi-label.
        probabilities: (N, C).
        resamples: number of bootstrap resamples.
        seed: of the resampling.
        level: nominal coverage, in (0, 1).

    Raises:
        ConfigError: no resamples, or a level outside (0, 1).
        DataError: as ``metrics.score``.
    """
    if not 0 < level < 1:
        raise ConfigError(f"the level of an interval must be in (0, 1), received {level}")
    replicates = bootstrap_replicates(kind, labels, probabilities, resamples=resamples, seed=seed)
    intervals = {}
    for name, values in replicates.items():
        if (defined := values[~np.isnan(values)]).size:
            low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
            intervals[name] = (float(low), float(high))
    return intervals


def bootstrap_replicates(
    kind: str, labels: ArrayLike, probabilities: ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Floats]:
    """Compute each metric on each resample: (resamples,) values, NaN where it is undefined.

    The resamples depend on N and ``seed`` alone, so that two models scored on one test set with
    one seed are paired: the differences of their replicates are a paired bootstrap. A class absent
    from a resample is left out of that resample's mean.

    Args: as ``bootstrap_intervals``.
    """
    y, p = check(kind, labels, probabilities)
    return replicates_of([evaluator(kind, y, p)], len(y), resamples, seed)[0]


def evaluator(kind: str, labels: Ints, probabilities: Floats) -> Evaluator:
    """Prepare the metrics of one set of predictions as a function of weights (N, R) adding up to N.

    Unit weights give the score itself.

    Args: as ``metrics.check`` returns them.
    """
    curves = [_ranked(positive, s) for positive, s in one_vs_rest(kind, labels, probabilities)]
    counts, brier = (
        _counts(kind, labels, probabilities),
        brier_per_sample(kind, labels, probabilities),
    )

    def of(weights: Floats) -> dict[str, Floats]:
        result = counts(weights)
        result["brier"] = brier @ weights / len(labels)
        areas = [curve(weights) for curve in curves]
        result["auc"] = nan_mean(np.stack([auc for auc, _ in areas], -1))
        if kind == "multi-label":
            result["map"] = nan_mean(np.stack([precision for _, precision in areas], -1))
        return result

    return of


def replicates_of(
    evaluators: Sequence[Evaluator], size: int, resamples: int, seed: int
) -> list[dict[str, Floats]]:
    """Evaluate predictions of one test set of ``size`` samples on the same resamples of it.

    Raises:
        ConfigError: no resamples.
    """
    if resamples < 1:
        raise ConfigError(f"a bootstrap needs at least one resample, received {resamples}")
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // size)
    chunks = []
    for start in range(0, resamples, step):
        weights = _weights(rng, size, min(step, resamples - start))
        chunks.append([of(weights) for of in evaluators])
    return [
        {name: np.concatenate([chunk[name] for chunk in of_one]) for name in of_one[0]}
        for of_one in zip(*chunks, strict=True)
    ]


def _weights(rng: np.random.Generator, size: int, resamples: int) -> Floats:
    """How often each sample occurs in each resample: (N, R), columns adding up to N."""
    weights = np.empty((resamples, size))
    for row in weights:
        row[:] = np.bincount(rng.integers(size, size=size), minlength=size)
    return np.ascontiguousarray(weights.T)


def _counts(kind: str, labels: Ints, probabilities: Floats) -> Evaluator:
    """Prepare what follows from counting decisions: accuracy, recalls, F1 and kappa."""
    size, classes = probabilities.shape
    decided = decide(kind, probabilities)
    if kind == "multi-label":
        truth, guess = sparse.csr_array(labels.T), sparse.csr_array(decided.T)  # (C, N)
        correct = (labels == decided).mean(1)
    else:
        truth, guess = _indicators(labels[:, 0], classes), _indicators(decided, classes)
        correct = (labels[:, 0] == decided).astype(np.float64)
    hits = truth * guess

    def of(weights: Floats) -> dict[str, Floats]:
        actual, predicted = (truth @ weights).T, (guess @ weights).T  # (R, C)
        _, balanced, f1 = rates(
            (hits @ weights).T, actual, predicted, size, multi_label=kind == "multi-label"
        )
        result = {
            "acc": correct @ weights / size,
            "balanced_accuracy": balanced,
            "macro_f1": f1,
        }
        if kind == "ordinal":
            error = ((labels[:, 0] - decided) ** 2) @ weights / size
            result["quadratic_kappa"] = _kappa(error, actual / size, predicted / size)
        return result

    return of


def _indicators(classes: Ints, count: int) -> Any:
    """One row a class, one column a sample: (C, N) sparse zeros and ones."""
    ones = np.ones(len(classes))
    return sparse.csr_array((ones, (classes, np.arange(len(classes)))), (count, len(classes)))


def _kappa(error: Floats, actual: Floats, predicted: Floats) -> Floats:
    """Quadratic kappa: 1 - E(y - d)² / the same were labels y and decisions d independent."""
    grade = np.arange(actual.shape[-1])
    chance = (actual + predicted) @ grade**2 - 2 * (actual @ grade) * (predicted @ grade)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance > 1e-12, 1 - error / chance, np.nan)


def _ranked(positive: NDArray[Any], scores: Floats) -> Ranked:
    """Sort once; then AUC and average precision (R,) each of any weights (N, R).

    With C(i) the weight of the negatives below a positive's score and T(i) of those tied with it,
    AUC = Σ w_i (C(i) + T(i)/2) / (W+ W-), and average precision = Σ w_i precision(s_i) / W+.
    """
    up, down = np.flatnonzero(positive), np.flatnonzero(~positive)
    up, down = up[scores[up].argsort()[::-1]], down[scores[down].argsort()[::-1]]
    # negatives strictly above, and at or above, each positive (both run from the highest score)
    above = np.searchsorted(-scores[down], -scores[up], side="left")
    level = np.searchsorted(-scores[down], -scores[up], side="right")
    own = np.searchsorted(-scores[up], -scores[up], side="right")  # positives at or above

    def of(weights: Floats) -> tuple[Floats, Floats]:
        w = weights[up]  # (P, R)
        false = _cumulated(weights[down])  # (M + 1, R)
        true = _cumulated(w)
        reached = false[level]
        lost = (w * (false[above] + reached)).sum(0) / 2
        found = true[own]
        with np.errstate(invalid="ignore", divide="ignore"):
            auc = 1 - lost / (true[-1] * false[-1])
            precision = (w * np.where(found > 0, found / (found + reached), 0)).sum(0) / true[-1]
        return auc, precision

    return of


def _cumulated(weights: Floats) -> Floats:
    """Running sums down the rows, starting from a row of zeros: (n, R) -> (n + 1, R)."""
    total = np.zeros((len(weights) + 1, weights.shape[1]))
    np.cumsum(weights, axis=0, out=total[1:])
    return total

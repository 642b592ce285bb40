"""Several seeds on one test set, and two models on the same one: intervals and p-values.

All models are evaluated on the same resamples of the test images (``resample`` with one ``seed``),
so that the difference of two is a paired bootstrap. With one training seed each that is all, and
intervals are percentiles. With several, the variance that seeds add (``seeds.seed_variance``) is
added to the bootstrap's variance of the mean, and the interval is Student's t with Satterthwaite's
degrees of freedom ("An approximate distribution of estimates of variance components", 1946):
resampling three seeds would give two thirds of their variance and none of the doubt about it.
Which variation an interval covers is written in its ``covers``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from dogmed.errors import DataError
from dogmed.metrics import Floats, Ints, check, decide
from dogmed.stats.bootstrap import evaluator, replicates_of
from dogmed.stats.seeds import check_level, seed_variance

EXACT_BELOW = 25  # discordant images up to which McNemar's χ² is no approximation to trust
_RANGE = {
    "brier": (0.0, 2.0),
    "quadratic_kappa": (-1.0, 1.0),
    "loss": (0.0, np.inf),
}  # others: 0 to 1
IMAGES = "test images"
BOTH = "test images and training seeds"


@dataclass(frozen=True, kw_only=True, eq=False)
class Resampled:
    """One model on a test set: what ``estimates`` and ``differences`` are made of.

    By metric: ``scores`` (S,), one a seed; ``replicates`` (R,) of their mean, one a resample of the
    images, NaN if undefined; ``seed_variance`` of the seeds' own effect on a score.
    """

    kind: str
    labels: Ints  # (N, L)
    classes: int
    seed: int
    scores: dict[str, Floats]
    replicates: dict[str, Floats]
    seed_variance: dict[str, float]
    trained: bool = True
    """False for an answer that no seed has a part in."""

    @property
    def seeds(self) -> int:
        return len(self.scores["acc"])

    @property
    def resamples(self) -> int:
        return len(self.replicates["acc"])


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A metric's mean over ``seeds``, its interval, and which variation the interval ``covers``."""

    value: float
    low: float
    high: float
    seeds: int
    sd: float | None  # between the seeds; None for one
    covers: str


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A metric of one model minus that of another, with interval and two-sided p-value."""

    value: float
    low: float
    high: float
    p: float
    covers: str
    degenerate: bool = False
    """They differ on so few images that all of them pointing one way would say nothing: the interval is all
    that the metric can differ by, and p is 1."""


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Images that one of two models alone has right, and the two-sided p-value."""

    only_a: int
    only_b: int
    p: float
    exact: bool


def resample(
    kind: str,
    labels: ArrayLike,
    runs: Sequence[ArrayLike],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Resampled:
    """Evaluate one model's runs, one a training seed, on resamples of their common test set.

    Args:
        kind: one of ``metrics.KINDS``.
        labels: (N, L) integers, L = 1 unless multi-label.
        runs: probabilities, S times (N, C).
        resamples: number of bootstrap resamples.
        seed: of the resampling; the same for all models to be compared.

    Raises:
        ConfigError: no resamples.
        DataError: no runs, or as ``metrics.score``, with the number of the run.
    """
    if not len(runs):
        raise DataError("a model without runs cannot be evaluated: expected one or more")
    checked = []
    for number, probabilities in enumerate(runs, 1):
        try:
            checked.append(check(kind, labels, probabilities))
        except DataError as error:
            raise DataError(f"run {number} of {len(runs)}: {error}") from None
    y = checked[0][0]
    classes = {p.shape[1] for _, p in checked}
    if len(classes) > 1:
        raise DataError(
            f"the runs of one model differ in their number of classes: {sorted(classes)}"
        )
    evaluators = [evaluator(kind, y, p) for _, p in checked]
    units = [of(np.ones((len(y), 1))) for of in evaluators]
    replicates = replicates_of(evaluators, len(y), resamples, seed)
    names = list(units[0])
    scores = {name: np.array([unit[name][0] for unit in units]) for name in names}
    per_seed = {name: np.stack([of_one[name] for of_one in replicates]) for name in names}  # (S, R)
    return Resampled(
        kind=kind,
        labels=y,
        classes=classes.pop(),
        seed=seed,
        scores=scores,
        replicates={name: per_seed[name].mean(0) for name in names},
        seed_variance={name: seed_variance(scores[name], per_seed[name]) for name in names},
    )


def estimates(model: Resampled, *, level: float = 0.95) -> dict[str, Estimate]:
    """Give each metric's mean over seeds with an interval for images and, of several seeds, seeds.

    Of one seed it is the percentile interval of ``bootstrap_intervals``. Of several it is about the
    mean score of any seeds on any images like these; where seeds are few and vary more than images
    do, 95% may be 90%. An undefined metric is left out; so is ``ece``, as in
    ``bootstrap_intervals``.

    Raises:
        ConfigError: a level outside (0, 1).
    """
    check_level(level)
    found = {}
    for name, values in model.scores.items():
        result = _infer(name, [(1, model)], level)
        if result is None:
            continue
        value, low, high, _ = result
        low, high = within_range(name, low, high)
        found[name] = Estimate(
            value=value,
            low=low,
            high=high,
            seeds=model.seeds,
            sd=float(values.std(ddof=1)) if model.seeds > 1 else None,
            covers=BOTH if model.seeds > 1 else IMAGES,
        )
    return found


def differences(a: Resampled, b: Resampled, *, level: float = 0.95) -> dict[str, Difference]:
    """Compare two models on one test set: each metric of ``a`` minus that of ``b``.

    The p-value inverts the interval. With one seed each it is twice the share of replicates on the
    smaller side of zero, counting zeros and one replicate more: at least 2/(R + 1), and 1 for equal
    models. With several it is that of Student's t, or 2/(R + 1) where nothing varies. Of n images none is
    below 2/2^n, that of a sign test where all point one way; where this is 1 - level or more (n < 6 at
    95%), a difference is ``degenerate``. No interval is wider than the metric's range allows.

    Raises:
        ConfigError: a level outside (0, 1).
        DataError: not the same test set, or not the same resamples of it.
    """
    _same_test_set(a, b)
    check_level(level)
    covers, found = _covers(a, b), {}
    least = 2 * 0.5 ** len(a.labels)
    for name in a.scores:
        result = _infer(name, [(1, a), (-1, b)], level)
        if result is None:
            continue
        value, low, high, p = result
        lowest, highest = _RANGE.get(name, (0.0, 1.0))
        span = highest - lowest
        degenerate = round(value, 12) != 0 and least >= 1 - level
        if degenerate:
            low, high, p = -span, span, 1.0
        found[name] = Difference(
            value=value,
            low=max(low, -span),
            high=min(high, span),
            p=max(p, least),
            covers=covers,
            degenerate=degenerate,
        )
    return found


def within_range(name: str, low: float, high: float) -> tuple[float, float]:
    """An interval of a metric, without what lies beyond the values that it can have."""
    lowest, highest = _RANGE.get(name, (0.0, 1.0))
    return max(low, lowest), min(high, highest)


def trivial_answer(beside: Resampled, train_labels: ArrayLike) -> Resampled:
    """Evaluate always answering what is most frequent in training, on the resamples of a model.

    No training gives that answer, so that it has no seeds whose luck could be missing in an interval.

    Args:
        beside: any model on that test set.
        train_labels: (M, L) integers.

    Raises:
        DataError: training labels do not fit the task.
    """
    constant = trivial_probabilities(
        beside.kind, train_labels, size=len(beside.labels), classes=beside.classes
    )
    answer = resample(
        beside.kind, beside.labels, [constant], resamples=beside.resamples, seed=beside.seed
    )
    return replace(answer, trained=False)


def trivial_probabilities(kind: str, train_labels: ArrayLike, *, size: int, classes: int) -> Floats:
    """Predict the frequencies of the training labels for every image: (size, classes).

    The decision is then the most frequent class (label by label if multi-label), the AUC one half,
    and the Brier score the best that a constant can have.

    Raises:
        DataError: labels do not fit the task.
    """
    y = np.asarray(train_labels)
    y = y[:, None] if y.ndim == 1 else y
    y, _ = check(kind, y, np.zeros((len(y), classes)))
    counts = y.sum(0) if kind == "multi-label" else np.bincount(y[:, 0], minlength=classes)
    return np.tile(counts / len(y), (size, 1))


def mcnemar(kind: str, labels: ArrayLike, a: ArrayLike, b: ArrayLike) -> McNemar:
    """Test whether two runs have equally many of the same images right (McNemar 1947).

    Exact (binomial) with fewer than ``EXACT_BELOW`` images on which one alone is right, else χ²
    with continuity correction. It takes one seed each: what seeds do is in ``differences``.

    Args:
        kind: one of ``metrics.KINDS`` other than multi-label.
        labels: (N, 1) integers.
        a: probabilities (N, C) of one run.
        b: probabilities (N, C) of the other.

    Raises:
        DataError: a multi-label task, whose labels of one image are no independent trials; or as
            ``metrics.score``.
    """
    from statsmodels.stats.contingency_tables import mcnemar as test

    if kind == "multi-label":
        raise DataError(
            "McNemar's test needs one answer an image: use differences() for multi-label"
        )
    right = []
    for probabilities in (a, b):
        y, p = check(kind, labels, probabilities)
        right.append(decide(kind, p) == y[:, 0])
    only_a, only_b = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    exact = only_a + only_b < EXACT_BELOW
    p_value = float(test([[0, only_a], [only_b, 0]], exact=exact, correction=True).pvalue)
    return McNemar(only_a=only_a, only_b=only_b, p=min(1.0, p_value), exact=exact)


def _covers(a: Resampled, b: Resampled) -> str:
    """Say which luck a difference knows: of images always, of seeds where a trained model has several."""
    known = [model.seeds > 1 for model in (a, b) if model.trained]
    if not any(known):
        return IMAGES
    return BOTH if all(known) else f"{BOTH} of the {'first' if known[0] else 'second'} model alone"


def _infer(
    name: str, terms: Sequence[tuple[int, Resampled]], level: float
) -> tuple[float, float, float, float] | None:
    """Give value, interval and p-value (of zero) of a signed sum of models; None if undefined."""
    value = float(sum(sign * model.scores[name].mean() for sign, model in terms))
    replicates = _replicates(name, terms)
    if np.isnan(value) or not replicates.size:
        return None
    tail = 1 + min((replicates <= 0).sum(), (replicates >= 0).sum())
    share = min(1.0, 2 * float(tail) / (len(replicates) + 1))
    if all(model.seeds == 1 for _, model in terms):
        low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
        return value, float(low), float(high), share
    variance, doubt = replicates.var(), 0.0
    for _, model in terms:
        if added := model.seed_variance[name]:
            variance += added / model.seeds
            doubt += (model.scores[name].var(ddof=1) / model.seeds) ** 2 / (model.seeds - 1)
    freedom = variance**2 / doubt if doubt else np.inf
    if not (error := float(np.sqrt(variance))):
        return value, value, value, share
    half = float(scipy.stats.t.ppf((1 + level) / 2, freedom)) * error
    p = float(max(2 * scipy.stats.t.sf(abs(value) / error, freedom), np.finfo(float).tiny))
    return value, value - half, value + half, p


def _replicates(name: str, terms: Sequence[tuple[int, Resampled]]) -> Floats:
    """A signed sum of models on each resample where it is defined; equal scores differ by nothing."""
    summed = np.sum([sign * model.replicates[name] for sign, model in terms], axis=0)
    return np.asarray(summed[~np.isnan(summed)].round(12))


def _same_test_set(a: Resampled, b: Resampled) -> None:
    if a.kind != b.kind:
        raise DataError(f"a {a.kind} and a {b.kind} task cannot be compared")
    if a.labels.shape != b.labels.shape:
        raise DataError(
            f"not the same test set: {len(a.labels)} images with {a.labels.shape[1]} labels, "
            f"and {len(b.labels)} with {b.labels.shape[1]}"
        )
    if differ := int((a.labels != b.labels).any(1).sum()):
        raise DataError(
            f"not the same test set, or in another order: {differ} of {len(a.labels)} labels differ"
        )
    if a.seed != b.seed or a.resamples != b.resamples:
        raise DataError(
            f"not the same resamples: {a.resamples} with seed {a.seed}, and {b.resamples} with "
            f"seed {b.seed}; resample both models alike"
        )

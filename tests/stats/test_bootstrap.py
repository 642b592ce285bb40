"""The bootstrap against scikit-learn, exact distributions, scipy, and simulated truths."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics as sk

from dogmed.errors import ConfigError, DataError
from dogmed.metrics import KINDS, score
from dogmed.stats import bootstrap, bootstrap_intervals, bootstrap_replicates


def example(kind: str, n: int, seed: int = 0, decimals: int = 2):
    """Labels and probabilities with many ties and, in small samples, rare classes."""
    rng = np.random.default_rng(seed)
    classes = 2 if kind == "binary" else 5
    if kind == "multi-label":
        labels = (rng.random((n, classes)) < [0.03, 0.1, 0.3, 0.5, 0.9]).astype(np.int64)
        p = 1 / (1 + np.exp(-rng.normal(1.5 * labels - 1, 1)))
    else:
        share = np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
        labels = rng.choice(classes, p=share, size=(n, 1))
        z = rng.normal(size=(n, classes)) + 1.2 * np.eye(classes)[labels[:, 0]]
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return labels, p.round(decimals)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [25, 300])
def test_each_replicate_is_the_score_of_the_resampled_arrays(kind, n, monkeypatch):
    """Ties, absent classes and chunk borders included; the resamples are drawn again here."""
    monkeypatch.setattr(bootstrap, "CHUNK", 7 * n)
    labels, p = example(kind, n)
    resamples = 40
    replicates = bootstrap_replicates(kind, labels, p, resamples=resamples, seed=3)
    rng = np.random.default_rng(3)
    for r in range(resamples):
        drawn = rng.integers(n, size=n)
        expected = score(kind, labels[drawn], p[drawn])
        for name, values in replicates.items():
            wanted = np.nan if expected[name] is None else expected[name]
            assert values[r] == pytest.approx(wanted, rel=1e-11, nan_ok=True), (name, r)


def test_auc_and_precision_take_any_weights():
    labels, p = example("binary", 500, decimals=1)
    positive, scores = labels[:, 0] == 1, p[:, 1]
    weights = np.random.default_rng(0).exponential(size=(500, 6))
    auc, precision = bootstrap._ranked(positive, scores)(weights)
    for r, w in enumerate(weights.T):
        assert auc[r] == pytest.approx(sk.roc_auc_score(positive, scores, sample_weight=w))
        expected = sk.average_precision_score(positive, scores, sample_weight=w)
        assert precision[r] == pytest.approx(expected)


def test_accuracy_has_the_exact_binomial_interval():
    labels, p = example("multi-class", 400)
    acc = score("multi-class", labels, p)["acc"]
    interval = bootstrap_intervals("multi-class", labels, p, resamples=20_000)["acc"]
    exact = scipy.stats.binom(400, acc).ppf([0.025, 0.975])
    assert np.abs(np.rint(np.multiply(interval, 400)) - exact).max() <= 1  # a step of the lattice


def test_the_auc_interval_is_that_of_scipy():
    labels, p = example("binary", 150)
    y, scores = labels[:, 0], p[:, 1]
    reference = scipy.stats.bootstrap(
        (y, scores),
        lambda y, s: sk.roc_auc_score(y, s),
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(5),
    )
    low, high = bootstrap_intervals("binary", labels, p, resamples=2000)["auc"]
    noise = 4 * reference.standard_error / np.sqrt(2000) * 2.7  # of a 2.5% quantile, four sigmas
    assert low == pytest.approx(reference.confidence_interval.low, abs=noise)
    assert high == pytest.approx(reference.confidence_interval.high, abs=noise)


def test_nominal_coverage_on_a_known_truth():
    """Two normal classes d apart: accuracy Φ(d/2) and AUC Φ(d/√2) are known."""
    rng, normal, d = np.random.default_rng(0), scipy.stats.norm(), 1.5
    truth = {"acc": normal.cdf(d / 2), "auc": normal.cdf(d / np.sqrt(2))}
    trials, covered = 300, dict.fromkeys(truth, 0)
    for trial in range(trials):
        labels = rng.integers(2, size=(200, 1))
        x = rng.normal(d * (labels[:, 0] - 0.5))
        intervals = bootstrap_intervals(
            "binary", labels, 1 / (1 + np.exp(-d * x)), resamples=400, seed=trial
        )
        for name, value in truth.items():
            covered[name] += intervals[name][0] <= value <= intervals[name][1]
    for name, count in covered.items():
        assert scipy.stats.binomtest(count, trials, 0.95).pvalue > 0.01, (name, count)


def test_models_scored_with_one_seed_are_paired():
    """The same resamples: what is common to two models cancels in their difference."""
    labels, p = example("multi-class", 300)
    worse = p.copy()
    worse[:10] = np.roll(worse[:10], 1, axis=1)
    a = bootstrap_replicates("multi-class", labels, p, seed=1)["acc"]
    b = bootstrap_replicates("multi-class", labels, worse, seed=1)["acc"]
    c = bootstrap_replicates("multi-class", labels, worse, seed=2)["acc"]
    assert np.std(a - b) < np.std(a - c) / 2


def test_same_seed_same_interval_and_another_seed_another():
    labels, p = example("ordinal", 100)
    first = bootstrap_intervals("ordinal", labels, p, resamples=100, seed=1)
    assert first == bootstrap_intervals("ordinal", labels, p, resamples=100, seed=1)
    assert first != bootstrap_intervals("ordinal", labels, p, resamples=100, seed=2)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_never_defined_has_no_interval(kind, recwarn):
    labels, p = example(kind, 30)
    intervals = bootstrap_intervals(kind, np.zeros_like(labels), p, resamples=20)
    assert "auc" not in intervals and "map" not in intervals and "acc" in intervals
    assert not recwarn.list


def test_impossible_requests_are_refused():
    labels, p = example("binary", 10)
    with pytest.raises(ConfigError, match="at least one"):
        bootstrap_intervals("binary", labels, p, resamples=0)
    with pytest.raises(ConfigError, match="level"):
        bootstrap_intervals("binary", labels, p, level=95)
    with pytest.raises(DataError, match="do not fit"):
        bootstrap_intervals("binary", labels[:-1], p)

"""Seeds: against scipy, and the variance that is theirs against simulated data."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from dogmed.errors import ConfigError, DataError
from dogmed.stats import summarize, t_interval
from dogmed.stats.seeds import seed_variance


def test_the_interval_is_that_of_scipys_t_test():
    scores = [0.81, 0.84, 0.80, 0.86]
    reference = scipy.stats.ttest_1samp(scores, 0).confidence_interval(0.9)
    assert t_interval(scores, level=0.9) == pytest.approx((reference.low, reference.high))
    summary = summarize(scores)
    assert (summary.n, summary.mean, summary.sd) == (4, np.mean(scores), np.std(scores, ddof=1))
    assert summary.interval == t_interval(scores)


def test_one_seed_has_no_spread_and_says_so():
    summary = summarize([0.8])
    assert (summary.n, summary.mean, summary.sd, summary.interval) == (1, 0.8, None, None)
    with pytest.raises(DataError, match="2 or more"):
        t_interval([0.8])


@pytest.mark.parametrize("scores", [[], [0.5, np.nan], [[0.1, 0.2]]])
def test_what_are_no_scores_is_refused(scores):
    with pytest.raises(DataError, match="finite scores"):
        summarize(scores)
    with pytest.raises(ConfigError, match="level"):
        summarize([0.1, 0.2], level=1)


def test_the_variance_of_seeds_is_freed_from_that_of_images():
    """Means of Gaussian answers (S, N): both variances are known, that between scores is their sum."""
    rng = np.random.default_rng(0)
    seeds, images, own, answers = 200, 100, 0.3, 2.0
    x = own * rng.normal(size=(seeds, 1)) + answers * rng.normal(size=(seeds, images))
    x += rng.normal(size=images)  # what all seeds find hard or easy is no difference between them
    drawn = rng.multinomial(images, np.full(images, 1 / images), size=1000)  # (R, N)
    estimate = seed_variance(x.mean(1), x @ drawn.T / images)
    assert estimate == pytest.approx(own**2, rel=0.35)  # 3 sigmas of s², over s² - v
    assert x.mean(1).var(ddof=1) == pytest.approx(own**2 + answers**2 / images, rel=0.3)


def test_seeds_that_differ_by_the_images_alone_have_no_variance_of_their_own():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 400))
    x -= x.mean(1, keepdims=True)  # the same score exactly
    drawn = rng.multinomial(400, np.full(400, 1 / 400), size=300)
    assert seed_variance(x.mean(1), x @ drawn.T / 400) == 0
    assert seed_variance(x[:1].mean(1), x[:1] @ drawn.T / 400) == 0


def test_undefined_replicates_are_left_out():
    scores, replicates = np.array([0.7, 0.9]), np.array([[0.7, np.nan, 0.7], [0.9, 0.1, 0.9]])
    assert seed_variance(scores, replicates) == pytest.approx(0.02)
    assert seed_variance(scores, np.full((2, 3), np.nan)) == pytest.approx(0.02)

"""Models over tasks: against scipy, enumeration, and the published examples of Demšar (2006)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from dogmed import stats
from dogmed.errors import ConfigError, DataError

# Demšar (2006), table 6: AUC of C4.5, with m, with cf, with both, on 14 data sets
# (one 0.975 is 0.9751 here: the paper ranks it before the other)
DEMSAR = np.array([
    [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967],
    [0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931],
    [0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875],
    [1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669],
    [0.972, 0.981, 0.9751, 0.975], [0.957, 0.978, 0.946, 0.970],
])  # fmt: skip


def test_ranks_friedman_and_critical_difference_of_the_paper():
    ranks = stats.average_ranks(DEMSAR)
    assert ranks == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    found = stats.friedman(DEMSAR)
    assert found.chi2 == pytest.approx(scipy.stats.friedmanchisquare(*DEMSAR.T).statistic)
    # the paper's 9.28 has no correction for ties: three data sets with one pair, one with all four
    ties = 1 - (3 * (2**3 - 2) + (4**3 - 4)) / (14 * (4**3 - 4))
    assert found.chi2 * ties == pytest.approx(9.28, abs=0.005)
    assert found.p_f < found.p < 0.05
    assert stats.critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert stats.critical_difference(4, 14, alpha=0.10) == pytest.approx(1.12, abs=0.005)


def test_without_ties_friedman_is_demsars_formula():
    x = np.random.default_rng(0).random((9, 5))
    tasks, models = x.shape
    ranks = stats.average_ranks(x)
    chi2 = (
        12 * tasks / (models * (models + 1)) * ((ranks**2).sum() - models * (models + 1) ** 2 / 4)
    )
    found = stats.friedman(x)
    assert found.chi2 == pytest.approx(chi2)
    assert found.f == pytest.approx((tasks - 1) * chi2 / (tasks * (models - 1) - chi2))
    assert found.p_f == pytest.approx(
        scipy.stats.f.sf(found.f, models - 1, (models - 1) * (tasks - 1))
    )


def test_models_always_in_the_same_order_and_models_alike():
    x = np.arange(4)[:, None] * 0.1 + np.arange(3)[None, :]
    assert stats.friedman(x).f == np.inf and stats.friedman(x).p_f == 0
    assert stats.friedman(np.ones((4, 3))).p == 1


def test_ranks_share_ties_and_turn_for_losses():
    x = [[0.9, 0.9, 0.1], [0.3, 0.1 + 0.2, 0.5]]
    assert stats.average_ranks(x).tolist() == [2.0, 2.0, 2.0]
    assert stats.average_ranks(x[:1], higher_is_better=False).tolist() == [2.5, 2.5, 1.0]


@pytest.mark.parametrize("tasks", [2, 5, 12, 13, 30])
def test_wilcoxon_is_that_of_scipy(tasks):
    rng = np.random.default_rng(tasks)
    a, b = rng.random(tasks), rng.random(tasks)
    found, reference = stats.wilcoxon(a, b), scipy.stats.wilcoxon(a, b, method="exact")
    smaller = min(found.plus, found.minus)
    assert (smaller, found.p) == pytest.approx((reference.statistic, reference.pvalue))
    one_sided = scipy.stats.wilcoxon(a, b, alternative="greater", method="exact")
    assert found.plus == one_sided.statistic  # scipy's W+
    assert (found.tasks, found.ties) == (tasks, 0)


def test_wilcoxon_is_exact_with_ties():
    """All signs tried: ranks of 0.1, 0.1, 0.2, 0.2, 0.4, written so that they differ in the last bit."""
    a, b = [0.3, 0.4, 0.5, 0.1, 0.9, 0.7], [0.2, 0.3, 0.3, 0.3, 0.5, 0.7]
    ranks = np.array([1.5, 1.5, 3.5, 3.5, 5])
    signs = np.array(list(itertools.product([0, 1], repeat=5)))
    plus = signs @ ranks
    found = stats.wilcoxon(a, b)
    assert (found.plus, found.minus) == (11.5, 3.5) and (found.tasks, found.ties) == (5, 1)
    assert found.p == pytest.approx(min(1, 2 * (plus <= 3.5).mean()))


def test_signed_ranks_may_say_otherwise_than_the_mean():
    """Eleven small gains and one large loss: the test is of ranks, and so is its direction."""
    gains = np.append(np.full(11, 0.25), -5.0)
    found = stats.wilcoxon(gains, np.zeros(12))
    assert gains.mean() < 0 and (found.plus, found.minus) == (66.0, 12.0)
    plus = np.array([sum(s) for s in itertools.product(*[(0, 6)] * 11, (0, 12))])
    assert found.p == pytest.approx(2 * (plus <= 12).mean()) and found.p < 0.05


@pytest.mark.parametrize("tasks", [1, 5, 6, 12])
def test_no_p_value_is_below_the_smallest(tasks):
    found = stats.wilcoxon(np.arange(1.0, tasks + 1), np.zeros(tasks))
    assert found.p == pytest.approx(found.smallest_p) and found.minus == 0


def test_wilcoxon_of_a_model_and_itself():
    found = stats.wilcoxon([0.1, 0.2], [0.1, 0.2])
    assert (found.p, found.smallest_p, found.tasks, found.ties) == (1.0, 1.0, 0, 2)


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert stats.holm([0.2]) == pytest.approx([0.2])


def test_holm_is_its_definition():
    p = np.random.default_rng(0).random(12) ** 4
    order = p.argsort()
    expected = np.minimum(np.maximum.accumulate(p[order] * np.arange(12, 0, -1)), 1)
    assert stats.holm(p)[order] == pytest.approx(expected)


@pytest.mark.parametrize(("models", "q"), [(2, 1.960), (5, 2.728), (10, 3.164)])
def test_critical_values_are_those_of_the_table(models, q):
    """Demšar, table 5 (a)."""
    tasks = 6
    expected = q * np.sqrt(models * (models + 1) / (6 * tasks))
    assert stats.critical_difference(models, tasks) == pytest.approx(expected, rel=4e-4)


def test_groups_are_the_largest_ones():
    assert stats.groups([1.0, 4.0, 1.5, 2.4], 1.0) == [(0, 2), (2, 3)]
    assert stats.groups([3.0, 1.0, 2.0], 2.0) == [(1, 2, 0)]
    assert stats.groups([1.0, 3.0], 1.0) == []
    assert stats.groups([1.5, 1.5], 0.1) == [(0, 1)]


def test_every_pair_within_the_difference_is_joined_and_no_other():
    rng = np.random.default_rng(0)
    for _ in range(50):
        ranks, width = rng.uniform(1, 8, size=8), rng.uniform(0, 4)
        found = stats.groups(ranks, width)
        joined = {frozenset(p) for group in found for p in itertools.combinations(group, 2)}
        near = {
            frozenset(p)
            for p in itertools.combinations(range(8), 2)
            if abs(ranks[p[0]] - ranks[p[1]]) <= width
        }
        assert joined == near
        assert not any(set(a) < set(b) for a, b in itertools.permutations(found, 2))


def test_wrong_input_is_refused_in_one_line():
    with pytest.raises(DataError, match="one score a task"):
        stats.wilcoxon([0.1, 0.2], [0.1])
    with pytest.raises(DataError, match="finite"):
        stats.wilcoxon([0.1, np.nan], [0.1, 0.2])
    with pytest.raises(DataError, match="3 or more models"):
        stats.friedman(np.ones((5, 2)))
    with pytest.raises(DataError, match="1 not finite"):
        stats.average_ranks([[0.1, np.nan]])
    with pytest.raises(DataError, match="from 0 to 1"):
        stats.holm([0.1, np.nan])
    with pytest.raises(DataError, match="2 or more models"):
        stats.critical_difference(1, 12)
    with pytest.raises(ConfigError, match="alpha"):
        stats.critical_difference(3, 12, alpha=5)

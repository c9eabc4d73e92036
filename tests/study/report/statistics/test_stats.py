"""Statistics against scipy, closed forms and simulation."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from basisconv.study.report.statistics import rankings, stats

nan = math.nan


def test_mean_interval_is_scipys():
    values = np.random.default_rng(0).normal(93.0, 0.2, 7)
    got = stats.mean_interval(values)
    expected = scipy_stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (got.low, got.high) == pytest.approx(tuple(expected), rel=1e-12)
    assert (got.mean, got.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert got.n == 7


def test_one_value_has_a_mean_and_no_interval():
    one = stats.mean_interval([0.5])
    assert one.mean == 0.5 and one.n == 1
    assert math.isnan(one.low) and math.isnan(one.high) and math.isnan(one.sd)


@pytest.mark.parametrize(("n_a", "n_b", "sd_b"), [(3, 3, 1.0), (10, 4, 5.0), (2, 9, 0.1)])
def test_welch_is_scipys(n_a, n_b, sd_b):
    rng = np.random.default_rng(n_a)
    a, b = rng.normal(1, 1, n_a), rng.normal(0, sd_b, n_b)
    got = stats.welch(a, b)
    expected = scipy_stats.ttest_ind(a, b, equal_var=False)
    low, high = expected.confidence_interval(0.95)
    assert got.p == pytest.approx(expected.pvalue, rel=1e-10)
    assert (got.low, got.high) == pytest.approx((low, high), rel=1e-10)
    assert got.estimate == pytest.approx(a.mean() - b.mean())
    assert (got.n_a, got.n_b) == (n_a, n_b)


def test_paired_is_scipys_and_gains_from_shared_seeds():
    rng = np.random.default_rng(1)
    seeds = rng.normal(0, 1, 8)
    a, b = seeds + rng.normal(0.3, 0.1, 8), seeds + rng.normal(0, 0.1, 8)
    got = stats.paired(a, b)
    expected = scipy_stats.ttest_rel(a, b)
    assert got.p == pytest.approx(expected.pvalue, rel=1e-10)
    assert (got.low, got.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert got.p < 0.01 < stats.welch(a, b).p


def test_the_welch_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(2)
    trials = 3000
    hits = 0
    for _ in range(trials):
        got = stats.welch(rng.normal(1.0, 1.0, 4), rng.normal(0.0, 3.0, 8))
        hits += got.low <= 1.0 <= got.high
    # Four standard errors of a coverage of 0.95, and Welch's own approximation.
    assert hits / trials == pytest.approx(0.95, abs=4 * math.sqrt(0.05 * 0.95 / trials) + 0.005)


@pytest.mark.parametrize("compare", [stats.welch, stats.paired])
def test_comparisons_of_too_few_or_constant_values(compare):
    one = compare([1.5], [1.0])
    assert one.estimate == 0.5 and one.n_a == one.n_b == 1
    assert math.isnan(one.low) and math.isnan(one.high) and math.isnan(one.p)
    same = compare([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    assert (same.estimate, same.low, same.high, same.p) == (0, 0, 0, 1)
    other = compare([2.0, 2.0], [1.0, 1.0])
    assert (other.estimate, other.low, other.high, other.p) == (1, 1, 1, 0)


def test_holm_on_a_worked_example():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, never falling: 0.04, 0.06, 0.06, 0.06.
    assert stats.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []
    with_gap = stats.holm([0.02, nan, 0.01])
    assert with_gap[::2] == pytest.approx([0.02, 0.02]) and math.isnan(with_gap[1])


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    """Holm is Bonferroni's test of every intersection that holds the hypothesis (Marcus, 1976)."""
    n = len(p_values)
    adjusted = [
        max(
            min(1.0, size * min(p_values[j] for j in group))
            for size in range(1, n + 1)
            for group in combinations(range(n), size)
            if i in group
        )
        for i in range(n)
    ]
    assert stats.holm(p_values) == pytest.approx(adjusted)


def test_tost_is_scipys_two_one_sided_tests():
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.0, 0.2, 9), rng.normal(0.05, 0.1, 6)
    lower = scipy_stats.ttest_ind(a, b - 0.2, equal_var=False, alternative="greater").pvalue
    upper = scipy_stats.ttest_ind(a, b + 0.2, equal_var=False, alternative="less").pvalue
    assert stats.tost(a, b, 0.2) == pytest.approx(max(lower, upper), rel=1e-10)
    assert stats.tost(a, b, 0.2) == stats.tost(b, a, 0.2)
    assert math.isnan(stats.tost([1.0], [1.0, 2.0], 0.2))
    assert math.isnan(stats.smallest_margin([1.0], [1.0, 2.0]))


def test_tost_keeps_its_size_at_the_margin():
    # The worst case of "not equivalent": the means differ by just the margin.
    rng = np.random.default_rng(4)
    trials = 4000
    passed = sum(
        stats.tost(rng.normal(0.2, 0.15, 10), rng.normal(0.0, 0.15, 10), 0.2) <= 0.05
        for _ in range(trials)
    )
    assert passed / trials == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / trials))


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.3])
def test_smallest_margin_is_where_tost_passes(alpha):
    rng = np.random.default_rng(5)
    a, b = rng.normal(0.1, 0.2, 5), rng.normal(0.0, 0.1, 7)
    margin = stats.smallest_margin(a, b, alpha)
    assert stats.tost(a, b, margin) == pytest.approx(alpha, rel=1e-8)


@pytest.mark.parametrize(("sd", "about"), [(0.15, 10), (0.25, 27), (0.4, 69)])
def test_seeds_needed_gives_the_power_that_it_promises(sd, about):
    """For a margin of 0.2; `about` is the normal approximation, which knows the sd."""
    n = stats.seeds_needed(sd, 0.2)
    assert about <= n <= about + 1
    rng = np.random.default_rng(6)
    trials = 4000

    def power(runs: int) -> float:
        a, b = rng.normal(0, sd, (2, trials, runs))
        error = np.sqrt((a.var(1, ddof=1) + b.var(1, ddof=1)) / runs)
        limit = 0.2 - scipy_stats.t.ppf(0.95, 2 * runs - 2) * error
        return float((np.abs(a.mean(1) - b.mean(1)) < limit).mean())

    noise = 4 * math.sqrt(0.8 * 0.2 / trials)
    assert power(n) > 0.8 - noise
    assert power(n - 1) < 0.8 + noise
    assert stats.seeds_needed(1e-6, 0.2) == 2


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_spearman_is_scipys_with_ties(pairs):
    x, y = (list(values) for values in zip(*pairs, strict=True))
    got = rankings.spearman(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(got)
    else:
        assert got == pytest.approx(scipy_stats.spearmanr(x, y).statistic)


def test_reliability_foretells_the_agreement_with_another_sweep():
    """Layers' true sd 0.1 and runs' sd 0.15: 0.28 between single seeds, 0.77 for ten of them."""
    rng = np.random.default_rng(7)
    found, single, mean, true = [], [], [], []
    for _ in range(150):
        layers = rng.normal(0, 0.1, 20)
        sweep, other = layers + rng.normal(0, 0.15, (2, 10, 20))
        found.append(rankings.reliability(sweep, halvings=20))
        single.append(rankings.spearman(sweep[0], other[0]))
        mean.append(rankings.spearman(sweep.mean(0), other.mean(0)))
        true.append(rankings.spearman(sweep.mean(0), layers))
    assert np.mean(single) == pytest.approx(0.28, abs=0.05)
    assert np.mean(mean) == pytest.approx(0.78, abs=0.03)
    assert np.mean([r.reliability for r in found]) == pytest.approx(np.mean(mean), abs=0.02)
    # The true ranking is the perfect predictor.
    assert np.mean([r.ceiling for r in found]) == pytest.approx(np.mean(true), abs=0.02)


def test_reliability_of_an_odd_number_of_seeds_by_hand():
    scores = np.random.default_rng(8).normal(0, 1, (3, 6)) + np.arange(6)
    rho = [
        scipy_stats.spearmanr(scores[i], scores[j]).statistic for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    got = rankings.reliability(scores)
    assert got.halves == pytest.approx(np.mean(rho))
    assert got.reliability == pytest.approx(3 * np.mean(rho) / (1 + 2 * np.mean(rho)))
    assert got.ceiling == pytest.approx(math.sqrt(got.reliability))


def test_reliability_averages_over_every_halving_once():
    scores = np.random.default_rng(9).normal(0, 1, (4, 5)) + np.arange(5)
    rho = [
        scipy_stats.spearmanr(scores[list(a)].mean(0), scores[list(b)].mean(0)).statistic
        for a, b in (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))
    ]
    assert rankings.reliability(scores).halves == pytest.approx(np.mean(rho))


def test_the_interval_of_a_reliability_holds_what_other_layers_would_give():
    """Sweeps of new layers each time: most intervals hold the mean estimate; of few, wide ones."""
    rng = np.random.default_rng(5)

    def sweeps(layers):
        for _ in range(40):
            yield rng.normal(size=layers) + rng.normal(scale=1.5, size=(4, layers))

    intervals = {n: [rankings.reliability_interval(s, 200) for s in sweeps(n)] for n in (8, 20)}
    for found in intervals.values():
        middle = np.mean([b.estimate for b in found])
        assert 0.8 < np.mean([b.low <= middle <= b.high for b in found])
    width = {n: np.mean([b.high - b.low for b in found]) for n, found in intervals.items()}
    assert 0.1 < width[20] < 0.8 * width[8]


def test_reliability_at_the_edges():
    ranks = np.arange(5.0)
    assert rankings.reliability([ranks, ranks, ranks]) == pytest.approx((1, 1, 1))
    opposed = rankings.reliability([ranks, -ranks])
    assert opposed == pytest.approx((-1, 0, 0))
    assert all(math.isnan(value) for value in rankings.reliability([ranks]))
    assert all(math.isnan(value) for value in rankings.reliability(np.ones((4, 5))))
    many = np.random.default_rng(10).normal(0, 1, (20, 4))
    assert rankings.reliability(many) == rankings.reliability(many)


def test_the_bootstrap_interval_of_a_mean_is_near_the_normal_one():
    x = np.random.default_rng(11).normal(5.0, 2.0, 200)
    got = rankings.bootstrap(np.mean, x, resamples=10_000)
    error = x.std() / math.sqrt(len(x))
    assert got.estimate == pytest.approx(x.mean())
    assert (got.low, got.high) == pytest.approx(
        (x.mean() - 1.96 * error, x.mean() + 1.96 * error), abs=0.15 * error
    )


def test_the_bootstrap_draws_whole_seeds_and_always_the_same_ones():
    scores = np.arange(12.0).reshape(4, 3)
    rows = set()

    def spy(table):
        rows.update(map(tuple, table))
        return rankings.spearman(table.mean(0), [0, 1, 2])

    first = rankings.bootstrap(spy, scores, resamples=50)
    assert rows == set(map(tuple, scores))
    assert first == (1, 1, 1)
    random = np.random.default_rng(12).normal(0, 1, (5, 6))
    assert rankings.bootstrap(np.max, random, seed=1) == rankings.bootstrap(np.max, random, seed=1)
    assert rankings.bootstrap(np.mean, random, seed=1) != rankings.bootstrap(
        np.mean, random, seed=2
    )
    one = rankings.bootstrap(np.mean, random[:1])
    assert one.estimate == random[0].mean() and math.isnan(one.low) and math.isnan(one.high)
    none = rankings.bootstrap(lambda table: nan, random, resamples=5)
    assert all(math.isnan(value) for value in none)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.mean_interval([]), "non-empty"),
        (lambda: stats.mean_interval([1.0, nan]), "finite"),
        (lambda: stats.welch([1.0, math.inf], [1.0]), "a must be"),
        (lambda: stats.welch([1.0], []), "b must be"),
        (lambda: stats.paired([1.0, 2.0], [1.0]), "equal lengths, not 2 and 1"),
        (lambda: stats.holm([0.1, 1.1]), r"\[0, 1\]"),
        (lambda: stats.tost([1.0, 2.0], [1.0, 2.0], 0.0), "margin=0.0"),
        (lambda: stats.smallest_margin([1.0, 2.0], [1.0, 2.0], alpha=0.0), "alpha=0.0"),
        (lambda: stats.seeds_needed(-0.1, 0.2), "sd=-0.1"),
        (lambda: stats.seeds_needed(0.1, nan), "margin=nan"),
        (lambda: rankings.spearman([1.0], [1.0, 2.0]), "equal lengths"),
        (lambda: rankings.reliability([[1.0], [2.0]]), r"at least 2 layers.*\(2, 1\)"),
        (lambda: rankings.reliability([1.0, 2.0]), r"\(seeds, layers\)"),
        (lambda: rankings.reliability([[1.0, nan]]), "finite"),
        (lambda: rankings.bootstrap(np.mean, []), "at least one row"),
        (lambda: rankings.bootstrap(np.mean, [1.0, nan]), "finite"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_interval_of_a_standard_deviation_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(1)
    found = [stats.sd_interval(rng.normal(5, 2, 4)) for _ in range(4000)]
    assert np.mean([low <= 2 <= high for _, low, high, _ in found]) == pytest.approx(
        0.95, abs=0.015
    )
    one = found[0]
    assert one.low < one.sd < one.high and one.n == 4


def test_the_interval_of_a_standard_deviation_at_the_edges():
    alone = stats.sd_interval([3.0])
    assert math.isnan(alone.sd) and math.isnan(alone.low) and alone.n == 1
    assert stats.sd_interval([2.0, 2.0, 2.0])[:3] == (0, 0, 0)
    # Two values a unit apart: sd is 1/√2, and (n - 1) sd² / χ² has one degree of freedom.
    got = stats.sd_interval([0.0, 1.0])
    z = scipy_stats.norm.ppf([0.5 + 0.975 / 2, 0.5 + 0.025 / 2])  # χ² of one degree is z²
    assert (got.low, got.high) == pytest.approx(tuple(math.sqrt(0.5) / z))


@pytest.mark.parametrize(("trust", "seeds"), [(0.3, 4), (0.55, 2), (0.9, 8), (0.7, 4)])
def test_the_seeds_that_a_sweep_needs_are_the_fewest_that_step_up_to_it(trust, seeds):
    def stepped(count):
        one = trust / (seeds - (seeds - 1) * trust)  # a single seed's, by Spearman-Brown
        return count * one / (1 + (count - 1) * one)

    needed = rankings.seeds_for(trust, seeds, 0.7)
    assert stepped(needed) >= 0.7 - 1e-9
    assert needed == 1 or stepped(needed - 1) < 0.7


def test_no_number_of_seeds_makes_noise_a_ranking():
    assert rankings.seeds_for(0.0, 4, 0.7) == math.inf
    assert math.isnan(rankings.seeds_for(nan, 4, 0.7))
    assert rankings.seeds_for(1.0, 4, 0.7) == 1
    with pytest.raises(ValueError, match="wanted"):
        rankings.seeds_for(0.5, 4, 1.0)

"""Across lengths: REML with Satterthwaite's df against published output, MixedLM and simulation."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import special, stats
from statsmodels.regression.mixed_linear_model import MixedLM

from basisconv.study.report.statistics.linear_models import fit_blocks
from basisconv.study.report.statistics.mixed_models import fit_lengths, points


def fit(logits, equal_variances=None, budgets=(1.0, 2.0, 4.0)):
    """Of logits (budgets, arms, seeds); arms are "0", "1", ...; NaN: no such run."""
    rows = [
        (special.expit(value), str(i), budgets[j], k)
        for (j, i, k), value in np.ndenumerate(logits)
        if not np.isnan(value)
    ]
    return fit_lengths(*(list(column) for column in zip(*rows, strict=True)), equal_variances)


def simulated(rng, budgets=3, arms=3, seeds=4, block=0.2, sd=0.05):
    """Logits around 1 without any effect; sd may be one for each budget."""
    noise = rng.normal(size=(budgets, arms, seeds)) * np.reshape(sd, (-1, 1, 1))
    return 1 + noise + rng.normal(0, block, (budgets, 1, seeds))


def near(share, trials):
    return pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / trials))


def potted_plants():
    """Logits with the sufficient statistics of lmerTest's potdata, in tenths.

    `lmer(biomass ~ CO2*nutrients + (1|chamber))` in that package's own tests: 6 nutrients in 4
    chambers of 2 levels of CO2, variances 0.2437 of chambers and 1.5797 of the residual. Cell
    means, and what runs and chambers scatter around them, decide all that is compared.
    """
    run, chamber = 1.5797, 0.2437
    rng = np.random.default_rng(0)
    cells = 12.85 + np.array([0, 7.35, 10.45, 18.65, 25.05, 29.0]) + np.array([[0.0], [2.0]])
    within = rng.normal(size=(2, 6, 2))
    within -= within.mean(1, keepdims=True)
    within -= within.mean(2, keepdims=True)
    within *= np.sqrt(10 * run / (within**2).sum())
    between = np.array([1, -1]) * np.sqrt((run + 6 * chamber) / 12)
    return (cells[:, :, None] + within + between) / 10


def test_lmertests_published_output():
    found = fit(potted_plants(), equal_variances=True, budgets=(350.0, 675.0))
    assert found.variances(350.0) == pytest.approx((0.015797, 0.002437), rel=1e-6)
    intercept = found.mean("0", 350.0)
    assert 10 * intercept.estimate == pytest.approx(12.85)
    assert 10 * intercept.error == pytest.approx(0.9548, abs=5e-5)
    assert intercept.df == pytest.approx(11.0163, abs=2e-3)  # of variances with four digits
    co2 = found.difference(("0", 675.0), ("0", 350.0))
    assert (10 * co2.estimate, co2.df) == pytest.approx((2.0, 11.0163), abs=2e-3)
    assert 10 * co2.error == pytest.approx(1.3503, abs=5e-5)
    assert co2.p == pytest.approx(0.166595, abs=2e-4)
    nutrients = found.gap("1", "0", 350.0)
    assert (10 * nutrients.estimate, nutrients.df) == pytest.approx((7.35, 10))
    assert 10 * nutrients.error == pytest.approx(1.2568, abs=1e-4)
    assert nutrients.p == pytest.approx(0.000162, abs=5e-7)
    interaction = found.trend("1", "0")
    assert interaction.error * math.log2(675 / 350) * 10 == pytest.approx(1.7775, abs=1.5e-4)


def test_an_unbalanced_fit_is_mixedlms():
    rng = np.random.default_rng(1)
    y = simulated(rng, seeds=6) + np.arange(3.0)[:, None, None] / 2
    y[rng.random(y.shape) < 0.2] = np.nan
    found = fit(y, equal_variances=True)
    rows = [(j, i, k, value) for (j, i, k), value in np.ndenumerate(y) if not np.isnan(value)]
    cells = sorted({(j, i) for j, i, _, _ in rows})
    design = np.array([[float((j, i) == cell) for cell in cells] for j, i, _, _ in rows])
    groups = [f"{j}:{k}" for j, _, k, _ in rows]
    values = np.array([value for *_, value in rows])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = MixedLM(values, design, groups).fit(reml=True)
    assert found.variances(1.0) == pytest.approx((peer.scale, float(peer.cov_re[0, 0])), rel=1e-3)
    same = np.equal.outer(groups, groups)
    v = peer.scale * np.eye(len(values)) + float(peer.cov_re[0, 0]) * same
    covariance = np.linalg.inv(design.T @ np.linalg.solve(v, design))
    for j, budget in enumerate((1.0, 2.0, 4.0)):
        c = np.array([(cell == (j, 1)) - float(cell == (j, 0)) for cell in cells])
        got = found.gap("1", "0", budget)
        assert got.estimate == pytest.approx(c @ peer.fe_params, rel=1e-3)
        assert got.error == pytest.approx(math.sqrt(c @ covariance @ c), rel=1e-3)


def test_within_a_budget_the_gap_is_that_of_fixed_blocks():
    """Whatever the blocks' variance is fitted as, even below 0, where nothing is missing."""
    rng = np.random.default_rng(2)
    for block in (0.0, 0.0, 0.0, 0.3):
        y = simulated(rng, budgets=1, block=block)
        rows = [(value, str(i), k) for (_, i, k), value in np.ndenumerate(y)]
        fixed = fit_blocks(*zip(*rows, strict=True), True).contrast("0", "2")
        assert fit(y).gap("0", "2", 1.0) == pytest.approx(fixed, rel=1e-5)


def test_budgets_with_variances_of_their_own_are_fitted_one_by_one():
    y = simulated(np.random.default_rng(3), sd=[0.2, 0.05, 0.01])
    found = fit(y, equal_variances=False)
    alone = fit(y[1:2], budgets=(2.0,))
    assert found.gap("0", "1", 2.0) == pytest.approx(alone.gap("0", "1", 2.0))
    gaps = [found.gap("0", "1", t) for t in (1.0, 2.0, 4.0)]
    trend = found.trend("0", "1")
    # x - mean(x) is -1, 0, 1: the slope is half the last gap less the first.
    assert trend.estimate == pytest.approx((gaps[2].estimate - gaps[0].estimate) / 2)
    v = [gaps[0].error ** 2 / 4, gaps[2].error ** 2 / 4]
    assert trend.error == pytest.approx(math.sqrt(sum(v)))
    # Welch and Satterthwaite's formula for two independent variances.
    assert trend.df == pytest.approx(sum(v) ** 2 / (v[0] ** 2 / 6 + v[1] ** 2 / 6), rel=1e-5)


def test_budgets_of_one_arm_are_compared_by_welchs_test():
    rng = np.random.default_rng(13)
    a, b = rng.normal(1, 0.3, 5), rng.normal(1.2, 0.1, 3)
    y = np.full((2, 1, 5), np.nan)
    y[0, 0], y[1, 0, :3] = a, b
    found = fit(y, equal_variances=False, budgets=(1.0, 2.0))
    got = found.difference(("0", 1.0), ("0", 2.0))
    expected = stats.ttest_ind(a, b, equal_var=False)
    assert (got.p, got.df) == pytest.approx((expected.pvalue, expected.df))
    assert (got.low, got.high) == pytest.approx(tuple(expected.confidence_interval()))
    pooled = fit(y, equal_variances=True, budgets=(1.0, 2.0)).difference(("0", 1.0), ("0", 2.0))
    assert pooled.p == pytest.approx(stats.ttest_ind(a, b).pvalue)
    mean = found.mean("0", 2.0)
    assert (mean.low, mean.high) == pytest.approx(
        tuple(stats.ttest_1samp(b, 0).confidence_interval())
    )
    assert math.isnan(found.variances(1.0).run)


def test_a_balanced_trend_is_the_analysis_of_variances():
    y = simulated(np.random.default_rng(4))
    got = fit(y, equal_variances=True).trend("1", "0", confidence=0.9)
    means = y.mean(2)
    e = y - y.mean(1, keepdims=True) - means[:, :, None] + means.mean(1)[:, None, None]
    square = (e**2).sum() / (3 * 2 * 3)
    slope = ((means[2, 1] - means[2, 0]) - (means[0, 1] - means[0, 0])) / 2
    error = math.sqrt(2 * (1 / 4 + 1 / 4) * square / 4)
    assert (got.estimate, got.error, got.df) == pytest.approx((slope, error, 18), rel=1e-5)
    half = stats.t.ppf(0.95, 18) * error
    assert (got.low, got.high) == pytest.approx((slope - half, slope + half), rel=1e-5)
    assert got.n == 12


@pytest.mark.parametrize("block", [0.0, 0.3])
def test_intervals_cover_as_often_as_they_say(block):
    rng, trials, hits = np.random.default_rng(5), 250, np.zeros(4)
    for _ in range(trials):
        y = simulated(rng, block=block)
        y[0, 0, 0] = y[2, 1, 3] = np.nan
        found = fit(y, equal_variances=True)
        got = (
            found.gap("0", "1", 1.0),
            found.gap("0", "1"),
            found.trend("0", "1"),
            found.difference(("0", 1.0), ("0", 2.0)),
        )
        hits += [c.low <= 0 <= c.high for c in got]
    assert (hits / trials).tolist() == [near(0.95, trials)] * 4


def test_where_one_budget_is_noisy_levenes_test_finds_it():
    rng, trials, found, own, pooled = np.random.default_rng(6), 150, 0, 0, 0
    for _ in range(trials):
        y = simulated(rng, seeds=6, sd=[0.3, 0.05, 0.05])
        by_test = fit(y)
        found += not by_test.equal_variances
        a, b = by_test.gap("0", "1", 1.0), fit(y, True).gap("0", "1", 1.0)
        own, pooled = own + (a.low <= 0 <= a.high), pooled + (b.low <= 0 <= b.high)
    assert found > 0.9 * trials
    assert own / trials == near(0.95, trials)
    assert pooled / trials < 0.85


def test_a_planted_trend_is_found_with_its_sign_and_per_doubling():
    rng = np.random.default_rng(7)
    y = simulated(rng, sd=0.02)
    y[:, 1] += np.array([0.0, 0.1, 0.2])[:, None]  # 0.1 per doubling
    found = fit(y)
    got = found.trend("1", "0")
    assert got.low < 0.1 < got.high and got.p < 1e-4
    assert found.trend("0", "1").estimate == pytest.approx(-got.estimate)
    # In a factor of ten per budget it is less per doubling.
    slower = fit(y, budgets=(1.0, 10.0, 100.0)).trend("1", "0")
    assert slower.estimate == pytest.approx(got.estimate / math.log2(10))
    flat = simulated(rng, sd=0.02)
    flat[:, 1] += 0.5
    assert fit(flat).trend("1", "0").p > 0.01 > fit(flat).gap("1", "0").p


def test_without_the_block_a_planted_gap_is_lost():
    rng, trials, blocked, ignored = np.random.default_rng(8), 60, 0, 0
    for _ in range(trials):
        y = simulated(rng, block=0.5)
        y[:, 1] += 0.1
        blocked += fit(y).gap("1", "0").p < 0.05
        ignored += stats.ttest_ind(y[:, 1].ravel(), y[:, 0].ravel()).pvalue < 0.05
    assert blocked > 0.9 * trials > 0.2 * trials > ignored


def test_points_are_the_gap_at_the_rivals_accuracy():
    gap = fit(simulated(np.random.default_rng(9)) + np.array([[0.3], [0.0], [0.0]])).gap("0", "1")
    got = points(gap, 0.9)
    for there, back in zip(got[:1] + got[3:5], gap[:1] + gap[3:5], strict=True):
        assert special.logit(0.9 + there / 100) - special.logit(0.9) == pytest.approx(back)
    assert (got.p, got.df, got.n) == (gap.p, gap.df, gap.n)
    assert got.error == pytest.approx(
        (got.high - got.low) / (gap.high - gap.low) * gap.error, rel=0.1
    )
    # The same gap is worth more points in the middle.
    assert points(gap, 0.5).estimate > points(gap, 0.9).estimate > points(gap, 0.99).estimate > 0


def test_too_few_shared_seeds_are_a_gap_and_never_a_number():
    y = simulated(np.random.default_rng(10))
    y[0, 0, 1:] = np.nan
    found = fit(y, True)
    for got in (found.gap("0", "1", 1.0), found.gap("0", "1"), found.trend("0", "1")):
        assert math.isfinite(got.estimate) and math.isnan(got.error) and math.isnan(got.p)
    assert found.gap("0", "1", 1.0).n == 1 and found.mean("0", 1.0).n == 1
    assert math.isnan(found.mean("0", 1.0).p)
    assert found.gap("0", "1", 2.0).p > 0 and found.gap("1", "2").p > 0
    one_budget = fit(y[1:2], budgets=(2.0,)).trend("0", "1")
    assert all(math.isnan(x) for x in one_budget[:6])
    one_seed = fit(simulated(np.random.default_rng(11), seeds=1))
    assert math.isnan(one_seed.variances(1.0).run) and math.isnan(one_seed.gap("0", "1").p)


def test_runs_that_agree_exactly_have_no_test():
    flat = np.broadcast_to(np.array([0.5, 1.0])[:, None], (3, 2, 4)).copy()
    got = fit(flat).gap("1", "0")
    assert got.estimate == pytest.approx(0.5) and math.isnan(got.p)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_lengths([1.0], ["a"], [1.0], [0]), r"in \(0, 1\)"),
        (lambda: fit_lengths([92.0], ["a"], [1.0], [0]), r"in \(0, 1\)"),
        (lambda: fit_lengths([0.5], ["a"], [0.0], [0]), "budget above 0"),
        (lambda: fit_lengths([0.5], ["a"], [1.0, 2.0], [0]), "budget above 0"),
        (lambda: fit_lengths([0.5, 0.6], ["a", "a"], [1.0, 1.0], [0, 0]), "given twice"),
        (lambda: fit_lengths([0.5], ["a"], [1.0], []), "1 arms and 0 seeds"),
        (lambda: two().gap("0", "7"), "no budget in common"),
        (lambda: two().gap("0", "1", 3.0), "No run of '0' at budget 3.0"),
        (lambda: two().gap("0", "0"), "two arms"),
        (lambda: two().difference(("0", 1.0), ("1", 1.0)), "of one budget"),
        (lambda: two().trend("0", "1", confidence=0.0), "confidence=0.0"),
        (lambda: points(two().gap("0", "1"), 1.0), "accuracy=1.0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def two():
    return fit(simulated(np.random.default_rng(12)))

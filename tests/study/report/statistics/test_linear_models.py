"""One length: the model with seeds as blocks against textbooks, scipy and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from basisconv.study.report.statistics import linear_models
from basisconv.study.report.statistics.linear_models import contrast_of, fit_blocks

# Montgomery, Design and Analysis of Experiments: hardness by four tips on each of four coupons.
TIPS = {"1": (-2, -1, 1, 5), "2": (-1, -2, 3, 4), "3": (-3, -1, 0, 2), "4": (2, 1, 5, 7)}
# The same book: reaction time of four catalysts, three of them on each of four batches.
CATALYSTS = {
    "1": {0: 73, 1: 74, 3: 71},
    "2": {1: 75, 2: 67, 3: 72},
    "3": {0: 73, 1: 75, 2: 68},
    "4": {0: 75, 2: 72, 3: 75},
}  # fmt: skip


def fit(table, equal_variances=None):
    """Of a dict of arms, each a dict of values by seed or a sequence of them."""
    rows = [
        (value, arm, seed)
        for arm, values in table.items()
        for seed, value in (values if isinstance(values, dict) else dict(enumerate(values))).items()
    ]
    return fit_blocks(*zip(*rows, strict=True), equal_variances)


def simulated(rng, arms, seeds, shift=0.0, block=2.0, sd=1.0):
    noise = rng.normal(size=(arms, seeds)) * np.reshape(sd, (-1, 1)) + rng.normal(0, block, seeds)
    noise[0] += shift
    return {str(i): list(row) for i, row in enumerate(noise)}


def near(share, trials):
    """Four standard errors of a coverage."""
    return pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / trials))


def test_the_textbooks_randomised_complete_blocks():
    """Its table: error sum of squares 8.00 with 9 degrees of freedom."""
    found = fit(TIPS)
    assert (found.sd**2, found.df) == pytest.approx((8 / 9, 9))
    got = found.contrast("4", "1")
    assert got.estimate == pytest.approx(3.75 - 0.75)
    assert got.error == pytest.approx(math.sqrt(2 * 8 / 9 / 4))
    assert got.n == 4
    half = stats.t.ppf(0.975, 9) * got.error
    assert (got.low, got.high) == pytest.approx((3 - half, 3 + half))
    assert got.p == pytest.approx(2 * stats.t.sf(3 / got.error, 9))


def test_the_textbooks_balanced_incomplete_blocks():
    """Its effects -9/8, -7/8, -4/8 and 20/8, error mean square 0.65; p of catalysts by SAS."""
    found = fit(CATALYSTS)
    assert (found.sd**2, found.df) == pytest.approx((0.65, 5))
    effects = {"1": -9 / 8, "2": -7 / 8, "3": -4 / 8, "4": 20 / 8}
    for a in effects:
        for b in effects.keys() - {a}:
            got = found.contrast(a, b)
            assert got.estimate == pytest.approx(effects[a] - effects[b])
            # √(2 k MS / (λ a)), for blocks of k = 3 of a = 4, λ = 2 blocks for each pair
            assert got.error == pytest.approx(math.sqrt(2 * 3 * 0.65 / (2 * 4)))
            assert got.n == 2
    pairs = [("1", "4"), ("2", "4"), ("3", "4")]
    d = np.array([found.contrast(*pair).estimate for pair in pairs])
    f = d @ np.linalg.solve(found.covariance(pairs), d) / 3
    assert stats.f.sf(f, 3, 5) == pytest.approx(0.0107, abs=5e-5)


def test_two_arms_are_the_paired_t_test_over_shared_seeds():
    rng = np.random.default_rng(0)
    a, b = rng.normal(92, 1, 6), rng.normal(91, 1, 6)
    table = {"a": dict(enumerate(a)), "b": dict(enumerate(b))}
    # A seed that one arm alone has says nothing of their difference.
    table["a"][10], table["b"][11] = 50.0, 99.0
    got = fit(table).contrast("a", "b", confidence=0.9)
    expected = stats.ttest_rel(a, b)
    assert (got.estimate, got.p) == pytest.approx((np.mean(a - b), expected.pvalue))
    assert (got.low, got.high) == pytest.approx(tuple(expected.confidence_interval(0.9)))
    assert (got.df, got.n) == (5, 6)


def test_arms_swapped_swap_the_sign():
    found = fit(CATALYSTS)
    one, other = found.contrast("4", "2"), found.contrast("2", "4")
    assert one.estimate == pytest.approx(-other.estimate) and one.estimate > 0
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert one.p == pytest.approx(other.p)


@pytest.mark.parametrize("missing", [0, 4])
def test_intervals_cover_as_often_as_they_say(missing):
    rng, trials, hits = np.random.default_rng(1), 600, 0
    for _ in range(trials):
        table = simulated(rng, arms=4, seeds=4, shift=0.7)
        kept = {arm: dict(enumerate(values)) for arm, values in table.items()}
        for i in range(missing):
            del kept[str(i)][i]
        got = fit(kept).contrast("0", "1")
        hits += got.low <= 0.7 <= got.high
    assert hits / trials == near(0.95, trials)


def test_without_the_block_a_planted_effect_is_lost():
    rng, trials, blocked, ignored = np.random.default_rng(2), 200, 0, 0
    for _ in range(trials):
        table = simulated(rng, arms=3, seeds=5, shift=3.0, block=5.0)
        blocked += fit(table, True).contrast("0", "1").p < 0.05
        ignored += stats.ttest_ind(table["0"], table["1"]).pvalue < 0.05
    assert blocked > 0.9 * trials > 0.3 * trials > ignored


def test_a_noisy_arm_has_its_contrasts_from_its_pair_alone():
    rng, trials, own, pooled, found = np.random.default_rng(3), 400, 0, 0, 0
    for _ in range(trials):
        table = simulated(rng, arms=6, seeds=10, sd=[4, 1, 1, 1, 1, 1])
        by_test, by_force = fit(table), fit(table, equal_variances=True)
        found += not by_test.equal_variances
        a, b = by_test.contrast("0", "1"), by_force.contrast("0", "1")
        own, pooled = own + (a.low <= 0 <= a.high), pooled + (b.low <= 0 <= b.high)
    assert found > 0.9 * trials
    assert own / trials == near(0.95, trials)
    assert pooled / trials < 0.85
    alone = fit({arm: table[arm] for arm in ("0", "1")})
    assert fit(table, equal_variances=False).contrast("0", "1") == pytest.approx(
        alone.contrast("0", "1")
    )


def test_too_few_shared_seeds_are_a_gap_and_never_a_number():
    one = fit({"a": {0: 1.0, 1: 2.0}, "b": {1: 1.5, 2: 1.0}, "c": {0: 1.0, 1: 1.2, 2: 3.0}})
    got = one.contrast("a", "b")
    assert got.n == 1 and math.isfinite(got.estimate)
    assert all(math.isnan(x) for x in (got.error, got.df, got.low, got.high, got.p))
    assert one.contrast("a", "c").p > 0
    single = fit({"a": {0: 1.0}, "b": {0: 1.5}}).contrast("a", "b")
    assert (single.estimate, single.n) == (-0.5, 1) and math.isnan(single.p)
    apart = fit({"a": {0: 1.0, 1: 2.0}, "b": {2: 1.5, 3: 1.0}})
    assert apart.contrast("a", "b").n == 0 and math.isnan(apart.contrast("a", "b").estimate)
    with pytest.raises(ValueError, match="chain of shared seeds"):
        apart.covariance([("a", "b")])


def test_two_seeds_say_nothing_of_unequal_variances():
    found = fit(simulated(np.random.default_rng(6), arms=4, seeds=2, sd=[9, 1, 1, 1]))
    assert math.isnan(found.levene_p) and found.equal_variances


def test_runs_that_agree_exactly_have_no_test():
    got = fit({"a": [0.7, 0.8, 0.9], "b": [0.6, 0.7, 0.8]}).contrast("a", "b")
    assert got.estimate == pytest.approx(0.1) and math.isnan(got.p) and got.n == 3


def test_a_disconnected_arm_changes_nothing_but_the_pooled_residual():
    rng = np.random.default_rng(5)
    table = {arm: dict(enumerate(rng.normal(size=4))) for arm in "ab"}
    other = {arm: dict(enumerate(rng.normal(size=3), start=50)) for arm in "cd"}
    apart, both = fit(table), fit(table | other, equal_variances=True)
    assert both.contrast("a", "b").estimate == pytest.approx(apart.contrast("a", "b").estimate)
    assert (apart.df, both.df) == (3, 5)
    assert math.isnan(both.contrast("a", "c").estimate)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_blocks([], [], []), "non-empty"),
        (lambda: fit_blocks([1.0, math.nan], ["a", "b"], [0, 0]), "finite"),
        (lambda: fit_blocks([1.0], ["a", "b"], [0]), "1 values have 2 arms and 1 seeds"),
        (lambda: fit_blocks([1.0, 2.0], ["a", "a"], [0, 0]), "given twice"),
        (lambda: fit(TIPS).contrast("4", "5"), "'5' is none of the model's arms"),
        (lambda: fit(TIPS).contrast("4", "4"), "two arms"),
        (lambda: fit(TIPS).contrast("4", "1", confidence=95), "confidence=95"),
        (lambda: contrast_of(1.0, 1.0, 3, 4, confidence=1.0), "confidence=1.0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("arms", "seeds"), [(6, 3), (4, 4)])
def test_levenes_test_holds_its_level_with_few_seeds_and_sees_large_differences(
    arms: int, seeds: int
) -> None:
    i, j = (grid.ravel() for grid in np.indices((arms, seeds)))
    design, _ = linear_models._design(i, j)
    stream = np.random.default_rng(1)
    noise = stream.standard_normal((400, arms * seeds))

    def share(rows: np.ndarray) -> float:
        rows = rows - rows @ np.linalg.pinv(design).T @ design.T
        return float(np.mean([linear_models.levene(row, design, i) < 0.05 for row in rows]))

    assert share(noise) < 0.09  # of 400 at 0.05, 36 or more have a chance of 0.05 %
    assert share(noise * np.where(i == 0, 20.0, 1.0)) > 0.2

"""Dunnett's test against his table, scipy's and simulation with blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from basisconv.study.report.statistics.families import many_to_one, versus
from basisconv.study.report.statistics.linear_models import fit_blocks
from basisconv.study.report.statistics.stats import holm


def fit(table, equal_variances=None):
    rows = [(v, arm, k) for arm, values in table.items() for k, v in enumerate(values)]
    rows = [row for row in rows if not np.isnan(row[0])]
    return fit_blocks(*zip(*rows, strict=True), equal_variances)


def simulated(rng, arms, seeds, block=2.0, sd=1.0):
    noise = rng.normal(size=(arms, seeds)) * np.reshape(sd, (-1, 1)) + rng.normal(0, block, seeds)
    return {str(i): list(row) for i, row in enumerate(noise)}


@pytest.mark.parametrize(
    ("k", "df", "critical"),
    [(1, 5, 2.57), (2, 5, 3.03), (3, 6, 3.10), (2, 10, 2.57), (3, 10, 2.76), (2, 20, 2.38)],
)
def test_the_critical_values_of_dunnetts_table(k, df, critical):
    """Two-sided at 5 %, with groups of one size: a correlation of one half (Dunnett, 1964)."""
    covariance = np.full((k, k), 0.5) + 0.5 * np.eye(k)
    _, got = many_to_one([0.0] * k, covariance, df)
    assert got == pytest.approx(critical, abs=0.006)


def test_without_blocks_it_is_scipys():
    rng = np.random.default_rng(0)
    control, groups = rng.normal(0, 1, 6), [rng.normal(m, 1, n) for m, n in ((0.5, 5), (1.5, 4))]
    expected = stats.dunnett(*groups, control=control, random_state=rng)
    df = sum(map(len, groups)) + 6 - 3
    square = sum(((x - x.mean()) ** 2).sum() for x in (*groups, control)) / df
    covariance = square * (np.diag([1 / len(x) for x in groups]) + 1 / 6)
    p, critical = many_to_one([x.mean() - control.mean() for x in groups], covariance, df)
    assert p == pytest.approx(expected.pvalue, abs=1e-3)
    interval = expected.confidence_interval()
    assert [
        x.mean() - control.mean() - critical * math.sqrt(v)
        for x, v in zip(groups, covariance.diagonal(), strict=True)
    ] == pytest.approx(interval.low, abs=0.02)


def test_one_arm_against_the_control_needs_no_correction():
    found = fit(simulated(np.random.default_rng(1), 4, 5))
    (got,) = versus(found, "0", ["2"])
    c = found.contrast("2", "0")
    assert got.p == pytest.approx(c.p) and (got.low, got.high) == pytest.approx((c.low, c.high))


def test_it_lies_between_no_correction_and_bonferronis():
    table = simulated(np.random.default_rng(2), 5, 5)
    table["4"] = [x + 9 for x in table["4"]]
    found = fit(table, True)
    got = versus(found, "0")
    assert [g.arm for g in got] == ["1", "2", "3", "4"]
    for g in got:
        assert g.method == "dunnett"
        assert g.contrast.p <= g.p <= min(1, 4 * g.contrast.p)
        assert g.low < g.contrast.low < g.contrast.high < g.high
    assert got[3].p < 1e-4 and got[3].contrast.estimate > 0
    assert got == versus(found, "0")  # the same again


def test_all_intervals_hold_together_as_often_as_they_say():
    """The critical value is that of the design, and so the same in all trials."""
    rng, trials, joint, single = np.random.default_rng(3), 500, 0, 0
    critical = None
    for _ in range(trials):
        table = simulated(rng, 4, 4)
        table["1"][0] = math.nan
        found = fit(table, True)
        if critical is None:
            (one, *_) = versus(found, "0")
            critical = (one.high - one.contrast.estimate) / one.contrast.error
        own = [found.contrast(arm, "0") for arm in ("1", "2", "3")]
        joint += all(abs(c.estimate) < critical * c.error for c in own)
        single += all(c.low <= 0 <= c.high for c in own)
    assert joint / trials == pytest.approx(0.95, abs=4 * math.sqrt(0.05 * 0.95 / trials))
    assert single / trials < 0.93


def test_unequal_variances_are_left_to_holm():
    found = fit(simulated(np.random.default_rng(4), 4, 6, sd=[1, 9, 1, 1]), False)
    got = versus(found, "0")
    own = [found.contrast(g.arm, "0") for g in got]
    assert [g.p for g in got] == pytest.approx(holm([c.p for c in own]))
    assert {g.method for g in got} == {"holm"}
    wide = [found.contrast(g.arm, "0", 1 - 0.05 / 3) for g in got]
    assert [(g.low, g.high) for g in got] == [pytest.approx((c.low, c.high)) for c in wide]


def test_what_cannot_be_tested_is_not_counted():
    table = simulated(np.random.default_rng(5), 4, 4)
    table["3"] = [1.0] + [math.nan] * 3
    found = fit(table, True)
    got = {g.arm: g for g in versus(found, "0")}
    assert math.isnan(got["3"].p) and got["3"].method == "" and got["3"].contrast.n == 1
    assert [got["1"], got["2"]] == versus(found, "0", ["1", "2"])
    assert versus(found, "0", []) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: versus(f, "9"), "'9' is none"),
        (lambda f: versus(f, "0", ["1", "1"]), "twice in the family"),
        (lambda f: versus(f, "0", ["0"]), "two arms"),
        (lambda f: versus(f, "0", confidence=2), "confidence=2"),
        (lambda f: many_to_one([1.0], [[0.0]], 3), "positive variances"),
        (lambda f: many_to_one([1.0, 2.0], [[1.0]], 3), "2 contrasts need"),
        (lambda f: many_to_one([1.0], [[1.0]], 0), "df=0"),
    ],
)
def test_bad_input_is_named(call, message):
    found = fit(simulated(np.random.default_rng(6), 3, 3))
    with pytest.raises(ValueError, match=message):
        call(found)

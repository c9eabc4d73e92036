"""The speed-up by inversion of dense's curve: closed forms, open bounds and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from basisconv.study.report.statistics.equal_accuracy import (
    Time,
    reached,
    speed_up,
)

TIMES = (1.0, 2.0, 4.0, 8.0)


def exact(median):
    return Time(median, median, median)


def curve(times, c0=1.0, c1=0.8, c2=-0.1):
    """Accuracies with a logit quadratic in the natural log of time."""
    x = np.log(times)
    return special.expit(c0 + c1 * x + c2 * x**2)


ONE = exact(1.0)


def call(accuracy, error=0.0, time=ONE, times=TIMES, accuracies=None, errors=0.0, **more):
    found = curve(times) if accuracies is None else accuracies
    return speed_up(times, found, np.full(len(times), errors), accuracy, error, time, **more)


@pytest.mark.parametrize("true", [1.0, 1.31, 2.0, 5.5, 8.0])
@pytest.mark.parametrize("time", [0.5, 1.0, 3.0])
def test_on_dense_s_own_curve_the_time_is_found(true, time):
    got = call(float(curve([true])[0]), time=exact(time))
    assert got.estimate == pytest.approx(true / time)
    assert (got.low, got.high) == pytest.approx((true / time, true / time))
    assert math.isnan(got.at_least) and math.isnan(got.at_most)


def test_two_budgets_are_a_line_and_three_are_gone_through():
    half = float(special.expit(np.mean(special.logit([0.6, 0.8]))))
    line = call(half, times=(1.0, 4.0), accuracies=[0.6, 0.8])
    assert line.estimate == pytest.approx(2.0)
    through = call(0.75, times=(1.0, 2.0, 8.0), accuracies=[0.6, 0.75, 0.8])
    assert through.estimate == pytest.approx(2.0)


def test_four_budgets_are_numpys_least_squares():
    measured = [0.62, 0.71, 0.80, 0.83]
    c2, c1, c0 = np.polyfit(np.log(TIMES), special.logit(measured), 2)
    c0 -= special.logit(0.75)
    x = (-c1 + math.sqrt(c1**2 - 4 * c2 * c0)) / (2 * c2)
    assert call(0.75, accuracies=measured).estimate == pytest.approx(math.exp(x))


def test_nothing_is_read_off_outside_the_measured_budgets():
    above = call(0.99, 0.0005, exact(2.0), errors=0.002)
    assert math.isnan(above.estimate) and math.isnan(above.at_most)
    assert (above.at_least, above.low) == pytest.approx((4.0, 4.0)) and above.high == math.inf
    below = call(0.5, 0.002, exact(2.0), errors=0.002)
    assert math.isnan(below.estimate) and math.isnan(below.at_least)
    assert (below.at_most, below.high) == pytest.approx((0.5, 0.5)) and below.low == 0.0


def test_near_an_end_the_interval_is_open_on_that_side_alone():
    got = call(float(curve([7.5])[0]), 0.003, errors=0.003)
    assert got.estimate == pytest.approx(7.5)
    assert 4 < got.low < 7.5 and got.high == math.inf
    got = call(float(curve([1.05])[0]), 0.005, errors=0.005)
    assert got.low == 0.0 and 1.05 < got.high < 2


def test_where_the_curve_turns_dense_reaches_it_first_on_the_way_up():
    x = np.log(TIMES)
    measured = special.expit(1 - (x - 1.2) ** 2)  # falls again after exp(1.2) = 3.3
    got = call(float(special.expit(0.5)), accuracies=measured)
    assert got.estimate == pytest.approx(math.exp(1.2 - math.sqrt(0.5)))
    top = call(0.9, accuracies=measured)
    assert top.at_least == 8.0


def test_one_budget_has_no_curve():
    got = call(0.7, times=(1.0,), accuracies=[0.6])
    assert all(math.isnan(value) for value in got)
    assert all(math.isnan(value) for value in reached((1.0,), [0.6], [0.01], 1.0))


def test_the_step_times_quartiles_are_a_lognormals():
    """Without error of the accuracies the interval is the time's alone."""
    got = call(float(curve([3.0])[0]), time=Time(1.0, 0.96, 1 / 0.96), draws=100_000)
    sigma = math.log(1 / 0.96**2) / (2 * stats.norm.ppf(0.75))
    assert math.log(got.high / 3) == pytest.approx(1.96 * sigma, rel=0.02)
    assert math.log(got.low / 3) == pytest.approx(-1.96 * sigma, rel=0.02)


def test_the_interval_is_the_delta_methods_for_small_errors():
    accuracy = float(curve([3.0])[0])
    got = call(accuracy, 0.001, draws=100_000)
    slope = (0.8 - 0.2 * math.log(3)) * accuracy * (1 - accuracy)  # per log time
    assert math.log(got.high / got.low) / 2 == pytest.approx(1.96 * 0.001 / slope, rel=0.02)


def test_intervals_cover_as_often_as_they_say():
    rng, trials, hits = np.random.default_rng(0), 400, 0
    for i in range(trials):
        dense = special.expit(special.logit(curve(TIMES)) + rng.normal(0, 0.02, 4))
        arm = special.expit(special.logit(curve([3.0])[0]) + rng.normal(0, 0.02))
        p = float(arm)
        time = math.exp(rng.normal(0, 0.05))
        quartile = math.exp(0.05 * stats.norm.ppf(0.75))
        got = speed_up(
            TIMES, dense, 0.02 * dense * (1 - dense), p, 0.02 * p * (1 - p),
            Time(time, time / quartile, time * quartile), draws=2000, seed=i,
        )  # fmt: skip
        hits += got.low <= 3.0 <= got.high
    assert hits / trials == pytest.approx(0.95, abs=4 * math.sqrt(0.05 * 0.95 / trials))


def test_draws_are_the_same_again_and_follow_the_seed():
    one = call(0.8, 0.01, errors=0.01)
    assert one == call(0.8, 0.01, errors=0.01) != call(0.8, 0.01, errors=0.01, seed=1)


def test_dense_shortened_reaches_what_its_curve_says():
    errors = [0.003] * 4
    got = reached(TIMES, curve(TIMES), errors, 3.0)
    assert got.estimate == pytest.approx(float(curve([3.0])[0]))
    assert got.low < got.estimate < got.high
    # The inverse of the speed-up's look-up.
    assert call(got.estimate).estimate == pytest.approx(3.0)
    short, long = (reached(TIMES, curve(TIMES), errors, t) for t in (0.5, 20.0))
    first, last = (reached(TIMES, curve(TIMES), errors, t) for t in (1.0, 8.0))
    assert math.isnan(short.estimate) and (short.low, short.high) == (0.0, first.high)
    assert math.isnan(long.estimate) and (long.low, long.high) == (last.low, 1.0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: call(0.7, times=(2.0, 1.0), accuracies=[0.6, 0.7]), "rising"),
        (lambda: call(0.7, times=(0.0, 1.0), accuracies=[0.6, 0.7]), "above 0"),
        (lambda: call(0.7, times=(), accuracies=[]), "rising"),
        (lambda: call(70.0), r"in \(0, 1\)"),
        (lambda: call(0.7, accuracies=[0.5, 0.6, 0.7, 1.0]), r"in \(0, 1\)"),
        (lambda: call(0.7, -0.1), "at least 0"),
        (lambda: call(0.7, accuracies=[0.6, 0.7, 0.8]), "standard error"),
        (lambda: speed_up(TIMES, [0.6], [0.1], 0.7, 0, exact(1)), "4 budgets have 1"),
        (lambda: call(0.7, time=Time(1.0, 1.1, 1.2)), "quartiles"),
        (lambda: call(0.7, time=exact(0.0)), "above 0"),
        (lambda: call(0.7, confidence=95), "confidence=95"),
        (lambda: reached(TIMES, curve(TIMES), [0.0] * 4, 0.0), "time=0.0"),
    ],
)
def test_bad_input_is_named(bad, message):
    with pytest.raises(ValueError, match=message):
        bad()

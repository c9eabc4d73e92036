"""Margins against statsmodels and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import ttost_paired

from basisconv.study.report.statistics.linear_models import contrast_of, fit_blocks
from basisconv.study.report.statistics.noninferiority import margin_test, smallest_margins

NAN = math.nan


def paired(a, b):
    """The contrast of two arms over shared seeds."""
    n = len(a)
    return fit_blocks([*a, *b], ["a"] * n + ["b"] * n, [*range(n)] * 2).contrast("a", "b")


def test_of_two_arms_it_is_statsmodels_paired_test():
    rng = np.random.default_rng(0)
    block = rng.normal(92, 1, 8)
    a, b = block + rng.normal(0.05, 0.2, 8), block + rng.normal(0, 0.2, 8)
    equivalent, lower, _ = ttost_paired(a, b, -0.2, 0.2)
    contrast = paired(a, b)
    assert margin_test(contrast, 0.2) == pytest.approx(lower[1])
    assert margin_test(contrast, 0.2, "equivalent") == pytest.approx(equivalent)


def test_a_worked_example():
    """d = -0.1, s = 0.1, 10 degrees of freedom: t of 4 at the margin 0.5, of 1 at 0.2."""
    contrast = contrast_of(-0.1, 0.1, 10, 6)
    wide, narrow = margin_test(contrast, 0.5), margin_test(contrast, 0.2)
    assert (wide, narrow) == pytest.approx((stats.t.sf(4, 10), stats.t.sf(1, 10)))
    # t(0.95; 10) is 1.8125.
    assert smallest_margins(contrast) == pytest.approx((0.28125, 0.28125), abs=1e-5)


def test_the_side_matters_for_noninferiority_alone():
    better, worse = contrast_of(0.4, 0.1, 10, 6), contrast_of(-0.4, 0.1, 10, 6)
    assert margin_test(better, 0.2) < 0.001 < 0.9 < margin_test(worse, 0.2)
    assert margin_test(better, 0.2, "equivalent") == margin_test(worse, 0.2, "equivalent") > 0.9
    assert smallest_margins(better).noninferior == 0.0
    assert smallest_margins(worse).noninferior == smallest_margins(worse).equivalent
    assert smallest_margins(better).equivalent == smallest_margins(worse).equivalent


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_the_smallest_margin_is_where_the_test_passes(alpha):
    contrast = contrast_of(-0.13, 0.08, 5, 4)
    found = smallest_margins(contrast, alpha)
    assert margin_test(contrast, found.noninferior) == pytest.approx(alpha)
    assert margin_test(contrast, found.equivalent, "equivalent") == pytest.approx(alpha)
    assert margin_test(contrast, found.noninferior * 1.0001) < alpha


def test_a_contrast_without_error_passes_nothing():
    lone = contrast_of(0.3, NAN, NAN, 1)
    assert math.isnan(margin_test(lone, 0.5))
    assert all(math.isnan(x) for x in smallest_margins(lone))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: margin_test(c, 0.0), "margin=0.0"),
        (lambda c: margin_test(c, -0.2), "margin=-0.2"),
        (lambda c: margin_test(c, 0.2, "superior"), "kind='superior'"),
        (lambda c: smallest_margins(c, alpha=1.0), "alpha=1.0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(contrast_of(0.1, 0.1, 4, 3))

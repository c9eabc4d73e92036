"""Intervals, of 95 %, and tests: all that a table or a verdict rests on.

Every function takes plain sequences of numbers and returns a named tuple or a float. Too few
values for an answer give NaN, which a table shows as a gap; a value that is itself NaN or
infinite is an error, for it is a run that should not have come this far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
NAN = math.nan


class Interval(NamedTuple):
    """A mean with its confidence interval; `sd` is that of one value (n - 1 in it)."""

    mean: float
    low: float
    high: float
    n: int
    sd: float


class Difference(NamedTuple):
    """A difference of means, its confidence interval and two-sided p-value."""

    estimate: float
    low: float
    high: float
    p: float
    n_a: int
    n_b: int


class Spread(NamedTuple):
    """A standard deviation and its confidence interval."""

    sd: float
    low: float
    high: float
    n: int


def mean_interval(values: ArrayLike) -> Interval:
    """The mean and its t-interval; one value alone has no interval (NaN).

    Raises:
        ValueError: if there are no values, or one is not finite.
    """
    x = _values(values, "values")
    n, mean = len(x), float(x.mean())
    if n < 2:
        return Interval(mean, NAN, NAN, n, NAN)
    sd = float(x.std(ddof=1))
    half = _quantile(n - 1) * sd / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, sd)


def sd_interval(values: ArrayLike) -> Spread:
    """The standard deviation of one value and its χ² interval, for normal values.

    One value alone has neither (NaN).

    Raises:
        ValueError: as `mean_interval`.
    """
    x = _values(values, "values")
    n = len(x)
    if n < 2:
        return Spread(NAN, NAN, NAN, n)
    sd = float(x.std(ddof=1))
    tails = stats.chi2.ppf([0.975, 1 - 0.975], n - 1)
    low, high = (sd * math.sqrt((n - 1) / float(tail)) for tail in tails)
    return Spread(sd, low, high, n)


def welch(a: ArrayLike, b: ArrayLike) -> Difference:
    """Mean of a less mean of b, for independent samples of unequal variance (Welch, 1947).

    An arm of one value gives the estimate alone (the rest is NaN).

    Raises:
        ValueError: as `mean_interval`.
    """
    x, y = _values(a, "a"), _values(b, "b")
    return _difference(*_welch(x, y), len(x), len(y))


def paired(a: ArrayLike, b: ArrayLike) -> Difference:
    """Mean of a - b over pairs (runs that share a seed), with its t-interval.

    Raises:
        ValueError: as `mean_interval`, and if the lengths differ.
    """
    x, y = paired_values(a, b)
    d, n = x - y, len(x)
    error = float(d.std(ddof=1)) / math.sqrt(n) if n > 1 else NAN
    return _difference(float(d.mean()), error, n - 1, n, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given.

    A comparison that could not be tested (NaN) stays NaN and is not counted in the family.

    Raises:
        ValueError: if a p-value is outside [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(p))
    if not ((p[tested] >= 0) & (p[tested] <= 1)).all():
        raise ValueError(f"p-values lie in [0, 1]; these do not: {list(p_values)}.")
    adjusted = np.full(len(p), NAN)
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return [float(value) for value in adjusted]


def tost(a: ArrayLike, b: ArrayLike, margin: float) -> float:
    """The p-value of equivalence: |mean a - mean b| < margin by two one-sided Welch tests.

    Small p: the means differ by less than the margin (Schuirmann, 1987). NaN where an arm has
    one value.

    Raises:
        ValueError: as `mean_interval`, and if the margin is not above 0.
    """
    _check_positive(margin, "margin")
    estimate, error, df = _welch(_values(a, "a"), _values(b, "b"))
    return _one_sided(margin - abs(estimate), error, df)


def smallest_margin(a: ArrayLike, b: ArrayLike, alpha: float = 0.05) -> float:
    """The margin at which `tost` gives p = alpha: every larger one passes.

    Raises:
        ValueError: as `mean_interval`, and if alpha is outside (0, 1).
    """
    check_share(alpha, "alpha")
    estimate, error, df = _welch(_values(a, "a"), _values(b, "b"))
    return abs(estimate) + float(stats.t.ppf(1 - alpha, df)) * error if df > 0 else NAN


def seeds_needed(sd: float, margin: float) -> int:
    """Runs that each of two arms needs for `tost` to pass at 5 % with a probability of 80 %.

    Their true means are equal.

    Args:
        sd: standard deviation of one run, the same in both arms, in the margin's unit.
        margin: half-width of the region of equivalence.

    Raises:
        ValueError: if sd or margin is not above 0.
    """
    _check_positive(sd, "sd")
    _check_positive(margin, "margin")
    # With sd known n is (z_alpha + z_beta/2)² · 2 (sd/margin)²; it must be estimated, which
    # costs a run or two more, so that this is where the search starts.
    z = stats.norm.ppf(0.95) + stats.norm.ppf(0.9)
    n = max(2, math.ceil(2 * (z * sd / margin) ** 2))
    while _tost_power(sd, margin, n) < 0.8:
        n += 1
    return n


def _welch(x: Floats, y: Floats) -> tuple[float, float, float]:
    """Difference of means, its standard error and Welch's degrees of freedom (NaN: untestable)."""
    estimate = float(x.mean() - y.mean())
    if len(x) < 2 or len(y) < 2:
        return estimate, NAN, NAN
    va, vb = float(x.var(ddof=1)) / len(x), float(y.var(ddof=1)) / len(y)
    if va + vb == 0:
        return estimate, 0.0, float(len(x) + len(y) - 2)
    df = (va + vb) ** 2 / (va**2 / (len(x) - 1) + vb**2 / (len(y) - 1))
    return estimate, math.sqrt(va + vb), df


def _difference(estimate: float, error: float, df: float, n_a: int, n_b: int) -> Difference:
    if math.isnan(error):
        return Difference(estimate, NAN, NAN, NAN, n_a, n_b)
    half = _quantile(df) * error
    p = min(1.0, 2 * _one_sided(abs(estimate), error, df))
    return Difference(estimate, estimate - half, estimate + half, p, n_a, n_b)


def _one_sided(distance: float, error: float, df: float) -> float:
    """P(T >= distance / error); without any spread the answer is certain."""
    if error == 0:
        return 0.0 if distance > 0 else 1.0
    return float(stats.t.sf(distance / error, df))


def _quantile(df: float) -> float:
    return float(stats.t.ppf(0.975, df))


def _tost_power(sd: float, margin: float, n: int) -> float:
    """P(|d| + t·s·√(2/n) < margin), averaged over the distribution of the pooled s."""
    df, scale = 2 * n - 2, math.sqrt(2 / n)
    levels = (np.arange(4000) + 0.5) / 4000
    s = sd * np.sqrt(stats.chi2.ppf(levels, df) / df)
    room = (margin - stats.t.ppf(0.95, df) * s * scale) / (sd * scale)
    return float(np.maximum(2 * stats.norm.cdf(room) - 1, 0).mean())


def _values(values: ArrayLike, what: str) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0 or not np.isfinite(x).all():
        raise ValueError(f"{what} must be a non-empty list of finite numbers, not {values!r}.")
    return x


def paired_values(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    """Two lists of finite numbers of one length, as arrays; anything else is a ValueError."""
    x, y = _values(a, "a"), _values(b, "b")
    if len(x) != len(y):
        raise ValueError(f"Pairs need equal lengths, not {len(x)} and {len(y)}.")
    return x, y


def check_share(value: float, what: str) -> None:
    """Raise ValueError unless value is between 0 and 1."""
    if not 0 < value < 1:
        raise ValueError(f"{what}={value} is outside (0, 1).")


def _check_positive(value: float, what: str) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{what}={value} must be a finite number above 0.")

"""Speed-up at equal accuracy: the time that dense takes to an arm's accuracy, over the arm's time.

Dense's learning curve is quadratic in log time on the scale of logits,

    logit(acc(t)) = c0 + c1 log t + c2 log² t,

fitted by unweighted least squares to its mean accuracies at the measured budgets (through them, if
there are three; a line through two), for standard errors of a few seeds make poor weights. The
arm's accuracy is looked up on it: dense first reaches it at T, and the speed-up is T / t for the
arm's time t. Nothing is read off outside the measured budgets; there it is a bound.

The interval is the parametric bootstrap's: mean accuracies are drawn as normal on the logit scale,
with their standard errors, and the time as lognormal, with its quartiles. Draws are independent;
that arm and dense share seeds is left out and makes the interval too wide rather than too narrow.
A draw outside the measured budgets counts as all that lies beyond, on either end of the interval.

`report.speedup.brackets` assumes no curve: between which measured budgets the speed-up lies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from basisconv.study.report.statistics.stats import NAN, Floats, check_share


class Time(NamedTuple):
    """A training time in dense epochs, by a measured ratio of step times: median and quartiles."""

    median: float
    low: float
    high: float


class SpeedUp(NamedTuple):
    """How many times as fast as dense to equal accuracy.

    Attributes:
        estimate: NaN where the accuracy is outside dense's curve over the measured budgets.
        at_least: the bound where it is above the curve; else NaN.
        at_most: the bound where it is below; else NaN.
        low: lower end of the confidence interval; 0: open.
        high: upper end; infinite: open.
    """

    estimate: float
    at_least: float
    at_most: float
    low: float
    high: float


class Reached(NamedTuple):
    """Dense's accuracy at a time, a fraction, with its confidence interval.

    The estimate is NaN outside the measured times; the interval is then open: from 0 to the upper
    end at the shortest, or from the lower end at the longest to 1.
    """

    estimate: float
    low: float
    high: float


def speed_up(
    times: Sequence[float], accuracies: ArrayLike, errors: ArrayLike, accuracy: float,
    error: float, time: Time, draws: int = 10_000, confidence: float = 0.95, seed: int = 0,
) -> SpeedUp:  # fmt: skip
    """The speed-up of an arm by inversion of dense's curve; all NaN with one measured budget.

    Args:
        times: of dense at its measured budgets, in dense epochs.
        accuracies: of dense there: means, as fractions.
        errors: their standard errors, by the model that pools over cells.
        accuracy: the arm's mean.
        error: its standard error.
        time: the arm's training time.
        draws: of the bootstrap.
        confidence: of the interval.
        seed: of the draws.

    Raises:
        ValueError: if times are not rising and above 0, accuracies outside (0, 1), standard errors
            below 0, the time's quartiles not around its median, or confidence outside (0, 1).
    """
    check_share(confidence, "confidence")
    at, mean, spread = _cells(times, accuracies, errors)
    own, own_spread = _logit([accuracy], [error])
    if not 0 < time.low <= time.median <= time.high < math.inf:
        raise ValueError(f"{time} needs quartiles around its median, all above 0.")
    if len(at) < 2:
        return SpeedUp(NAN, NAN, NAN, NAN, NAN)
    fitted = _fit(at)
    found = _invert(fitted @ mean[:, None], at[-1], own)[0]
    first, last = times[0] / time.median, times[-1] / time.median
    inside = math.isfinite(found)
    rng = np.random.default_rng(seed)
    curves = fitted @ (mean[:, None] + spread[:, None] * rng.standard_normal((len(at), draws)))
    x = _invert(curves, at[-1], own + own_spread * rng.standard_normal(draws))
    width = math.log(time.high / time.low) / (2 * float(stats.norm.ppf(0.75)))
    per_unit = times[0] / (time.median * np.exp(width * rng.standard_normal(draws)))
    # What lies beyond the budgets begins at the last and ends at the first.
    lows = np.exp(np.minimum(x, at[-1])) * per_unit
    highs = np.exp(np.maximum(x, 0.0)) * per_unit
    low, high = _percentiles(lows, highs, confidence)
    return SpeedUp(
        math.exp(found) * first if inside else NAN,
        last if found == math.inf else NAN,
        first if found == -math.inf else NAN,
        low,
        high,
    )


def reached(
    times: Sequence[float], accuracies: ArrayLike, errors: ArrayLike, time: float
) -> Reached:
    """What dense reaches when it is shortened to a time, in dense epochs; all else as `speed_up`.

    All is NaN with one measured budget.

    Raises:
        ValueError: as `speed_up`, and if the time is not above 0.
    """
    at, mean, spread = _cells(times, accuracies, errors)
    if not 0 < time < math.inf:
        raise ValueError(f"time={time} must be a finite number above 0.")
    if len(at) < 2:
        return Reached(NAN, NAN, NAN)
    x = math.log(time / times[0])
    fitted, powers = _fit(at), _powers(np.array([min(max(x, 0.0), at[-1])]), len(at))
    rng = np.random.default_rng(0)
    curves = fitted @ (mean[:, None] + spread[:, None] * rng.standard_normal((len(at), 10_000)))
    drawn = special.expit(powers @ curves)[0]
    low, high = _percentiles(drawn, drawn, 0.95)
    if time < times[0]:
        return Reached(NAN, 0.0, high)
    if time > times[-1]:
        return Reached(NAN, low, 1.0)
    return Reached(float(special.expit(powers @ fitted @ mean)[0]), low, high)


def _cells(
    times: Sequence[float], accuracies: ArrayLike, errors: ArrayLike
) -> tuple[Floats, Floats, Floats]:
    """Log times from the first on, logits and their standard errors."""
    at = _times(times)
    mean, spread = _logit(accuracies, errors)
    if mean.shape != at.shape:
        raise ValueError(f"{len(at)} budgets have {len(mean)} accuracies.")
    return at, mean, spread


def _times(times: Sequence[float]) -> Floats:
    t = np.asarray(times, dtype=np.float64)
    if t.ndim != 1 or not len(t) or not np.isfinite(t).all() or (np.diff(t, prepend=0) <= 0).any():
        raise ValueError(f"times must be rising and above 0, not {times!r}.")
    return np.log(t / t[0])


def _logit(accuracies: ArrayLike, errors: ArrayLike) -> tuple[Floats, Floats]:
    """Logits, and their standard errors by the delta method."""
    p, s = np.asarray(accuracies, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    if p.ndim != 1 or not ((p > 0) & (p < 1)).all():
        raise ValueError(f"Accuracies are fractions in (0, 1), not {accuracies!r}.")
    if s.shape != p.shape or not ((s >= 0) & np.isfinite(s)).all():
        raise ValueError(f"Each accuracy needs a standard error of at least 0, not {errors!r}.")
    return special.logit(p), s / (p * (1 - p))


def _powers(x: Floats, budgets: int) -> Floats:
    """1, x and, if there are three budgets, x²."""
    return np.vander(x, min(3, budgets), increasing=True)


def _fit(at: Floats) -> Floats:
    """The matrix that makes coefficients of dense's logits."""
    return np.asarray(np.linalg.pinv(_powers(at, len(at))), dtype=np.float64)


def _invert(curves: Floats, end: float, targets: Floats) -> Floats:
    """Where each curve first reaches its target on [0, end]; -inf: before, inf: after.

    Args:
        curves: coefficients (c0, c1[, c2]) of each, in columns.
        end: of the measured log times.
        targets: one for each curve.
    """
    c0, c1 = curves[0] - targets, curves[1]
    c2 = curves[2] if len(curves) > 2 else np.zeros_like(c1)
    with np.errstate(divide="ignore", invalid="ignore"):
        q = -(c1 + np.copysign(np.sqrt(c1**2 - 4 * c2 * c0), c1)) / 2
        roots = np.stack([q / c2, c0 / q])
    # A target at a measured accuracy must not be lost to rounding.
    slack = 1e-9 * max(end, 1.0)
    roots = np.where((roots >= -slack) & (roots <= end + slack), roots.clip(0, end), math.inf)
    return np.where(c0 > slack, -math.inf, roots.min(axis=0))


def _percentiles(lows: Floats, highs: Floats, confidence: float) -> tuple[float, float]:
    """The percentile interval of draws that are themselves intervals."""
    tail = (1 - confidence) / 2
    return (
        float(np.quantile(lows, tail, method="inverted_cdf")),
        float(np.quantile(highs, 1 - tail, method="inverted_cdf")),
    )

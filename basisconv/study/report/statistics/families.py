"""Several comparisons at once: Dunnett's many-to-one test, and Holm's method where it is not valid.

Dunnett (1955): with arms 1..k against one control, the adjusted p-value of arm i is

    P(max_j |T_j| >= |t_i|),   (T_1, ..., T_k) ~ multivariate t with the contrasts' correlation,

so that the shared control, and here the shared seeds, are paid for once. The correlation is the
fitted model's; arms that miss seeds are correlated as they are. Any other family is corrected by
`stats.holm`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from basisconv.study.report.statistics.linear_models import Blocks, Contrast
from basisconv.study.report.statistics.stats import NAN, Floats, check_share, holm

_POINTS = 5_000
"""At most so many evaluations per comparison of the multivariate t's integral, always the same."""


class Adjusted(NamedTuple):
    """A comparison with the control, in a family.

    Attributes:
        arm: its name.
        contrast: arm less control on its own, not adjusted.
        p: two-sided, adjusted for the family.
        low: lower end of its simultaneous confidence interval.
        high: upper end.
        method: "dunnett" or "holm"; "" where the contrast could not be tested.
    """

    arm: str
    contrast: Contrast
    p: float
    low: float
    high: float
    method: str


def versus(
    fit: Blocks, control: str, arms: Sequence[str] | None = None, confidence: float = 0.95
) -> list[Adjusted]:
    """Every arm against the control in one family: Dunnett's test in the model with blocks.

    Where the arms' variances differ, the correlation is unknown: Holm's method then corrects the
    p-values, and the intervals are Bonferroni's, which are valid with them. A comparison that
    cannot be tested is NaN and not counted in the family.

    Args:
        fit: of one length.
        control: the arm that the others are compared with.
        arms: those to compare, each once; None: all others.
        confidence: simultaneous, of all intervals.

    Raises:
        ValueError: for an arm that is not in the model or comes twice, or confidence outside
            (0, 1).
    """
    names = [a for a in fit.arms if a != control] if arms is None else list(arms)
    if len(set(names)) < len(names):
        raise ValueError(f"An arm comes twice in the family {names}.")
    own = {name: fit.contrast(name, control, confidence) for name in names}
    tested = [name for name in names if not math.isnan(own[name].p)]
    found = {name: Adjusted(name, own[name], NAN, NAN, NAN, "") for name in names}
    if tested and fit.equal_variances:
        covariance = fit.covariance([(name, control) for name in tested])
        estimates = [own[name].estimate for name in tested]
        p, critical = many_to_one(estimates, covariance, fit.df, confidence)
        halves, method = [critical * own[name].error for name in tested], "dunnett"
    else:
        share = 1 - (1 - confidence) / max(len(tested), 1)
        wider = [fit.contrast(name, control, share) for name in tested]
        p, method = holm([c.p for c in wider]), "holm"
        halves = [c.high - c.estimate for c in wider]
    for name, value, half in zip(tested, p, halves, strict=True):
        c = own[name]
        found[name] = Adjusted(name, c, value, c.estimate - half, c.estimate + half, method)
    return list(found.values())


def many_to_one(
    estimates: Sequence[float], covariance: ArrayLike, df: float, confidence: float = 0.95
) -> tuple[list[float], float]:
    """Dunnett's adjusted p-values, and the critical value of |t| of the simultaneous intervals.

    Args:
        estimates: of the contrasts.
        covariance: theirs, estimated with `df` degrees of freedom.
        df: degrees of freedom.
        confidence: of the intervals together.

    Raises:
        ValueError: if the shapes differ, the matrix is no covariance, df is not above 0, or
            confidence is outside (0, 1).
    """
    check_share(confidence, "confidence")
    x, v = np.asarray(estimates, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0 or v.shape != (len(x), len(x)) or not (v.diagonal() > 0).all():
        raise ValueError(f"{len(x)} contrasts need a covariance of positive variances, not {v}.")
    if not df > 0:
        raise ValueError(f"df={df} must be above 0.")
    error = np.sqrt(v.diagonal())
    correlation = v / np.outer(error, error)
    t, k = np.abs(x) / error, len(x)
    alone = 2 * stats.t.sf(t, df)
    # The integral has an absolute error, and p lies between one comparison's and Bonferroni's.
    p = [
        float(np.clip(1 - _inside(value, correlation, df), single, min(1.0, k * single)))
        for value, single in zip(t, alone, strict=True)
    ]
    ends = [float(stats.t.ppf(1 - (1 - confidence) / (2 * m), df)) for m in (1, k)]
    if k == 1:
        return p, ends[0]
    return p, float(
        optimize.brentq(
            lambda c: _inside(c, correlation, df) - confidence, ends[0] - 0.01, ends[1] + 0.01
        )
    )


def _inside(limit: float, correlation: Floats, df: float) -> float:
    """P(|T_j| < limit for all j)."""
    if len(correlation) == 1:
        return 1 - 2 * float(stats.t.sf(limit, df))
    ends = np.full(len(correlation), limit)
    return float(
        stats.multivariate_t.cdf(
            ends, shape=correlation, df=df, lower_limit=-ends, allow_singular=True,
            maxpts=_POINTS * len(ends), random_state=np.random.default_rng(0),
        )
    )  # fmt: skip

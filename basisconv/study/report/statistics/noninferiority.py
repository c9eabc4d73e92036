"""How much worse can it be: margins in percentage points.

For a contrast d with standard error s and df degrees of freedom, an arm is not inferior to its
rival by the margin m if H0: δ <= -m is rejected, and equivalent to it if H0: |δ| >= m is:

    non-inferior:  p = P(T >= (d + m) / s)
    equivalent:    p = P(T >= (m - |d|) / s)    (two one-sided tests; Schuirmann, 1987)

Any contrast of the models will do, in its own unit: percentage points, unless its values were
others.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from scipy import stats

from basisconv.study.report.statistics.linear_models import Contrast
from basisconv.study.report.statistics.stats import NAN, check_share

Kind = Literal["noninferior", "equivalent"]


class Smallest(NamedTuple):
    """The smallest margins that pass at a level; every larger one passes, too.

    Attributes:
        noninferior: the upper end of the one-sided bound on how much worse the arm is,
            t s - d, and 0 where even that is an advantage.
        equivalent: |d| + t s.
    """

    noninferior: float
    equivalent: float


def margin_test(contrast: Contrast, margin: float, kind: Kind = "noninferior") -> float:
    """The p-value of one margin; small: the arm is within it. NaN for a contrast without error.

    Raises:
        ValueError: if the margin is not above 0 or the kind is unknown.
    """
    if not 0 < margin < math.inf:
        raise ValueError(f"margin={margin} must be a finite number above 0.")
    if kind not in ("noninferior", "equivalent"):
        raise ValueError(f"kind={kind!r} is neither 'noninferior' nor 'equivalent'.")
    d = contrast.estimate if kind == "noninferior" else -abs(contrast.estimate)
    return float(stats.t.sf((d + margin) / contrast.error, contrast.df))


def smallest_margins(contrast: Contrast, alpha: float = 0.05) -> Smallest:
    """The margins at which `margin_test` gives p = alpha; NaN for a contrast without error.

    Raises:
        ValueError: if alpha is outside (0, 1).
    """
    check_share(alpha, "alpha")
    if math.isnan(contrast.error):
        return Smallest(NAN, NAN)
    half = float(stats.t.ppf(1 - alpha, contrast.df)) * contrast.error
    return Smallest(max(0.0, half - contrast.estimate), abs(contrast.estimate) + half)

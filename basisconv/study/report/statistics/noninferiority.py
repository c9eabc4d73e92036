"""How much worse can it be: margins in percentage points, in a fixed sequence.

For a contrast d with standard error s and df degrees of freedom, an arm is not inferior to its
rival by the margin m if H0: δ <= -m is rejected, and equivalent to it if H0: |δ| >= m is:

    non-inferior:  p = P(T >= (d + m) / s)
    equivalent:    p = P(T >= (m - |d|) / s)    (two one-sided tests; Schuirmann, 1987)

Margins are tested from the widest to the narrowest, each only if all before it have passed. No
level has to be split among them (Maurer, Hothorn & Lehmacher, 1995). Any contrast of the models
will do, in its own unit: percentage points, unless its values were others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from scipy import stats

from basisconv.study.report.statistics.linear_models import Contrast
from basisconv.study.report.statistics.stats import NAN, check_share

MARGINS = (0.5, 0.2)
"""Percentage points, in the order in which they are tested."""

Kind = Literal["noninferior", "equivalent"]


class Step(NamedTuple):
    """One margin of a sequence.

    Attributes:
        margin: in points.
        p: of its test; NaN where its turn did not come, for a wider margin did not pass.
        passed: whether it was tested and the arm is within it.
    """

    margin: float
    p: float
    passed: bool


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


def fixed_sequence(
    contrast: Contrast,
    margins: Sequence[float] = MARGINS,
    alpha: float = 0.05,
    kind: Kind = "noninferior",
) -> tuple[Step, ...]:
    """Test the margins in order; the first that does not pass ends the sequence.

    Args:
        contrast: arm less rival.
        margins: falling, as fixed in advance.
        alpha: the one-sided level of each test, and of the sequence.
        kind: what is tested.

    Raises:
        ValueError: if margins do not fall or are not above 0, or alpha is outside (0, 1).
    """
    check_share(alpha, "alpha")
    if not margins or any(a <= b for a, b in pairwise(margins)):
        raise ValueError(f"Margins are tested from the widest on, not in the order {margins}.")
    steps: list[Step] = []
    for margin in margins:
        p = margin_test(contrast, margin, kind) if all(s.passed for s in steps) else NAN
        steps.append(Step(margin, p, p <= alpha))
    return tuple(steps)


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

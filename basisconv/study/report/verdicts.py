"""What a claim may come to, and the rules by which it does.

A verdict says no more than the intervals allow. Where one of them allows both answers, or runs that
it needs diverged, the claim is undecided; where there is nothing to judge it by, not yet measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from basisconv.study.report import arms, text
from basisconv.study.report.statistics.stats import NAN

REPRODUCED, PARTLY, NOT = "reproduced", "partly", "not reproduced"
UNDECIDED, UNMEASURED = "undecided", "not yet measured"
VERDICTS: tuple[str, ...] = (REPRODUCED, PARTLY, NOT, UNDECIDED, UNMEASURED)


@dataclass(frozen=True)
class Estimate:
    """What was found, in words and as a number, and the verdict; `n` counts what `of` names."""

    said: str
    verdict: str
    value: float = NAN
    low: float = NAN
    high: float = NAN
    n: int | None = None
    unit: str = ""
    of: str = "seeds"


UNTESTED = Estimate("fewer than two finished runs of an arm: no interval", UNMEASURED)
"""One run of an arm decides nothing, nor does an arm whose runs diverged."""


def kept(verdicts: Iterable[str]) -> str:
    """Accuracy is kept where an arm is above dense or equal to it."""
    found = list(verdicts)
    good = sum(v in ("above", "equal") for v in found)
    if good:
        return REPRODUCED if good == len(found) else PARTLY
    return NOT if all(v == "below" for v in found) else UNDECIDED


def unwon(verdicts: Iterable[str]) -> str:
    """Where no arm is above dense: settled if every comparison is, and all had runs to compare."""
    return NOT if all(v in ("below", "equal") for v in verdicts) else UNDECIDED


def judged(verdict: str, wanted: str) -> str:
    """A gain of accuracy is reproduced by "above", a loss by "below"."""
    return {wanted: REPRODUCED, "open": UNDECIDED}.get(verdict, NOT)


def absent(what: str) -> Estimate:
    """The section is there, but not the arms that the claim is about."""
    return Estimate(f"{what} is missing", UNMEASURED)


def of_row(said: str, verdict: str, row: Any) -> Estimate:
    """What a row of a table of comparisons amounts to."""
    ends = row.difference, row.difference_low, row.difference_high
    return Estimate(said, verdict, *ends, int(row.n), "points")


def of_difference(said: str, wanted: str, a: arms.Measured, b: arms.Measured) -> Estimate:
    """What an arm's accuracy less another's amounts to."""
    c = arms.compare(a, b)
    if math.isnan(c.p):
        return UNTESTED
    verdict = judged(arms.verdict(c.difference, c.equivalence_p, c.p), wanted)
    return Estimate(f"{said}: {text.gain(c)}", verdict, *c[:3], a.n, "points")


def of_count(
    holds: int, total: int, said: str, value: float, n: int | None, undecided: int = 0
) -> Estimate:
    """Reproduced where something holds of all, partly where of some, not where of none.

    Where all are undecided, so is the claim.
    """
    if not total:
        return absent("a measurement")
    verdict = REPRODUCED if holds == total else PARTLY if holds else NOT
    return Estimate(said, UNDECIDED if undecided == total else verdict, value, n=n, of="turns")

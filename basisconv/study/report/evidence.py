"""What the sections say about a claim: an estimate, its interval, and a verdict by a fixed rule.

A verdict says no more than the intervals allow. Where one of them allows both answers, or runs that
it needs diverged, the claim is undecided; where there is nothing to judge it by, not yet measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, equal_steps, places, selection, text
from basisconv.study.report.arms import Comparison
from basisconv.study.report.frontier import frontier
from basisconv.study.report.skip_training import skip_frame
from basisconv.study.report.statistics.stats import NAN
from basisconv.study.report.timing_layers import layer_frame
from basisconv.study.report.timing_networks import network_frame, training_steps

REPRODUCED, PARTLY, NOT = "reproduced", "partly", "not reproduced"
UNDECIDED, UNMEASURED = "undecided", "not yet measured"
VERDICTS: tuple[str, ...] = (REPRODUCED, PARTLY, NOT, UNDECIDED, UNMEASURED)

PAPER_SPEEDUP = 1.15
"""The paper's "up to 15 %", read as training time divided by 1.15."""
OURS = ("basis", "first_five", "selected", "threshold", "skip")


@dataclass(frozen=True)
class Estimate:
    """Our side of a claim: what was found, in words and as a number, and the verdict.

    `n` counts what `of` names, of an arm or a timing.
    """

    said: str
    verdict: str
    value: float = NAN
    low: float = NAN
    high: float = NAN
    n: int | None = None
    unit: str = ""
    of: str = "seeds"


class Evidence:
    """The sections at hand and the frames that claims are judged by, each made once."""

    def __init__(self, sections: Mapping[str, Section], records: Mapping[str, Record]) -> None:
        self.sections, self.records = sections, records

    @cached_property
    def frontier(self) -> pd.DataFrame:
        """02, one row for each arm at each budget."""
        return frontier(self.sections["02_all_layers"], self.records)

    @cached_property
    def ours(self) -> pd.DataFrame:
        """Rows of the frontier that are to be held against dense: those too that lost their runs.

        An arm that diverged at a budget must not make "at every budget" easier to reach.
        """
        table = self.frontier
        rivals = table[table["method"] == "dense"]["budget"]
        return table[table["method"].isin(OURS) & table["budget"].isin(rivals)]

    @cached_property
    def equal_steps(self) -> pd.DataFrame:
        """02, one row for each share of basis filters that trained for dense's steps."""
        return equal_steps.equal_steps(self.sections["02_all_layers"], self.records)

    @cached_property
    def rivals(self) -> pd.DataFrame:
        """04, the selected subset against each rival."""
        found = arms.measure(self.sections["04_selection"], self.records)
        rivals = selection.rival_frame(selection.pooled(found)).set_index("rival")
        return rivals.rename(columns={"n_selected": "n"})

    @cached_property
    def skips(self) -> pd.DataFrame:
        """05, one row an arm."""
        return skip_frame(arms.measure(self.sections["05_skip_training"], self.records))

    @cached_property
    def layers(self) -> pd.DataFrame:
        """06, layers in the method's two forms."""
        table = layer_frame(self._devices)
        return table[table["arm"].isin(places.FORMS)]

    @cached_property
    def networks(self) -> pd.DataFrame:
        """06, whole training steps."""
        return training_steps(network_frame(self._devices))

    @property
    def layer_turns(self) -> int:
        """Interleaved turns behind each timing of a layer in 06, at least."""
        return self._fewest("repeats")

    @property
    def network_turns(self) -> int:
        """The same of a network."""
        return self._fewest("network_repeats")

    def _fewest(self, setting: str) -> int:
        return min(int(device["settings"][setting]) for device in self._devices)

    @property
    def _devices(self) -> Any:
        return self.sections["06_timing"].facts["devices"]


def kept(verdicts: Iterable[str]) -> str:
    """Accuracy is kept where an arm is above dense or equal to it."""
    found = list(verdicts)
    good = sum(v in ("above", "equal") for v in found)
    if good == len(found):
        return REPRODUCED
    if good:
        return PARTLY
    return NOT if all(v == "below" for v in found) else UNDECIDED


def won(verdict: str) -> str:
    """A gain of accuracy is reproduced where the arm is above its rival."""
    return {"above": REPRODUCED, "open": UNDECIDED}.get(verdict, NOT)


def unwon(verdicts: Iterable[str]) -> str:
    """Where no arm is above dense: settled if every comparison is, and all had runs to compare."""
    return NOT if all(v in ("below", "equal") for v in verdicts) else UNDECIDED


def lost(verdict: str) -> str:
    """A loss of accuracy is reproduced where the arm is below its rival."""
    return {"below": REPRODUCED, "open": UNDECIDED}.get(verdict, NOT)


def tally(verdicts: Iterable[str]) -> str:
    """As in "over 3 comparisons: 1 above, 2 undecided"."""
    found = list(verdicts)
    words = {"above": "above", "equal": "equal", "below": "below", "open": "undecided"}
    counts = [f"{found.count(v)} {word}" for v, word in words.items() if v in found]
    lacking = sum(v not in words for v in found)
    counts += [f"{lacking} untested"] if lacking else []
    return f"over {text.plural(len(found), 'comparison')}: {', '.join(counts)}"


def by_share(
    holds: int, total: int, said: str, value: float, n: int | None, undecided: int = 0
) -> Estimate:
    """Reproduced where something holds of all, partly where of some, not where of none.

    Where all are undecided, so is the claim.
    """
    if not total:
        return absent("a measurement")
    if undecided == total:
        verdict = UNDECIDED
    else:
        verdict = REPRODUCED if holds == total else PARTLY if holds else NOT
    return Estimate(said, verdict, value, n=n, of="turns")


def of_row(said: str, verdict: str, row: Any) -> Estimate:
    """What a row of a table of comparisons amounts to."""
    return Estimate(
        said, verdict, row.difference, row.difference_low, row.difference_high, int(row.n), "points"
    )


def of_difference(said: str, judged: Callable[[str], str], c: Comparison) -> Estimate:
    """What the comparison of two arms amounts to, by a rule from its verdict to the claim's."""
    d = c.difference
    if math.isnan(d.p):
        return untested()
    verdict = judged(arms.verdict(d.estimate, c.equivalence, d.p))
    said = f"{said}: {text.points(d)}"
    return Estimate(said, verdict, d.estimate, d.low, d.high, d.n_a, "points")


def untested() -> Estimate:
    """One run of an arm decides nothing, nor does an arm whose runs diverged."""
    return Estimate("fewer than two finished runs of an arm: no interval", UNMEASURED)


def absent(what: str) -> Estimate:
    """The section is there, but not the arms that the claim is about."""
    return Estimate(f"{what} is missing", UNMEASURED)

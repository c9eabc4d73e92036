"""How many times as fast as dense an arm is to equal accuracy: bounds, not a point.

An arm that beats dense trained longer is faster by at least that; one that dense trained longer
beats, by less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from basisconv.study.report import arms, text
from basisconv.study.report.arms import DENSE, Measured
from basisconv.study.report.statistics.stats import NAN

# What a bracket keeps of the comparison that its lower bound rests on.
_BEATEN = {
    "speedup_at_least": "speedup", "beaten_by": "difference", "beaten_low": "difference_low",
    "beaten_high": "difference_high", "beaten_p_holm": "p_holm",
}  # fmt: skip


def brackets(found: Sequence[Measured], verdicts: Sequence[str]) -> pd.DataFrame:
    """Between which factors each arm's speed-up to equal accuracy lies, a row an arm.

    An arm that trained for t is at least T/t times as fast as dense where it beats dense trained
    for T, and less than T/t times where that beats it; NaN: no such bound. Nothing is interpolated
    between measured budgets. At an arm's own budget its verdict there decides, and a bound beyond
    it needs that verdict as well; for the others see `comparisons`. `beaten_by`, in points, its
    interval and p by Holm are of the comparison that the lower bound rests on.
    """
    table = comparisons(found)
    return pd.DataFrame(
        [_bracket(table[table["arm"] == i], verdict) for i, verdict in enumerate(verdicts)]
    )


def comparisons(found: Sequence[Measured]) -> pd.DataFrame:
    """Every arm at every budget with dense of each budget, by Welch's test.

    Those with dense of another budget than the arm's are corrected by Holm's method, over all of
    basis arms and over all of narrower networks, for the largest speed-up is the best of many;
    those of the same budget have a verdict in the frontier's table. A row a pair: `arm` is the
    place in `found`, `speedup` the time of dense over the arm's, and `longer` by how many dense
    epochs dense trained longer.
    """
    pairs = [
        {
            "arm": i, "name": text.at_budget(m.arm), "dense_like": m.arm.method in DENSE,
            "speedup": rival.time / m.time, "longer": rival.arm.budget - m.arm.budget,
            **arms.compare(m, rival)._asdict(),
        }
        for i, m in enumerate(found)
        for rival in found
        if m.arm.method != "dense" and rival.arm.method == "dense"
        and m.arm.budget is not None and rival.arm.budget is not None
    ]  # fmt: skip
    names = ("arm", "name", "dense_like", "speedup", "longer", *arms.Comparison._fields)
    table = pd.DataFrame(pairs, columns=names)
    others = table["longer"] != 0
    return pd.concat([arms.decided(table[others], table[others]["dense_like"]), table[~others]])


def _bracket(compared: pd.DataFrame, own: str) -> dict[str, float]:
    """The row of `brackets` of an arm with this verdict at its own budget."""
    longer = compared["longer"]
    verdicts = compared["verdict"].where(longer != 0, own)
    beaten = compared[(verdicts == "above") & ((longer < 0) | (own == "above"))]
    lost = compared[(verdicts == "below") & ((longer > 0) | (own == "below"))]
    best = beaten.loc[beaten["speedup"].idxmax()] if len(beaten) else None
    row = {name: NAN if best is None else best[column] for name, column in _BEATEN.items()}
    return row | {"speedup_below": lost["speedup"].min()}  # NaN where there is none


def bracket_text(low: float, high: float) -> str:
    """As in "≥ 1.00×, < 2.00×"."""
    parts = [f"≥ {low:.2f}×"] if not math.isnan(low) else []
    parts += [f"< {high:.2f}×"] if not math.isnan(high) else []
    return ", ".join(parts) or text.NOTHING


def lead(row: Any) -> str:
    """What a speed-up rests on: an arm's lead over dense of another budget, with its test."""
    points = text.with_interval(row.beaten_by, row.beaten_low, row.beaten_high, 2, True, " points")
    p = text.p_value(row.beaten_p_holm)
    return f"{points}, p {p if p.startswith('<') else f'= {p}'}"


def fastest(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the largest speed-up as it is printed, the largest gain over dense first.

    Two arms that beat dense of the same budget have the same speed-up but for whole steps.
    """
    printed = table["speedup_at_least"].round(2)
    return table[printed == printed.max()].sort_values("difference", ascending=False)


def values(table: pd.DataFrame, found: Sequence[Measured]) -> dict[str, Any]:
    """The largest speed-up at equal accuracy, and what the correction leaves undecided."""
    made: dict[str, Any] = {}
    # A bound that rests on dense of the same time says no more than the verdict.
    longer = table["beaten_p_holm"].notna() & (table["speedup_at_least"] > 1)
    ours = table[~table["method"].isin(DENSE) & longer]
    if len(ours):
        best = fastest(ours)
        winners = [f"{text.at_budget(r)} ({lead(r)})" for r in best.itertuples()]
        made["speed-up"] = text.number(best["speedup_at_least"].iloc[0], digits=2)
        made["fastest"] = text.said(text.listed(winners))
    pairs = comparisons(found)
    near = pairs[
        ~pairs["dense_like"].astype(bool) & (pairs["longer"] > 0)
        & (pairs["verdict"] == "open") & (pairs["difference_low"] > 0)
    ]  # fmt: skip
    if len(near):
        each = [f"{r.name} by {text.gain(r)} ({r.speedup:.2f} times)" for r in near.itertuples()]
        made["left open"] = text.said(text.listed(each))
    return made

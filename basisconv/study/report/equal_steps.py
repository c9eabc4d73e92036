"""02's arms that train for as many steps as dense: what basis layers cost when time is no object.

The frontier asks what a network is worth for its time. Here every arm takes dense's own steps and
settings, as the paper and most others compare, and has the time that it saves left over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from basisconv.study.report import arms, text
from basisconv.study.report.arms import Measured
from basisconv.study.run import Record, Section


def on_budget(found: Sequence[Measured]) -> list[Measured]:
    """The other arms: those that meet at time budgets."""
    return [m for m in found if not m.arm.detail.get("equal_steps")]


def equal_steps(section: Section, records: Mapping[str, Record]) -> pd.DataFrame:
    """One row for each share of basis filters, by rising share, and its comparison to dense.

    Raises:
        ValueError: if the section has no such arm, or none of dense's with the same steps.
    """
    found = arms.measure(section, records)
    equal = sorted((m for m in found if m.arm.detail.get("equal_steps")), key=ratio)
    if not equal:
        raise ValueError(f"{section.name} has no arm that trains for as many steps as dense.")
    dense = next(
        m for m in found if m.arm.method == "dense" and m.arm.budget == equal[0].arm.budget
    )
    rows = []
    for m in equal:
        if m.arm.detail["steps"] != dense.arm.detail["steps"]:
            raise ValueError(f"{m.arm.label} and dense trained for other numbers of steps.")
        mean = m.interval
        rows.append(
            {
                "label": m.arm.label, "ratio": ratio(m), "steps": m.arm.detail["steps"],
                "dense_budget": dense.arm.budget, "time": m.time / dense.time, "n": m.n,
                "lost": m.lost, "accuracy": mean.mean, "low": mean.low, "high": mean.high,
                "sd": mean.sd, **arms.columns(arms.compare(m, dense)),
            }
        )  # fmt: skip
    return arms.decided(pd.DataFrame(rows))


def ratio(m: Measured) -> float:
    """An arm's share of basis filters."""
    return float(m.arm.detail["ratio"])  # type: ignore[arg-type]


def shown(table: pd.DataFrame, outcome: str) -> pd.DataFrame:
    """The table as a reader sees it."""
    return pd.DataFrame(
        [
            {
                "f": text.share(row.ratio),
                "time": f"{100 * row.time:.0f} %",
                "n": text.seeds(row.n, row.lost),
                f"{outcome} accuracy (%)": text.with_interval(row.accuracy, row.low, row.high, 1),
                "minus dense": text.with_interval(
                    row.difference, row.difference_low, row.difference_high, 2, True
                ),
                "p (Holm)": text.p_value(row.p_holm),
                "equal within": text.NOTHING
                if math.isnan(row.smallest_margin)
                else f"±{row.smallest_margin:.2f}",
                "so": text.VERDICT_WORDS_ON_DENSE[row.verdict],
            }
            for row in table.itertuples()
        ]
    )


def told(table: pd.DataFrame) -> str:
    """What dense's steps cost in accuracy and save in time, in one sentence."""
    each = [
        f"f = {text.share(r.ratio)} by {text.gain(r)}, in {100 * r.time:.0f} % of the time"
        for r in table[table["difference"].notna()].itertuples()
    ]
    if not each:
        return "No arm was measured that trains for as many steps as dense."
    budget = text.epochs(table["dense_budget"].iloc[0])
    return (
        f"Trained for as many steps as dense takes in {budget}, with dense's settings, all layers "
        f"in basis form differ from it: {text.listed(each)}."
    )

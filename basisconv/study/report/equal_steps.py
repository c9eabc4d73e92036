"""02's arms that train for as many steps as dense: what basis layers cost when time is no object.

The frontier asks what a network is worth for its time. Here every arm takes dense's own steps and
settings, as the paper and most others compare, and has the time that it saves left over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, text
from basisconv.study.report.arms import Measured


def on_budget(found: Sequence[Measured]) -> list[Measured]:
    """The arms that meet at time budgets."""
    return [m for m in found if m.arm.method != "equal_steps"]


def at_equal_steps(found: Sequence[Measured]) -> list[Measured]:
    """The arms of dense's steps, by rising share of basis filters."""
    return sorted((m for m in found if m.arm.method == "equal_steps"), key=ratio)


def equal_steps(section: Section, records: Mapping[str, Record]) -> pd.DataFrame:
    """One row for each share of basis filters, by rising share, and its comparison to dense.

    Raises:
        ValueError: if the section has no such arm, or one for which dense has none of its steps.
    """
    found = arms.measure(section, records)
    equal = at_equal_steps(found)
    if not equal:
        raise ValueError(f"{section.name} has no arm that trains for as many steps as dense.")
    of_dense = {m.arm.budget: m for m in found if m.arm.method == "dense"}

    def same_steps(m: Measured) -> Measured:
        dense = of_dense.get(m.arm.budget)
        if dense is None or dense.arm.detail["steps"] != m.arm.detail["steps"]:
            raise ValueError(f"No arm of dense trained for as many steps as {m.arm.label}.")
        return dense

    return arms.compare_table(
        equal,
        rival=same_steps,
        before=lambda m: {
            "ratio": ratio(m), "steps": m.arm.detail["steps"], "dense_budget": m.arm.budget,
            "time": m.time / same_steps(m).time,
        },
    )  # fmt: skip


def ratio(m: Measured) -> float:
    """An arm's share of basis filters."""
    value: Any = m.arm.detail["ratio"]
    return float(value)


def as_many_steps(table: pd.DataFrame) -> str:
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

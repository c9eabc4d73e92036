"""02's arms against dense: of the same time at every budget, and of as many steps.

The frontier asks what a network is worth for its time. At equal steps every arm takes dense's own
steps and settings, as the paper and most others compare, and has the saved time left over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, speedup, text
from basisconv.study.report.arms import DENSE, Measured

_DETAILS = ("ratio", "parameters", "macs", "executed_macs", "steps", "batch_size", "learning_rate")


def on_budget(found: Sequence[Measured]) -> list[Measured]:
    """The arms that meet at time budgets."""
    return [m for m in found if m.arm.method != "equal_steps"]


def at_equal_steps(found: Sequence[Measured]) -> list[Measured]:
    """The arms of dense's steps, by rising share of basis filters."""
    equal = (m for m in found if m.arm.method == "equal_steps")
    return sorted(equal, key=lambda m: float(m.detail["ratio"]))


def frontier(section: Section, records: Mapping[str, Record]) -> pd.DataFrame:
    """One row for each arm at each budget, with its comparison to dense at that budget."""
    found = on_budget(arms.measure(section, records))
    dense = {m.arm.budget: m for m in found if m.arm.method == "dense"}
    table = arms.compare_table(
        found,
        rival=lambda m: dense.get(m.arm.budget),
        before=lambda m: {"method": m.arm.method, "budget": m.arm.budget, "time": m.time},
        after=lambda m: {name: m.detail.get(name) for name in _DETAILS},
        family=lambda m: m.arm.method in DENSE,
    )
    return pd.concat([table, speedup.brackets(found, list(table["verdict"]))], axis=1)


def equal_steps(section: Section, records: Mapping[str, Record]) -> pd.DataFrame:
    """One row for each share of basis filters, by rising share, and its comparison to dense.

    Raises:
        ValueError: if the section has no such arm, or one for which dense has none of its steps.
    """
    found = arms.measure(section, records)
    dense = {
        (m.arm.budget, tuple(m.detail["steps"])): m for m in found if m.arm.method == "dense"
    }  # fmt: skip
    equal = at_equal_steps(found)
    rivals = {m.arm.label: dense.get((m.arm.budget, tuple(m.detail["steps"]))) for m in equal}
    if not equal or None in rivals.values():
        raise ValueError(
            f"{section.name} needs arms that train for as many steps as dense, and for each of "
            f"them a dense arm of its budget and steps; it has {', '.join(rivals) or 'none'}."
        )

    def before(m: Measured) -> dict[str, Any]:
        rival = rivals[m.arm.label]
        return {
            "ratio": m.detail["ratio"], "steps": m.detail["steps"], "dense_budget": m.arm.budget,
            "time": m.time / rival.time if rival else None,
        }  # fmt: skip

    return arms.compare_table(equal, lambda m: rivals[m.arm.label], before)


def headline(table: pd.DataFrame, found: Sequence[Measured]) -> str:
    """How the basis arms compare with dense, and with the narrower network, of the same time."""
    sentences = [_against("dense", table[~table["method"].isin(DENSE)])]
    narrow = {m.arm.budget: m for m in found if m.arm.method == "narrow"}
    rows = [
        {"label": m.arm.label, "budget": m.arm.budget, **arms.compare(m, other)._asdict()}
        for m in found
        if m.arm.method not in DENSE and (other := narrow.get(m.arm.budget))
    ]
    if rows:
        rival = f"the narrower network “{next(iter(narrow.values())).arm.label}”"
        sentences.append(_against(rival, arms.decided(pd.DataFrame(rows))))
    return " ".join(sentences)


def _against(rival: str, table: pd.DataFrame) -> str:
    """One sentence: the verdicts on all rows, and the largest difference at each budget."""
    table = table[table["difference"].notna()]
    if table.empty:
        return f"No basis arm was measured against {rival}."
    best = table.loc[table.groupby("budget")["difference"].idxmax()]
    whose = text.listed([f"“{label}”" for label in dict.fromkeys(best["label"])])
    each = [
        f"{text.gain(r)} at {text.epochs(r.budget)} ({text.VERDICT_WORDS[r.verdict]})"
        for r in best.itertuples()
    ]
    return (
        f"Basis arms against {rival} trained for the same time, {arms.tally(table['verdict'])} "
        f"(Holm); the best of each budget ({whose}) differ from it by {text.listed(each)}."
    )


def same_size(found: Sequence[Measured]) -> dict[str, Any]:
    """All layers in basis form against dense of as many parameters: is it worth its bytes."""
    rival = next((m for m in found if m.arm.method == "same_size" and m.n), None)
    if rival is None:
        return {}
    size = rival.detail["parameters"]
    ours = [
        m for m in found if m.arm.method == "basis" and m.arm.budget == rival.arm.budget and m.n
    ]
    if not ours:
        return {}
    arm = min(ours, key=lambda m: abs(m.detail["parameters"] - size))
    gain = text.gain(arms.compare(arm, rival))
    return {
        "same size": text.said(f"“{arm.arm.label}” minus {text.at_budget(rival.arm)}: {gain}")
    }  # fmt: skip

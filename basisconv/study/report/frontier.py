"""The frontier's numbers: every arm at every time budget against dense of the same time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, speedup, text
from basisconv.study.report.arms import DENSE, Measured
from basisconv.study.report.equal_steps import on_budget

_DETAILS = ("ratio", "parameters", "macs", "executed_macs", "steps", "batch_size", "learning_rate")


def frontier(section: Section, records: Mapping[str, Record]) -> pd.DataFrame:
    """One row for each arm at each budget, with its comparison to dense at that budget."""
    found = on_budget(arms.measure(section, records))
    dense = {m.arm.budget: m for m in found if m.arm.method == "dense"}
    table = arms.compare_table(
        found,
        rival=lambda m: None if m.arm.method == "dense" else dense.get(m.arm.budget),
        before=lambda m: {"method": m.arm.method, "budget": m.arm.budget, "time": m.time},
        after=lambda m: {name: m.arm.detail.get(name) for name in _DETAILS},
        family=lambda m: m.arm.method in DENSE,
    )
    return pd.concat([table, speedup.brackets(found, list(table["verdict"]))], axis=1)


def headline(table: pd.DataFrame, found: Sequence[Measured]) -> str:
    """How the arms compare with dense, and in one breath with the narrower network."""
    return " ".join([_against_dense(table, arms.tested(table)), *_against_narrow(found)])


def _against_dense(table: pd.DataFrame, tested: pd.DataFrame) -> str:
    """One sentence: how often dense trained for the same time is beaten, and by how much."""
    if tested.empty:
        several = table[table["method"] != "dense"]["difference"].dropna()
        if several.empty:
            return "No arm was measured against dense."
        return (
            "With one run an arm there is no interval: at equal training time the arms differ "
            f"from dense by {text.fixed(several.min(), 1, True)} to "
            f"{text.fixed(several.max(), 1, True)} points."
        )
    ours = tested[~tested["method"].isin(DENSE)]
    above = ours[ours["verdict"] == "above"]
    if above.empty:
        below = (ours["verdict"] == "below").sum()
        return (
            f"No basis arm beats dense trained for the same time: of {len(ours)} comparisons "
            f"{text.amount(below)} are losses and {text.amount(len(ours) - below)} undecided or "
            f"within ±{arms.MARGIN:g} points."
        )
    return (
        f"Against dense trained for the same time the basis arms "
        f"{won_and_lost(ours['verdict'])} (Holm); the largest gain, budget by budget, is "
        f"{_best(above)}."
    )


def _against_narrow(found: Sequence[Measured]) -> list[str]:
    """Each basis arm against the narrower dense network: the cheap rival."""
    rivals = [m for m in found if m.arm.method == "narrow"]
    rows = [
        {
            "label": m.arm.label, "method": m.arm.method, "budget": rival.arm.budget,
            **arms.columns(arms.compare(m, rival)),
        }
        for rival in rivals
        for m in found
        if m.arm.budget == rival.arm.budget and m.arm.method not in DENSE
    ]  # fmt: skip
    tested = arms.tested(arms.decided(pd.DataFrame(rows))) if rows else pd.DataFrame()
    if tested.empty:
        return []
    return [
        f"Against the narrower dense network {_quoted(rivals[0].arm.label)}, trained for the same "
        f"time, the basis arms {won_and_lost(tested['verdict'])} (Holm); the most favourable "
        f"difference, budget by budget, is {_best(tested)}."
    ]


def _best(table: pd.DataFrame) -> str:
    """The largest difference at each budget, where no test decides it so marked, and whose."""
    best = table.loc[table.groupby("budget")["difference"].idxmax()]
    marks = {"open": " (undecided)", "equal": f" (within ±{arms.MARGIN:g} points)"}
    each = [
        f"{text.gain(row)} at {row.budget:g}{marks.get(row.verdict, '')}"
        for row in best.itertuples()
    ]
    whose = text.listed([_quoted(label) for label in dict.fromkeys(best["label"])])
    return f"{text.listed(each)} {_unit(best['budget'])} ({whose})"


def won_and_lost(verdicts: pd.Series) -> str:
    """As in "lose all 4 comparisons", "win 1 of 3 comparisons, lose none and leave 2 undecided"."""
    of = len(verdicts)
    won, lost, equal, left = (
        int((verdicts == verdict).sum()) for verdict in ("above", "below", "equal", "open")
    )
    for count, verb in ((won, "win"), (lost, "lose"), (left, "leave undecided")):
        if count == of:
            return f"{verb} {'the one comparison' if of == 1 else f'all {of} comparisons'}"
    within = f" or within ±{arms.MARGIN:g} points" if equal else ""
    return (
        f"win {text.amount(won)} of {of} comparisons, lose {text.amount(lost)} and leave "
        f"{text.amount(left + equal)} undecided{within}"
    )


def same_size(found: Sequence[Measured]) -> dict[str, Any]:
    """All layers in basis form against dense of as many parameters: is it worth its bytes."""
    rival = next((m for m in found if m.arm.method == "same_size" and m.n), None)
    if rival is None:
        return {}

    def apart(m: Measured) -> float:
        size: Any = m.arm.detail["parameters"]
        return abs(size - rival.arm.detail["parameters"])

    ours = [
        m for m in found if m.arm.method == "basis" and m.arm.budget == rival.arm.budget and m.n
    ]
    if not ours:
        return {}
    arm = min(ours, key=apart)
    return {
        "same size": text.said(
            f"{_quoted(arm.arm.label)} minus {text.at_budget(rival.arm)}: "
            f"{text.points(arms.compare(arm, rival).difference)}"
        )
    }


def _quoted(label: str) -> str:
    """A label as a sentence names it."""
    return f"“{label}”"


def _unit(budgets: pd.Series) -> str:
    return "dense epoch" if (budgets == 1).all() else "dense epochs"

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


def findings(table: pd.DataFrame, found: Sequence[Measured]) -> list[str]:
    """What the frontier shows, in sentences; the first is its headline."""
    tested = arms.tested(table)
    # In one breath: what beats dense may still lose to a narrower network.
    headline = " ".join([_headline(table, tested), *_against_narrow(found)])
    told = [headline, *_winners(tested), *_by_budget(table, tested)]
    return told + _against_same_size(found) + speedup.told(table, found)


def _headline(table: pd.DataFrame, tested: pd.DataFrame) -> str:
    """One sentence: how often dense trained for the same time is beaten, and by how much."""
    if tested.empty:
        several = table[table["method"] != "dense"]["difference"].dropna()
        if several.empty:
            return "No arm was measured beside dense."
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


def _winners(tested: pd.DataFrame) -> list[str]:
    """Which arms beat dense at which budgets; where more than a few all do, that in a word."""
    ours = tested[~tested["method"].isin(DENSE)]
    above = ours[ours["verdict"] == "above"]
    if above.empty:
        return []
    return [f"Dense trained for the same time is beaten by {_beaten_by(ours, above)}."]


def _beaten_by(ours: pd.DataFrame, above: pd.DataFrame) -> str:
    number = ours["label"].nunique()
    if len(above) == len(ours) and number > 3:
        return (
            f"each of {number} basis arms at every budget that the arm was trained for "
            f"({_budgets(ours['budget'])} {_unit(ours['budget'])})"
        )
    where = [
        f"{_quoted(str(label))} at {_budgets(rows['budget'])}"
        for label, rows in above.groupby("label", sort=False)
    ]
    return f"{text.listed(where)} {_unit(above['budget'])}"


def _by_budget(table: pd.DataFrame, tested: pd.DataFrame) -> list[str]:
    sentences = []
    for budget, rows in table.groupby("budget"):
        reached = rows[rows["accuracy"].notna()]
        if reached.empty or set(rows["method"]) == {"dense"}:
            continue
        best = reached.loc[reached["accuracy"].idxmax()]
        sentence = (
            f"At a budget of {text.epochs(float(budget))} the highest mean is that of "
            f"{_quoted(best.label)} "
            f"({text.with_interval(best.accuracy, best.low, best.high, 1, unit=' %')}, "
            f"n = {best.n})"
        )
        at = tested[tested["budget"] == budget]
        below, undecided = (
            [_quoted(label) for label in at[at["verdict"] == verdict]["label"]]
            for verdict in ("below", "open")
        )
        if below:
            sentence += f"; dense beats {text.listed(below)}"
        if undecided and len(undecided) == len(at):
            sentence += "; no arm is decided against dense"
        elif undecided:
            sentence += f"; undecided against dense: {text.listed(undecided)}"
        sentences.append(f"{sentence}.")
    return sentences


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


def _against_same_size(found: Sequence[Measured]) -> list[str]:
    """All layers in basis form against dense of as many parameters: is it worth its bytes."""
    rival = next((m for m in found if m.arm.method == "same_size" and m.n), None)
    if rival is None:
        return []

    def apart(m: Measured) -> float:
        size: Any = m.arm.detail["parameters"]
        return abs(size - rival.arm.detail["parameters"])

    ours = [
        m for m in found if m.arm.method == "basis" and m.arm.budget == rival.arm.budget and m.n
    ]
    if not ours:
        return []
    arm = min(ours, key=apart)
    difference = arms.compare(arm, rival).difference
    return [
        f"At a budget of {rival.arm.budget:g}, {_quoted(arm.arm.label)} minus "
        f"{_quoted(rival.arm.label)}, the narrower dense network of nearly as many parameters: "
        f"{text.points(difference)}."
    ]


def _quoted(label: str) -> str:
    """A label as a sentence names it."""
    return f"“{label}”"


def _unit(budgets: pd.Series) -> str:
    return "dense epoch" if (budgets == 1).all() else "dense epochs"


def _budgets(budgets: pd.Series) -> str:
    return text.listed([f"{b:g}" for b in sorted(set(budgets))])

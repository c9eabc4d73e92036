"""The frontier's numbers: every arm at every time budget against dense of the same time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from basisconv.study import stats
from basisconv.study.report import arms, text
from basisconv.study.report.arms import Measured
from basisconv.study.report.equal_steps import on_budget
from basisconv.study.run import Record, Section
from basisconv.study.stats import NAN

_DETAILS = ("ratio", "parameters", "macs", "executed_macs", "steps", "batch_size", "learning_rate")
DENSE = ("dense", "narrow", "same_size")
"""Methods whose networks are dense: what the basis arms are held against."""


def frontier(section: Section, records: Mapping[str, Record]) -> pd.DataFrame:
    """One row for each arm at each budget, with its comparison to dense at that budget."""
    found = on_budget(arms.measure(section, records))
    dense = {m.arm.budget: m for m in found if m.arm.method == "dense"}
    rows = []
    for m in found:
        rival = dense.get(m.arm.budget)
        itself = m.arm.method == "dense" or rival is None
        against = arms.compare_values([] if itself else m.accuracy, rival.accuracy if rival else [])
        mean = m.interval
        rows.append(
            {
                "label": m.arm.label, "method": m.arm.method, "budget": m.arm.budget,
                "time": m.time, "n": m.n, "lost": m.lost, "accuracy": mean.mean, "low": mean.low,
                "high": mean.high, "sd": mean.sd, **arms.columns(against),
                **{k: m.arm.detail.get(k) for k in _DETAILS},
            }
        )  # fmt: skip
    frame = pd.DataFrame(rows)
    table = arms.decided(frame, families=frame["method"].isin(DENSE))
    return pd.concat([table, brackets(found, list(table["verdict"]))], axis=1)


def brackets(found: Sequence[Measured], verdicts: Sequence[str]) -> pd.DataFrame:
    """Between which factors each arm's speed-up to equal accuracy lies; NaN: no such bound.

    An arm that trained for t is at least T/t times as fast as dense where it beats dense trained
    for T, and less than T/t times where that beats it. Nothing is interpolated between measured
    budgets. At an arm's own budget its verdict decides. The comparisons with dense of other budgets
    are Welch's, corrected by Holm's method over all of them, for the largest speed-up is the best
    of many; and a bound beyond the own budget needs the verdict there as well.

    Args:
        found: the arms, dense among them.
        verdicts: of each against dense of its own budget; see `arms.decided`.

    Returns:
        A row an arm: `speedup_at_least`, `speedup_below`, and of the comparison that the former
        rests on, in points, `beaten_by` with its 95 % interval, and its p by Holm.
    """
    pairs = [
        {
            "arm": i, "dense_like": m.arm.method in DENSE, "speedup": rival.time / m.time,
            "longer": (rival.arm.budget or 0.0) - (m.arm.budget or 0.0),
            **arms.columns(arms.compare(m, rival)),
        }
        for i, m in enumerate(found)
        for rival in found
        if m.arm.method != "dense" and rival.arm.method == "dense"
    ]  # fmt: skip
    columns = ("arm", "dense_like", "speedup", "longer", *arms.columns(arms.compare_values([], [])))
    table = pd.DataFrame(pairs, columns=columns)
    others = table["longer"] != 0
    table = pd.concat(
        [arms.decided(table[others], families=table[others]["dense_like"]), table[~others]]
    )
    return pd.DataFrame(
        [_bracket(table[table["arm"] == i], verdict) for i, verdict in enumerate(verdicts)]
    )


def _bracket(compared: pd.DataFrame, own: str) -> dict[str, float]:
    """The row of `brackets` of an arm with this verdict at its own budget."""
    longer = compared["longer"]
    verdicts = compared["verdict"].where(longer != 0, own)
    beaten = compared[(verdicts == "above") & ((longer < 0) | (own == "above"))]
    lost = compared[(verdicts == "below") & ((longer > 0) | (own == "below"))]
    row = dict.fromkeys(
        ("speedup_at_least", "speedup_below", "beaten_by", "beaten_low", "beaten_high",
         "beaten_p_holm"), NAN,
    )  # fmt: skip
    if len(lost):
        row["speedup_below"] = lost["speedup"].min()
    if len(beaten):
        best = beaten.loc[beaten["speedup"].idxmax()]
        row |= {
            "speedup_at_least": best.speedup, "beaten_by": best.difference,
            "beaten_low": best.difference_low, "beaten_high": best.difference_high,
            "beaten_p_holm": best.p_holm,
        }  # fmt: skip
    return row


def bracket_text(low: float, high: float) -> str:
    """As in "≥ 1.00×, < 2.00×"."""
    parts = [f"≥ {low:.2f}×"] if not math.isnan(low) else []
    parts += [f"< {high:.2f}×"] if not math.isnan(high) else []
    return ", ".join(parts) or text.NOTHING


def findings(table: pd.DataFrame, found: Sequence[Measured]) -> list[str]:
    """What the frontier shows, in sentences; the first is its headline."""
    tested = arms.tested(table)
    # In one breath: what beats dense may still lose to a narrower network.
    headline = " ".join([_headline(table, tested), *_against_narrow(found)])
    told = [headline, *_by_budget(table, tested)]
    return told + _against_same_size(found) + _speedups(table)


def _headline(table: pd.DataFrame, tested: pd.DataFrame) -> str:
    """One sentence: what beats dense trained for the same time, and where."""
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
    best = above.loc[above["difference"].idxmax()]
    return (
        f"Dense trained for the same time is beaten by {_winners(ours, above)}; the largest gain "
        f"is {text.gain(best)} ({text.at_budget(best)})."
    )


def _winners(ours: pd.DataFrame, above: pd.DataFrame) -> str:
    """Which arms beat dense at which budgets; where more than a few all do, that in a word."""
    number = ours["label"].nunique()
    if len(above) == len(ours) and number > 3:
        return (
            f"each of {number} basis arms at every budget that the arm was trained for "
            f"({_budgets(ours['budget'])} dense epochs)"
        )
    where = [
        f"{_quoted(str(label))} at {_budgets(rows['budget'])}"
        for label, rows in above.groupby("label", sort=False)
    ]
    return f"{text.listed(where)} dense epochs"


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
    told: list[tuple[str, stats.Difference]] = []
    rivals = [m for m in found if m.arm.method == "narrow"]
    for rival in rivals:
        told += [
            (text.at_budget(m.arm), arms.compare(m, rival).difference)
            for m in found
            if m.arm.budget == rival.arm.budget and m.arm.method not in DENSE
        ]
    adjusted = stats.holm([d.p for _, d in told])
    tested = [(name, d, p) for (name, d), p in zip(told, adjusted, strict=True) if p == p]
    if not tested:
        return []
    won = sum(p < arms.ALPHA and d.estimate > 0 for _, d, p in tested)
    lost = sum(p < arms.ALPHA and d.estimate < 0 for _, d, p in tested)
    best, difference, _ = max(tested, key=lambda row: row[1].estimate)
    return [
        f"Against the narrower dense network {_quoted(rivals[0].arm.label)}, trained for the same "
        f"time, the basis arms {won_and_lost(won, lost, len(tested))} (Holm); the most favourable "
        f"is {best}, {text.points(difference)}."
    ]


def won_and_lost(won: int, lost: int, of: int) -> str:
    """As in "lose all 4 comparisons", "win 1 of 3 comparisons, lose none and leave 2 undecided"."""
    for count, verb in ((won, "win"), (lost, "lose"), (of - won - lost, "leave undecided")):
        if count == of:
            return f"{verb} {'the one comparison' if of == 1 else f'all {of} comparisons'}"
    return (
        f"win {text.amount(won)} of {of} comparisons, lose {text.amount(lost)} and leave "
        f"{text.amount(of - won - lost)} undecided"
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


def _speedups(table: pd.DataFrame) -> list[str]:
    ours = table[~table["method"].isin(DENSE) & (table["speedup_at_least"] > 1.02)]
    if ours.empty:
        return []
    best = fastest(ours)
    told = [f"{text.at_budget(r)} ({lead(r)})" for r in best.itertuples()]
    return [
        f"Dense trained {best.iloc[0].speedup_at_least:.2f} times as long is beaten by "
        f"{text.listed(told)}, the largest speed-up at equal accuracy that the measured budgets "
        "show (p by Holm over all comparisons with dense of another budget)."
    ]


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


def _quoted(label: str) -> str:
    """A label as a sentence names it."""
    return f"“{label}”"


def _budgets(budgets: pd.Series) -> str:
    return text.listed([f"{b:g}" for b in sorted(set(budgets))])

"""02_all_layers: accuracy against training time and against size, the headline of the study."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, comparisons, speedup, style, tables, text
from basisconv.study.report.frontier import equal_steps, frontier, headline, on_budget, same_size
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.tables import cell, count, make_table, percent, plain, words

_NAMED = [words("arm", "label"), plain("budget", "budget")]


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """The frontier: every arm at every time budget against dense trained for the same time."""
    if "equal_time" in section.facts:
        return comparisons.build(section, records)
    facts = section.facts
    outcome, every = arms.outcome(section, records), arms.measure(section, records)
    found, equal = on_budget(every), equal_steps(section, records)
    table = frontier(section, records)
    ordered, sizes = table.sort_values("budget", kind="stable"), table.drop_duplicates("label")
    unit, tuned = facts["unit"], bool(facts.get("tuned"))
    bracket = words("speed-up", lambda r: speedup.bracket_text(r.speedup_at_least, r.speedup_below))
    verdict = tables.verdict(text.VERDICT_WORDS_ON_DENSE)
    return Report(
        section.name,
        section.profile,
        tables={
            "frontier": make_table(
                table, [*_NAMED, *tables.against_dense(outcome), bracket, verdict],
                f"Every arm at every budget (in dense epochs by {unit}): {outcome} accuracy, its "
                "difference from dense trained for the same time, the smallest margin within "
                "which both are equal, and the bracket of its speed-up to equal accuracy.",
                rows=ordered,
            ),
            "equal_steps": make_table(
                equal,
                [words("f", lambda row: text.share(row.ratio)), percent("time", "time"),
                 *tables.against_dense(outcome), verdict],
                "All layers in basis form, trained with dense's settings for as many steps as "
                f"dense in {text.epochs(equal['dense_budget'].iloc[0])}: their share of dense's "
                f"time, by {unit}, and {outcome} accuracy.",
            ),
            "frontier_size": make_table(
                table, _size_columns(sizes[sizes["method"] == "dense"].iloc[0]),
                f"What each arm's network holds, and executes for one image. "
                f"{text.MACS_BY_PARAMETERS}",
                rows=sizes,
            ),
            "frontier_settings": make_table(
                table,
                [*_NAMED, plain("learning rate", "learning_rate"), plain("batch", "batch_size"),
                 words("steps", lambda row: ", then ".join(f"{n:,}" for n in row.steps))],
                "What the arms were trained with: "
                + ("tuned by the pilot for each kind of arm." if tuned else "the same for all."),
                rows=ordered,
            ),
        },
        figures={
            "frontier": Plot(
                _frontier_figure(table, outcome), table,
                f"(a) {outcome.capitalize()} accuracy against training time, in dense epochs by "
                f"{unit}: {arms.shown_as(found)}. (b) The difference from dense trained for the "
                f"same time, with 95 % Welch intervals and a band of ±{arms.MARGIN:g} points. "
                "Points in an upright band have trained for the time in its middle.",
            ),
            "frontier_size": Plot(
                _size_figure(table, outcome), table,
                f"{outcome.capitalize()} accuracy at the budget of "
                f"{text.epochs(_size_budget(table))} against (a) parameters and (b) executed "
                f"multiplications for one image: {arms.shown_as(found)}. Arms of exactly the same "
                "number are set apart sideways.",
            ),
        },
        numbers={
            "values": {
                f"{r.label} at {r.budget:g}": text.number(
                    r.accuracy, r.low, r.high, r.n, digits=1, unit=" %"
                )
                for r in table.itertuples()
            } | same_size(found) | speedup.values(table, found),
            "headline": headline(table, found), "tuned": tuned,
            "share": text.share(facts["ratio"]) if "ratio" in facts else None,
            **arms.scale(found, records),
        },
    )  # fmt: skip


def _size_columns(dense: Any) -> list[tables.Column]:
    return [
        words("arm", "label"),
        count("parameters", "parameters"),
        percent("of dense", lambda row: row.parameters / dense.parameters),
        cell("MACs by parameters", "macs", text.millions),
        cell("MACs executed", "executed_macs", text.millions),
        percent("of dense", lambda row: row.executed_macs / dense.executed_macs),
    ]


def _frontier_figure(table: pd.DataFrame, outcome: str) -> Figure:
    labels = style.ranks(table["label"], table["method"])
    # Dense has more budgets than the others, so it stands at its own times, and of the places round
    # them there is an even number, so that none of them is dense's.
    rest = [label for label, (method, _) in labels.items() if method != "dense"]
    places = style.spread(len(rest) + len(rest) % 2)
    shifts = dict.fromkeys(labels, 1.0) | dict(zip(rest, places, strict=False))
    # Dense's own budgets between these would crowd the axis.
    several = table[table["method"] != "dense"]
    ticks = sorted({float(b) for b in (several if len(several) else table)["budget"]})
    made = style.figure(style.TWO_COLUMNS, 3.0)
    left, right = made.subplots(1, 2)
    for label, (method, place) in labels.items():
        arm = table[(table["label"] == label) & table["accuracy"].notna()].sort_values("time")
        at = arm["time"] * shifts[label]
        style.intervals(left, at, arm["accuracy"], arm["low"], arm["high"], method, place)
        if method != "dense":
            ends = arm["difference_low"], arm["difference_high"]
            style.intervals(right, at, arm["difference"], *ends, method, place)
    right.axhspan(-arms.MARGIN, arms.MARGIN, color=style.BAND, zorder=0)
    right.axhline(0, color=style.look("dense").colour, linewidth=0.9, zorder=1)
    style.panel(left, "a", f"{outcome} accuracy (%)")
    style.panel(right, "b", "minus dense of the same time (points)")
    for axes in (left, right):
        for budget in ticks if rest else ():
            axes.axvspan(budget * places[0] / 1.01, budget * places[-1] * 1.01,
                         color=style.BAND, linewidth=0, zorder=-1)  # fmt: skip
        style.time_axis(axes, ticks, "training time (dense epochs, logarithmic)")
    style.legend_below(made, [style.handle(m, n, place) for n, (m, place) in labels.items()])
    return made


def _size_budget(table: pd.DataFrame) -> float:
    """The budget with the most arms; of several the longest."""
    sizes = table[table["accuracy"].notna()].groupby("budget")["label"].nunique()
    return float(max(sizes.index, key=lambda budget: (sizes[budget], budget)))


def _size_figure(table: pd.DataFrame, outcome: str) -> Figure:
    at = table[(table["budget"] == _size_budget(table)) & table["accuracy"].notna()]
    every = style.ranks(table["label"], table["method"])
    labels = {name: every[name] for name in every if name in set(at["label"])}
    made = style.figure(style.TWO_COLUMNS, 2.7)
    panels = made.subplots(1, 2, sharey=True)
    for axes, what in zip(panels, ("parameters", "executed_macs"), strict=True):
        places = style.apart([math.log2(value / 1e6) for value in at[what]], near=0, step=0.05)
        for r, x in zip(at.itertuples(), places, strict=True):
            look = labels[r.label]
            style.intervals(axes, [2**x], [r.accuracy], [r.low], [r.high], *look, line=False)
        style.plain_log(axes, at[what].min() / 1.3e6, at[what].max() * 1.3e-6)
    style.panel(panels[0], "a", "accuracy against size")
    style.panel(panels[1], "b", "accuracy against arithmetic")
    panels[0].set(ylabel=f"{outcome} accuracy (%)", xlabel="parameters (millions, logarithmic)")
    panels[1].set_xlabel("executed multiplications (millions an image, logarithmic)")
    handles = [style.handle(m, n, place, line=False) for n, (m, place) in labels.items()]
    style.legend_below(made, handles)
    return made

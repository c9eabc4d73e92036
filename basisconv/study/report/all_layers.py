"""02_all_layers: accuracy against training time and against size, the headline of the study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, comparisons, speedup, style, tables, text
from basisconv.study.report.arms import Measured
from basisconv.study.report.equal_steps import as_many_steps, equal_steps, on_budget
from basisconv.study.report.frontier import frontier, headline, same_size
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.tables import cell, count, make_table, percent, plain, words

_NAMED = [words("arm", "label"), plain("budget", "budget")]


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """The frontier: every arm at every time budget against dense trained for the same time."""
    if "equal_time" in section.facts:
        return comparisons.build(section, records)
    outcome, every = arms.outcome(section, records), arms.measure(section, records)
    found, equal = on_budget(every), equal_steps(section, records)
    table = frontier(section, records)
    ordered, sizes = table.sort_values("budget", kind="stable"), table.drop_duplicates("label")
    unit = str(section.facts.get("unit", "the cost source"))
    bracket = words("speed-up", lambda r: speedup.bracket_text(r.speedup_at_least, r.speedup_below))
    verdict = tables.verdict(text.VERDICT_WORDS_ON_DENSE)
    return Report(
        section.name,
        section.profile,
        tables={
            "frontier": make_table(
                table, [*_NAMED, *tables.against_dense(outcome), bracket, verdict],
                f"Every arm at every budget of training time (in dense epochs, by {unit}): "
                f"{outcome} accuracy with its 95 % interval; its difference from dense trained for "
                "the same time (Welch, p by Holm over the basis arms, and over the narrower "
                "networks); and the bracket of its speed-up to equal accuracy, between two "
                "measured dense budgets (by the comparisons with dense of all other budgets, "
                "corrected in the same way). Equal within: the smallest margin within which the "
                "equivalence test would find both equal.",
                rows=ordered,
            ),
            "equal_steps": make_table(
                equal,
                [words("f", lambda row: text.share(row.ratio)), percent("time", "time"),
                 *tables.against_dense(outcome), verdict],
                "All layers in basis form, trained for as many steps as dense in "
                f"{text.epochs(equal['dense_budget'].iloc[0])} and with its settings: the time "
                f"that they take of dense's, by {unit}; {outcome} accuracy with its 95 % "
                "interval; and its difference from dense's (Welch, p by Holm over the rows).",
            ),
            "frontier_size": make_table(
                table, _size_columns(sizes[sizes["method"] == "dense"].iloc[0]),
                "What each arm's network holds and executes for one image, against dense. "
                + text.MACS_BY_PARAMETERS,
                rows=sizes,
            ),
            "frontier_settings": make_table(
                table,
                [*_NAMED, plain("learning rate", "learning_rate"), plain("batch", "batch_size"),
                 words("steps", lambda row: ", then ".join(f"{n:,}" for n in row.steps))],
                "What the arms were trained with: "
                + ("tuned for each kind of arm on validation images alone, on seeds of the "
                   "pilot's own." if section.facts.get("tuned") else "the same for all of them."),
                rows=ordered,
            ),
        },
        figures={
            "frontier": Plot(
                _frontier_figure(table, outcome), table,
                f"(a) {text.capital(outcome)} accuracy against training time, in dense epochs by "
                f"{unit}: {arms.shown_as(found)}; each budget has trainings of its own, with "
                "their own schedule. (b) The difference from dense trained for the same time, "
                f"with 95 % Welch intervals; the level band is ±{arms.MARGIN:g} points. All points "
                "in an upright band have trained for the time in its middle, and stand side by "
                "side so that all are seen; between bands dense trained for other times.",
            ),
            "frontier_size": Plot(
                _size_figure(table, outcome), table,
                f"{text.capital(outcome)} accuracy at the budget of "
                f"{text.epochs(_size_budget(table))} against (a) parameters and (b) executed "
                f"multiplications for one image: {arms.shown_as(found)}. Every point "
                "stands at its arm's own number; only arms of exactly the same one, as dense and "
                "skip training that ends dense, are set apart sideways, a little.",
            ),
        },
        numbers=_numbers(table, outcome, found) | _scale(found, records)
        | {"as_many_steps": as_many_steps(equal[equal["ratio"] == section.facts.get("ratio")])}
        | {"notes": arms.lost_note(every), "tuned": bool(section.facts.get("tuned"))},
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


def _labels(table: pd.DataFrame) -> dict[str, tuple[str, int]]:
    """Label -> method and its place among the labels of that method."""
    seen: dict[str, tuple[str, int]] = {}
    for label, method in zip(table["label"], table["method"], strict=True):
        if label not in seen:
            seen[label] = (method, sum(m == method for m, _ in seen.values()))
    return seen


def _frontier_figure(table: pd.DataFrame, outcome: str) -> Figure:
    labels = _labels(table)
    # Dense has more budgets than the others, so it stands at its own times, and of the places round
    # them there is an even number, so that none of them is dense's.
    rest = [label for label, (method, _) in labels.items() if method != "dense"]
    places = style.spread(len(rest) + len(rest) % 2)
    shifts = dict.fromkeys(labels, 1.0) | dict(zip(rest, places, strict=False))
    # Dense's own budgets between these would crowd the axis.
    several = table[table["method"] != "dense"]
    ticks = sorted({float(b) for b in (several if len(several) else table)["budget"]})
    with style.drawing():
        made = style.figure(style.TWO_COLUMNS, 3.0)
        left, right = made.subplots(1, 2)
        for label, (method, place) in labels.items():
            arm = table[(table["label"] == label) & table["accuracy"].notna()].sort_values("time")
            at = arm["time"] * shifts[label]
            style.intervals(left, at, arm["accuracy"], arm["low"], arm["high"], method, place)
            if method != "dense":
                style.intervals(
                    right, at, arm["difference"], arm["difference_low"], arm["difference_high"],
                    method, place,
                )  # fmt: skip
        for axes in (left, right):
            for budget in ticks if rest else ():
                axes.axvspan(budget * places[0] / 1.01, budget * places[-1] * 1.01,
                             color=style.BAND, linewidth=0, zorder=-1)  # fmt: skip
        right.axhspan(-arms.MARGIN, arms.MARGIN, color=style.BAND, zorder=0)
        right.axhline(0, color=style.look("dense").colour, linewidth=0.9, zorder=1)
        style.panel(left, "a", f"{outcome} accuracy (%)")
        style.panel(right, "b", "minus dense of the same time (points)")
        for axes in (left, right):
            style.time_axis(axes, ticks, "training time (dense epochs, logarithmic)")
        handles = [style.handle(m, label, place) for label, (m, place) in labels.items()]
        style.legend_below(made, handles)
    return made


def _size_budget(table: pd.DataFrame) -> float:
    """The budget with the most arms; of several the longest."""
    sizes = table[table["accuracy"].notna()].groupby("budget")["label"].nunique()
    return float(max(sizes.index, key=lambda budget: (sizes[budget], budget)))


def _size_figure(table: pd.DataFrame, outcome: str) -> Figure:
    labels = _labels(table)
    at = table[(table["budget"] == _size_budget(table)) & table["accuracy"].notna()]
    with style.drawing():
        made = style.figure(style.TWO_COLUMNS, 2.7)
        panels = made.subplots(1, 2, sharey=True)
        for axes, what in zip(panels, ("parameters", "executed_macs"), strict=True):
            places = style.apart([math.log2(value / 1e6) for value in at[what]], near=0, step=0.05)
            for row, x in zip(at.itertuples(), places, strict=True):
                method, place = labels[row.label]
                style.intervals(
                    axes, [2**x], [row.accuracy], [row.low], [row.high], method, place, line=False
                )
            style.plain_log(axes, at[what].min() / 1.3e6, at[what].max() * 1.3e-6)
        style.panel(panels[0], "a", "accuracy against size")
        style.panel(panels[1], "b", "accuracy against arithmetic")
        panels[0].set_ylabel(f"{outcome} accuracy (%)")
        panels[0].set_xlabel("parameters (millions, logarithmic)")
        panels[1].set_xlabel("executed multiplications (millions an image, logarithmic)")
        shown = [
            style.handle(m, label, place, line=False)
            for label, (m, place) in labels.items()
            if label in set(at["label"])
        ]
        style.legend_below(made, shown)
    return made


def _scale(found: Sequence[Measured], records: Mapping[str, Record]) -> dict[str, Any]:
    """How large the trainings are: what the paper's protocol says of them, and their images."""
    run = records[found[0].arm.run_ids[0]].run
    budgets = sorted({m.arm.budget for m in found if m.arm.method != "dense" and m.arm.budget})
    images = "all training images"
    if run.data.train_images is not None:
        images = f"{run.data.train_images:,} training images"
    return {
        "train_images": run.data.train_images,
        "scale": f"The frontier is that of {text.network(run.network)} of width {run.width} on "
        f"{images}, at training times of {text.listed([f'{b:g}' for b in budgets])} dense epochs, "
        f"{text.plural(run.threads, 'thread')} a run.",
    }


def _numbers(table: pd.DataFrame, outcome: str, found: Sequence[Measured]) -> dict[str, Any]:
    return {
        "values": {
            f"{row.label} at {row.budget:g}": text.number(
                row.accuracy, row.low, row.high, row.n, digits=1, unit=" %"
            )
            for row in table.itertuples()
        }
        | same_size(found)
        | speedup.values(table, found),
        "outcome": outcome, "headline": headline(table, found),
    }  # fmt: skip

"""02 by named arms: the same epochs and the same time, under each recipe, and the plan's contrasts.

At one length `acc ~ arm + seed` gives every difference: runs of a seed share data order and
augmentation. Only the contrasts that the analysis plan names are tested; see `contrasts`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from basisconv.study.experiments.defaults import NAMES
from basisconv.study.experiments.named_arms import EPOCHS, TIME
from basisconv.study.records.run import Record, Section
from basisconv.study.report import (
    arms,
    contrasts,
    lengths,
    named_arms,
    speedup,
    style,
    tables,
    text,
)
from basisconv.study.report.arms import Measured
from basisconv.study.report.named_arms import Key
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.statistics.noninferiority import smallest_margins
from basisconv.study.report.statistics.stats import NAN
from basisconv.study.report.tables import fixed, interval, make_table, percent, plain, words


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """Tables at equal epochs and at equal time, the plan's contrasts, and accuracy over time."""
    outcome, found = arms.outcome(section, records), arms.measure(section, records)
    unit = section.facts["unit"]
    epochs, time = epoch_frame(found), time_frame(found)
    tested = contrasts.contrast_frame(found, contrasts.right_images(section, records))
    recipe, arm = words("recipe", "recipe", NAMES, once=True), words("arm", "arm")
    reached = [tables.seeds(), tables.accuracy(outcome), tables.difference("minus D")]
    made = {
        "equal_epochs": make_table(
            epochs,
            [recipe, plain("epochs", "length"), arm, percent("time", "share"), *reached,
             fixed("not inferior by", "smallest_margin", 2),
             interval("dense of that time", "shortened", 1)],
            f"The same epochs: share of D's time, by {unit}; {outcome} accuracy, its difference "
            "from D, the smallest margin at which the arm is not inferior, and what D reaches in "
            "the arm's time, by its curve over the measured lengths.",
        ),
        "equal_time": make_table(
            time,
            [recipe, plain("time", "length"), arm, *reached,
             tables.difference("minus D½", "from_half")],
            f"The same training time, in dense epochs by {unit}: {outcome} accuracy, and its "
            "differences from D and from D½.",
        ),
    }  # fmt: skip
    faster = lengths.speedup_frame(found, named_arms.answers(found))
    if not faster.empty:
        made["speedups"] = make_table(
            faster,
            [recipe, words("equal", "part", {EPOCHS: "epochs", TIME: "time"}),
             plain("length", "length"), arm, fixed("time", "time", 2), tables.accuracy(outcome),
             words("speed-up", _speedup_text),
             words("measured lengths alone",
                   lambda r: speedup.bracket_text(r.speedup_at_least, r.speedup_below))],
            "How many times as fast as D to equal accuracy: by D's curve over its measured "
            "lengths, with the spread of means and of step times; and by comparisons with D of "
            "those lengths, without a curve. Open: beyond D's lengths. Times in dense epochs by "
            f"{unit}.",
        )  # fmt: skip
    if not tested.empty:
        made["contrasts"] = contrasts.contrast_table(tested, outcome)
    curves = pd.concat([epochs, time], ignore_index=True)
    figure = Plot(
        _figure(curves, outcome), curves,
        f"{outcome.capitalize()} accuracy over training time (in dense epochs by {unit}) under "
        f"each recipe: {arms.shown_as(found)}; every point has a schedule of its own. D: dense; "
        "D½, D¾: dense of that share of the width; B¼, B½: that share of basis filters in all "
        "layers; S¼, S½: basis filters for that share of the steps, then dense.",
    )  # fmt: skip
    values: dict[str, Any] = {}
    for r in [*epochs.itertuples(), *time.itertuples()]:
        name = f"{r.arm}, {r.recipe}, {r.part}, {r.length:g}"
        values[name] = text.number(r.accuracy, r.low, r.high, r.n, digits=1, unit=" %")
        if r.difference == r.difference:
            values[f"{name}, minus D"] = text.said(text.gain(r))
    for (name, of), trend in lengths.trends(found).items():
        ends = trend.estimate, trend.low, trend.high
        values[f"{of} minus D, {name}, per doubling"] = text.said(
            text.with_interval(*ends, 2, True)
        )
    numbers = {
        "values": values, "headline": _headline(epochs, outcome), **arms.scale(found, records)
    }  # fmt: skip
    return Report(section.name, section.profile, made, {"comparisons": figure}, numbers)


_ROW = ["recipe", "part", "length", "arm", "method", "time", "n", "lost", "accuracy", "low", "high"]


def _row(key: Key, name: str, m: Measured) -> tuple[Any, ...]:
    return (*key, name, m.arm.method, m.time, m.n, m.lost, *m.interval[:3])


def _ends(name: str) -> list[str]:
    return [name, f"{name}_low", f"{name}_high"]


def epoch_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row an arm at equal epochs, against D of the same epochs and D of the same time."""
    rows = []
    for key, among in named_arms.groups(found).items():
        dense = among.get("D")
        for name, m in among.items() if key[1] == EPOCHS else ():
            d = named_arms.difference(name, "D", among)
            margin = smallest_margins(d).noninferior if d.error > 0 else NAN
            curve = lengths.dense_curve(found, key[0])
            shortened = [NAN] * 3 if m is dense else curve.at(m.time)
            rows.append(
                (*_row(key, name, m), m.time / dense.time if dense and dense.n else NAN,
                 d.estimate, d.low, d.high, margin, *(100 * value for value in shortened))
            )  # fmt: skip
    columns = [*_ROW, "share", *_ends("difference"), "smallest_margin", *_ends("shortened")]
    return pd.DataFrame(rows, columns=columns)


def time_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row an arm at equal time, against D and D½ of the same time."""
    rows = []
    for key, among in named_arms.groups(found).items():
        for name, m in among.items() if key[1] == TIME else ():
            own, half = (named_arms.difference(name, rival, among) for rival in ("D", "D½"))
            ends = own.estimate, own.low, own.high, half.estimate, half.low, half.high
            rows.append((*_row(key, name, m), *ends))
    return pd.DataFrame(rows, columns=[*_ROW, *_ends("difference"), *_ends("from_half")])


def _speedup_text(row: Any) -> str:
    """As in "1.20× [1.05, 1.41]"; beyond D's measured lengths an end is open, or all a bound."""
    if not math.isnan(row.curve_at_least):
        return f"> {row.curve_at_least:.2f}×"
    if not math.isnan(row.curve_at_most):
        return f"< {row.curve_at_most:.2f}×"
    low = f"{row.speedup_low:.2f}" if row.speedup_low > 0 else "open"
    high = f"{row.speedup_high:.2f}" if math.isfinite(row.speedup_high) else "open"
    return f"{row.speedup:.2f}× [{low}, {high}]"


def _figure(curves: pd.DataFrame, outcome: str) -> Figure:
    """Accuracy over time, a panel for each recipe; the lengths of an arm are joined."""
    shown = curves[curves["accuracy"].notna()]
    recipes = [name for name in NAMES if name in set(shown["recipe"])]
    looks = style.ranks(shown["arm"], shown["method"])
    made = style.figure(style.TWO_COLUMNS, 3.0)
    panels = made.subplots(1, max(1, len(recipes)), sharey=True, squeeze=False)[0]
    for letter, axes, recipe in zip("abcd", panels, recipes, strict=False):
        panel = shown[shown["recipe"] == recipe]
        for name, rows in panel.groupby("arm", sort=False):
            line = rows.sort_values("time").drop_duplicates("time")
            ends = line["low"], line["high"]
            style.intervals(axes, line["time"], line["accuracy"], *ends, *looks[str(name)])
        style.panel(axes, letter, NAMES[recipe])
        ticks = panel.loc[panel["arm"] == "D", "length"]
        style.time_axis(axes, ticks, "training time (dense epochs, logarithmic)")
        axes.set_xlim(panel["time"].min() / 1.3, panel["time"].max() * 1.3)
    panels[0].set_ylabel(f"{outcome} accuracy (%)")
    style.legend_below(made, [style.handle(m, n, place) for n, (m, place) in looks.items()])
    return made


def _headline(epochs: pd.DataFrame, outcome: str) -> str:
    """What the claim's own arm costs at equal epochs, under each recipe."""
    rows = epochs[(epochs["arm"] == "S¼") & epochs["difference"].notna()]
    if rows.empty:
        return "Nothing is compared at equal epochs yet."
    each = [
        f"{text.gain(r)} under {NAMES[r.recipe]} ({r.length:g} epochs)" for r in rows.itertuples()
    ]
    saved = text.fixed(100 * (1 - rows["share"].mean()), 0)
    return (
        f"Basis filters for the first quarter of the steps save {saved} % of dense's time at "
        f"equal epochs; {outcome} accuracy minus dense's: {text.listed(each)}."
    )

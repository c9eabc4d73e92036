"""02 by named arms: the same epochs and the same time, under each recipe, and the plan's contrasts.

At one length `acc ~ arm + seed` gives every difference: runs of a seed share data order and
augmentation. The contrasts that the analysis plan names, and no others, are tested and corrected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from basisconv.study.experiments.defaults import NAMES
from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, style, tables, text
from basisconv.study.report.arms import Measured
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.statistics import equal_accuracy, stats
from basisconv.study.report.statistics.analysis_plan import (
    AnalysisPlan,
    Outcome,
    PlannedContrast,
    evaluated,
    load_plan,
)
from basisconv.study.report.statistics.linear_models import Contrast, contrast_of, fit_blocks
from basisconv.study.report.statistics.noninferiority import smallest_margins
from basisconv.study.report.statistics.stats import NAN
from basisconv.study.report.tables import cell, fixed, interval, make_table, percent, plain, words

EPOCHS, TIME = "equal epochs", "equal time"

Key = tuple[str, str, float]  # recipe, part, length


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """Tables at equal epochs and at equal time, the plan's contrasts, and accuracy over time."""
    outcome, found = arms.outcome(section, records), arms.measure(section, records)
    unit = str(section.facts.get("unit", "the cost source"))
    epochs, time, tested = epoch_frame(found), time_frame(found), contrast_frame(found)
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
    if not tested.empty:
        made["contrasts"] = make_table(
            tested,
            [words("family", "family", once=True), words("contrast", "words"),
             interval("difference (points)", "difference low high", 2, True),
             cell("n", "n", text.whole), tables.p_value(), words("answer", "answer"),
             fixed("not inferior by", "smallest_margin", 2)],
            f"The contrasts that the analysis plan named beforehand: difference of {outcome} "
            "accuracy, p by Holm within the family, and the plan's answer.",
        )  # fmt: skip
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
    numbers = {"values": values, "headline": _headline(epochs, outcome)}
    return Report(section.name, section.profile, made, {"comparisons": figure}, numbers)


def groups(found: Sequence[Measured]) -> dict[Key, dict[str, Measured]]:
    """The arms of each comparison by their short names, by recipe, part and length."""
    held: dict[Key, dict[str, Measured]] = {}
    for m in found:
        key = (m.detail["recipe"], m.detail["part"], m.arm.budget or NAN)
        held.setdefault(key, {})[m.detail["arm"]] = m
    return held


def difference(a: str, b: str, among: Mapping[str, Measured]) -> Contrast:
    """The accuracy of a less that of b in points, by the model of all arms among which they are."""
    if a == b or not all(name in among and among[name].n for name in (a, b)):
        return contrast_of(NAN, NAN, NAN, 0)
    runs = [
        (value, name, seed)
        for name, m in among.items()
        for seed, value in zip(m.seeds, m.accuracy, strict=True)
    ]
    values, arms_of, seeds = (list(column) for column in zip(*runs, strict=True))
    return fit_blocks(values, arms_of, seeds).contrast(a, b)


_ROW = ["recipe", "part", "length", "arm", "method", "time", "n", "lost", "accuracy", "low", "high"]


def _row(key: Key, name: str, m: Measured) -> tuple[Any, ...]:
    return (*key, name, m.arm.method, m.time, m.n, m.lost, *m.interval[:3])


def _ends(name: str) -> list[str]:
    return [name, f"{name}_low", f"{name}_high"]


def epoch_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row an arm at equal epochs, against D of the same epochs and D of the same time."""
    rows = []
    for key, among in groups(found).items():
        dense = among.get("D")
        for name, m in among.items() if key[1] == EPOCHS else ():
            d = difference(name, "D", among)
            margin = smallest_margins(d).noninferior if d.error > 0 else NAN
            shortened = [NAN] * 3 if m is dense else _dense_at(found, key[0], m.time)
            rows.append(
                (*_row(key, name, m), m.time / dense.time if dense and dense.n else NAN,
                 d.estimate, d.low, d.high, margin, *(100 * value for value in shortened))
            )  # fmt: skip
    columns = [*_ROW, "share", *_ends("difference"), "smallest_margin", *_ends("shortened")]
    return pd.DataFrame(rows, columns=columns)


def time_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row an arm at equal time, against D and D½ of the same time."""
    rows = []
    for key, among in groups(found).items():
        for name, m in among.items() if key[1] == TIME else ():
            own, half = (difference(name, rival, among) for rival in ("D", "D½"))
            ends = own.estimate, own.low, own.high, half.estimate, half.low, half.high
            rows.append((*_row(key, name, m), *ends))
    return pd.DataFrame(rows, columns=[*_ROW, *_ends("difference"), *_ends("from_half")])


def contrast_frame(found: Sequence[Measured], data: str = "cifar10") -> pd.DataFrame:
    """The plan's contrasts on a data set whose two arms are both here, as the plan tests them."""
    plan = load_plan()
    results = evaluated(plan, plan_outcomes(plan, found, data))
    rows = [
        {
            "family": family, "contrast": name,
            "words": f"{planned.arm} − {planned.rival}, {_where(plan, planned)}",
            "difference": d.estimate, "low": d.low, "high": d.high, "n": d.n, "p": result.p,
            "p_holm": result.p_holm, "answer": result.answer, "smallest_margin": result.smallest,
        }
        for family, names in plan.families.items()
        for name in names
        for result, planned in [(results[name], plan.contrasts[name])]
        if not math.isnan((d := result.contrast).estimate)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _where(plan: AnalysisPlan, planned: PlannedContrast) -> str:
    """Recipe and length of a contrast: as in "SGD, 12 epochs" or "Muon, time 2"."""
    comparison = plan.comparisons[planned.in_]
    if planned.rival_in is not None:
        length = "equal time, the longest"
    elif comparison.equal == "epochs":
        length = f"{comparison.length:g} epochs"
    else:
        length = f"time {comparison.length:g}"
    return f"{NAMES[comparison.recipe]}, {length}"


def plan_outcomes(
    plan: AnalysisPlan, found: Sequence[Measured], data: str = "cifar10"
) -> list[Outcome]:
    """What the plan's runs on a data set reached, by the comparisons' recipes and lengths.

    A length that the plan leaves to be measured is that of the equal time at which D½ stands alone.
    """
    return [
        Outcome(name, arm, seed, accuracy)
        for name, planned in plan.comparisons.items()
        for (recipe, part, length), among in groups(found).items()
        if (data, recipe, part) == (planned.data, planned.recipe, f"equal {planned.equal}")
        if (length == planned.length if isinstance(planned.length, float)
            else among.keys() == planned.arms.keys())
        for arm, m in among.items()
        for seed, accuracy in [*zip(m.seeds, m.accuracy, strict=True), *[(-1, NAN)] * m.lost]
    ]  # fmt: skip


def _dense_at(found: Sequence[Measured], recipe: str, time: float) -> Sequence[float]:
    """What D reaches in a time: its curve over all its lengths under the recipe."""
    dense = sorted(
        (m for m in found if (m.detail["arm"], m.detail["recipe"]) == ("D", recipe) and m.n > 1),
        key=lambda m: m.time,
    )  # fmt: skip
    dense = [m for i, m in enumerate(dense) if i == 0 or m.time > dense[i - 1].time]
    if len(dense) < 2:
        return [NAN] * 3
    errors = [stats.sd_interval(m.accuracy).sd / m.n**0.5 / 100 for m in dense]
    return equal_accuracy.reached(
        [m.time for m in dense], [m.interval.mean / 100 for m in dense], errors, time
    )


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
        style.time_axis(axes, panel["length"], "training time (dense epochs, logarithmic)")
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

"""02 by named arms: the same epochs and the same time, under each recipe, and the plan's contrasts.

At one length `acc ~ arm + seed` gives every difference: runs of a seed share data order and
augmentation. The contrasts that the analysis plan names, and no others, are tested and corrected.
"""

from __future__ import annotations

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
    epochs, time = epoch_frame(found), time_frame(found)
    tested = contrast_frame(found)
    recipe, arm = words("recipe", "recipe", NAMES, once=True), words("arm", "arm")
    accuracy = tables.accuracy(outcome)
    made = {
        "equal_epochs": make_table(
            epochs,
            [recipe, plain("epochs", "length"), arm, percent("time", "share"), tables.seeds(),
             accuracy, tables.difference("minus D"),
             fixed("not inferior by", "smallest_margin", 2),
             interval("dense of that time", "shortened", 1)],
            f"The same epochs. Time: of D's, by {unit}. {text.capital(outcome)} accuracy with its "
            "95 % interval; its difference from D in points (accuracy by arm and seed); the "
            "smallest margin at which the arm is not inferior to D (one-sided, 5 %); and what D "
            "reaches in that time, read off its curve over the measured lengths, where these "
            "reach that far.",
        ),
        "equal_time": make_table(
            time,
            [recipe, plain("time", "length"), arm, tables.seeds(), accuracy,
             tables.difference("minus D"), tables.difference("minus D½", "from_half")],
            f"The same training time, in dense epochs by {unit}: {outcome} accuracy with its "
            "95 % interval, and its differences from D and from D½ in points (accuracy by arm and "
            "seed).",
        ),
    }  # fmt: skip
    if not tested.empty:
        made["contrasts"] = make_table(
            tested,
            [words("family", "family", once=True), words("contrast", "words"),
             interval("difference (points)", "difference low high", 2, True),
             cell("n", "n", "{:.0f}".format), tables.p_value(), words("answer", "answer"),
             fixed("not inferior by", "smallest_margin", 2)],
            "The contrasts that the analysis plan named beforehand: difference of "
            f"{outcome} accuracy with its 95 % interval, p by Holm within the family, and the "
            "plan's answer.",
        )  # fmt: skip
    curves = pd.concat([epochs, time], ignore_index=True)
    return Report(
        section.name,
        section.profile,
        tables=made,
        figures={
            "comparisons": Plot(
                _figure(curves, outcome), curves,
                f"{text.capital(outcome)} accuracy over training time (in dense epochs by {unit}) "
                f"under each recipe: {arms.shown_as(found)}; every point has a schedule of its "
                "own length. D: dense; D½, D¾: dense of half and three quarters of the width; B¼, "
                "B½: that share of basis filters in all layers; S¼, S½: basis filters for that "
                "share of the steps, then dense.",
            )
        },
        numbers=_numbers(found, epochs, time, outcome),
    )  # fmt: skip


def groups(found: Sequence[Measured]) -> dict[Key, list[Measured]]:
    """The arms of each comparison, by recipe, part and length."""
    held: dict[Key, list[Measured]] = {}
    for m in found:
        detail = m.arm.detail
        key = (str(detail["recipe"]), str(detail["part"]), float(m.arm.budget or NAN))
        held.setdefault(key, []).append(m)
    return held


def difference(a: Measured, b: Measured, among: Sequence[Measured]) -> Contrast:
    """The accuracy of a less that of b in points, by the model of all arms among which they are."""
    rows = [
        (m.arm.label, seed, value)
        for m in among
        for seed, value in zip(m.seeds, m.accuracy, strict=True)
    ]
    if a is b or not (a.n and b.n):
        return contrast_of(NAN, NAN, NAN, 0)
    fit = fit_blocks([v for *_, v in rows], [label for label, *_ in rows], [s for _, s, _ in rows])
    return fit.contrast(a.arm.label, b.arm.label)


def epoch_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row an arm at equal epochs, against D of the same epochs and D of the same time."""
    rows = []
    for (recipe, part, length), among in groups(found).items():
        dense = _named(among, "D")
        if part != EPOCHS:
            continue
        for m in among:
            against = _against(m, dense, among)
            margin = smallest_margins(against).noninferior if against.error > 0 else NAN
            shortened = equal_accuracy.Reached(NAN, NAN, NAN)
            if m is not dense:
                shortened = _dense_at(found, recipe, m.time)
            rows.append(
                {
                    **_row(m, recipe, part, length),
                    "share": m.time / dense.time if dense else NAN, **_columns(against),
                    "smallest_margin": margin, "shortened": 100 * shortened.estimate,
                    "shortened_low": 100 * shortened.low, "shortened_high": 100 * shortened.high,
                }
            )  # fmt: skip
    return pd.DataFrame(rows, columns=[*_ROW, "share", *_DIFFERENCE, "smallest_margin",
                                       "shortened", "shortened_low", "shortened_high"])  # fmt: skip


def time_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row an arm at equal time, against D and D½ of the same time."""
    rows = []
    for (recipe, part, length), among in groups(found).items():
        if part != TIME:
            continue
        for m in among:
            half = _columns(_against(m, _named(among, "D½"), among), "from_half")
            own = _columns(_against(m, _named(among, "D"), among))
            rows.append({**_row(m, recipe, part, length), **own, **half})
    columns = [*_ROW, *_DIFFERENCE, *(c.replace("difference", "from_half") for c in _DIFFERENCE)]
    return pd.DataFrame(rows, columns=columns)


def contrast_frame(found: Sequence[Measured], data: str = "cifar10") -> pd.DataFrame:
    """The plan's contrasts on a data set whose two arms are both here, as the plan tests them."""
    plan = load_plan()
    results = evaluated(plan, plan_outcomes(plan, found, data))
    rows = []
    for family, name in ((f, name) for f, names in plan.families.items() for name in names):
        result, planned = results[name], plan.contrasts[name]
        if result.contrast.estimate != result.contrast.estimate:
            continue
        rows.append(
            {
                "family": family, "contrast": name,
                "words": f"{planned.arm} − {planned.rival}, {_where(plan, planned)}",
                "difference": result.contrast.estimate, "low": result.contrast.low,
                "high": result.contrast.high, "n": result.contrast.n, "p": result.p,
                "p_holm": result.p_holm, "answer": result.answer,
                "smallest_margin": result.smallest,
            }
        )  # fmt: skip
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
    held = groups(found)
    outcomes = []
    for name, planned in plan.comparisons.items():
        for (recipe, part, length), among in held.items():
            alone = {str(m.arm.detail["arm"]) for m in among} == set(planned.arms)
            fits = length == planned.length if isinstance(planned.length, float) else alone
            if planned.data != data or not fits:
                continue
            if (recipe, part) != (planned.recipe, f"equal {planned.equal}"):
                continue
            for m in among:
                arm = str(m.arm.detail["arm"])
                pairs = list(zip(m.seeds, m.accuracy, strict=True)) + [(-1, NAN)] * m.lost
                outcomes += [Outcome(name, arm, seed, accuracy) for seed, accuracy in pairs]
    return outcomes


_ROW = ["recipe", "part", "length", "arm", "method", "time", "n", "lost", "accuracy", "low", "high"]
_DIFFERENCE = ["difference", "difference_low", "difference_high"]


def _row(m: Measured, recipe: str, part: str, length: float) -> dict[str, Any]:
    i = m.interval
    values = (recipe, part, length, m.arm.detail["arm"], m.arm.method, m.time, m.n, m.lost)
    return dict(zip(_ROW, (*values, i.mean, i.low, i.high), strict=True))


def _columns(c: Contrast, name: str = "difference") -> dict[str, float]:
    return {name: c.estimate, f"{name}_low": c.low, f"{name}_high": c.high}


def _named(among: Sequence[Measured], name: str) -> Measured | None:
    return next((m for m in among if m.arm.detail["arm"] == name and m.n), None)


def _against(m: Measured, rival: Measured | None, among: Sequence[Measured]) -> Contrast:
    return contrast_of(NAN, NAN, NAN, 0) if rival is None else difference(m, rival, among)


def _dense_at(found: Sequence[Measured], recipe: str, time: float) -> equal_accuracy.Reached:
    """What D reaches in a time: its curve over all its lengths under the recipe."""
    dense = sorted(
        (m for m in found if m.arm.detail["arm"] == "D" and m.arm.detail["recipe"] == recipe
         and m.n > 1),
        key=lambda m: m.time,
    )  # fmt: skip
    dense = [m for i, m in enumerate(dense) if i == 0 or m.time > dense[i - 1].time]
    if len(dense) < 2:
        return equal_accuracy.Reached(NAN, NAN, NAN)
    errors = [stats.sd_interval(m.accuracy).sd / m.n**0.5 / 100 for m in dense]
    return equal_accuracy.reached(
        [m.time for m in dense], [m.interval.mean / 100 for m in dense], errors, time
    )


def _figure(curves: pd.DataFrame, outcome: str) -> Figure:
    """Accuracy over time, a panel for each recipe; the lengths of an arm are joined."""
    shown = curves[curves["accuracy"].notna()]
    recipes = [name for name in NAMES if name in set(shown["recipe"])]
    looks = dict(zip(shown["arm"], shown["method"], strict=True))
    places: dict[str, int] = {}
    for name, method in looks.items():
        places[name] = sum(looks[other] == method for other in places)
    with style.drawing():
        made = style.figure(style.TWO_COLUMNS, 3.0)
        panels = made.subplots(1, max(1, len(recipes)), sharey=True, squeeze=False)[0]
        for letter, axes, recipe in zip("abcd", panels, recipes, strict=False):
            panel = shown[shown["recipe"] == recipe]
            for name, rows in panel.groupby("arm", sort=False):
                line = rows.sort_values("time").drop_duplicates("time")
                style.intervals(
                    axes, line["time"], line["accuracy"], line["low"], line["high"],
                    line["method"].iloc[0], places[str(name)],
                )  # fmt: skip
            style.panel(axes, letter, NAMES[recipe])
            style.time_axis(axes, panel["length"], "training time (dense epochs, logarithmic)")
            axes.set_xlim(panel["time"].min() / 1.3, panel["time"].max() * 1.3)
        panels[0].set_ylabel(f"{outcome} accuracy (%)")
        style.legend_below(made, [style.handle(looks[n], n, p) for n, p in places.items()])
    return made


def _numbers(
    found: Sequence[Measured], epochs: pd.DataFrame, time: pd.DataFrame, outcome: str
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for r in [*epochs.itertuples(), *time.itertuples()]:
        name = f"{r.arm}, {r.recipe}, {r.part}, {r.length:g}"
        values[name] = text.number(r.accuracy, r.low, r.high, r.n, digits=1, unit=" %")
        if r.difference == r.difference:
            values[f"{name}, minus D"] = text.said(text.gain(r))
    return {
        "values": values, "outcome": outcome, "headline": _headline(epochs, outcome),
        "notes": arms.lost_note(found),
    }  # fmt: skip


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

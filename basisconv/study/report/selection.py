"""04_selection: the selected subset against all layers, none, random and inverted ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, style, tables, text
from basisconv.study.report.arms import Measured
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.tables import cell, count, fixed, interval, make_table, percent, words

RIVALS = {"dense": "dense", "basis": "all layers", "random": "random subsets of equal time",
          "inverted": "the inverted subset of equal time",
          "threshold": "the threshold's subset", "first_five": "the first five layers"}  # fmt: skip
"""The selected subset's rivals: method -> words."""

MEANS = ("predicted_time", "parameters", "macs")
VALUES = ("seeds", "accuracy", "val_accuracy", "val_loss")


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """Accuracy of each subset at one budget of training time, and the selected one's tests."""
    outcome, every = arms.outcome(section, records), arms.measure(section, records)
    found, draws = pooled(every), draw_frame(every)
    table, tests = subset_frame(found), rival_frame(found)
    facts = section.facts
    step_time, accuracy = percent("step time", "predicted_time"), tables.accuracy(outcome)
    unit, budget = facts["unit"], text.epochs(facts["budget"])
    equal_time = facts.get("equal", "time") == "time"
    length = f"the time of {budget} of dense" if equal_time else budget
    return Report(
        section.name,
        section.profile,
        tables={
            "selection": make_table(
                table,
                [words("subset", "label"), cell("layers", "layer_count", "{:.3g}".format),
                 step_time, count("parameters", "parameters"), tables.seeds(), accuracy,
                 tables.difference()],
                f"Subsets of layers in basis form, each trained for {length}: {outcome} accuracy, "
                f"and the time of a step relative to dense, by {unit}.",
            ),
            "selection_tests": make_table(
                tests.rename(columns={"difference_low": "low", "difference_high": "high"}),
                [words("selected against", "rival"),
                 interval("difference (points)", "difference low high", 2, True),
                 cell("n", lambda r: f"{r.n_selected} and {r.n_rival}", str),
                 tables.p_value(), tables.verdict()],
                f"The selected subset's {outcome} accuracy minus that of its rivals. Each random "
                "subset is drawn independently and trained once.",
            ),
            "selection_draws": make_table(
                draws,
                [words("subset", "label"), step_time, fixed(accuracy.title, "accuracy", 1),
                 words("layers", lambda r: r.layers.replace(" ", ", "))],
                "The random subsets of the selected one's step time, a run each.",
            ),
        },
        figures={
            "selection": Plot(
                _figure(table, draws, outcome), table,
                f"(a) {outcome.capitalize()} accuracy after {length} against the step time by "
                f"{unit}: {arms.shown_as(found)}; points of nearly equal time are set apart. (b) "
                "Which layers each subset has in basis form; for the random ones a square's area "
                "is the share of draws with that layer.",
            )
        },
        numbers=_numbers(facts, found, tests, outcome),
    )  # fmt: skip


def pooled(found: Sequence[Measured]) -> list[Measured]:
    """The arms with the random subsets as one, of as many runs as there are draws.

    The question is how subsets drawn at random do, and not how one of them does.
    """
    draws = [m for m in found if m.arm.method == "random"]
    if not draws:
        return list(found)
    details = [m.detail for m in draws]
    detail: dict[str, Any] = {key: fmean(d[key] for d in details) for key in MEANS}
    detail["layers"] = list(dict.fromkeys(name for d in details for name in d["layers"]))
    detail["layer_count"] = fmean(len(d["layers"]) for d in details)
    arm = draws[0].arm.model_copy(
        update={
            "label": f"random, {text.plural(len(draws), 'draw')}", "detail": detail,
            "run_ids": tuple(run_id for m in draws for run_id in m.arm.run_ids),
        }
    )  # fmt: skip
    values = {name: tuple(chain.from_iterable(getattr(m, name) for m in draws)) for name in VALUES}
    one = Measured(arm, **values, lost=sum(m.lost for m in draws))
    at = found.index(draws[0])
    return [*found[:at], one, *(m for m in found[at:] if m not in draws)]


def draw_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row a random subset: its layers and what it reached."""
    rows = [
        (m.arm.label, " ".join(m.detail["layers"]), m.detail["predicted_time"], m.interval.mean)
        for m in found
        if m.arm.method == "random"
    ]
    return pd.DataFrame(rows, columns=["label", "layers", "predicted_time", "accuracy"])


_SUBSET = ["label", "method", "n", "lost", "layers", "layer_count", *MEANS, "accuracy", "low",
           "high", "sd", "difference", "difference_low", "difference_high"]  # fmt: skip


def subset_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row a subset: what it predicts, what it reached and how it compares with dense."""
    dense = arms.first(found, "dense")

    def before(m: Measured) -> dict[str, Any]:
        layers = m.detail["layers"]
        # The pooled draws have the mean of theirs.
        count = m.detail.get("layer_count", len(layers))
        return {"method": m.arm.method, "layers": " ".join(layers), "layer_count": count} | {
            name: m.detail[name] for name in MEANS
        }

    return arms.compare_table(found, lambda _: dense, before)[_SUBSET]


def rival_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """The selected subset against each rival that there is and has runs, p by Holm."""
    selected = arms.first(found, "selected")
    rivals = [(named, arms.first(found, method)) for method, named in RIVALS.items()]
    rows = [
        (named, *arms.compare(selected, rival), selected.n, rival.n)
        for named, rival in rivals
        if selected and rival and selected.n and rival.n
    ]
    names = ["rival", *arms.Comparison._fields, "n_selected", "n_rival"]
    return arms.decided(pd.DataFrame(rows, columns=names))


def _figure(table: pd.DataFrame, draws: pd.DataFrame, outcome: str) -> Figure:
    """Accuracy over step time, and which layers each subset has."""
    drawn = table[table["accuracy"].notna()]
    made = style.figure(style.TWO_COLUMNS, 3.4)
    left, right = made.subplots(1, 2, width_ratios=[1.45, 1])
    places = style.apart([100 * t for t in drawn["predicted_time"]], near=2.5, step=1.8)
    for x, r in zip(places, drawn.itertuples(), strict=True):
        style.intervals(left, [x], [r.accuracy], [r.low], [r.high], r.method, line=False)
    left.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    left.set_xlim(0, 108)
    left.set_xlabel("predicted time of a step, relative to dense")
    left.set_ylabel(f"{outcome} accuracy (%)")
    style.panel(left, "a", "accuracy after equal training time")
    _matrix(right, table, draws)
    methods = dict.fromkeys(drawn["method"])
    handles = [style.handle(m, style.look(m).name, line=False) for m in methods]
    style.legend_below(made, handles)
    return made


def _matrix(axes: Axes, table: pd.DataFrame, draws: pd.DataFrame) -> None:
    """A square where a subset has a layer in basis form: layers down, subsets across."""
    drawn = Counter(name for names in draws["layers"] for name in names.split())
    every = [name.split() for name in table["layers"]]
    longest = max(every, key=len)
    order = longest + sorted({name for names in every for name in names} - set(longest))
    subsets = table[table["layer_count"] > 0]
    for x, r in enumerate(subsets.itertuples()):
        names = r.layers.split()
        random = r.method == "random"
        areas = [15 * (drawn[name] / len(draws) if random else 1) for name in names]
        axes.scatter(
            [x] * len(names), [order.index(name) for name in names], marker="s", s=areas,
            color=style.look(r.method).colour, linewidths=0.4,
            edgecolors=style.INK if random else style.look(r.method).colour,
        )  # fmt: skip
    axes.set_xticks(range(len(subsets)), list(subsets["label"]), rotation=90)
    axes.set_yticks(range(len(order)), order, fontsize=5.5)
    axes.set_xlim(-0.7, len(subsets) - 0.3)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.tick_params(length=0)
    style.panel(axes, "b", "layers in basis form")


def _numbers(
    facts: Mapping[str, Any], found: Sequence[Measured], tests: pd.DataFrame, outcome: str
) -> dict[str, Any]:
    selected = arms.first(found, "selected")
    values: dict[str, Any] = {}
    headline = "No run of a selected subset is done."
    if selected is not None and selected.n:
        i, time = selected.interval, 100 * selected.detail["predicted_time"]
        values["accuracy"] = text.number(i.mean, i.low, i.high, i.n, digits=1, unit=" %")
        values["predicted_time"] = text.number(time, digits=0, unit=" %")
        each = [
            f"{text.gain(r)} against {r.rival} ({text.VERDICT_WORDS[r.verdict]})"
            for r in tests.itertuples()
            # What it gains on dense is worth no more than what it gains on chance.
            if r.rival in (RIVALS["dense"], RIVALS["basis"], RIVALS["random"])
        ]
        headline = (
            f"The selected subset ({text.plural(len(selected.detail['layers']), 'layer')}, "
            f"a predicted {values['predicted_time']['text']} of the dense step's time) reaches "
            f"{values['accuracy']['text']} {outcome} accuracy{': ' if each else ''}"
            f"{text.listed(each)}."
        )
    values |= {
        "loss share": text.number(100 * facts["loss_share"], digits=0, unit=" %"),
        "threshold": text.said(f"{facts['threshold']:g}"),
    }
    return {"values": values, "headline": headline}

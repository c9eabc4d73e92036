"""08_ranks: a number of basis filters for each layer, against one share for all of equal cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, style, tables, text
from basisconv.study.report.arms import Measured
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.tables import cell, count, make_table, percent, words

AXES = {
    "predicted_time": "step time (of dense)",
    "parameters": "parameters (of dense)",
    "executed_macs": "multiplications (of dense)",
}
"""What accuracy is held against: column -> words."""


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """Accuracy of each plan, and its difference from one share for all of the same cost."""
    found, outcome = arms.measure(section, records), arms.outcome(section, records)
    table = plan_frame(found)
    facts = section.facts
    unit = facts["unit"]
    length = text.epochs(facts["epochs"])
    cost = {"time": "step time", "macs": "multiplications", "parameters": "parameters"}
    return Report(
        section.name,
        section.profile,
        tables={
            "ranks": make_table(
                table,
                [words("numbers of filters", "label"), percent("step time", "predicted_time"),
                 count("parameters", "parameters"),
                 cell("MACs", "executed_macs", text.millions), tables.seeds(),
                 tables.accuracy(outcome), tables.difference("minus one share"),
                 tables.p_value(), tables.verdict()],
                f"Plans of at most the {cost[facts['save']]} of all layers at one share f, each "
                f"trained for {length}: {outcome} accuracy with its 95 % interval, and the "
                "difference from that share (Welch, p by Holm over all of them). Step time "
                f"relative to dense by {unit}, as the sum of what single layers save.",
            )
        },
        figures={
            "ranks": Plot(
                _figure(table), table,
                f"{outcome.capitalize()} accuracy after {length} against what a plan costs, "
                f"relative to dense: {arms.shown_as(found)}. Lines join one way to choose.",
            )
        },
        numbers=_numbers(table),
    )  # fmt: skip


def plan_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row a plan, held against one share for all of its cost."""
    shares = {m.detail["ratio"]: m for m in found if m.detail["way"] == "one share"}
    dense = next((m.detail for m in found if m.arm.method == "dense"), None)

    def before(m: Measured) -> dict[str, Any]:
        detail = m.detail
        own = {key: detail[key] for key in ("parameters", "executed_macs", "predicted_time")}
        whole = dense or own
        relative = {
            "parameters_of_dense": own["parameters"] / whole["parameters"],
            "executed_macs_of_dense": own["executed_macs"] / whole["executed_macs"],
            "predicted_time_of_dense": own["predicted_time"],
        }
        return {"way": detail["way"], "ratio": detail.get("ratio"), "method": m.arm.method,
                **own, **relative}  # fmt: skip

    return arms.compare_table(found, lambda m: shares.get(m.detail.get("ratio")), before)


def _figure(table: pd.DataFrame) -> Figure:
    drawn = style.figure(6.9, 2.6)
    looks = style.ranks(table["way"], table["method"])
    for axes, (key, label), letter in zip(
        drawn.subplots(1, len(AXES), sharey=True), AXES.items(), "abc", strict=True
    ):
        for way, look in looks.items():
            own = table[table["way"] == way].sort_values(f"{key}_of_dense")
            x, ends = own[f"{key}_of_dense"], (own["low"], own["high"])
            style.intervals(axes, x, own["accuracy"], *ends, *look)
        style.panel(axes, letter, label.partition(" (")[0])
        axes.set_xlabel(label)
    drawn.axes[0].set_ylabel("accuracy (%)")
    style.legend_below(drawn, [style.handle(m, way, place) for way, (m, place) in looks.items()])
    return drawn


def _numbers(table: pd.DataFrame) -> dict[str, Any]:
    tested = arms.tested(table)
    better, worse = (tested[tested["verdict"] == v] for v in ("above", "below"))
    chosen = table[table["method"] == "selected"]
    headline = (
        f"Of {text.plural(len(chosen), 'plan')} with a number of filters for each layer, "
        f"{text.amount(len(better))} beat one share for all of the same cost and "
        f"{text.amount(len(worse))} lose to it (Holm)."
    )
    values: dict[str, Any] = {
        "ways": text.said(text.listed(list(dict.fromkeys(chosen["way"])))),
        "better": text.said(text.listed(list(better["label"])) or "none"),
    }
    for r in chosen.itertuples():
        ends = r.difference_low, r.difference_high
        values[f"gain {r.label}"] = text.points(r.difference, *ends, int(r.n))
    return {"values": values, "headline": headline}

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
    facts: dict[str, Any] = section.facts
    unit = facts.get("unit", "the cost source")
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
        numbers=_numbers(table, outcome) | {"notes": arms.lost_note(found)},
    )  # fmt: skip


def plan_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row a plan, held against one share for all of its cost."""
    shares = {_detail(m)["ratio"]: m for m in found if _detail(m)["way"] == "one share"}
    dense = next((_detail(m) for m in found if m.arm.method == "dense"), None)

    def before(m: Measured) -> dict[str, Any]:
        detail = _detail(m)
        own = {key: detail[key] for key in ("parameters", "executed_macs", "predicted_time")}
        whole = dense or own
        relative = {
            "parameters_of_dense": own["parameters"] / whole["parameters"],
            "executed_macs_of_dense": own["executed_macs"] / whole["executed_macs"],
            "predicted_time_of_dense": own["predicted_time"],
        }
        return {"way": detail["way"], "ratio": detail.get("ratio"), "method": m.arm.method,
                **own, **relative}  # fmt: skip

    return arms.compare_table(found, lambda m: shares.get(_detail(m).get("ratio")), before)


def _detail(m: Measured) -> dict[str, Any]:
    return dict(m.arm.detail)


def _figure(table: pd.DataFrame) -> Figure:
    with style.drawing():
        drawn = style.figure(6.9, 2.6)
        ways = list(dict.fromkeys(table["way"]))
        for axes, (key, label), letter in zip(
            drawn.subplots(1, len(AXES), sharey=True), AXES.items(), "abc", strict=True
        ):
            for way in ways:
                own = table[table["way"] == way].sort_values(f"{key}_of_dense")
                style.intervals(
                    axes, own[f"{key}_of_dense"], own["accuracy"], own["low"], own["high"],
                    own["method"].iloc[0], _place(table, way),
                )  # fmt: skip
            style.panel(axes, letter, label.partition(" (")[0])
            axes.set_xlabel(label)
        drawn.axes[0].set_ylabel("accuracy (%)")
        style.legend_below(
            drawn,
            [
                style.handle(table[table["way"] == w]["method"].iloc[0], w, _place(table, w))
                for w in ways
            ],
        )
    return drawn


def _place(table: pd.DataFrame, way: str) -> int:
    """A way's place among those of its method, by which their markers differ."""
    method = table[table["way"] == way]["method"].iloc[0]
    return list(dict.fromkeys(table[table["method"] == method]["way"])).index(way)


def _numbers(table: pd.DataFrame, outcome: str) -> dict[str, Any]:
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
        values[f"gain {r.label}"] = text.number(
            r.difference, r.difference_low, r.difference_high, int(r.n),
            digits=2, unit=" points", signed=True,
        )  # fmt: skip
    return {"values": values, "outcome": outcome, "headline": headline}

"""05b_defaults: what each of our default choices is worth, one changed at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, style, tables, text
from basisconv.study.report.arms import Measured
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.tables import count, interval, make_table, percent, words


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """Each variant against the defaults, at equal training time."""
    facts: dict[str, Any] = section.facts
    outcome, found = arms.outcome(section, records), arms.measure(section, records)
    table = variant_frame(found)
    where = (
        f"all layers in basis form at f = {text.share(facts['ratio'])}, the time of "
        f"{text.epochs(facts['budget'])} of dense by {facts['unit']}, "
        f"{facts['train_images']:,} training images"
    )
    return Report(
        section.name,
        section.profile,
        tables={
            "defaults": make_table(
                table,
                [words("variant", "label"), percent("parameters", "parameters"),
                 percent("MACs executed", "executed_macs"), count("steps", "steps"),
                 tables.seeds(), tables.accuracy(outcome),
                 tables.difference("minus defaults (points)"), tables.p_value(),
                 interval("loss minus defaults", "loss_difference loss_low loss_high", 3, True),
                 tables.verdict()],
                f"One default changed at a time ({where}): {outcome} accuracy with its 95 % "
                "interval, the difference from our defaults in accuracy (Welch, p by Holm) and in "
                "validation loss, and what the network holds and a step executes, relative to the "
                "defaults. Steps are what the time of a step allows, whose measurement has an "
                "error of its own: forms that execute the same differ by it alone. Decay of the "
                "product is given the defaults' steps, though it computes more.",
            )
        },
        figures={
            "defaults": Plot(
                _figure(table), table,
                f"One default changed at a time, against our defaults ({where}; 95 % Welch "
                f"intervals, n as in the table): (a) {outcome} accuracy, where right is better, "
                f"with the band of ±{arms.MARGIN:g} points, (b) validation loss, where left is "
                "better.",
            )
        },
        numbers=_numbers(table, found, outcome),
    )  # fmt: skip


def variant_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row an arm, the defaults first, with its difference from them.

    Raises:
        ValueError: if there is no arm with the defaults.
    """
    usual = next((m for m in found if m.arm.detail.get("choice") == "default"), None)
    if usual is None:
        raise ValueError("05b_defaults has no arm with the defaults to hold the others against.")
    size = usual.arm.detail

    def after(m: Measured) -> dict[str, Any]:
        detail: dict[str, Any] = m.arm.detail
        loss = arms.compare_values(m.val_loss, [] if m is usual else usual.val_loss).difference
        return {
            "loss_difference": loss.estimate, "loss_low": loss.low, "loss_high": loss.high,
            "parameters": _ratio(detail, size, "parameters"),
            "executed_macs": _ratio(detail, size, "executed_macs"),
            "steps": sum(detail["steps"]),
        }  # fmt: skip

    return arms.compare_table(
        found,
        rival=lambda _: usual,
        before=lambda m: {"choice": m.arm.detail["choice"]},
        after=after,
    )


def _ratio(detail: Mapping[str, Any], usual: Mapping[str, Any], what: str) -> float:
    return float(detail[what]) / float(usual[what])


def _figure(table: pd.DataFrame) -> Figure:
    drawn = table[table["difference"].notna()]
    places = range(len(drawn))
    shape = style.look("variant")
    with style.drawing():
        made = style.figure(style.TWO_COLUMNS, 0.9 + 0.2 * max(len(drawn), 3))
        left, right = made.subplots(1, 2, sharey=True)
        for axes, names in (
            (left, ("difference", "difference_low", "difference_high")),
            (right, ("loss_difference", "loss_low", "loss_high")),
        ):
            mean, low, high = (drawn[name] for name in names)
            axes.errorbar(
                mean, places, xerr=np.array([mean - low, high - mean], dtype=float),
                color=shape.colour, marker=shape.marker, linestyle="none", elinewidth=0.9,
                capthick=0.7,
            )  # fmt: skip
            axes.axvline(0, color=style.look("basis").colour, linewidth=0.9, zorder=1)
            axes.grid(axis="y", visible=False)
        left.axvspan(-arms.MARGIN, arms.MARGIN, color=style.BAND, zorder=0)
        left.set_yticks(places, list(drawn["label"]))
        left.set_ylim(len(drawn) - 0.4, -0.6)
        left.set_xlabel("points")
        right.set_xlabel("cross-entropy (nats)")
        style.panel(left, "a", "accuracy minus that of our defaults")
        style.panel(right, "b", "loss minus that of our defaults")
    return made


def _numbers(table: pd.DataFrame, found: Sequence[Measured], outcome: str) -> dict[str, Any]:
    return {
        "values": {}, "outcome": outcome, "notes": arms.lost_note(found),
        "headline": _headline(table[table["difference"].notna()]),
    }  # fmt: skip


def _headline(variants: pd.DataFrame) -> str:
    if variants.empty:
        return "No variant was measured against our defaults."
    tested = arms.tested(variants)
    if tested.empty:
        return (
            "With one run an arm nothing is tested; the variants differ from our defaults by "
            f"{text.fixed(variants['difference'].min(), 1, True)} to "
            f"{text.fixed(variants['difference'].max(), 1, True)} points."
        )
    above, below = ((tested["verdict"] == verdict).sum() for verdict in ("above", "below"))
    return (
        f"Of {text.plural(len(tested), 'variant')}, each with one default changed and trained for "
        f"the same time: better than our defaults {text.amount(above)}, worse "
        f"{text.amount(below)}, undecided or within ±{arms.MARGIN:g} points "
        f"{text.amount(len(tested) - above - below)} (Holm)."
    )

"""05b_defaults: what each of our default choices is worth, one changed at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, style, tables, text
from basisconv.study.report.arms import Measured
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.tables import count, interval, make_table, percent, words


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """Each variant against the defaults, at equal training time."""
    facts = section.facts
    outcome, table = arms.outcome(section, records), variant_frame(arms.measure(section, records))
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
                f"One default changed at a time ({where}): {outcome} accuracy, its difference and "
                "that of the validation loss from our defaults, and what the network holds and a "
                "step executes, relative to them. Decay of the product is given the defaults' "
                "steps, though it computes more.",
            )
        },
        figures={
            "defaults": Plot(
                _figure(table), table,
                f"One default changed at a time, against our defaults ({where}; 95 % Welch "
                f"intervals): (a) {outcome} accuracy, where right is better, with a band of "
                f"±{arms.MARGIN:g} points, (b) validation loss, where left is better.",
            )
        },
        numbers={"values": {}, "headline": _headline(table[table["difference"].notna()])},
    )  # fmt: skip


def variant_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row an arm, the defaults first, with its difference from them.

    Raises:
        ValueError: if there is no arm with the defaults.
    """
    usual = next((m for m in found if m.detail.get("choice") == "default"), None)
    if usual is None:
        raise ValueError("05b_defaults has no arm with the defaults to compare the others with.")

    def after(m: Measured) -> dict[str, Any]:
        loss = arms.compare_values(m.val_loss, [] if m is usual else usual.val_loss)
        return {
            "loss_difference": loss.difference, "loss_low": loss.difference_low,
            "loss_high": loss.difference_high,
            **{k: m.detail[k] / usual.detail[k] for k in ("parameters", "executed_macs")},
            "steps": sum(m.detail["steps"]),
        }  # fmt: skip

    return arms.compare_table(
        found, lambda _: usual, lambda m: {"choice": m.detail["choice"]}, after
    )  # fmt: skip


def _figure(table: pd.DataFrame) -> Figure:
    drawn = table[table["difference"].notna()]
    made = style.figure(style.TWO_COLUMNS, 0.9 + 0.2 * max(len(drawn), 3))
    left, right = made.subplots(1, 2, sharey=True)
    losses = drawn.rename(columns={"loss_difference": "loss"})
    for axes, rows, column in ((left, drawn, "difference"), (right, losses, "loss")):
        style.across(axes, rows, column, "variant")
        axes.axvline(0, color=style.look("basis").colour, linewidth=0.9, zorder=1)
        axes.grid(axis="y", visible=False)
    left.axvspan(-arms.MARGIN, arms.MARGIN, color=style.BAND, zorder=0)
    left.set_yticks(range(len(drawn)), list(drawn["label"]))
    left.set(ylim=(len(drawn) - 0.4, -0.6), xlabel="points")
    right.set_xlabel("cross-entropy (nats)")
    style.panel(left, "a", "accuracy minus that of our defaults")
    style.panel(right, "b", "loss minus that of our defaults")
    return made


def _headline(variants: pd.DataFrame) -> str:
    if variants.empty:
        return "No variant was measured against our defaults."
    return (
        "One default changed at a time, against our defaults trained for the same time, "
        f"{arms.tally(variants['verdict'])} (Holm)."
    )

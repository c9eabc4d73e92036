"""02b_widths: the best network for a time over all widths, with and without basis layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, style, tables, text
from basisconv.study.report.arms import Measured
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.statistics import stats
from basisconv.study.report.tables import count, interval, make_table, plain, words

# How a verdict on the best of both kinds is said, by `arms.decided`.
_AGAINST = {
    "above": "above it", "below": "below it", "equal": f"within ±{arms.MARGIN:g} points of it",
    "open": "undecided against it",
}  # fmt: skip


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """Accuracy over width at each budget, and the two envelopes over widths."""
    outcome, found = arms.outcome(section, records), arms.measure(section, records)
    table, envelope = width_frame(found), envelope_frame(found)
    facts: dict[str, Any] = section.facts
    several, direction = table["budget"].nunique() > 1, str(facts["skip"]["direction"])
    unit, own = facts.get("unit", "the cost source"), f"dense of width {facts['width']}"
    return Report(
        section.name,
        section.profile,
        tables={
            "widths": make_table(
                table,
                [words("network", "label"), plain("budget", "budget"),
                 count("parameters", "parameters"), plain("batch", "batch_size"),
                 count("steps", "steps"), tables.seeds(), tables.accuracy(outcome),
                 tables.difference("minus dense of its width"), tables.p_value(),
                 tables.verdict()],
                f"Networks of several widths at equal training time (epochs of {own}, as the other "
                f"experiments have it, by {unit}): {outcome} accuracy with its 95 % "
                "interval, and the difference from dense of the same width and time (Welch, p by "
                "Holm over all rows). Learning rate and batch size are those that the pilot found "
                "for a narrower dense network, and for the others at the profile's width: where "
                "batches differ, so does what the two sides were tuned for.",
            ),
            "widths_envelope": make_table(
                envelope,
                [plain("budget", "budget"), words("best dense", "dense"),
                 interval(f"{outcome} accuracy (%)", "dense_accuracy dense_low dense_high", 1),
                 words("best with basis layers", "basis"),
                 interval(f"{outcome} accuracy (%)", "basis_accuracy basis_low basis_high", 1),
                 tables.difference("difference (points)"), tables.p_value(), tables.verdict()],
                "The best dense network and the best with basis layers over all widths, both "
                f"picked by their mean validation accuracy, and the difference of their {outcome} "
                "accuracies (Welch, p by Holm over the budgets).",
            ),
        },
        figures={
            "widths": Plot(
                _figure(table, envelope, outcome, own), table,
                f"{text.capital(outcome)} accuracy over the network's width"
                f"{', a panel for each budget of training time' if several else ''}: "
                f"{arms.shown_as(found)}; networks of one width are set apart sideways. Basis "
                f"layers have f = {text.share(facts['ratio'])}; skip training ({direction}) "
                f"switches at {100 * facts['skip']['switch']:g} % of the time. Horizontal lines: "
                "the best dense network of that time (black) and the best with basis layers "
                f"(coloured), picked by validation accuracy. {_at_its_end(direction)}",
            )
        },
        numbers=_numbers(table, envelope, outcome, found),
    )  # fmt: skip


def _at_its_end(direction: str) -> str:
    """What skip training ends as, for it may be the best network "with basis layers"."""
    dense = "end" if direction.endswith("dense") else "start"
    return (
        f"Skip training here {dense}s as a dense network, so where it is the best “with basis "
        f"layers”, that has none at its {dense}."
    )


def width_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row an arm, with its comparison to dense of the same width and budget."""
    dense = {(m.arm.detail["width"], m.arm.budget): m for m in found if _is_dense(m)}

    def after(m: Measured) -> dict[str, Any]:
        detail: dict[str, Any] = m.arm.detail
        return {
            "parameters": detail["parameters"], "batch_size": detail["batch_size"],
            "steps": sum(detail["steps"]),
        }  # fmt: skip

    return arms.compare_table(
        found,
        rival=lambda m: dense.get((m.arm.detail["width"], m.arm.budget)),
        before=lambda m: {
            "method": m.arm.method, "width": m.arm.detail["width"], "budget": m.arm.budget,
            "time": m.time,
        },
        after=after,
    )  # fmt: skip


def envelope_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row a budget: the best dense network against the best with basis layers.

    Each is picked by validation accuracy: picking by what is compared would flatter both, and
    the side with more networks to pick from the more.
    """
    rows = []
    for budget in sorted({m.arm.budget for m in found if m.arm.budget is not None}):
        at = [m for m in found if m.arm.budget == budget and m.n]
        sides = [m for m in at if _is_dense(m)], [m for m in at if not _is_dense(m)]
        if not all(sides):
            continue
        dense, basis = (max(side, key=_validation) for side in sides)
        c, a, b = arms.compare(basis, dense), basis.interval, dense.interval
        rows.append(
            {
                "budget": budget, "dense": dense.arm.label,
                "dense_width": dense.arm.detail["width"], "dense_accuracy": b.mean,
                "dense_low": b.low, "dense_high": b.high, "basis": basis.arm.label,
                "basis_method": basis.arm.method, "basis_width": basis.arm.detail["width"],
                "basis_accuracy": a.mean, "basis_low": a.low, "basis_high": a.high,
                **arms.columns(c), "n": basis.n, "candidates": len(at),
            }
        )  # fmt: skip
    columns = ["budget", "dense", "dense_width", "dense_accuracy", "dense_low", "dense_high",
               "basis", "basis_method", "basis_width", "basis_accuracy", "basis_low", "basis_high",
               "difference", "difference_low", "difference_high", "p", "equivalence_p",
               "smallest_margin", "n", "candidates"]  # fmt: skip
    return arms.decided(pd.DataFrame(rows, columns=columns))


def _is_dense(m: Measured) -> bool:
    return m.arm.method == "dense"


def _validation(m: Measured) -> float:
    return stats.mean_interval(m.val_accuracy).mean


def _figure(table: pd.DataFrame, envelope: pd.DataFrame, outcome: str, own: str) -> Figure:
    budgets = sorted(set(table["budget"]))
    methods = list(dict.fromkeys(table["method"]))
    shifts = dict(zip(methods, style.spread(len(methods)), strict=True))
    with style.drawing():
        made = style.figure(style.TWO_COLUMNS, 2.9)
        panels = made.subplots(1, len(budgets), sharey=True, squeeze=False)[0]
        letters = "abcdef" if len(budgets) > 1 else [""]
        for letter, axes, budget in zip(letters, panels, budgets, strict=False):
            _lines(axes, envelope[envelope["budget"] == budget])
            for method in methods:
                at = table[(table["method"] == method) & (table["budget"] == budget)]
                at = at[at["accuracy"].notna()].sort_values("width")
                style.intervals(
                    axes, at["width"] * shifts[method], at["accuracy"], at["low"], at["high"],
                    method,
                )  # fmt: skip
            style.panel(axes, letter, f"in the time of {text.epochs(float(budget))} of {own}")
            style.time_axis(axes, table["width"], "width (channels of the first stage)")
        panels[0].set_ylabel(f"{outcome} accuracy (%)")
        style.legend_below(made, [style.handle(m, style.look(m).name) for m in methods])
    return made


def _lines(axes: Axes, best: pd.DataFrame) -> None:
    for r in best.itertuples():
        axes.axhline(r.dense_accuracy, color=style.look("dense").colour, linewidth=0.7, zorder=1)
        colour = style.look(r.basis_method).colour
        axes.axhline(r.basis_accuracy, color=colour, linewidth=0.7, linestyle="--", zorder=1)


def _numbers(
    table: pd.DataFrame, envelope: pd.DataFrame, outcome: str, found: Sequence[Measured]
) -> dict[str, Any]:
    tested = arms.tested(table)
    ahead = [text.at_budget(r) for r in tested[tested["verdict"] == "above"].itertuples()]
    values = {
        "ahead": text.said(text.listed(ahead) or "none"),
        "behind": text.said(text.amount(int((tested["verdict"] == "below").sum()))),
        "comparisons": text.count(len(tested)),
    }
    return {
        "values": values, "outcome": outcome, "headline": _headline(envelope),
        "notes": arms.lost_note(found),
    }  # fmt: skip


def _headline(envelope: pd.DataFrame) -> str:
    if envelope.empty:
        return "No network with basis layers was measured against a dense one."
    tested = arms.tested(envelope)
    if tested.empty:
        return (
            "With one run a network nothing is tested; the best network with basis layers differs "
            f"from the best dense one by {text.fixed(envelope['difference'].min(), 1, True)} to "
            f"{text.fixed(envelope['difference'].max(), 1, True)} points."
        )
    where = [
        f"{said} at {text.listed([text.epochs(float(b)) for b in rows['budget']])}"
        for verdict, said in _AGAINST.items()
        if len(rows := tested[tested["verdict"] == verdict])
    ]
    return (
        "With every width to choose from, and held against the best dense network of the same "
        f"time, the best one with basis layers is {text.listed(where)} (Holm)."
    )

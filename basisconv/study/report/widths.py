"""02b_widths: the best network for a time over all widths, with and without basis layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import pandas as pd
from matplotlib.figure import Figure

from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, style, tables, text
from basisconv.study.report.arms import Measured
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.tables import count, interval, make_table, plain, words


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """Accuracy over width at each budget, and the two envelopes over widths."""
    outcome, found = arms.outcome(section, records), arms.measure(section, records)
    table, envelope = width_frame(found), envelope_frame(found)
    facts = section.facts
    unit, own = facts["unit"], f"dense of width {facts['width']}"
    panels = ", a panel for each budget of training time" if table["budget"].nunique() > 1 else ""
    # It may be the best network "with basis layers".
    end = "ends" if facts["skip"]["direction"].endswith("dense") else "starts"
    tested = arms.tested(table)
    ahead = [text.at_budget(r) for r in tested[tested["verdict"] == "above"].itertuples()]
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
                f"Networks of several widths at equal training time (epochs of {own}, by {unit}): "
                f"{outcome} accuracy, and the difference from dense of the same width and time. "
                "Networks of one width may have other batches than dense, as each was tuned.",
            ),
            "widths_envelope": make_table(
                envelope,
                [plain("budget", "budget"), words("best dense", "dense"),
                 interval(f"{outcome} accuracy (%)", "dense_accuracy dense_low dense_high", 1),
                 words("best with basis layers", "basis"),
                 interval(f"{outcome} accuracy (%)", "basis_accuracy basis_low basis_high", 1),
                 tables.difference("difference (points)"), tables.p_value(), tables.verdict()],
                "The best dense network and the best with basis layers over all widths, picked by "
                f"mean validation accuracy, and the difference of their {outcome} accuracies.",
            ),
        },
        figures={
            "widths": Plot(
                _figure(table, envelope, outcome, own), table,
                f"{outcome.capitalize()} accuracy over the network's width{panels}: "
                f"{arms.shown_as(found)}; networks of one width are set apart sideways. Basis "
                f"layers have f = {text.share(facts['ratio'])}; skip training switches at "
                f"{100 * facts['skip']['switch']:g} % of the time, and {end} as a dense network. "
                "Lines: the best dense network (black) and the best with basis layers (coloured).",
            )
        },
        numbers={
            "values": {
                "ahead": text.said(text.listed(ahead) or "none"),
                "behind": text.said(text.amount(int((tested["verdict"] == "below").sum()))),
                "comparisons": text.count(len(tested)),
            },
            "headline": _headline(envelope),
        },
    )  # fmt: skip


def width_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row an arm, with its comparison to dense of the same width and budget."""
    dense = {(m.detail["width"], m.arm.budget): m for m in found if _is_dense(m)}
    return arms.compare_table(
        found,
        rival=lambda m: dense.get((m.detail["width"], m.arm.budget)),
        before=lambda m: {
            "method": m.arm.method, "width": m.detail["width"], "budget": m.arm.budget,
            "time": m.time,
        },
        after=lambda m: {
            "parameters": m.detail["parameters"], "batch_size": m.detail["batch_size"],
            "steps": sum(m.detail["steps"]),
        },
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
        dense, basis = (max(side, key=lambda m: fmean(m.val_accuracy)) for side in sides)
        c, a, b = arms.compare(basis, dense), basis.interval, dense.interval
        rows.append(
            {
                "budget": budget, "dense": dense.arm.label,
                "dense_width": dense.detail["width"], "dense_accuracy": b.mean,
                "dense_low": b.low, "dense_high": b.high, "basis": basis.arm.label,
                "basis_method": basis.arm.method, "basis_width": basis.detail["width"],
                "basis_accuracy": a.mean, "basis_low": a.low, "basis_high": a.high,
                **c._asdict(), "n": basis.n, "candidates": len(at),
            }
        )  # fmt: skip
    nothing = pd.DataFrame(columns=["budget", *arms.Comparison._fields])
    return arms.decided(pd.DataFrame(rows) if rows else nothing)


def _is_dense(m: Measured) -> bool:
    return m.arm.method == "dense"


def _figure(table: pd.DataFrame, envelope: pd.DataFrame, outcome: str, own: str) -> Figure:
    budgets = sorted(set(table["budget"]))
    methods = list(dict.fromkeys(table["method"]))
    shifts = dict(zip(methods, style.spread(len(methods)), strict=True))
    made = style.figure(style.TWO_COLUMNS, 2.9)
    panels = made.subplots(1, len(budgets), sharey=True, squeeze=False)[0]
    letters = "abcdef" if len(budgets) > 1 else [""]
    for letter, axes, budget in zip(letters, panels, budgets, strict=False):
        for r in envelope[envelope["budget"] == budget].itertuples():
            dense, basis = (style.look(m).colour for m in ("dense", r.basis_method))
            axes.axhline(r.dense_accuracy, color=dense, linewidth=0.7, zorder=1)
            axes.axhline(r.basis_accuracy, color=basis, linewidth=0.7, linestyle="--", zorder=1)
        for method in methods:
            at = table[(table["method"] == method) & (table["budget"] == budget)]
            at = at[at["accuracy"].notna()].sort_values("width")
            x, ends = at["width"] * shifts[method], (at["low"], at["high"])
            style.intervals(axes, x, at["accuracy"], *ends, method)
        style.panel(axes, letter, f"in the time of {text.epochs(float(budget))} of {own}")
        style.time_axis(axes, table["width"], "width (channels of the first stage)")
    panels[0].set_ylabel(f"{outcome} accuracy (%)")
    style.legend_below(made, [style.handle(m, style.look(m).name) for m in methods])
    return made


def _headline(envelope: pd.DataFrame) -> str:
    if envelope.empty:
        return "No network with basis layers was measured against a dense one."
    each = [
        f"{text.gain(r)} at {text.epochs(r.budget)} ({text.VERDICT_WORDS[r.verdict]})"
        for r in envelope.itertuples()
    ]
    return (
        "With every width to choose from, the best network with basis layers differs from the "
        f"best dense one of the same time by {text.listed(each)} (Holm)."
    )

"""01b_pilot: what the settings of the other notebooks were chosen by, on validation alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import seaborn
from matplotlib.figure import Figure

from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, recipes, sensitivity, style, tables, text
from basisconv.study.report.arms import Measured
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.statistics import rankings, stats
from basisconv.study.report.tables import (
    cell,
    count,
    fixed,
    interval,
    make_table,
    plain,
    words,
)

CLEAR = 2.0
"""A choice is ahead of the next where it is by so many standard errors of a difference."""


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """The grid of settings and its best, the runs' spread, and the candidate sweeps; or recipes."""
    facts: dict[str, Any] = section.facts
    found = arms.measure(section, records)
    tried = recipes.recipe_frame(found)
    if not tried.empty:
        return Report(
            section.name,
            section.profile,
            tables={"pilot_recipes": recipes.recipe_table(tried)},
            figures={"pilot_recipes": recipes.recipe_plot(tried)},
            numbers={
                "values": {}, "outcome": "validation", "notes": arms.lost_note(found),
                "headline": recipes.recipe_headline(tried),
            },
        )  # fmt: skip
    spread = spread_frame(found)
    grid = grid_frame(found)
    best = best_frame(grid, spread)
    sweeps = sweep_frame(section, records)
    method = words("arm", lambda row: style.look(row.method).name)
    part = f"{facts['train_images']:,} training images, width {facts['width']}{_narrower(found)}"
    return Report(
        section.name,
        section.profile,
        tables={
            "pilot_settings": make_table(
                best,
                [method, plain("budget", "budget"), plain("learning rate", "learning_rate"),
                 plain("batch", "batch_size"), fixed("validation loss", "val_loss", 4),
                 fixed("accuracy (%)", "val_accuracy", 1),
                 words("next best", lambda r: _setting(r.next_learning_rate, r.next_batch_size)),
                 fixed("lead", "lead", 4), fixed("in errors", "lead_in_errors", 1),
                 words("at the edge", lambda r: r.edge or "no"),
                 words("best by accuracy", lambda r: "yes" if r.best_by_accuracy else "no")],
                "The best learning rate and batch size of each kind of arm at each time budget, "
                f"by validation loss ({part}; budgets in dense epochs of these), its lead over the "
                "next best setting, and that lead in standard errors of a difference, from the "
                "spread of the runs. At the edge: the first or the last of three values or more.",
            ),
            "pilot_spread": make_table(
                spread,
                [method, tables.seeds(),
                 interval("sd of the loss", "loss_sd loss_low loss_high", 4),
                 interval("sd of the accuracy (points)",
                          "accuracy_sd accuracy_low accuracy_high", 2),
                 cell("runs for an equivalence", "needed", _count)],
                f"How far runs that differ in their seed alone lie apart ({part}, budget "
                f"{facts['spread_budget']:g}): standard deviations with 95 % χ² intervals, and "
                f"how many runs an arm an equivalence within ±{arms.MARGIN:g} points would take "
                "at 80 % power.",
            ),
            "pilot_sweeps": make_table(
                sweeps,
                [count("images", "train_images"), plain("epochs", "epochs"),
                 plain("width", "width"), words("f", lambda r: text.share(r.ratio)),
                 plain("layers", "layers"), plain("seeds", "seeds"),
                 fixed("halves agree", "halves", 2), interval("reliability", "reliability", 2),
                 cell("seeds needed", "needed", _count),
                 fixed("cost (dense epochs)", "dense_epochs", 1), fixed("hours", "hours", 1),
                 cell("hours needed", "hours_needed",
                      lambda h: "∞" if math.isinf(h) else text.fixed(h, 1))],
                "Settings that the sensitivity sweep might take, tried on some layers: the "
                "reliability of the ranking (split halves, stepped up to all seeds, with its 95 % "
                "interval over resampled layers), how many seeds would bring it to "
                f"{arms.TRUSTED:g}, and what a sweep over all layers costs with so many.",
            ),
        },
        figures={
            "pilot_grid": Plot(
                _figure(grid), grid,
                f"Mean validation loss at each learning rate and batch size ({part}), for each "
                "kind of arm (across) and time budget (down, each with a range of shades of its "
                "own); darker is worse. A field without a number: its runs diverged.",
            )
        },
        numbers=_numbers(best, found),
    )  # fmt: skip


def _narrower(found: Sequence[Measured]) -> str:
    """The width of the narrower dense networks, which stands for all such."""
    widths = sorted({f"{m.arm.detail['width']}" for m in found if m.arm.method == "narrow"})
    return f", narrower dense {text.listed(widths)}" if widths else ""


def _setting(rate: float, batch: float) -> str:
    return text.NOTHING if math.isnan(rate) else f"{rate:g}, batch {batch:g}"


def part_of(m: Measured) -> str:
    """Which part of the pilot an arm belongs to: "grid", "spread", "sweep" or "recipes"."""
    return str(m.arm.detail["part"])


def grid_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row for each kind of arm, budget and setting."""
    rows = []
    for m in (m for m in found if part_of(m) == "grid"):
        loss = stats.mean_interval(m.val_loss) if m.n else None
        rows.append(
            {
                "method": m.arm.method, "budget": m.arm.budget,
                "batch_size": m.arm.detail["batch_size"],
                "learning_rate": m.arm.detail["learning_rate"], "n": m.n, "lost": m.lost,
                "val_loss": loss.mean if loss else stats.NAN,
                "low": loss.low if loss else stats.NAN, "high": loss.high if loss else stats.NAN,
                "val_accuracy": m.interval.mean,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def best_frame(grid: pd.DataFrame, spread: pd.DataFrame) -> pd.DataFrame:
    """The best setting of each kind of arm at each budget, and how far ahead it is.

    A setting that lost a run is none to choose.
    """
    sd = dict(zip(spread["method"], spread["loss_sd"], strict=True))
    rows = []
    for (method, budget), group in grid.groupby(["method", "budget"], sort=False):
        ranked = group[group["lost"] == 0].sort_values("val_loss", kind="stable")
        if ranked.empty:
            continue
        best, second = ranked.iloc[0], ranked.iloc[1] if len(ranked) > 1 else None
        lead = stats.NAN if second is None else float(second.val_loss - best.val_loss)
        # The spread was measured for two of the kinds; the others are dense or train as basis.
        noise = sd.get("dense" if method in ("dense", "narrow") else "basis", stats.NAN)
        error = noise * math.sqrt(2 / best.n)
        edges = [
            name
            for name, column in (("rate", "learning_rate"), ("batch", "batch_size"))
            if group[column].nunique() > 2
            and best[column] in (group[column].min(), group[column].max())
        ]
        rows.append(
            {
                "method": method, "budget": budget, "learning_rate": best.learning_rate,
                "batch_size": int(best.batch_size), "n": int(best.n), "val_loss": best.val_loss,
                "val_accuracy": best.val_accuracy,
                "next_learning_rate": stats.NAN if second is None else second.learning_rate,
                "next_batch_size": stats.NAN if second is None else second.batch_size,
                "lead": lead, "lead_in_errors": lead / error if error else stats.NAN,
                "edge": " and ".join(edges), "settings": len(group),
                "best_by_accuracy": bool(best.val_accuracy == ranked["val_accuracy"].max()),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def spread_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """The standard deviation of single runs, of loss and of accuracy, with intervals."""
    rows = []
    for m in (m for m in found if part_of(m) == "spread"):
        loss, accuracy = (
            stats.sd_interval(values) if m.n else stats.Spread(stats.NAN, stats.NAN, stats.NAN, 0)
            for values in (m.val_loss, m.accuracy)
        )
        known = accuracy.sd > 0
        rows.append(
            {
                "method": m.arm.method, "n": m.n, "lost": m.lost,
                "loss_sd": loss.sd, "loss_low": loss.low, "loss_high": loss.high,
                "accuracy_sd": accuracy.sd, "accuracy_low": accuracy.low,
                "accuracy_high": accuracy.high,
                "needed": stats.seeds_needed(accuracy.sd, arms.MARGIN) if known else stats.NAN,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def sweep_frame(section: Section, records: Mapping[str, Record]) -> pd.DataFrame:
    """One row a candidate setting of the sweep: how far it can be trusted, at what cost."""
    facts: dict[str, Any] = section.facts
    rows = []
    for number, setting in enumerate(facts["sweeps"]):
        own = tuple(arm for arm in section.arms if arm.detail.get("sweep") == number)
        part = section.model_copy(update={"arms": own})
        matrix = sensitivity.score_matrix(part, records)
        if not matrix.size:  # no seed came to its end with every layer
            continue
        trust, bounds = rankings.reliability(matrix), rankings.reliability_interval(matrix)
        seeds = rankings.seeds_for(trust.reliability, len(matrix), arms.TRUSTED)
        each = setting["dense_epochs"] / setting["seeds"]
        hours = facts["dense_epoch_hours"]
        rows.append(
            {
                **{k: setting[k] for k in ("train_images", "epochs", "width", "ratio", "layers")},
                "seeds": len(matrix), "halves": trust.halves, "reliability": trust.reliability,
                "reliability_low": bounds.low, "reliability_high": bounds.high,
                "needed": seeds, "dense_epochs": each * len(matrix),
                "hours": stats.NAN if hours is None else each * len(matrix) * hours,
                "hours_needed": stats.NAN if hours is None else each * seeds * hours,
            }
        )  # fmt: skip
    columns = ["train_images", "epochs", "width", "ratio", "layers", "seeds", "halves",
               "reliability", "reliability_low", "reliability_high", "needed", "dense_epochs",
               "hours", "hours_needed"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _figure(grid: pd.DataFrame) -> Figure:
    """Kinds of arm across, time budgets down, learning rate and batch size in each."""
    methods, budgets = list(dict.fromkeys(grid["method"])), sorted(set(grid["budget"]))
    with style.drawing():
        made = style.figure(style.TWO_COLUMNS, 0.6 + 1.3 * len(budgets))
        panels = made.subplots(len(budgets), len(methods), sharex=True, sharey=True, squeeze=False)
        for line, budget in zip(panels, budgets, strict=True):
            at = grid[grid["budget"] == budget]
            for axes, method in zip(line, methods, strict=True):
                losses = at[at["method"] == method].pivot(
                    index="batch_size", columns="learning_rate", values="val_loss"
                )
                seaborn.heatmap(
                    losses, ax=axes, cmap="Blues", vmin=at["val_loss"].min(),
                    vmax=at["val_loss"].max(), annot=True, fmt=".3f", annot_kws={"size": 5.5},
                    cbar=False, linewidths=0.5,
                )  # fmt: skip
                axes.set(xlabel="", ylabel="")
            line[0].set_ylabel(f"batch, budget {budget:g}")
        for axes, method in zip(panels[0], methods, strict=True):
            axes.set_title(style.look(method).name)
        for axes in panels[-1]:
            axes.set_xlabel("learning rate")
    return made


def _count(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.0f}"


def _numbers(best: pd.DataFrame, found: Sequence[Measured]) -> dict[str, Any]:
    return {
        "values": {}, "outcome": "validation", "headline": _headline(best),
        "notes": arms.lost_note(found),
    }  # fmt: skip


def _headline(best: pd.DataFrame) -> str:
    if best.empty:
        return "No setting of the grid was trained to its end."
    clear = int((best["lead_in_errors"] > CLEAR).sum())
    edge = int((best["edge"] != "").sum())
    return (
        f"Of {text.plural(len(best), 'choice')} of a learning rate and batch size (one for each "
        f"kind of arm and budget, out of {best['settings'].max()} settings), {text.amount(clear)} "
        f"{'lead' if clear > 1 else 'leads'} the next best by more than {CLEAR:g} standard errors "
        f"and {text.amount(edge)} {'lie' if edge > 1 else 'lies'} at an edge of the grid."
    )

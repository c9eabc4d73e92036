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
from basisconv.study.report.statistics.stats import NAN
from basisconv.study.report.tables import cell, count, fixed, interval, make_table, plain, words

CLEAR = 2.0
"""A choice is ahead of the next where it is by so many standard errors of a difference."""


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """The grid of settings and its best, the runs' spread, and the candidate sweeps; or recipes."""
    facts = section.facts
    found = arms.measure(section, records)
    tried = recipes.recipe_frame(found)
    if not tried.empty:
        return Report(
            section.name,
            section.profile,
            tables={"pilot_recipes": recipes.recipe_table(tried)},
            figures={"pilot_recipes": recipes.recipe_plot(tried)},
            numbers={"values": {}, "headline": recipes.recipe_headline(tried)},
        )
    spread, grid = spread_frame(found), grid_frame(found)
    best, sweeps = best_frame(grid, spread), sweep_frame(section, records)
    method = words("arm", lambda row: style.look(row.method).name)
    widths = sorted({f"{m.detail['width']}" for m in found if m.arm.method == "narrow"})
    part = f"{facts['train_images']:,} training images, width {facts['width']}"
    part += f", narrower dense {text.listed(widths)}" if widths else ""
    return Report(
        section.name,
        section.profile,
        tables={
            "pilot_settings": make_table(
                best,
                [method, plain("budget", "budget"), plain("learning rate", "learning_rate"),
                 plain("batch", "batch_size"), fixed("validation loss", "val_loss", 4),
                 fixed("accuracy (%)", "val_accuracy", 1), words("next best", _next),
                 fixed("lead", "lead", 4), fixed("in errors", "lead_in_errors", 1),
                 words("at the edge", lambda r: r.edge or "no"),
                 words("best by accuracy", lambda r: "yes" if r.best_by_accuracy else "no")],
                "The best learning rate and batch size of each kind of arm at each budget, by "
                f"validation loss ({part}; budgets in dense epochs of these), and its lead over "
                "the next best, also in standard errors of a difference. At the edge: the first "
                "or the last of three values or more.",
            ),
            "pilot_spread": make_table(
                spread,
                [method, tables.seeds(),
                 interval("sd of the loss", "loss_sd loss_low loss_high", 4),
                 interval("sd of the accuracy (points)",
                          "accuracy_sd accuracy_low accuracy_high", 2),
                 cell("runs for an equivalence", "needed", text.whole)],
                f"Standard deviations of runs that differ in their seed alone ({part}, budget "
                f"{facts['spread_budget']:g}), with 95 % χ² intervals, and how many runs an arm "
                f"an equivalence within ±{arms.MARGIN:g} points takes at 80 % power.",
            ),
            "pilot_sweeps": make_table(
                sweeps,
                [count("images", "train_images"), plain("epochs", "epochs"),
                 plain("width", "width"), words("f", lambda r: text.share(r.ratio)),
                 plain("layers", "layers"), plain("seeds", "seeds"),
                 fixed("halves agree", "halves", 2), interval("reliability", "reliability", 2),
                 cell("seeds needed", "needed", text.whole),
                 fixed("cost (dense epochs)", "dense_epochs", 1), fixed("hours", "hours", 1),
                 cell("hours needed", "hours_needed",
                      lambda h: "∞" if math.isinf(h) else text.fixed(h, 1))],
                "Settings for the sensitivity sweep, tried on some layers: the reliability of the "
                "ranking (split halves, stepped up to all seeds; interval over resampled layers), "
                f"how many seeds would bring it to {arms.TRUSTED:g}, and what a sweep over all "
                "layers costs.",
            ),
        },
        figures={
            "pilot_grid": Plot(
                _figure(grid), grid,
                f"Mean validation loss at each learning rate and batch size ({part}), for each "
                "kind of arm (across) and budget (down, each with its own range of shades); "
                "darker is worse. A field without a number: its runs diverged.",
            )
        },
        numbers={"values": {}, "headline": _headline(best)},
    )  # fmt: skip


def _next(row: Any) -> str | None:
    rate, batch = row.next_learning_rate, row.next_batch_size
    return None if math.isnan(rate) else f"{rate:g}, batch {batch:g}"


def _part(found: Sequence[Measured], name: str) -> list[Measured]:
    """The arms of a part of the pilot: "grid", "spread", "sweep" or "recipes"."""
    return [m for m in found if m.detail["part"] == name]


def grid_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row for each kind of arm, budget and setting."""
    rows = []
    for m in _part(found, "grid"):
        loss = stats.mean_interval(m.val_loss)[:3] if m.n else [NAN] * 3
        own = m.detail["batch_size"], m.detail["learning_rate"], m.n, m.lost
        rows.append((m.arm.method, m.arm.budget, *own, *loss, m.interval.mean))
    columns = ["method", "budget", "batch_size", "learning_rate", "n", "lost", "val_loss", "low",
               "high", "val_accuracy"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


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
        lead = NAN if second is None else float(second.val_loss - best.val_loss)
        # The spread was measured for two of the kinds; the others are dense or train as basis.
        noise = sd.get("dense" if method in ("dense", "narrow") else "basis", NAN)
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
                "next_learning_rate": NAN if second is None else second.learning_rate,
                "next_batch_size": NAN if second is None else second.batch_size,
                "lead": lead, "lead_in_errors": lead / error if error else NAN,
                "edge": " and ".join(edges), "settings": len(group),
                "best_by_accuracy": bool(best.val_accuracy == ranked["val_accuracy"].max()),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def spread_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """The standard deviation of single runs, of loss and of accuracy, with intervals."""
    rows = []
    for m in _part(found, "spread"):
        loss, accuracy = (
            stats.sd_interval(values)[:3] if m.n else (NAN,) * 3
            for values in (m.val_loss, m.accuracy)
        )
        needed = stats.seeds_needed(accuracy[0], arms.MARGIN) if accuracy[0] > 0 else NAN
        rows.append((m.arm.method, m.n, m.lost, *loss, *accuracy, needed))
    columns = ["method", "n", "lost", "loss_sd", "loss_low", "loss_high", "accuracy_sd",
               "accuracy_low", "accuracy_high", "needed"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def sweep_frame(section: Section, records: Mapping[str, Record]) -> pd.DataFrame:
    """One row a candidate setting of the sweep: how far it can be trusted, at what cost."""
    facts = section.facts
    kept = ["train_images", "epochs", "width", "ratio", "layers"]
    rows = []
    for number, setting in enumerate(facts["sweeps"]):
        own = tuple(arm for arm in section.arms if arm.detail.get("sweep") == number)
        part = section.model_copy(update={"arms": own})
        matrix = sensitivity.score_matrix(part, records)
        if not matrix.size:  # no seed came to its end with every layer
            continue
        trust, bounds = rankings.reliability(matrix), rankings.reliability_interval(matrix)
        done = len(matrix)
        needed = rankings.seeds_for(trust.reliability, done, arms.TRUSTED)
        each = setting["dense_epochs"] / setting["seeds"]
        hours = NAN if facts["dense_epoch_hours"] is None else facts["dense_epoch_hours"]
        rows.append(
            (*(setting[k] for k in kept), done, trust.halves, trust.reliability, bounds.low,
             bounds.high, needed, each * done, each * done * hours, each * needed * hours)
        )  # fmt: skip
    columns = [*kept, "seeds", "halves", "reliability", "reliability_low", "reliability_high",
               "needed", "dense_epochs", "hours", "hours_needed"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _figure(grid: pd.DataFrame) -> Figure:
    """Kinds of arm across, time budgets down, learning rate and batch size in each."""
    methods, budgets = list(dict.fromkeys(grid["method"])), sorted(set(grid["budget"]))
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

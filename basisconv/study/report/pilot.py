"""01b_pilot: what the settings of the other notebooks were chosen by, on validation alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, style, text
from basisconv.study.report.arms import Measured
from basisconv.study.report.output import Plot, Report, Table
from basisconv.study.report.pilot_figure import figure
from basisconv.study.report.pilot_frames import (
    best_frame,
    grid_frame,
    part_of,
    spread_frame,
    sweep_frame,
)

CLEAR = 2.0
"""A choice is ahead of the next where it is by so many standard errors of a difference."""


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """The grid of settings and its best, the runs' spread, and the candidate sweeps."""
    facts: dict[str, Any] = section.facts
    found = arms.measure(section, records)
    spread = spread_frame(found)
    grid = grid_frame(found)
    best = best_frame(grid, spread)
    sweeps = sweep_frame(section, records)
    part = f"{facts['train_images']:,} training images, width {facts['width']}{_narrower(found)}"
    return Report(
        section.name,
        section.profile,
        tables={
            "pilot_settings": Table(
                best, _shown_best(best),
                "The best learning rate and batch size of each kind of arm at each time budget, "
                f"by validation loss ({part}; budgets in dense epochs of these), its lead over the "
                "next best setting, and that lead in standard errors of a difference, from the "
                "spread of the runs. At the edge: the first or the last of three values or more.",
            ),
            "pilot_spread": Table(
                spread, _shown_spread(spread),
                f"How far runs that differ in their seed alone lie apart ({part}, budget "
                f"{facts['spread_budget']:g}): standard deviations with 95 % χ² intervals, and "
                f"how many runs an arm an equivalence within ±{arms.MARGIN:g} points would take "
                "at 80 % power.",
            ),
            "pilot_sweeps": Table(
                sweeps, _shown_sweeps(sweeps),
                "Settings that the sensitivity sweep might take, tried on some layers: the "
                "reliability of the ranking (split halves, stepped up to all seeds, with its 95 % "
                "interval over resampled layers), how many seeds would bring it to "
                f"{arms.TRUSTED:g}, and what a sweep over all layers costs with so many.",
            ),
        },
        figures={
            "pilot_grid": Plot(
                figure(grid), grid,
                f"Validation loss over the learning rate, a line for each batch size ({part}), "
                "for each kind of arm (across) and time budget (down); "
                f"{arms.shown_as([m for m in found if part_of(m) == 'grid'])}. Runs that diverged "
                "are left out.",
            )
        },
        numbers=_numbers(best, spread, sweeps, found),
    )  # fmt: skip


def _narrower(found: Sequence[Measured]) -> str:
    """The width of the narrower dense networks, which stands for all such."""
    widths = sorted({f"{m.arm.detail['width']}" for m in found if m.arm.method == "narrow"})
    return f", narrower dense {text.listed(widths)}" if widths else ""


def _setting(rate: float, batch: float) -> str:
    return text.NOTHING if math.isnan(rate) else f"{rate:g}, batch {batch:g}"


def _shown_best(best: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {
            "arm": style.look(r.method).name,
            "budget": f"{r.budget:g}",
            "learning rate": f"{r.learning_rate:g}",
            "batch": str(r.batch_size),
            "validation loss": text.fixed(r.val_loss, 4),
            "accuracy (%)": text.fixed(r.val_accuracy, 1),
            "next best": _setting(r.next_learning_rate, r.next_batch_size),
            "lead": text.fixed(r.lead, 4),
            "in errors": text.fixed(r.lead_in_errors, 1),
            "at the edge": r.edge or "no",
            "best by accuracy": "yes" if r.best_by_accuracy else "no",
        }
        for r in best.itertuples()
    ]
    return pd.DataFrame(rows)


def _shown_spread(spread: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {
            "arm": style.look(r.method).name,
            "n": text.seeds(r.n, r.lost),
            "sd of the loss": text.with_interval(r.loss_sd, r.loss_low, r.loss_high, 4),
            "sd of the accuracy (points)": text.with_interval(
                r.accuracy_sd, r.accuracy_low, r.accuracy_high, 2
            ),
            "runs for an equivalence": _count(r.needed),
        }
        for r in spread.itertuples()
    ]
    return pd.DataFrame(rows)


def _shown_sweeps(sweeps: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {
            "images": f"{r.train_images:,}",
            "epochs": f"{r.epochs:g}",
            "width": str(r.width),
            "f": text.share(r.ratio),
            "layers": str(r.layers),
            "seeds": str(r.seeds),
            "halves agree": text.fixed(r.halves, 2),
            "reliability": text.with_interval(
                r.reliability, r.reliability_low, r.reliability_high, 2
            ),
            "seeds needed": _count(r.needed),
            "cost (dense epochs)": text.fixed(r.dense_epochs, 1),
            "hours": text.fixed(r.hours, 1),
            "hours needed": "∞" if math.isinf(r.hours_needed) else text.fixed(r.hours_needed, 1),
        }
        for r in sweeps.itertuples()
    ]
    columns = ["images", "epochs", "width", "f", "layers", "seeds", "halves agree", "reliability",
               "seeds needed", "cost (dense epochs)", "hours", "hours needed"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _count(value: float) -> str:
    if math.isnan(value):
        return text.NOTHING
    return "∞" if math.isinf(value) else f"{value:.0f}"


def _numbers(
    best: pd.DataFrame, spread: pd.DataFrame, sweeps: pd.DataFrame, found: Sequence[Measured]
) -> dict[str, Any]:
    findings = [_headline(best), *_spread_told(spread), *_sweeps_told(sweeps)]
    return {
        "values": {}, "outcome": "validation", "headline": findings[0], "findings": findings,
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


def _spread_told(spread: pd.DataFrame) -> list[str]:
    told = [
        f"{style.look(r.method).name} by "
        + text.with_interval(r.accuracy_sd, r.accuracy_low, r.accuracy_high, 2, unit=" points")
        + f" and {text.with_interval(r.loss_sd, r.loss_low, r.loss_high, 4)} of loss (n = {r.n})"
        for r in spread.itertuples()
        if r.n > 1
    ]
    if not told:
        return []
    return [f"Runs that differ in their seed alone scatter (sd, 95 % interval): {'; '.join(told)}."]


def _sweeps_told(sweeps: pd.DataFrame) -> list[str]:
    known = sweeps[sweeps["reliability"].notna()]
    if known.empty:
        return []
    best = known.loc[known["reliability"].idxmax()]
    need = "no number of seeds" if math.isinf(best.needed) else f"{best.needed:.0f}"
    return [
        f"Of {text.plural(len(known), 'candidate sweep')} the most reliable has "
        + text.with_interval(best.reliability, best.reliability_low, best.reliability_high, 2)
        + f" over {text.plural(int(best.seeds), 'seed')} "
        f"(width {best.width:.0f}, {best.train_images:,.0f} images, {text.epochs(best.epochs)}, "
        f"f = {text.share(best.ratio)}); for {arms.TRUSTED:g} it would need {need}."
    ]

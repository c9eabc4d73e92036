"""The pilot's numbers: the grid and its best settings, the runs' spread, the candidate sweeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, sensitivity
from basisconv.study.report.arms import Measured
from basisconv.study.report.statistics import rankings, stats


def part_of(m: Measured) -> str:
    """Which part of the pilot an arm belongs to: "grid", "spread" or "sweep"."""
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

"""The pilot's figure: validation loss over the grid of learning rates and batch sizes."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from basisconv.study.report import style


def figure(grid: pd.DataFrame) -> Figure:
    """Kinds of arm across, time budgets down, a line for each batch size."""
    methods, budgets = list(dict.fromkeys(grid["method"])), sorted(set(grid["budget"]))
    batches = sorted(set(grid["batch_size"]))
    rates = sorted(set(grid["learning_rate"]))
    with style.drawing():
        made = style.figure(style.TWO_COLUMNS, 0.7 + 1.5 * len(budgets))
        panels = made.subplots(len(budgets), len(methods), sharex=True, sharey="row", squeeze=False)
        for row, budget in zip(panels, budgets, strict=True):
            for axes, method in zip(row, methods, strict=True):
                here = grid[(grid["method"] == method) & (grid["budget"] == budget)]
                for place, batch in enumerate(batches):
                    line = here[(here["batch_size"] == batch) & here["val_loss"].notna()]
                    line = line.sort_values("learning_rate")
                    style.intervals(
                        axes, line["learning_rate"], line["val_loss"], line["low"], line["high"],
                        method, place,
                    )  # fmt: skip
                style.time_axis(axes, rates, "")
            row[0].set_ylabel(f"loss, budget {budget:g}")
        for axes, method in zip(panels[0], methods, strict=True):
            axes.set_title(style.look(method).name)
        for axes in panels[-1]:
            axes.set_xlabel("learning rate")
        handles = [
            style.handle("dense", f"batch {batch}", place) for place, batch in enumerate(batches)
        ]
        style.legend_below(made, handles)
    return made

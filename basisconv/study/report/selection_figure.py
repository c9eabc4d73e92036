"""04's figure: the subsets' accuracies, and their layers as a matrix."""

from __future__ import annotations

from collections import Counter

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from basisconv.study.report import style


def figure(table: pd.DataFrame, draws: pd.DataFrame, outcome: str) -> Figure:
    """Accuracy over step time, and which layers each subset has.

    Args:
        table: of `selection.subset_frame`.
        draws: of `selection.draw_frame`.
        outcome: whose accuracy it is, "test" or "validation".
    """
    drawn = table[table["accuracy"].notna()]
    with style.drawing():
        made = style.figure(style.TWO_COLUMNS, 3.4)
        left, right = made.subplots(1, 2, width_ratios=[1.45, 1])
        places = style.apart([100 * t for t in drawn["predicted_time"]], near=2.5, step=1.8)
        for x, r in zip(places, drawn.itertuples(), strict=True):
            style.intervals(left, [x], [r.accuracy], [r.low], [r.high], r.method, line=False)
        left.xaxis.set_major_formatter(PercentFormatter(decimals=0))
        left.set_xlim(0, 108)
        left.set_xlabel("predicted time of a step, relative to dense")
        left.set_ylabel(f"{outcome} accuracy (%)")
        style.panel(left, "a", "accuracy after equal training time")
        _matrix(right, table, draws)
        methods = dict.fromkeys(drawn["method"])
        handles = [style.handle(m, style.look(m).name, line=False) for m in methods]
        style.legend_below(made, handles)
    return made


def _matrix(axes: Axes, table: pd.DataFrame, draws: pd.DataFrame) -> None:
    """A square where a subset has a layer in basis form: layers down, subsets across."""
    drawn = Counter(name for names in draws["layers"] for name in names.split())
    every = [name.split() for name in table["layers"]]
    longest = max(every, key=len)
    order = longest + sorted({name for names in every for name in names} - set(longest))
    subsets = table[table["layer_count"] > 0]
    for x, r in enumerate(subsets.itertuples()):
        names = r.layers.split()
        random = r.method == "random"
        areas = [15 * (drawn[name] / len(draws) if random else 1) for name in names]
        axes.scatter(
            [x] * len(names), [order.index(name) for name in names], marker="s", s=areas,
            color=style.look(r.method).colour, linewidths=0.4,
            edgecolors=style.INK if random else style.look(r.method).colour,
        )  # fmt: skip
    axes.set_xticks(range(len(subsets)), list(subsets["label"]), rotation=90)
    axes.set_yticks(range(len(order)), order, fontsize=5.5)
    axes.set_xlim(-0.7, len(subsets) - 0.3)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.tick_params(length=0)
    style.panel(axes, "b", "layers in basis form")

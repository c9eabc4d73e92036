"""The figures of 06_timing: what of each layer's saving the clock sees, and the roofline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from basisconv.study.report import places, style, text

_BLUE = style.LOOKS["basis"].colour
# Arm -> colour, marker, fill: ours are the basis form's blue, peers grey.
_ARMS = {
    "subset": (_BLUE, "o", _BLUE),
    "full": (_BLUE, "o", "white"),
    "full, coef_groups = 4": ("#56B4E9", "v", "white"),
    "full, coef_rank = m/4": ("#56B4E9", "^", "white"),
    "conv, 1×1": (style.ZERO, "s", "white"),
    "tensorly-torch Tucker": (style.ZERO, "x", style.ZERO),
    "tensorly-torch CP": (style.ZERO, "+", style.ZERO),
}
_RATIO_MARKERS = "v^oDs"
_ABREAST = 3
"""Panels side by side, at most."""


def share_figure(layers: pd.DataFrame, ratio: float) -> Figure:
    """Speed-up of each layer at one share of basis filters, a panel for each way of measuring."""
    titles = list(dict.fromkeys(layers["layer"]))
    here = layers[layers["ratio"] == ratio]
    with style.drawing():
        made = style.figure(style.TWO_COLUMNS, 0.6 + _rows(here) * (0.45 + 0.36 * len(titles)))
        panels = _panels(made, here)
        arms = [arm for arm in _ARMS if (here["arm"] == arm).any()]
        for axes, rows in panels:
            _bars(axes, rows, titles, arms)
            axes.set_yticks(range(len(titles)), titles)
            axes.grid(axis="y", visible=False)
            axes.set_xlabel("times as fast as dense")
        panels[0][0].invert_yaxis()
        panels[0][0].set_xlim(left=0)  # of all panels: set once what each of them shows is drawn
        handles = [_handle(arm) for arm in arms]
        handles += [
            Line2D([], [], color=style.FAINT, linewidth=5, label="promised by MACs"),
            Line2D([], [], color=style.INK, marker="|", markersize=7, linestyle="none",
                   label="expected by the roofline"),
        ]  # fmt: skip
        style.legend_below(made, handles)
    return made


def roofline_figure(layers: pd.DataFrame, devices: Sequence[Mapping[str, Any]]) -> Figure:
    """The subset form's layers under the roof and slope of each machine and precision."""
    here = layers[layers["arm"] == "subset"]
    machines = [machine for d in devices for machine in d["machine"].items()]
    x = here["intensity"]
    ridge = [m["rate_gmac_s"] / m["bandwidth_gb_s"] for _, m in machines]
    low, high = min(x.min(), *ridge) / 1.6, max(x.max(), *ridge) * 1.6
    line = np.geomspace(low, high, 200)
    ratios = sorted(set(here["ratio"]))
    with style.drawing():
        made = style.figure(style.TWO_COLUMNS, 0.4 + _rows(here) * 2.3)
        # Machines differ by orders of magnitude: each has rates of its own.
        panels = _panels(made, here, sharey=False)
        for axes, rows in panels:
            machine = _machine(rows, devices)
            roof, slope = machine["rate_gmac_s"], machine["bandwidth_gb_s"]
            axes.plot(line, np.minimum(roof, slope * line), color=style.INK, linewidth=1)
            for f, marker in zip(ratios, _RATIO_MARKERS, strict=False):
                some = rows[rows["ratio"] == f]
                axes.plot(
                    some["intensity"], some["gmac_s"], marker, color=_BLUE, markersize=4,
                    markerfacecolor="none", markeredgewidth=0.8,
                )  # fmt: skip
            style.plain_log(axes, low, high)
            reached = rows["gmac_s"]
            lowest = min(reached.min(), roof, slope * low)
            style.plain_log(axes, lowest / 1.5, max(reached.max(), roof) * 1.5, "y")
            axes.set_xlabel("MACs for each byte moved")
        for axes, _ in panels[:: _columns(here)]:
            axes.set_ylabel("GMAC/s reached")
        handles = [
            Line2D([], [], color=_BLUE, marker=marker, markersize=4, linestyle="none",
                   markerfacecolor="none", label=f"f = {text.share(f)}")
            for f, marker in zip(ratios, _RATIO_MARKERS, strict=False)
        ]  # fmt: skip
        handles.append(Line2D([], [], color=style.INK, linewidth=1, label="roofline"))
        style.legend_below(made, handles)
    return made


def _rows(frame: pd.DataFrame) -> int:
    """How many rows of panels there are."""
    return math.ceil(len(places.of(frame)) / _ABREAST)


def _columns(frame: pd.DataFrame) -> int:
    """How many stand side by side: four are two by two, and not three and one."""
    return math.ceil(len(places.of(frame)) / _rows(frame))


def _panels(
    made: Figure, frame: pd.DataFrame, sharey: bool = True
) -> list[tuple[Axes, pd.DataFrame]]:
    """A panel for each place, titled with it; each shows the numbers of its x axis."""
    found = places.of(frame)
    shape = _rows(frame), _columns(frame)
    grid = made.subplots(*shape, sharex=True, sharey=sharey, squeeze=False)
    for spare in grid.flat[len(found) :]:
        spare.set_axis_off()
    for axes, place in zip(grid.flat, found, strict=False):
        device, *how = place.name.rsplit(", ", 2)
        title = f"{device}\n{', '.join(how)}"
        # Captions tell letters of several alone.
        style.panel(axes, place.letter if len(found) > 1 else "", title)
        axes.tick_params(labelbottom=True)
    return [(axes, place.rows) for axes, place in zip(grid.flat, found, strict=False)]


def _machine(rows: pd.DataFrame, devices: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
    """What the machine that some rows were measured on can do in their precision."""
    first = rows.iloc[0]
    (found,) = (d for d in devices if places.device_name(d["device"]) == first["device"])
    machine: Mapping[str, float] = found["machine"][first["precision"]]
    return machine


def _bars(axes: Axes, rows: pd.DataFrame, titles: Sequence[str], arms: Sequence[str]) -> None:
    step = 0.8 / len(arms)
    for k, arm in enumerate(arms):
        colour, marker, fill = _ARMS[arm]
        here = rows[rows["arm"] == arm]
        y = [titles.index(t) + step * (k - (len(arms) - 1) / 2) for t in here["layer"]]
        axes.barh(y, here["macs_ratio"], height=0.8 * step, color="#EDEDED",
                  edgecolor=style.FAINT, linewidth=0.5)  # fmt: skip
        ends = np.array(
            [here["speedup"] - here["speedup_low"], here["speedup_high"] - here["speedup"]]
        )
        axes.errorbar(
            here["speedup"], y, xerr=ends, fmt=marker, markersize=3, color=colour,
            markerfacecolor=fill, elinewidth=0.8,
        )  # fmt: skip
        expected = here["expected_speedup"].astype(float)
        axes.plot(expected, y, "|", color=style.INK, markersize=4)
    axes.axvline(1, color=style.look("dense").colour, linewidth=0.9)


def _handle(arm: str) -> Line2D:
    colour, marker, fill = _ARMS[arm]
    return Line2D(
        [], [], color=colour, marker=marker, markersize=4, linestyle="none", label=arm,
        markerfacecolor=fill,
    )  # fmt: skip

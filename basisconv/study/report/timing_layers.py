"""06_timing's single layers: speed-ups against multiplications, roofline and other libraries."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from basisconv.study.report import places, style, text
from basisconv.study.report.places import FORMS, outcomes, speedup
from basisconv.study.report.tables import Column, fixed, percent, words

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


def layer_frame(devices: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a device, precision, batch, layer, share of basis filters and arm."""
    names = ("layer", "precision", "batch", "arm", "ratio", "macs_ratio", "share", "intensity",
             "gmac_s")  # fmt: skip
    return places.benchmark_frame(devices, "layers", names, {"forward": "forward_", "both": ""})


def headline_ratio(layers: pd.DataFrame) -> float:
    """The share of basis filters that figures show: the middle one."""
    ratios = sorted(set(layers["ratio"]))
    return float(ratios[(len(ratios) - 1) // 2])


def layer_columns(layers: pd.DataFrame) -> list[Column]:
    """What a table shows of the subset form's rows of one share: those of other arms with each."""
    rows = zip(*(layers[name] for name in (*places.KEYS, "layer", "arm")), strict=True)
    speedups = dict(zip(rows, layers["speedup"], strict=True))

    def other(arm: str) -> Column:
        def value(row: Any) -> float | None:
            return speedups.get((row.device, row.precision, row.batch, row.layer, arm))

        return fixed(arm, value, 2, "×")

    return [
        words("layer", "layer", once=True),
        fixed("MACs", "macs_ratio", 2, "×", once=True),
        Column("subset", speedup),
        percent("of MACs", "share"),
        fixed("expected", "expected_speedup", 2, "×"),
        *(other(arm) for arm in dict.fromkeys(layers["arm"]) if arm != FORMS[0]),
    ]


def share_figure(layers: pd.DataFrame, ratio: float) -> Figure:
    """Speed-up of each layer at one share of basis filters, a panel for each way of measuring."""
    titles = list(dict.fromkeys(layers["layer"]))
    here = layers[layers["ratio"] == ratio]
    made, panels = _panels(here, lambda rows: 0.6 + rows * (0.45 + 0.36 * len(titles)))
    arms = [arm for arm in _ARMS if (here["arm"] == arm).any()]
    for axes, rows in panels:
        _bars(axes, rows, titles, arms)
        axes.set_yticks(range(len(titles)), titles)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("times as fast as dense")
    panels[0][0].invert_yaxis()
    panels[0][0].set_xlim(left=0)  # of all panels: set once what each of them shows is drawn
    handles = [Line2D([], [], linestyle="none", label=arm, **_mark(arm)) for arm in arms]
    handles += [
        Line2D([], [], color=style.FAINT, linewidth=5, label="promised by MACs"),
        Line2D([], [], color=style.INK, marker="|", markersize=7, linestyle="none",
               label="expected by the roofline"),
    ]  # fmt: skip
    style.legend_below(made, handles)
    return made


def _bars(axes: Axes, rows: pd.DataFrame, titles: Sequence[str], arms: Sequence[str]) -> None:
    step = 0.8 / len(arms)
    for k, arm in enumerate(arms):
        here = rows[rows["arm"] == arm]
        y = [titles.index(t) + step * (k - (len(arms) - 1) / 2) for t in here["layer"]]
        axes.barh(y, here["macs_ratio"], height=0.8 * step, color="#EDEDED",
                  edgecolor=style.FAINT, linewidth=0.5)  # fmt: skip
        mean = here["speedup"]
        ends = np.array([mean - here["speedup_low"], here["speedup_high"] - mean])
        look = _mark(arm) | {"markersize": 3}
        axes.errorbar(mean, y, xerr=ends, linestyle="none", elinewidth=0.8, **look)
        expected = here["expected_speedup"].astype(float)
        axes.plot(expected, y, "|", color=style.INK, markersize=4)
    axes.axvline(1, color=style.look("dense").colour, linewidth=0.9)


def _mark(arm: str) -> dict[str, Any]:
    colour, marker, fill = _ARMS[arm]
    return {"color": colour, "marker": marker, "markersize": 4, "markerfacecolor": fill}


def roofline_figure(layers: pd.DataFrame, devices: Sequence[Mapping[str, Any]]) -> Figure:
    """The subset form's layers under the roof and slope of each machine and precision."""
    here = layers[layers["arm"] == "subset"]
    machines = {
        (places.device_name(d["device"]), precision): (m["rate_gmac_s"], m["bandwidth_gb_s"])
        for d in devices
        for precision, m in d["machine"].items()
    }
    x, ridge = here["intensity"], [roof / slope for roof, slope in machines.values()]
    low, high = min(x.min(), *ridge) / 1.6, max(x.max(), *ridge) * 1.6
    line = np.geomspace(low, high, 200)
    marks = dict(zip(sorted(set(here["ratio"])), _RATIO_MARKERS, strict=False))
    # Machines differ by orders of magnitude: each has rates of its own.
    made, panels = _panels(here, lambda rows: 0.4 + rows * 2.3, sharey=False)
    hollow: dict[str, Any] = {"color": _BLUE, "linestyle": "none", "markersize": 4,
                              "markerfacecolor": "none"}  # fmt: skip
    for axes, rows in panels:
        roof, slope = machines[rows["device"].iloc[0], rows["precision"].iloc[0]]
        axes.plot(line, np.minimum(roof, slope * line), color=style.INK, linewidth=1)
        for f, marker in marks.items():
            some = rows[rows["ratio"] == f]
            axes.plot(some["intensity"], some["gmac_s"], marker=marker, markeredgewidth=0.8,
                      **hollow)  # fmt: skip
        style.plain_log(axes, low, high)
        reached = rows["gmac_s"]
        lowest = min(reached.min(), roof, slope * low)
        style.plain_log(axes, lowest / 1.5, max(reached.max(), roof) * 1.5, "y")
        axes.set_xlabel("MACs for each byte moved")
        if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            axes.set_ylabel("GMAC/s reached")
    handles = [
        Line2D([], [], marker=marker, label=f"f = {text.share(f)}", **hollow)
        for f, marker in marks.items()
    ]
    handles.append(Line2D([], [], color=style.INK, linewidth=1, label="roofline"))
    style.legend_below(made, handles)
    return made


def _panels(
    frame: pd.DataFrame, height: Callable[[int], float], sharey: bool = True
) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """A figure with a panel for each place, titled with it, and each panel with its rows.

    Its height in inches is by the number of rows of panels.
    """
    found = places.of(frame)
    down = math.ceil(len(found) / _ABREAST)
    across = math.ceil(len(found) / down)  # four are two by two, and not three and one
    made = style.figure(style.TWO_COLUMNS, height(down))
    grid = made.subplots(down, across, sharex=True, sharey=sharey, squeeze=False)
    for spare in grid.flat[len(found) :]:
        spare.set_axis_off()
    for axes, place in zip(grid.flat, found, strict=False):
        device, *how = place.name.rsplit(", ", 2)
        # Captions explain the letters of several alone.
        letter = place.letter if len(found) > 1 else ""
        style.panel(axes, letter, f"{device}\n{', '.join(how)}")
        axes.tick_params(labelbottom=True)
    return made, [(axes, place.rows) for axes, place in zip(grid.flat, found, strict=False)]


def rebuilt_layers(layers: pd.DataFrame) -> dict[str, Any]:
    """Whether rebuilding the dense kernel saves time, over dense and over the factored form."""
    keys, suffix = [*places.KEYS, "layer", "ratio", "arm"], ", rebuilt"
    rebuilt = layers[layers["arm"].str.endswith(suffix)]
    pairs = rebuilt.assign(arm=rebuilt["arm"].str.removesuffix(suffix)).merge(
        layers, on=keys, suffixes=("", "_factored")
    )
    ahead = int((pairs["median_ms"] < pairs["median_ms_factored"]).sum())
    return {
        "rebuilt": text.count(len(rebuilt)),
        "rebuilt ahead of dense": text.said(text.amount(outcomes(rebuilt).faster)),
        "rebuilt ahead of factored": text.said(text.amount(ahead)),
    }


def realised(ours: pd.DataFrame) -> str:
    """How much of the saving in multiplications the layers of each place see."""
    parts = []
    for place in places.of(ours):
        share, slow = 100 * place.rows["share"], outcomes(place.rows).slower
        parts.append(
            f"{share.min():.0f} to {share.max():.0f} % on {place.name}, where {slow} of "
            f"{len(place.rows)} timings are slower than dense"
        )
    return "; ".join(parts)


def against_peers(layers: pd.DataFrame) -> dict[str, Any]:
    """How much faster the subset form is than each peer at the same share of basis filters."""
    parts: dict[str, list[str]] = {}
    for place in places.of(layers):
        rows = place.rows.set_index(["layer", "ratio"])
        ours = rows[rows["arm"] == FORMS[0]]
        gap = ours["expected_speedup"].astype(float) / ours["speedup"]
        for peer in [arm for arm in dict.fromkeys(rows["arm"]) if arm.startswith("tensorly")]:
            longer = rows[rows["arm"] == peer]["median_ms"] / ours["median_ms"]
            parts.setdefault(peer, []).append(
                f"{longer.median():.1f} ({longer.min():.1f} to {longer.max():.1f}; "
                f"{(longer * gap).median():.1f}) on {place.name}"
            )
    each = [f"{peer} {text.listed(part)}" for peer, part in parts.items()]
    return {"peers": text.said("; ".join(each))} if each else {}

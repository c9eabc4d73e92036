"""06_timing: what the saving in multiplications is worth on a clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from basisconv.study.report import style, text
from basisconv.study.report.output import Plot, Report, Table
from basisconv.study.run import Record, Section

_BLUE, _TINT = style.LOOKS["basis"].colour, "#8FBDDD"
# (form, mode) -> its name, its outline, what fills its marker: all are the basis form's blue.
_WAYS = {
    ("subset", "factored"): ("subset, factored", _BLUE, _BLUE),
    ("full", "factored"): ("full, factored", _BLUE, "white"),
    ("subset", "rebuilt"): ("subset, rebuilt", _TINT, _TINT),
    ("full", "rebuilt"): ("full, rebuilt", _TINT, "white"),
}


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """Speed-ups of layers and networks beside what their arithmetic allows."""
    facts: dict[str, Any] = section.facts
    layers, networks = layer_frame(facts), network_frame(facts)
    told = _settings(facts)
    return Report(
        section.name,
        section.profile,
        tables={
            "timing_layers": Table(
                layers, _shown_layers(layers),
                "Speed-up of single layers over dense, median with quartiles over interleaved "
                "turns; the ratio of executed MACs; the share of it that the clock shows; and the "
                f"bound by the roofline. {told}",
            ),
            "timing_networks": Table(
                networks, _shown_networks(networks),
                "Speed-up of whole networks over dense, median with quartiles over interleaved "
                f"turns. {told}",
            ),
        },
        figures={
            "timing_share": Plot(
                _share_figure(layers), layers,
                "Speed-up of each distinct layer over dense, forward and backward: median and "
                "quartiles. Grey bars: what the executed multiplications promise; ticks: the "
                f"bound by the roofline. {told}",
            ),
            "timing_roofline": Plot(
                _roofline_figure(layers, facts), layers,
                "Layers in basis form on the roofline of this machine: the rate that forward and "
                "backward reach, against the forward pass's MACs for each byte moved. "
                f"Roof {facts['rate_gmac_s']:.0f} GMAC/s (a matrix product), slope "
                f"{facts['bandwidth_gb_s']:.0f} GB/s (a copy), both measured in the same process.",
            ),
        },
        numbers=_numbers(layers, networks, told),
    )  # fmt: skip


def layer_frame(facts: Mapping[str, Any]) -> pd.DataFrame:
    """One row a layer, share of basis filters and way of running it."""
    names = ("layer", "ratio", "form", "mode", "macs_ratio", "share", "intensity", "gmac_s",
             "bound_speedup")  # fmt: skip
    rows = [
        {**{k: row[k] for k in names}, **_timed(row["forward"], "forward_"), **_timed(row["both"])}
        for row in facts["layers"]
    ]
    return pd.DataFrame(rows)


def network_frame(facts: Mapping[str, Any]) -> pd.DataFrame:
    """One row a network, share of basis filters and thing timed."""
    names = ("network", "width", "ratio", "what", "macs_ratio")
    return pd.DataFrame(
        [{**{k: row[k] for k in names}, **_timed(row)} for row in facts["networks"]]
    )


def _timed(timing: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    names = ("median_ms", "iqr_ms", "speedup", "speedup_low", "speedup_high")
    return {f"{prefix}{name}": timing[name] for name in names}


def _settings(facts: Mapping[str, Any]) -> str:
    settings, device = facts["settings"], facts["device"]
    threads = text.plural(int(settings["threads"]), "thread")
    return (
        f"{device['device']}, {settings['dtype']}, {settings['layout']}, batch "
        f"{settings['batch']}, {threads}, compile {settings['compile']}."
    )


def _speedup(row: Any, prefix: str = "") -> str:
    low, high = getattr(row, f"{prefix}speedup_low"), getattr(row, f"{prefix}speedup_high")
    return text.with_interval(getattr(row, f"{prefix}speedup"), low, high, 2, unit="×")


def _shown_layers(layers: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {
            "layer": r.layer,
            "f": text.share(r.ratio),
            "form, mode": f"{r.form}, {r.mode}",
            "forward": _speedup(r, "forward_"),
            "forward and backward": _speedup(r),
            "ms": f"{r.median_ms:.2f}",
            "MACs": f"{r.macs_ratio:.2f}×",
            "share": f"{100 * r.share:.0f} %",
            "bound": f"{r.bound_speedup:.2f}×",
        }
        for r in layers.itertuples()
    ]
    return pd.DataFrame(rows)


def _shown_networks(networks: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {
            "network": f"{text.network(r.network)}, width {r.width}",
            "f": text.share(r.ratio),
            "timed": r.what,
            "ms": f"{r.median_ms:.1f}",
            "speed-up": _speedup(r),
            "MACs": f"{r.macs_ratio:.2f}×",
            "share": f"{100 * r.speedup / r.macs_ratio:.0f} %",
        }
        for r in networks.itertuples()
    ]
    return pd.DataFrame(rows)


def _share_figure(layers: pd.DataFrame) -> Figure:
    titles = list(dict.fromkeys(layers["layer"]))
    ratios = sorted(set(layers["ratio"]))
    with style.drawing():
        made = style.figure(style.TWO_COLUMNS, 0.95 + 0.33 * len(titles))
        panels = made.subplots(1, len(ratios), sharey=True, squeeze=False)[0]
        ways = [way for way in _WAYS if _has(layers, way)]
        for letter, axes, ratio in zip("abcdef", panels, ratios, strict=False):
            here = layers[layers["ratio"] == ratio]
            _bars(axes, here, titles, ways)
            axes.set_yticks(range(len(titles)), titles)
            axes.grid(axis="y", visible=False)
            axes.set_xlabel("times faster than dense")
            style.panel(axes, letter, f"f = {text.share(ratio)}")
        panels[0].invert_yaxis()
        handles = [_way_handle(way) for way in ways]
        handles += [
            Line2D([], [], color=style.FAINT, linewidth=5, label="promised by MACs"),
            Line2D([], [], color=style.INK, marker="|", markersize=7, linestyle="none",
                   label="bound by the roofline"),
        ]  # fmt: skip
        style.legend_below(made, handles)
    return made


def _bars(
    axes: Axes, here: pd.DataFrame, titles: Sequence[str], ways: Sequence[tuple[str, str]]
) -> None:
    step = 0.8 / len(ways)
    for k, way in enumerate(ways):
        _, colour, fill = _WAYS[way]
        rows = here[(here["form"] == way[0]) & (here["mode"] == way[1])]
        y = [titles.index(t) + step * (k - (len(ways) - 1) / 2) for t in rows["layer"]]
        axes.barh(y, rows["macs_ratio"], height=0.8 * step, color="#EDEDED",
                  edgecolor=style.FAINT, linewidth=0.5)  # fmt: skip
        ends = np.array(
            [rows["speedup"] - rows["speedup_low"], rows["speedup_high"] - rows["speedup"]]
        )
        axes.errorbar(
            rows["speedup"], y, xerr=ends, fmt="o", markersize=3.4, color=colour,
            markerfacecolor=fill, elinewidth=0.9,
        )  # fmt: skip
        axes.plot(rows["bound_speedup"], y, "|", color=style.INK, markersize=6)
    axes.axvline(1, color=style.look("dense").colour, linewidth=0.9)
    axes.set_xlim(left=0)


def _roofline_figure(layers: pd.DataFrame, facts: Mapping[str, Any]) -> Figure:
    ratios = sorted(set(layers["ratio"]))
    roof, slope = facts["rate_gmac_s"], facts["bandwidth_gb_s"]
    x, reached = layers["intensity"], layers["gmac_s"]
    low, high = min(x.min(), roof / slope) / 1.6, max(x.max(), roof / slope) * 1.6
    line = np.geomspace(low, high, 200)
    with style.drawing():
        made = style.figure(style.TWO_COLUMNS, 2.6)
        panels = made.subplots(1, len(ratios), sharey=True, squeeze=False)[0]
        for letter, axes, ratio in zip("abcdef", panels, ratios, strict=False):
            axes.plot(line, np.minimum(roof, slope * line), color=style.INK, linewidth=1)
            here = layers[layers["ratio"] == ratio]
            for way, (_, colour, fill) in _WAYS.items():
                rows = here[(here["form"] == way[0]) & (here["mode"] == way[1])]
                axes.plot(
                    rows["intensity"], rows["gmac_s"], "o", color=colour, markersize=4,
                    markerfacecolor=fill, markeredgewidth=0.8,
                )  # fmt: skip
            style.plain_log(axes, low, high)
            style.plain_log(
                axes, min(reached.min(), roof) / 1.5, max(reached.max(), roof) * 1.5, "y"
            )
            axes.set_xlabel("MACs for each byte moved")
            style.panel(axes, letter, f"f = {text.share(ratio)}")
        panels[0].set_ylabel("GMAC/s reached")
        handles = [_way_handle(way) for way in _WAYS if _has(layers, way)]
        handles.append(Line2D([], [], color=style.INK, linewidth=1, label="roofline"))
        style.legend_below(made, handles)
    return made


def _has(layers: pd.DataFrame, way: tuple[str, str]) -> bool:
    return bool(((layers["form"] == way[0]) & (layers["mode"] == way[1])).any())


def _way_handle(way: tuple[str, str]) -> Line2D:
    label, colour, fill = _WAYS[way]
    return Line2D(
        [], [], color=colour, marker="o", markersize=4, linestyle="none", label=label,
        markerfacecolor=fill,
    )  # fmt: skip


def _numbers(layers: pd.DataFrame, networks: pd.DataFrame, told: str) -> dict[str, Any]:
    best = networks.loc[networks["speedup"].idxmax()]
    factored = layers[layers["mode"] == "factored"]
    low, high = 100 * factored["share"].min(), 100 * factored["share"].max()
    slow = factored[factored["speedup_high"] < 1]
    findings = [
        f"A training step of {text.network(best.network)} at width {best.width} and f = "
        f"{text.share(best.ratio)} runs {_speedup(best)} as fast as dense, where its executed "
        f"multiplications promise {best.macs_ratio:.2f}×.",
        f"Single layers, forward and backward, realise {low:.0f} to {high:.0f} % of what their "
        "multiplications promise"
        + (
            f"; {len(slow)} of {len(factored)} timings, each form apart, are slower than dense."
            if len(slow)
            else "."
        ),
    ]
    forward = 100 * (factored["forward_speedup"] / factored["speedup"] - 1).median()
    findings.append(
        f"Forward alone the speed-ups differ from those of forward and backward by "
        f"{text.fixed(forward, 0, True)} % (median over layers)."
    )
    rebuilt = layers[layers["mode"] == "rebuilt"]
    if len(rebuilt):
        gain = (rebuilt["speedup_low"] > 1).sum()
        findings.append(
            f"Rebuilding the dense kernel saves time in {gain} of {len(rebuilt)} layers timed."
        )
    values = {
        "best_step": text.number(
            best.speedup, best.speedup_low, best.speedup_high, digits=2, unit="×"
        ),
        "best_step_macs": text.number(best.macs_ratio, digits=2, unit="×"),
    }
    return {
        "values": values, "headline": findings[0], "findings": findings,
        "notes": [f"Measured on {told}"], "settings": told,
    }  # fmt: skip

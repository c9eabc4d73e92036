"""06_timing: what the saving in multiplications is worth on a clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from basisconv.study.report import text
from basisconv.study.report.output import Plot, Report, Table
from basisconv.study.report.timing_figures import device_name, roofline_figure, share_figure
from basisconv.study.run import Record, Section

FORMS = ("subset", "full")
"""The arms that are the method as it is meant: its two forms, run factored."""
_STEP = "training step"
_PLACE = "measured on"


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """Speed-ups of layers and networks beside what their arithmetic allows, on every device."""
    devices: Any = section.facts["devices"]
    layers, networks, memory = layer_frame(devices), network_frame(devices), memory_frame(devices)
    told = [_settings(d) for d in devices]
    where = " ".join(told)
    ratio = headline_ratio(layers)
    f = text.share(ratio)
    return Report(
        section.name,
        section.profile,
        tables={
            "timing_layers": _table(
                layers, _shown_layers(layers, ratio),
                f"Speed-up of single layers over dense, forward and backward, at f = {f}: medians "
                "over interleaved turns, of the subset form with quartiles. MACs: the ratio of "
                "executed MACs of the subset and full forms; share: what the subset form realises "
                "of it; bound: by the roofline, forward. Peers are run at the same rank, CP with "
                f"the subset form's parameters. {where}",
            ),
            "timing_networks": _table(
                networks, _shown_networks(networks),
                "Speed-up of whole networks over dense, subset form, median with quartiles over "
                "interleaved turns. Bound: Amdahl's, in which each convolution shrinks by its "
                f"executed MACs and all else stays; share: what is realised of it. {where}",
            ),
            "timing_memory": _table(
                memory, _shown_memory(memory),
                f"Peak memory of a training step, subset form beside dense. {where}",
            ),
        },
        figures={
            "timing_share": Plot(
                share_figure(layers, ratio), layers,
                f"Speed-up of each distinct layer over dense at f = {f}, forward and backward: "
                "median and quartiles. Grey bars: what the executed multiplications promise; "
                f"ticks: the bound by the roofline. {where}",
            ),
            "timing_roofline": Plot(
                roofline_figure(layers, devices), layers,
                "Layers in basis form on the roofline of each machine: the rate that forward and "
                "backward reach, against the forward pass's MACs for each byte moved. The roof is "
                "a matrix product, the slope a copy, both measured in the same process.",
            ),
        },
        numbers=_numbers(layers, networks, memory, told),
    )  # fmt: skip


def layer_frame(devices: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a device, precision, batch, layer, share of basis filters and arm."""
    names = ("layer", "precision", "batch", "arm", "ratio", "macs_ratio", "share", "intensity",
             "gmac_s", "bound_speedup")  # fmt: skip
    rows = [
        {"device": device_name(d), **{k: row[k] for k in names},
         **_timed(row["forward"], "forward_"), **_timed(row["both"])}
        for d in devices
        for row in d["layers"]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def network_frame(devices: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a device, precision, batch, network, share of basis filters, form and thing timed."""
    names = ("network", "width", "precision", "batch", "arm", "ratio", "what", "macs_ratio",
             "bound_speedup", "share")  # fmt: skip
    rows = [
        {"device": device_name(d), **{k: row[k] for k in names}, **_timed(row)}
        for d in devices
        for row in d["networks"]
    ]
    return pd.DataFrame(rows)


def memory_frame(devices: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a device, precision, batch, network and share of basis filters."""
    return pd.DataFrame([{"device": device_name(d), **row} for d in devices for row in d["memory"]])


def training_steps(networks: pd.DataFrame) -> pd.DataFrame:
    """Of a network frame, forward, backward and update together."""
    return networks[networks["what"] == _STEP]


def headline_ratio(layers: pd.DataFrame) -> float:
    """The share of basis filters that figures show: the middle one."""
    ratios = sorted(set(layers["ratio"]))
    return float(ratios[(len(ratios) - 1) // 2])


def _timed(timing: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    names = ("median_ms", "iqr_ms", "speedup", "speedup_low", "speedup_high")
    return {f"{prefix}{name}": timing[name] for name in names}


def _settings(facts: Mapping[str, Any]) -> str:
    settings = facts["settings"]
    threads = text.plural(int(settings["threads"]), "thread")
    return (
        f"{device_name(facts)}: {settings['layout']}, {threads}, compile {settings['compile']}, "
        f"torch {facts['device']['torch']}, {settings['repeats']} turns for layers and "
        f"{settings['network_repeats']} for networks."
    )


def _speedup(row: Any) -> str:
    return text.with_interval(row.speedup, row.speedup_low, row.speedup_high, 2, unit="×")


def _where(row: Any) -> str:
    return f"{row.device}, {row.precision}, batch {row.batch}"


def _table(frame: pd.DataFrame, shown: pd.DataFrame, caption: str) -> Table:
    """A table that names where its rows were measured in a column, or once for all of them."""
    places = set(shown[_PLACE])
    if len(places) == 1:
        return Table(frame, shown.drop(columns=_PLACE), f"{caption} All rows: {places.pop()}.")
    return Table(frame, shown, caption)


def _shown_layers(layers: pd.DataFrame, ratio: float) -> pd.DataFrame:
    here = layers[layers["ratio"] == ratio]
    others = [arm for arm in dict.fromkeys(here["arm"]) if arm != "subset"]
    rows = []
    for (_, _, _, layer), group in here.groupby(
        ["device", "precision", "batch", "layer"], sort=False
    ):
        arms = {r.arm: r for r in group.itertuples()}
        subset = arms["subset"]
        rows.append(
            {
                _PLACE: _where(subset),
                "layer": layer,
                "MACs": f"{subset.macs_ratio:.2f}×",
                "subset": _speedup(subset),
                "share": f"{100 * subset.share:.0f} %",
                "bound": f"{subset.bound_speedup:.2f}×",
                **{a: f"{arms[a].speedup:.2f}×" if a in arms else text.NOTHING for a in others},
            }
        )
    return pd.DataFrame(rows)


def _shown_networks(networks: pd.DataFrame) -> pd.DataFrame:
    rows = []
    keys = ["device", "precision", "batch", "network", "width", "ratio"]
    for _, group in networks[networks["arm"] == "subset"].groupby(keys, sort=False):
        forward, step = (
            next(group[group["what"] == what].itertuples()) for what in ("forward", _STEP)
        )
        rows.append(
            {
                _PLACE: _where(step),
                "network": f"{text.network(step.network)}, width {step.width}",
                "f": text.share(step.ratio),
                "MACs": f"{step.macs_ratio:.2f}×",
                "forward": _speedup(forward),
                "training step": _speedup(step),
                "step, ms": f"{step.median_ms:.0f}",
                "bound": f"{step.bound_speedup:.2f}×",
                "share": f"{100 * step.share:.0f} %",
            }
        )
    return pd.DataFrame(rows)


def _shown_memory(memory: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {
            _PLACE: _where(r),
            "network": f"{text.network(r.network)}, width {r.width}",
            "f": text.share(r.ratio),
            "dense, MB": f"{r.dense_peak_mb:.0f}",
            "basis, MB": f"{r.peak_mb:.0f}",
            "ratio": f"{r.peak_mb / r.dense_peak_mb:.2f}",
        }
        for r in memory.itertuples()
    ]
    return pd.DataFrame(rows)


def _numbers(
    layers: pd.DataFrame, networks: pd.DataFrame, memory: pd.DataFrame, told: Sequence[str]
) -> dict[str, Any]:
    steps = training_steps(networks)
    # The benchmark's first network is the study's own; its figure comes first, not the best one's.
    first = steps[(steps["ratio"] == headline_ratio(layers)) & (steps["arm"] == FORMS[0])].iloc[0]
    best = steps.loc[steps["speedup"].idxmax()]
    ours = layers[layers["arm"].isin(FORMS)]
    low, high = 100 * ours["share"].min(), 100 * ours["share"].max()
    slow = ours[ours["speedup_high"] < 1]
    grown = memory["peak_mb"] / memory["dense_peak_mb"]
    findings = [
        f"A training step of {_step(first)} runs {_speedup(first)} as fast as dense on "
        f"{_where(first)}, where its executed multiplications promise {first.macs_ratio:.2f}× and "
        f"Amdahl's law allows {first.bound_speedup:.2f}×.",
        f"The largest gain of a training step is that of {_step(best)}: {_speedup(best)} in the "
        f"{best.arm} form, where Amdahl's law allows {best.bound_speedup:.2f}×.",
        f"Single layers, forward and backward, realise {low:.0f} to {high:.0f} % of what their "
        "multiplications promise"
        + (
            f"; {len(slow)} of {len(ours)} timings, each form apart, are slower than dense."
            if len(slow)
            else "."
        ),
        _against_peers(layers),
        f"Peak memory of a training step is at most {grown.max():.2f} times that of dense.",
    ]
    rebuilt = layers[layers["arm"].str.contains("rebuilt")]
    gain = (rebuilt["speedup_low"] > 1).sum()
    findings.append(
        f"Rebuilding the dense kernel saves time in {gain} of {len(rebuilt)} timings of layers."
    )
    return {
        "values": {}, "headline": findings[0], "findings": [f for f in findings if f],
        "notes": [f"Measured on {line}" for line in told], "settings": " ".join(told),
    }  # fmt: skip


def _step(row: Any) -> str:
    return f"{text.network(row.network)} at width {row.width} and f = {text.share(row.ratio)}"


def _against_peers(layers: pd.DataFrame) -> str:
    """How much faster the subset form is than each peer at the same share of basis filters.

    What that would be with the subset form at its bound is told beside it.
    """
    keys = ["device", "precision", "batch", "layer", "ratio"]
    ours = layers[layers["arm"] == "subset"].set_index(keys)
    room = ours["bound_speedup"].astype(float) / ours["speedup"]
    told = []
    for peer in [arm for arm in dict.fromkeys(layers["arm"]) if arm.startswith("tensorly")]:
        theirs = layers[layers["arm"] == peer].set_index(keys)["median_ms"]
        faster = theirs / ours["median_ms"]
        told.append(
            f"{peer} {faster.median():.1f} ({faster.min():.1f} to {faster.max():.1f}), at that "
            f"form's bound {(faster * room).median():.1f}"
        )
    if not told:
        return ""
    return (
        f"How many times longer a peer takes than the subset form, forward and backward, median "
        f"over layers (least to most): {'; '.join(told)}."
    )

"""06_timing: what the saving in multiplications is worth on a clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from basisconv.study.records.run import Record, Section
from basisconv.study.report import places, text
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.places import FORMS, place_table, speedup
from basisconv.study.report.tables import Column, cell, fixed, interval, percent, words
from basisconv.study.report.timing_layers import (
    against_peers,
    headline_ratio,
    layer_columns,
    layer_frame,
    realised,
    rebuilt_layers,
    roofline_figure,
    share_figure,
)

STEP = "training step"
"""What a network frame calls forward, backward and update together."""
_KEYS = [*places.KEYS, "network", "width", "ratio"]

_NAME = words("network", lambda row: f"{text.network(row.network)}, width {row.width}", once=True)
_F = words("f", lambda row: text.share(row.ratio), once=True)
_MACS = fixed("MACs", "macs_ratio", 2, "×", once=True)
_STEP = [
    Column("training step", speedup),
    cell("basis, ms", "median_ms", lambda ms: text.significant(ms, 3)),
    fixed("expected", "expected_speedup", 2, "×"),
    percent("of expected", "share"),
]
_FULL = fixed("full", "full_speedup", 2, "×")
_FORWARD = interval(
    "forward", "speedup_of_forward speedup_low_of_forward speedup_high_of_forward", 2, unit="×"
)
_DENSE_MB, _BASIS_MB = fixed("dense, MB", "dense_peak_mb", 0), fixed("basis, MB", "peak_mb", 0)


def _memory(title: str) -> Column:
    return fixed(title, lambda row: row.peak_mb / row.dense_peak_mb, 2)


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """Speed-ups of layers and networks, and what their arithmetic promises, on every device."""
    devices = section.facts["devices"]
    layers, networks, memory = layer_frame(devices), network_frame(devices), memory_frame(devices)
    ratio = headline_ratio(layers)
    steps = step_frame(networks, memory, ratio)
    here, f = layers[layers["ratio"] == ratio], text.share(ratio)
    settings = _settings(devices)
    return Report(
        section.name,
        section.profile,
        tables={
            "timing_steps": place_table(
                steps, [_NAME, _MACS, *_STEP, _FULL, _memory("memory")], ["network", "width"],
                f"Speed-up of a whole training step over dense at f = {f}, subset form: median "
                "with quartiles over interleaved turns. Expected (no upper bound): if each "
                "convolution's time, measured alone, shrank by its executed MACs; of expected: "
                "what is realised of it; memory: the step's peak, of dense's; full: the full "
                "form's speed-up.",
                steps,
            ),
            "timing_layers": place_table(
                layers, layer_columns(here), ["layer"],
                f"Speed-up of single layers over dense, forward and backward, at f = {f}: medians "
                "over interleaved turns, of the subset form with quartiles. MACs: the ratio of "
                "executed MACs of the subset and full forms; of MACs: what the subset form "
                "realises of it; expected (no upper bound): by the roofline, of the forward pass. "
                "Peers have the same rank, CP the subset form's parameters.",
                here[here["arm"] == FORMS[0]],
            ),
            "timing_networks": place_table(
                networks, [_NAME, _F, _MACS, *_STEP, _FORWARD], ["network", "width", "ratio"],
                "Speed-up of whole networks over dense, subset form, at every f: training step "
                "and forward pass, columns as in the table of training steps.",
                forward_and_step(networks),
            ),
            "timing_memory": place_table(
                memory, [_NAME, _F, _DENSE_MB, _BASIS_MB, _memory("ratio")],
                ["network", "width", "ratio"],
                "Peak memory of a training step, subset form and dense, neither of them compiled.",
                memory,
            ),
        },
        figures={
            "timing_share": Plot(
                share_figure(layers, ratio), layers,
                f"Speed-up of each distinct layer over dense at f = {f}, forward and backward: "
                "median and quartiles. Grey bars: what an arm's executed multiplications promise; "
                "ticks: what to expect of our forms' forward pass by the roofline.",
            ),
            "timing_roofline": Plot(
                roofline_figure(layers, devices), layers,
                "Layers in basis form on the roofline of each machine: the rate that forward and "
                "backward reach, against the forward pass's MACs for each byte moved. The roof is "
                "a matrix product, the slope a copy, both measured in the same process.",
            ),
        },
        numbers=_numbers(layers, networks, memory) | {"notes": settings},
    )  # fmt: skip


def network_frame(devices: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a device, precision, batch, network, share of basis filters, form and thing timed."""
    names = ("network", "width", "precision", "batch", "arm", "ratio", "what", "macs_ratio",
             "share")  # fmt: skip
    return places.benchmark_frame(devices, "networks", names, {"": ""})


def memory_frame(devices: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a device, precision, batch, network and share of basis filters."""
    return pd.DataFrame(
        [{"device": places.device_name(d["device"]), **row} for d in devices for row in d["memory"]]
    )


def training_steps(networks: pd.DataFrame) -> pd.DataFrame:
    """Of a network frame, forward, backward and update together."""
    return networks[networks["what"] == STEP]


def step_frame(networks: pd.DataFrame, memory: pd.DataFrame, ratio: float) -> pd.DataFrame:
    """One row a device, precision, batch and network: its training step and peak memory.

    The step is the subset form's; `full_speedup` is that of the other one.
    """
    steps = training_steps(networks[networks["ratio"] == ratio])
    subset, full = (steps[steps["arm"] == form] for form in FORMS)
    other = full[[*_KEYS, "speedup"]].rename(columns={"speedup": "full_speedup"})
    return subset.merge(other, on=_KEYS, how="left").merge(memory, on=_KEYS, how="left")


def forward_and_step(networks: pd.DataFrame) -> pd.DataFrame:
    """One row for each training step in the subset form, its forward pass with it."""
    subset = networks[networks["arm"] == FORMS[0]]
    forward, step = (subset[subset["what"] == what] for what in ("forward", STEP))
    return step.merge(forward, on=_KEYS, suffixes=("", "_of_forward"))


def _settings(devices: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence on how each device ran, and what it lacks."""
    sentences = []
    for facts in devices:
        settings, device = facts["settings"], facts["device"]
        cpu = str(device["device_kind"]).startswith("cpu")
        threads = f"{text.plural(int(settings['threads']), 'thread')}, " if cpu else ""
        left_out = "".join(f"; {what}" for what in facts["left_out"])
        sentences.append(
            f"{places.device_name(device)}: {settings['layout']}, {threads}compile "
            f"{settings['compile']}, torch {device['torch']}, {settings['repeats']} turns for "
            f"layers and {settings['network_repeats']} for networks{left_out}."
        )
    return list(dict.fromkeys(sentences))


def _numbers(
    layers: pd.DataFrame, networks: pd.DataFrame, memory: pd.DataFrame
) -> dict[str, Any]:  # fmt: skip
    steps = training_steps(networks)
    # The benchmark's first network is the study's own; its figure comes first, not the best one's.
    first = steps.iloc[0]
    own = steps[(steps["network"] == first["network"]) & (steps["width"] == first["width"])]
    own = own[own["ratio"] == headline_ratio(layers)]
    own, full = (own[own["arm"] == form] for form in FORMS)
    best = steps.loc[steps["speedup"].idxmax()]
    runs, in_full = (
        text.listed([f"{speedup(r)} on {places.name_of(r)}" for r in rows.itertuples()])
        for rows in (own, full)
    )
    expected = text.listed([f"{r.expected_speedup:.2f}×" for r in own.itertuples()])
    return {
        "values": {
            "full form": text.said(in_full),
            "largest gain": text.said(
                f"{_step(best)} on {places.name_of(best)}: {speedup(best)} in the {best.arm} form"
            ),
            "expected of it": text.number(best.expected_speedup, digits=2, unit="×"),
            "realised": text.said(realised(layers[layers["arm"].isin(FORMS)])),
            "memory": text.number((memory["peak_mb"] / memory["dense_peak_mb"]).max(), digits=2),
            **rebuilt_layers(layers),
            **against_peers(layers),
        },
        "headline": f"Against dense, a training step of {_step(own.iloc[0])}, where the executed "
        f"multiplications promise {own.iloc[0].macs_ratio:.2f}×, has a speed-up of {runs}; "
        f"shrinking each convolution's time by its multiplications would give {expected}.",
    }


def _step(row: Any) -> str:
    return f"{text.network(row.network)} at width {row.width} and f = {text.share(row.ratio)}"

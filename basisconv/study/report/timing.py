"""06_timing: what the saving in multiplications is worth on a clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from basisconv.study.records.run import Record, Section
from basisconv.study.report import places, text, timing_networks
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.places import FORMS, place_table, speedup
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
from basisconv.study.report.timing_networks import (
    forward_and_step,
    memory_frame,
    network_frame,
    step_frame,
    training_steps,
)

# What a network's expected speed-up assumes.
_SHRUNK = "shrinking each convolution's time by its multiplications would give"


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """Speed-ups of layers and networks, and what their arithmetic promises, on every device."""
    devices: Any = section.facts["devices"]
    layers, networks, memory = layer_frame(devices), network_frame(devices), memory_frame(devices)
    ratio = headline_ratio(layers)
    steps = step_frame(networks, memory, ratio)
    here, f = layers[layers["ratio"] == ratio], text.share(ratio)
    measured_on, left_out = _settings(devices), _left_out(devices)
    several = len(places.of(layers)) > 1
    return Report(
        section.name,
        section.profile,
        tables={
            "timing_steps": place_table(
                steps, timing_networks.STEPS, ["network", "width"],
                f"Speed-up of a whole training step over dense at f = {f}, subset form: median "
                "with quartiles over interleaved turns, and the basis step's median time. "
                "Expected (no upper bound): if each convolution's time, measured alone, shrank by "
                "its executed MACs and all else stayed; of expected: what is realised of it; "
                "memory: the step's peak, of dense's; full: the full form's speed-up."
                f"{_threads(devices)} {measured_on}",
                steps,
            ),
            "timing_layers": place_table(
                layers, layer_columns(here), ["layer"],
                f"Speed-up of single layers over dense, forward and backward, at f = {f}: medians "
                "over interleaved turns, of the subset form with quartiles. MACs: the ratio of "
                "executed MACs of the subset and full forms; of MACs: what the subset form "
                "realises of it; expected (no upper bound): by the roofline, if dense and basis "
                "both ran at the roof, of the forward pass alone. Peers are run at the same rank, "
                f"CP with the subset form's parameters. {measured_on}",
                here[here["arm"] == FORMS[0]],
            ),
            "timing_networks": place_table(
                networks, timing_networks.NETWORKS, ["network", "width", "ratio"],
                "Speed-up of whole networks over dense, subset form, at every f: forward pass and "
                "training step, columns as in the table of training steps at "
                f"f = {f} in the results. {' '.join([measured_on, *left_out])}",
                forward_and_step(networks),
            ),
            "timing_memory": place_table(
                memory, timing_networks.MEMORY, ["network", "width", "ratio"],
                "Peak memory of a training step, subset form and dense, neither of them "
                f"compiled. {measured_on}",
                memory,
            ),
        },
        figures={
            "timing_share": Plot(
                share_figure(layers, ratio), layers,
                f"Speed-up of each distinct layer over dense at f = {f}, forward and backward: "
                "median and quartiles. In the row of each mark a grey bar, what that arm's "
                "executed multiplications promise, and for our own forms a tick, what to expect "
                "of the forward pass if dense and basis both ran at the roof (the roofline); "
                f"peers have none. {measured_on}",
            ),
            "timing_roofline": Plot(
                roofline_figure(layers, devices), layers,
                "Layers in basis form on the roofline of each machine: the rate that forward and "
                "backward reach, against the forward pass's MACs for each byte moved. The roof is "
                "a matrix product, the slope a copy, both measured in the same process."
                + (" Each panel has a range of rates of its own." if several else ""),
            ),
        },
        numbers=_numbers(layers, networks, memory, measured_on, left_out),
    )  # fmt: skip


def _settings(devices: Sequence[Mapping[str, Any]]) -> str:
    """How the devices ran, those that ran alike together."""
    alike: dict[str, list[str]] = {}
    for facts in devices:
        settings = facts["settings"]
        threads = text.plural(int(settings["threads"]), "thread") + ", " if _on_cpu(facts) else ""
        how = (
            f"{settings['layout']}, {threads}compile {settings['compile']}, torch "
            f"{facts['device']['torch']}, {settings['repeats']} turns for layers and "
            f"{settings['network_repeats']} for networks."
        )
        alike.setdefault(how, []).append(places.device_name(facts["device"]))
    return " ".join(f"{text.listed(names)}: {how}" for how, names in alike.items())


def _left_out(devices: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence on each device that lacks a part of the benchmark."""
    return [
        f"{places.device_name(facts['device'])}: {'; '.join(facts['left_out'])}."
        for facts in devices
        if facts["left_out"]
    ]


def _on_cpu(facts: Mapping[str, Any]) -> bool:
    return str(facts["device"]["device_kind"]).startswith("cpu")


def _threads(devices: Sequence[Mapping[str, Any]]) -> str:
    """How a step here differs from those of the study's runs, for the CPUs among the devices."""
    found = sorted({int(facts["settings"]["threads"]) for facts in devices if _on_cpu(facts)})
    if not found:
        return ""
    return (
        f" A step on a CPU has {text.listed([text.plural(n, 'thread') for n in found])} here; with "
        "the threads and batch of the study's runs it may take another share of dense's time."
    )


def _numbers(
    layers: pd.DataFrame,
    networks: pd.DataFrame,
    memory: pd.DataFrame,
    measured_on: str,
    left_out: Sequence[str],
) -> dict[str, Any]:
    steps = training_steps(networks)
    # The benchmark's first network is the study's own; its figure comes first, not the best one's.
    first = steps.iloc[0]
    own = steps[(steps["network"] == first["network"]) & (steps["width"] == first["width"])]
    own = own[own["ratio"] == headline_ratio(layers)]
    own, full = (own[own["arm"] == form] for form in FORMS)
    shown = own.iloc[0]
    best = steps.loc[steps["speedup"].idxmax()]
    grown = memory["peak_mb"] / memory["dense_peak_mb"]
    runs = [f"{speedup(r)} on {places.name_of(r)}" for r in own.itertuples()]
    expected = [f"{r.expected_speedup:.2f}×" for r in own.itertuples()]
    headline = (
        f"Against dense, a training step of {_step(shown)}, where the executed multiplications "
        f"promise {shown.macs_ratio:.2f}×, has a speed-up of {text.listed(runs)}; "
        f"{_SHRUNK} {text.listed(expected)}."
    )
    in_full = [f"{speedup(r)} on {places.name_of(r)}" for r in full.itertuples()]
    values = {
        "full form": text.said(text.listed(in_full)),
        "largest gain": text.said(
            f"{_step(best)} on {places.name_of(best)}: {speedup(best)} in the {best.arm} form"
        ),
        "expected of it": text.number(best.expected_speedup, digits=2, unit="×"),
        "realised": text.said(realised(layers[layers["arm"].isin(FORMS)])),
        "memory": text.number(grown.max(), digits=2),
        **rebuilt_layers(layers),
        **against_peers(layers),
    }
    return {
        "values": values, "headline": headline, "notes": [f"Measured on {measured_on}", *left_out],
        "settings": measured_on,
    }  # fmt: skip


def _step(row: Any) -> str:
    return f"{text.network(row.network)} at width {row.width} and f = {text.share(row.ratio)}"

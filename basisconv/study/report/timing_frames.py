"""The benchmarks of 06_timing as frames: layers, networks, training steps and their memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from basisconv.study.report import places

FORMS = ("subset", "full")
"""The arms that are the method as it is meant: its two forms, run factored."""
STEP = "training step"
"""What a network frame calls forward, backward and update together."""


def layer_frame(devices: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a device, precision, batch, layer, share of basis filters and arm."""
    names = ("layer", "precision", "batch", "arm", "ratio", "macs_ratio", "share", "intensity",
             "gmac_s", "bound_speedup")  # fmt: skip
    rows = [
        {"device": places.device_name(d["device"]), **{k: row[k] for k in names},
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
        {"device": places.device_name(d["device"]), **{k: row[k] for k in names}, **_timed(row)}
        for d in devices
        for row in d["networks"]
    ]
    return pd.DataFrame(rows)


def memory_frame(devices: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a device, precision, batch, network and share of basis filters."""
    return pd.DataFrame(
        [{"device": places.device_name(d["device"]), **row} for d in devices for row in d["memory"]]
    )


def step_frame(networks: pd.DataFrame, memory: pd.DataFrame, ratio: float) -> pd.DataFrame:
    """One row a device, precision, batch and network: its training step and peak memory."""
    subset = networks[(networks["arm"] == FORMS[0]) & (networks["ratio"] == ratio)]
    keys = [*places.KEYS, "network", "width", "ratio"]
    return training_steps(subset).merge(memory, on=keys, how="left")


def training_steps(networks: pd.DataFrame) -> pd.DataFrame:
    """Of a network frame, forward, backward and update together."""
    return networks[networks["what"] == STEP]


def headline_ratio(layers: pd.DataFrame) -> float:
    """The share of basis filters that figures show: the middle one."""
    ratios = sorted(set(layers["ratio"]))
    return float(ratios[(len(ratios) - 1) // 2])


def _timed(timing: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    names = ("median_ms", "iqr_ms", "speedup", "speedup_low", "speedup_high")
    return {f"{prefix}{name}": timing[name] for name in names}

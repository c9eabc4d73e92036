"""The benchmarks of 06_timing as frames: layers, networks, training steps and their memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from basisconv.study.report import places

FORMS = ("subset", "full")
"""The arms that are the method as it is meant: its two forms, run factored."""
STEP = "training step"
"""What a network frame calls forward, backward and update together."""


def layer_frame(devices: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a device, precision, batch, layer, share of basis filters and arm."""
    names = ("layer", "precision", "batch", "arm", "ratio", "macs_ratio", "share", "intensity",
             "gmac_s")  # fmt: skip
    rows = [
        {"device": places.device_name(d["device"]), **{k: row[k] for k in names}, **_expected(row),
         **_timed(row["forward"], "forward_"), **_timed(row["both"])}
        for d in devices
        for row in d["layers"]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def network_frame(devices: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a device, precision, batch, network, share of basis filters, form and thing timed."""
    names = ("network", "width", "precision", "batch", "arm", "ratio", "what", "macs_ratio",
             "share")  # fmt: skip
    rows = [
        {"device": places.device_name(d["device"]), **{k: row[k] for k in names}, **_expected(row),
         **_timed(row)}
        for d in devices
        for row in d["networks"]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def memory_frame(devices: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a device, precision, batch, network and share of basis filters."""
    return pd.DataFrame(
        [{"device": places.device_name(d["device"]), **row} for d in devices for row in d["memory"]]
    )


def step_frame(networks: pd.DataFrame, memory: pd.DataFrame, ratio: float) -> pd.DataFrame:
    """One row a device, precision, batch and network: its training step and peak memory.

    The step is the subset form's; `full_speedup` is that of the other one.
    """
    steps = training_steps(networks[networks["ratio"] == ratio])
    subset, full = (steps[steps["arm"] == form] for form in FORMS)
    keys = [*places.KEYS, "network", "width", "ratio"]
    other = full[[*keys, "speedup"]].rename(columns={"speedup": "full_speedup"})
    return subset.merge(other, on=keys, how="left").merge(memory, on=keys, how="left")


def training_steps(networks: pd.DataFrame) -> pd.DataFrame:
    """Of a network frame, forward, backward and update together."""
    return networks[networks["what"] == STEP]


def headline_ratio(layers: pd.DataFrame) -> float:
    """The share of basis filters that figures show: the middle one."""
    ratios = sorted(set(layers["ratio"]))
    return float(ratios[(len(ratios) - 1) // 2])


class Outcomes(NamedTuple):
    """How many timings are faster than dense, slower, and neither: by quartiles clear of 1."""

    faster: int
    slower: int
    undecided: int


def outcomes(timings: pd.DataFrame, prefix: str = "") -> Outcomes:
    """Count the rows of a frame of speed-ups, or of those whose columns have a prefix."""
    faster = int((timings[f"{prefix}speedup_low"] > 1).sum())
    slower = int((timings[f"{prefix}speedup_high"] < 1).sum())
    return Outcomes(faster, slower, len(timings) - faster - slower)


def _expected(row: Mapping[str, Any]) -> dict[str, float | None]:
    # Stored benchmarks call it a bound, which it is not: measurements exceed it.
    return {"expected_speedup": row["bound_speedup"]}


def _timed(timing: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    names = ("median_ms", "iqr_ms", "speedup", "speedup_low", "speedup_high")
    return {f"{prefix}{name}": timing[name] for name in names}

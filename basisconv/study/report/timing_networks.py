"""06_timing's networks: training steps, what is expected of them, and their memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from basisconv.study.report import places, text
from basisconv.study.report.places import FORMS, speedup
from basisconv.study.report.tables import Column, cell, fixed, interval, percent, words

STEP = "training step"
"""What a network frame calls forward, backward and update together."""
_NETWORK = ["network", "width", "ratio"]


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


def forward_and_step(networks: pd.DataFrame) -> pd.DataFrame:
    """One row for each training step in the subset form, its forward pass with it."""
    subset = networks[networks["arm"] == FORMS[0]]
    forward, step = (subset[subset["what"] == what] for what in ("forward", STEP))
    return step.merge(forward, on=[*places.KEYS, *_NETWORK], suffixes=("", "_of_forward"))


_NAME = words("network", lambda row: f"{text.network(row.network)}, width {row.width}", once=True)
_F = words("f", lambda row: text.share(row.ratio), once=True)
_MACS = fixed("MACs", "macs_ratio", 2, "×", once=True)
_STEP = [
    Column("training step", speedup),
    cell("basis, ms", "median_ms", lambda ms: text.significant(ms, 3)),
    fixed("expected", "expected_speedup", 2, "×"),
    percent("of expected", "share"),
]

STEPS: list[Column] = [
    _NAME, _MACS, *_STEP, fixed("full", "full_speedup", 2, "×"),
    fixed("memory", lambda row: row.peak_mb / row.dense_peak_mb, 2),
]  # fmt: skip
"""What a table shows of the rows of `step_frame`."""

NETWORKS: list[Column] = [
    _NAME, _F, _MACS, *_STEP,
    interval("forward", "speedup_of_forward speedup_low_of_forward speedup_high_of_forward", 2,
             unit="×"),
]  # fmt: skip
"""What a table shows of the rows of `forward_and_step`."""

MEMORY: list[Column] = [
    _NAME, _F, fixed("dense, MB", "dense_peak_mb", 0), fixed("basis, MB", "peak_mb", 0),
    fixed("ratio", lambda row: row.peak_mb / row.dense_peak_mb, 2),
]  # fmt: skip
"""What a table shows of the rows of `memory_frame`."""

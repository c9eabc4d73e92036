"""Skip training's numbers: each arm against dense, and each choice at the switch by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from basisconv.study.report import arms
from basisconv.study.report.arms import Measured
from basisconv.study.report.statistics import stats

SWITCHES = ("carry", "momentum_carry", "schedule")
# Switch -> (the setting, what it is set against), as they are told.
PAIRS = {
    "carry": ("exact", "reinit", "keeping the weights", "re-initialising"),
    "momentum_carry": ("carried", "fresh", "carrying momentum over", "starting it fresh"),
    "schedule": ("one", "restart", "one cosine over both phases", "a restart at the switch"),
}


def skip_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row an arm, with its difference from dense trained for the same time."""
    dense = arms.first(found, "dense")
    details = ("direction", "switch", *SWITCHES)
    return arms.compare_table(
        found,
        rival=lambda _: dense,
        before=lambda m: {"method": m.arm.method, **{k: m.arm.detail.get(k) for k in details}},
    )


def pair_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """Each switch's two settings over arms that differ in it alone, by direction.

    The differences of one seed are averaged over switch points first: they share their seed, and
    seeds are what is sampled.
    """
    rows = []
    directions = dict.fromkeys(m.arm.detail.get("direction") for m in found if _is_skip(m))
    for name, (one, other, *_) in PAIRS.items():
        for direction in directions:
            by_seed: dict[int, list[float]] = {}
            for a, b in _twins(found, name, one, other, direction):
                of_a = dict(zip(a.seeds, a.accuracy, strict=True))
                of_b = dict(zip(b.seeds, b.accuracy, strict=True))
                for seed in of_a.keys() & of_b.keys():
                    by_seed.setdefault(seed, []).append(of_a[seed] - of_b[seed])
            if by_seed:
                means = [float(np.mean(by_seed[seed])) for seed in sorted(by_seed)]
                d = stats.paired(means, [0.0] * len(means))
                rows.append(
                    {
                        "switch": name, "setting": one, "against": other, "direction": direction,
                        "difference": d.estimate, "low": d.low, "high": d.high, "p": d.p,
                        "n": d.n_a, "pairs": max(len(v) for v in by_seed.values()),
                    }
                )  # fmt: skip
    columns = ["switch", "setting", "against", "direction", "difference", "low", "high", "p", "n",
               "pairs"]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns)
    table["p_holm"] = stats.holm(list(table["p"]))
    return table


def _is_skip(m: Measured) -> bool:
    return m.arm.method == "skip" and "direction" in m.arm.detail


def _twins(
    found: Sequence[Measured], name: str, one: str, other: str, direction: Any
) -> list[tuple[Measured, Measured]]:
    def key(m: Measured) -> tuple[Any, ...]:
        kept = [m.arm.detail.get(s) for s in SWITCHES if s != name]
        return (m.arm.detail.get("direction"), m.arm.detail.get("switch"), *kept)

    skips = [m for m in found if _is_skip(m) and m.arm.detail["direction"] == direction]
    rivals = {key(m): m for m in skips if m.arm.detail.get(name) == other}
    return [
        (m, rivals[key(m)]) for m in skips if m.arm.detail.get(name) == one and key(m) in rivals
    ]

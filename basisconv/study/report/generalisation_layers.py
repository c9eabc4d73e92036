"""09_generalisation's layers: what each costs by screening, and what its step gains on a clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from basisconv.effects import effects
from basisconv.study.experiments.generalisation import SCREENING
from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, places, text
from basisconv.study.report.statistics import rankings

_CAUSES = {"index": "depth", "parameters_saved": "parameters saved", "macs_saved": "MACs saved"}
_EFFECTS = ["layer", "index", "out_channels", "n_basis", "effect", "low", "high",
            "parameters_saved", "macs_saved", "runs"]  # fmt: skip
_STEPS = ["device", "network", "width", "size", "layers", "ratio", "converted", "macs_ratio",
          "speedup", "speedup_low", "speedup_high", "share"]  # fmt: skip
_LAYERS = ["device", "network", "width", "size", "layer", "ratio", "macs_ratio", "speedup",
           "speedup_low", "speedup_high", "share"]  # fmt: skip


def effect_frame(section: Section, records: Mapping[str, Record]) -> pd.DataFrame:
    """One row a screened layer: the rise of log loss that its fewest filters cost.

    Empty where nothing is screened, or where too many runs diverged.
    """
    known = section.facts["screened_layers"]
    screened = [arm for arm in section.arms if arm.detail.get("part") == SCREENING]
    runs = [record for arm in screened for record in arms.done(section, records, arm)]
    results = [(r.run, r.result.val_loss) for r in runs if r.result is not None]
    blocks = len({run.seed for run, _ in results})
    if len(results) < blocks + len(known) + 1 or not known:
        return pd.DataFrame(columns=_EFFECTS)
    plans = [run.phases[0].plan for run, _ in results]
    found = effects(plans, [loss for _, loss in results], [run.seed for run, _ in results])
    rows = [
        {
            **layer, "effect": found.layers[layer["layer"]].value,
            "low": found.layers[layer["layer"]].low, "high": found.layers[layer["layer"]].high,
            "runs": len(results),
        }
        for layer in known
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=_EFFECTS)


def agreements(table: pd.DataFrame) -> dict[str, Any]:
    """Whether the effects follow depth or size: Spearman, interval over resampled layers."""
    if len(table) < 3:
        return {}

    def correlation(column: str) -> rankings.Bootstrap:
        pairs = np.column_stack([table["effect"].to_numpy(float), table[column].to_numpy(float)])
        return rankings.bootstrap(lambda rows: rankings.spearman(rows[:, 0], rows[:, 1]), pairs)

    return {
        f"correlation with {cause}": text.number(
            *correlation(column), n=int(table["runs"].iloc[0]), digits=2, signed=True
        )
        for column, cause in _CAUSES.items()
    }


def step_frame(devices: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a device, network, image size, set of layers and share: its training step."""
    return _timed(devices, "networks", _STEPS)


def layer_frame(devices: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a device, network, image size, distinct layer and share: forward and backward."""
    return _timed(devices, "layers", _LAYERS)


def _timed(devices: Sequence[Mapping[str, Any]], kind: str, columns: Sequence[str]) -> pd.DataFrame:
    rows = [
        {"device": places.device_name(facts["device"]), **row}
        for facts in devices
        for row in facts[kind]
    ]
    table = pd.DataFrame(rows).reindex(columns=list(columns))
    return table.assign(share=table["speedup"].astype(float) / table["macs_ratio"].astype(float))


def nearest_promise(what: str, rows: pd.DataFrame) -> dict[str, Any]:
    """The layer or network whose clock comes nearest to its multiplications, on each device."""
    parts = []
    for device, some in rows[rows["share"].notna()].groupby("device", sort=False):
        best = some.loc[some["share"].idxmax()]
        layer = f"{best['layer']} of " if what == "layer" else ""
        parts.append(
            f"{layer}{text.network(best['network'])} on images of {best['size']}×{best['size']} "
            f"at f = {text.share(best['ratio'])}, {places.speedup(best)} of "
            f"{best['macs_ratio']:.2f}× ({device})"
        )
    return {f"nearest {what}": text.said("; ".join(parts))} if parts else {}

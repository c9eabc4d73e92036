"""What a training step of a plan costs, in units of the profile's dense step.

Two sources. *Executed MACs*, forward and backward, where nothing was measured; and a *cost
table* (`paper/runs/<profile>/costs.json`), the ratios of measured step times, each taken beside
dense in one quiet process. A table only grows: Runs were sized by its rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from basisconv.cost import Summary, summary
from basisconv.plan import Plan
from basisconv.study.files import DamagedFile, read_json, write_json
from basisconv.study.models import build
from basisconv.study.profiles import Profile


class Costs(Protocol):
    """Where the cost of a training step comes from."""

    unit: str

    def step(self, plan: Plan, width: int) -> float:
        """Cost of one step at the profile's batch, in dense steps of the profile's width."""


class MacCosts:
    """Executed MACs, forward and backward, over those of dense at the profile's width."""

    unit = "executed MACs"

    def __init__(self, network: str, width: int, classes: int) -> None:
        self._network, self._classes = network, classes
        self._dense = self._macs(Plan(), width)

    def step(self, plan: Plan, width: int) -> float:
        return self._macs(plan, width) / self._dense

    def _macs(self, plan: Plan, width: int) -> int:
        costs = network_costs(self._network, width, self._classes, plan)
        return costs.macs + costs.macs_backward


class MeasuredCosts:
    """A table of measured ratios; a subset without a row is dense less its single savings.

    Raises:
        ValueError: if the table was measured with other settings than the profile's.
        DamagedFile: if it is no table.
    """

    def __init__(self, table: Mapping[str, Any], path: Path, profile: Profile) -> None:
        self._path = path
        self.unit = f"seconds on {table.get('device')}"
        wanted = settings(profile)
        other = {key: table.get(key) for key in wanted if table.get(key) != wanted[key]}
        if other:
            raise ValueError(
                f"{path} was measured with {other}, and profile {profile.name!r} has {wanted}. "
                f"Set these back, or move the table away and measure anew: "
                f"python -m basisconv bench --costs {profile.name}"
            )
        try:
            self._rows = {_row_key(row): float(row["ratio"]) for row in table["rows"]}
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedFile(
                f"{path} is no table of step costs: {type(error).__name__}: {error}. Put back an "
                f"unchanged copy, or measure anew: python -m basisconv bench --costs {profile.name}"
            ) from error
        self._rows[_key(Plan(), profile.width)] = 1.0  # what all ratios are to

    def step(self, plan: Plan, width: int) -> float:
        key = _key(plan, width)
        if key in self._rows:
            return self._rows[key]
        dense = self._row(Plan(), width)
        return dense - sum(dense - self._row(plan.only([name]), width) for name in plan.layers)

    def _row(self, plan: Plan, width: int) -> float:
        try:
            return self._rows[_key(plan, width)]
        except KeyError:
            what = ", ".join(plan.layers) or "dense"
            raise ValueError(
                f"{self._path} has no row for width {width} with {what}. Measure it: "
                f"python -m basisconv bench --costs {self._path.parent.name}"
            ) from None


def settings(profile: Profile) -> dict[str, Any]:
    """What a step's time hangs on beside plan, width and device; the head of a table."""
    return {
        "threads": profile.threads,
        "batch_size": profile.training.batch_size,
        "network": profile.network,
        "precision": profile.precision,
        "compile": profile.compile,
    }


def unmeasured(
    path: Path, head: Mapping[str, Any], wanted: Iterable[tuple[Plan, int]]
) -> list[tuple[Plan, int]]:
    """The plans and widths without a row in a cost table, each once.

    Raises:
        ValueError: as `add_rows`, before hours of measuring for a table that refuses them.
    """
    known = {_row_key(row) for row in _table(path, head)["rows"]}
    return [step for step in dict.fromkeys(wanted) if _key(*step) not in known]


def add_rows(path: Path, head: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
    """Add measured rows to a cost table, or start one; rows that are there stay as they are.

    Args:
        path: the table.
        head: what the rows were measured on and with: "device", "device_kind" and `settings`.
        rows: {"plan", "width", "ratio"} and the quartiles of the ratio.

    Raises:
        ValueError: if the table is of another device or setting.
    """
    table = _table(path, head)
    known = {_row_key(row) for row in table["rows"]}
    new = [row for row in rows if _row_key(row) not in known]
    write_json(path, {**table, "rows": table["rows"] + new})


@lru_cache(maxsize=4096)
def network_costs(network: str, width: int, classes: int, plan: Plan) -> Summary:
    """Parameters and MACs of one 32×32 image through a network that follows a plan."""
    return summary(build(network, width, classes), (1, 3, 32, 32), plan)


def _table(path: Path, head: Mapping[str, Any]) -> dict[str, Any]:
    """The table as it is, or an empty one; never one of another device or setting."""
    if not path.exists():
        return {**head, "rows": []}
    table: dict[str, Any] = read_json(path)
    other = {k: table.get(k) for k in head if table.get(k) != head[k]}
    if other:
        raise ValueError(
            f"{path} was measured with {other}, not {dict(head)}. Measure there and so, or move "
            "the table away to begin a new one."
        )
    return table


def _row_key(row: Mapping[str, Any]) -> str:
    return _key(Plan.from_dict(row["plan"]), row["width"])


def _key(plan: Plan, width: int) -> str:
    return json.dumps([plan.to_dict(), width], sort_keys=True)

"""What a training step costs, in units of the profile's dense step at its budget batch.

Two sources: *executed MACs*, forward and backward; and a *cost table*
(`paper/runs/<profile>/costs.json`) of step times measured relative to dense in one process. Rows
are only ever added to a table: the steps of Runs were computed from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from basisconv.cost import Summary, counter
from basisconv.plan import Plan, check_plan
from basisconv.study.records.files import DamagedFile, read_json, write_json
from basisconv.study.records.run import Optimizer, Precision
from basisconv.study.training.models import shared_network


class Unmeasured(ValueError):
    """A step has no row in a cost table, or the profile no table."""


class Step(NamedTuple):
    """What decides the cost of a training step, in one profile; `network` None is the profile's."""

    plan: Plan
    width: int
    batch_size: int
    optimizer: Optimizer = "sgd"
    network: str | None = None


class Setting(Protocol):
    """What all steps of a table share; a profile has it."""

    name: str
    width: int
    budget_batch: int
    threads: int
    precision: Precision
    compile: bool

    @property
    def network(self) -> str: ...


class MacCosts:
    """Executed MACs, forward and backward, over those of the profile's dense step."""

    unit = "executed MACs"

    def __init__(self, setting: Setting, classes: int) -> None:
        self._network, self._classes = setting.network, classes
        self._dense = self._macs(reference_step(setting))

    def of(self, step: Step) -> float:
        return self._macs(step) / self._dense

    def quartiles(self, step: Step) -> tuple[float, float]:
        """A count has no spread."""
        return self.of(step), self.of(step)

    def _macs(self, step: Step) -> int:
        network = step.network or self._network
        costs = network_costs(network, step.width, self._classes, step.plan)
        return step.batch_size * (costs.macs + costs.macs_backward)


class MeasuredCosts:
    """A table of measured ratios; a subset of layers without a row of its own is interpolated.

    It saves the sum of what its layers save alone, times a factor: what the largest plan in the
    table with the same layers saves, over the sum of that plan's single savings. A layer saves
    more together with others than alone.

    Raises:
        ValueError: if the table was measured with other settings than the profile's.
        Unmeasured: by `of`, for a step that the table does not cover.
        DamagedFile: if it is not a cost table.
    """

    def __init__(self, table: Mapping[str, Any], path: Path, setting: Setting) -> None:
        self._path = path
        self.unit = f"seconds on {table.get('device')}"
        wanted = table_settings(setting)
        other = {key: table.get(key) for key in wanted if table.get(key) != wanted[key]}
        if other:
            raise ValueError(
                f"{path} was measured with {other}, and profile {setting.name!r} has {wanted}. "
                f"Set these back, or move the table away: python -m basisconv run --profile "
                f"{setting.name} with the same --set then measures a new one."
            )
        try:
            self._rows = {_step(row): float(row["ratio"]) for row in table["rows"]}
            self._quartiles = {
                _step(row): (float(low), float(high))
                for row in table["rows"]
                for low, high in [row.get("quartiles", [row["ratio"]] * 2)]
            }
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedFile(
                f"{path} is no cost table: {type(error).__name__}: {error}. Put back an "
                f"unchanged copy, or measure it: python -m basisconv bench --costs {setting.name}"
            ) from error
        self._rows[reference_step(setting)] = 1.0  # by definition

    def of(self, step: Step) -> float:
        if step in self._rows:
            return self._rows[step]
        alike = step._replace(plan=Plan())
        dense, single = self._row(alike), self._single_savings(step)
        around = [
            known
            for known in self._rows
            if known._replace(plan=Plan()) == alike
            and step.plan.layers.keys() <= known.plan.layers.keys()
            and known.plan.only(list(step.plan.layers)) == step.plan
        ]
        if not around:
            return dense - single
        whole = max(around, key=lambda known: len(known.plan.layers))
        return dense - single * (dense - self._row(whole)) / self._single_savings(whole)

    def quartiles(self, step: Step) -> tuple[float, float]:
        """Of a measured step's cost over turns; an interpolated one's are its cost."""
        return self._quartiles.get(step, (self.of(step), self.of(step)))

    def _single_savings(self, step: Step) -> float:
        """The sum of what a step's layers save, each alone in basis form."""
        dense = self._row(step._replace(plan=Plan()))
        return sum(
            dense - self._row(step._replace(plan=step.plan.only([name])))
            for name in step.plan.layers
        )

    def _row(self, step: Step) -> float:
        try:
            return self._rows[step]
        except KeyError:
            what = ", ".join(step.plan.layers) or "dense"
            raise Unmeasured(
                f"{self._path} has no row for {step.network + ', ' if step.network else ''}"
                f"width {step.width}, batch {step.batch_size} under "
                f"{step.optimizer} with {what}. Measure it: python -m basisconv bench --costs "
                f"{self._path.parent.name}"
            ) from None


Costs = MacCosts | MeasuredCosts


def reference_step(setting: Setting) -> Step:
    """The step that costs 1: dense under SGD, of the profile's width, at its budget batch."""
    return Step(Plan(), setting.width, setting.budget_batch)


def table_settings(setting: Setting) -> dict[str, Any]:
    """What all rows of a table share, apart from the device."""
    return {
        "threads": setting.threads,
        "width": setting.width,
        "budget_batch": setting.budget_batch,
        "network": setting.network,
        "precision": setting.precision,
        "compile": setting.compile,
    }


def unmeasured_steps(path: Path, wanted: Iterable[Step]) -> list[Step]:
    """The steps without a row in a cost table, each once; all of them where there is none."""
    rows = read_json(path)["rows"] if path.exists() else []
    known = {_step(row) for row in rows}
    return [step for step in dict.fromkeys(wanted) if step not in known]


def add_rows(path: Path, head: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
    """Add measured rows to a cost table, or start one; existing rows stay as they are.

    Args:
        path: the table.
        head: what the rows were measured on and with: "device", "device_kind" and `table_settings`.
        rows: {"plan", "width", "batch_size", "ratio"}, the quartiles of the ratio, and
            "optimizer" where it is not SGD and "network" where it is not the table's.

    Raises:
        ValueError: if the table is of another device or setting.
    """
    table = open_table(path, head)
    known = {_step(row) for row in table["rows"]}
    new = [row for row in rows if _step(row) not in known]
    write_json(path, {**table, "rows": table["rows"] + new})


@lru_cache(maxsize=4096)
def network_costs(network: str, width: int, classes: int, plan: Plan) -> Summary:
    """Parameters and MACs of one 32×32 image through a network that follows a plan.

    Raises:
        ValueError: if the plan does not fit the network.
    """
    check_plan(shared_network(network, width, classes), plan)
    return _counter(network, width, classes)(plan)


@lru_cache(maxsize=64)
def _counter(network: str, width: int, classes: int) -> Callable[[Plan], Summary]:
    """One forward pass serves all plans."""
    return counter(shared_network(network, width, classes), (1, 3, 32, 32))


def open_table(path: Path, head: Mapping[str, Any]) -> dict[str, Any]:
    """The table, or an empty one; refused if it is of another device or setting."""
    if not path.exists():
        return {**head, "rows": []}
    table: dict[str, Any] = read_json(path)
    other = {k: table.get(k) for k in head if table.get(k) != head[k]}
    if other:
        raise ValueError(
            f"{path} was measured with {other}, not {dict(head)}. Measure there "
            "with these settings, or move the table away to start a new one."
        )
    return table


def _step(row: Mapping[str, Any]) -> Step:
    optimizer = row.get("optimizer", "sgd")
    plan, network = Plan.from_dict(row["plan"]), row.get("network")
    return Step(plan, row["width"], row["batch_size"], optimizer, network)

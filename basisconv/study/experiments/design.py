"""An experiment before training: its arms, and the Runs that make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from basisconv.plan import Plan
from basisconv.study.experiments.parameters import Skip
from basisconv.study.experiments.study import Study
from basisconv.study.records.run import Arm, Method, Record, Run, Section

Phases = list[tuple[float, Plan]]  # (share of the training time, plan)


class Waiting(LookupError):
    """An experiment needs records that are not there yet; `needs` names whose."""

    def __init__(self, needs: str) -> None:
        super().__init__(f"waits for the records of {needs}")
        self.needs = needs


@dataclass
class Draft:
    """An experiment before training: labelled arms, each with its Runs.

    `waits` says what more arms wait for, where those at hand can be trained without them.
    """

    name: str
    study: Study
    facts: dict[str, Any] = field(default_factory=dict)
    arms: list[Arm] = field(default_factory=list)
    runs: dict[str, Run] = field(default_factory=dict)
    waits: str = ""

    def add(
        self, label: str, method: Method, plan: Plan | Phases, budget: float,
        width: int | None = None, steps: int | None = None, seeds: Sequence[int] | None = None,
        detail: dict[str, Any] | None = None, changes: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Add an arm with a Run for each seed.

        Args:
            label: what tables and figures call it.
            method: its colour, and whose tuned settings it has.
            plan: one plan, or its phases.
            budget: training time in dense epochs.
            width: of the network; None for the profile's.
            steps: take so many of the one plan, whatever time that is.
            seeds: with which; None for the notebook's.
            detail: what else to keep of it.
            changes: settings of the Runs other than the tuned and the profile's.
        """
        study = self.study
        width = width or study.profile.width
        settings = study.settings(method, budget) | (changes or {})
        step = (width, settings["batch_size"], settings["optimizer"])
        phases = [(1.0, plan)] if isinstance(plan, Plan) else plan
        taken = [(steps or study.steps(share * budget, p, *step), p) for share, p in phases]
        self.add_steps(label, method, taken, budget, width, seeds, detail, settings)

    def add_steps(
        self, label: str, method: Method, taken: list[tuple[int, Plan]], budget: float, width: int,
        seeds: Sequence[int] | None, detail: dict[str, Any] | None, settings: dict[str, Any],
    ) -> None:  # fmt: skip
        """Add an arm by the steps taken of each plan and all settings of its Runs; else as `add`.

        The settings are not tuned for the method, which gives its colour alone.
        "test" among them is else the notebook's.
        """
        study = self.study
        batch_size: int = settings["batch_size"]
        step = (width, batch_size, settings["optimizer"])
        test = self.name in study.profile.confirm
        runs = [
            study.run(taken, seed, **{"width": width, "test": test, **settings})
            for seed in (study.seeds(self.name) if seeds is None else seeds)
        ]
        self.runs |= {run.run_id: run for run in runs}
        cost = study.network_costs(taken[-1][1], width)
        known: dict[str, Any] = {
            "parameters": cost.parameters, "macs": cost.macs_by_parameters,
            "executed_macs": cost.macs, "width": width, "steps": [n for n, _ in taken],
            "batch_size": batch_size, "learning_rate": settings["learning_rate"],
        }  # fmt: skip
        self.arms.append(
            Arm(
                label=label, method=method, run_ids=tuple(run.run_id for run in runs),
                budget=budget, time=sum(study.time(n, p, *step) for n, p in taken),
                detail=known | (detail or {}),
            )
        )  # fmt: skip

    def add_skip(self, label: str, skip: Skip, basis: Plan, budget: float, **more: Any) -> None:
        """Add an arm that trains in two forms, one after the other.

        Args:
            label: what tables and figures call it.
            skip: which form comes first, for how long, and what the switch does.
            basis: the plan of its basis form.
            budget: training time in dense epochs.
            **more: as in `add`.
        """
        first, second = (basis, Plan()) if skip.direction == "basis→dense" else (Plan(), basis)
        phases = [(skip.switch, first), (1 - skip.switch, second)]
        changes = skip.model_dump(exclude={"direction", "switch"})
        self.add(label, "skip", phases, budget, changes=changes, **more)

    def join(self, other: Draft) -> None:
        """Add all arms of another draft, whose study may be of other data or another network."""
        self.arms += other.arms
        self.runs |= other.runs

    def records(self, arms: Sequence[Arm]) -> dict[str, Record]:
        """The records of some arms, by run id.

        Raises:
            Waiting: if a run is missing or failed.
        """
        found = {i: self.study.store.get(i) for arm in arms for i in arm.run_ids}
        known = {i: record for i, record in found.items() if record and record.status != "failed"}
        if len(known) < len(found):
            raise Waiting(self.name)
        return known

    def section(self) -> Section:
        """What reports read."""
        return Section(
            name=self.name, profile=self.study.profile.name, arms=tuple(self.arms),
            facts={
                "unit": self.study.costs.unit, "tuned": bool(self.study.profile.tuned),
                **self.facts,
            },
        )  # fmt: skip

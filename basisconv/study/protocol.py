"""The protocol that every experiment of a profile follows: networks, plans, seeds, budgets.

Arms meet at *time budgets*. A budget of b is what dense takes for b epochs at the profile's
budget batch; an arm takes the number of steps that ends nearest to it, by the profile's costs, and
its learning rate runs its full course over them. Times are told in dense epochs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

import basisconv
from basisconv.cost import Summary
from basisconv.plan import Plan
from basisconv.study.costs import Costs, MacCosts, MeasuredCosts, Step, network_costs
from basisconv.study.data import CLASSES, DIGESTS, TRAINING_IMAGES
from basisconv.study.environment import ROOT
from basisconv.study.files import read_json
from basisconv.study.models import build
from basisconv.study.profiles import Profile, load_profile
from basisconv.study.run import Arm, Data, Method, Phase, Run, Section
from basisconv.study.store import Store

Phases = list[tuple[float, Plan]]  # (share of the training time, plan)


@dataclass(frozen=True)
class Study:
    """A profile with the place where its results are kept.

    Attributes:
        profile: what to do.
        store: the working store of records.
        folder: where tables, figures, notebooks and the PDF go.
    """

    profile: Profile
    store: Store
    folder: Path

    @classmethod
    def open(
        cls, name: str, settings: tuple[str, ...] | list[str] = (), runs: Path | None = None
    ) -> Study:
        """Open a profile's study.

        Args:
            name: the profile.
            settings: "key=value" changes of its settings.
            runs: the working store, `build/<profile>/runs` by default.
        """
        profile = load_profile(name, tuple(settings))
        folder = ROOT / "build" / name
        return cls(profile, Store(runs or folder / "runs"), folder)

    @cached_property
    def model(self) -> nn.Module:
        """The dense network, its weights not drawn: names and shapes alone are read."""
        return build(self.profile.network, self.profile.width, CLASSES[self.profile.data])

    @cached_property
    def layers(self) -> list[str]:
        """Every convolution, stem and 1×1 shortcuts included, in forward order."""
        rows = self.network_costs(Plan()).rows
        return [row.name for row in rows if row.kind == "Conv2d"]

    @cached_property
    def costs(self) -> Costs:
        """What a step of a plan costs."""
        profile = self.profile
        if profile.costs == "macs":
            return MacCosts(profile, CLASSES[profile.data])
        path = cost_table(profile.name)
        if not path.exists():
            raise ValueError(
                f"{path} is not there: profile {profile.name!r} sizes its runs by measured step "
                f"times. Measure them: python -m basisconv bench --costs {profile.name}"
            )
        return MeasuredCosts(read_json(path), path, profile)

    @cached_property
    def train_images(self) -> int:
        """Images that a Run trains on."""
        return self.profile.train_images or TRAINING_IMAGES[self.profile.data]

    def plan(self, ratio: float, layers: list[str] | None = None) -> Plan:
        """The profile's network at one ratio; by default every 3×3 convolution but the stem."""
        return basisconv.make_plan(self.model, ratio=ratio, layers=layers)

    def seeds(self, notebook: str) -> list[int]:
        """The seeds that a notebook trains with."""
        seeds = self.profile.seeds
        return seeds.confirm if notebook in self.profile.confirm else seeds.explore

    def cost(self, plan: Plan, width: int | None = None, batch_size: int | None = None) -> float:
        """Cost of a training step; width and batch size are the profile's when not given."""
        profile = self.profile
        width, batch_size = width or profile.width, batch_size or profile.training.batch_size
        return self.costs.of(Step(plan, width, batch_size))

    @property
    def dense_epoch(self) -> int:
        """Steps of a dense epoch at the budget batch: what budgets are told in."""
        return self.train_images // self.profile.budget_batch

    def steps(
        self, budget: float, plan: Plan, width: int | None = None, batch_size: int | None = None
    ) -> int:
        """Training steps, at least one, whose time is nearest to a budget in dense epochs."""
        return max(1, round(budget * self.dense_epoch / self.cost(plan, width, batch_size)))

    def time(
        self, steps: int, plan: Plan, width: int | None = None, batch_size: int | None = None
    ) -> float:
        """The time of some steps of a plan, in dense epochs."""
        return steps * self.cost(plan, width, batch_size) / self.dense_epoch

    def narrow_width(self, plan: Plan) -> int:
        """The width at which a dense step costs what the plan's does, as near as can be."""
        target = self.cost(plan)
        return min(self.widths, key=lambda w: abs(self.cost(Plan(), w) - target))

    @property
    def widths(self) -> list[int]:
        """The widths that narrower dense networks may have: sixteenths of the profile's."""
        step = max(1, self.profile.width // 16)
        return list(range(step, self.profile.width + 1, step))

    def network_costs(self, plan: Plan, width: int | None = None) -> Summary:
        """Parameters and MACs of one image."""
        profile = self.profile
        return network_costs(profile.network, width or profile.width, CLASSES[profile.data], plan)

    def run(self, phases: list[tuple[int, Plan]], seed: int, **changes: Any) -> Run:
        """A Run with the profile's settings, some of them changed."""
        profile = self.profile
        data = Data(
            name=profile.data, sha256=DIGESTS[profile.data], train_images=profile.train_images
        )
        settings: dict[str, Any] = {
            "network": profile.network,
            "width": profile.width,
            "data": data,
            "phases": tuple(Phase(steps=steps, plan=plan) for steps, plan in phases),
            "seed": seed,
            "precision": profile.precision,
            "compile": profile.compile,
            "threads": profile.threads,
            **profile.training.model_dump(),
        }
        return Run(**settings | changes)


@dataclass
class Draft:
    """An experiment before training: labelled arms, each with its Runs."""

    name: str
    study: Study
    facts: dict[str, Any] = field(default_factory=dict)
    arms: list[Arm] = field(default_factory=list)
    runs: dict[str, Run] = field(default_factory=dict)

    def add(
        self,
        label: str,
        method: Method,
        plan: Plan | Phases,
        budget: float,
        width: int | None = None,
        equal_steps: bool = False,
        detail: dict[str, Any] | None = None,
        changes: dict[str, Any] | None = None,
    ) -> None:
        """Add an arm with a Run for each seed.

        Args:
            label: what tables and figures call it.
            method: its colour.
            plan: one plan, or its phases.
            budget: training time in dense epochs.
            width: of the network; None for the profile's.
            equal_steps: take as many steps as dense does, whatever a step costs.
            detail: what else to keep beside it.
            changes: settings of the Runs other than the profile's.
        """
        study = self.study
        width = width or study.profile.width
        changes = changes or {}
        batch_size: int = changes.get("batch_size", study.profile.training.batch_size)
        phases = [(1.0, plan)] if isinstance(plan, Plan) else plan
        steps = [
            (study.steps(share * budget, Plan() if equal_steps else p, width, batch_size), p)
            for share, p in phases
        ]
        runs = [
            study.run(
                steps,
                seed,
                width=width,
                test=self.name in study.profile.confirm,
                **changes,
            )
            for seed in study.seeds(self.name)
        ]
        self.runs |= {run.run_id: run for run in runs}
        cost = study.network_costs(steps[-1][1], width)
        known: dict[str, Any] = {
            "parameters": cost.parameters,
            "macs": cost.macs_by_parameters,
            "executed_macs": cost.macs,
            "width": width,
            "steps": [n for n, _ in steps],
        }
        self.arms.append(
            Arm(
                label=label, method=method, run_ids=tuple(run.run_id for run in runs),
                budget=budget, time=sum(study.time(n, p, width, batch_size) for n, p in steps),
                detail=known | (detail or {}),
            )
        )  # fmt: skip

    def section(self) -> Section:
        """What reports read."""
        return Section(
            name=self.name, profile=self.study.profile.name, arms=tuple(self.arms),
            facts={"unit": self.study.costs.unit, **self.facts},
        )  # fmt: skip


def published_folder(profile: str) -> Path:
    """Where a profile's published records and cost table are."""
    return ROOT / "paper" / "runs" / profile


def cost_table(profile: str) -> Path:
    """A profile's table of measured step costs; see `basisconv.study.costs`."""
    return published_folder(profile) / "costs.json"

"""The protocol that every experiment of a profile follows: networks, plans, seeds, budgets.

Arms meet at *time budgets*. A budget of b is what dense takes for b epochs at the profile's
budget batch; an arm takes the number of steps that ends nearest to it, by the profile's costs, and
its learning rate runs its full course over them. Times are counted in dense epochs. Where the
profile has tuned settings an arm takes those of its kind at the nearest budget (`Study.tuned`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

import basisconv
from basisconv.cost import Summary
from basisconv.plan import Plan
from basisconv.study.data.sets import CLASSES, DIGESTS, TRAINING_IMAGES
from basisconv.study.experiments.parameters import PILOT
from basisconv.study.records.environment import ROOT
from basisconv.study.records.files import DamagedFile, read_json
from basisconv.study.records.run import Data, DataName, Kind, Method, Optimizer, Phase, Run
from basisconv.study.records.store import Store
from basisconv.study.timing.costs import (
    Costs,
    MacCosts,
    MeasuredCosts,
    Step,
    Unmeasured,
    network_costs,
)
from basisconv.study.training.models import build_network, shared_network

if TYPE_CHECKING:
    from basisconv.study.experiments.profiles import Profile

# Whose tuned settings a method's arms have; all others' are those of the basis arms.
_KINDS: dict[Method, Kind] = {
    "dense": "dense", "narrow": "narrow", "same_size": "narrow", "equal_steps": "dense",
    "skip": "skip",
}  # fmt: skip


@dataclass(frozen=True)
class Study:
    """A profile with the place where its results are kept.

    Attributes:
        profile: what to do.
        store: the working store of records.
        folder: where tables, figures, notebooks and the PDF go.
        other_network: what is trained in place of the profile's network, if anything. Costs are
            still in units of the profile's dense step.
    """

    profile: Profile
    store: Store
    folder: Path
    other_network: str | None = None

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
        # A profile has the parameters of all experiments, whose modules import this one.
        from basisconv.study.experiments.profiles import load_profile

        profile = load_profile(name, tuple(settings))
        folder = ROOT / "build" / name
        return cls(profile, Store(runs or folder / "runs"), folder)

    @cached_property
    def model(self) -> nn.Module:
        """The dense network, its weights as torch draws them."""
        return build_network(self.network, self.profile.width, CLASSES[self.profile.data])

    @property
    def network(self) -> str:
        """The network that Runs train."""
        return self.other_network or self.profile.network

    @cached_property
    def layers(self) -> list[str]:
        """Every convolution, stem and 1×1 shortcuts included, in forward order."""
        rows = self.network_costs(Plan()).rows
        return [row.name for row in rows if row.kind == "Conv2d"]

    @cached_property
    def costs(self) -> Costs:
        """What a step of a plan costs.

        Raises:
            Unmeasured: if there is no table of step times, where the profile wants one.
        """
        profile = self.profile
        if profile.costs == "macs":
            return MacCosts(profile, CLASSES[profile.data])
        path = cost_table(profile.name)
        if not path.exists():
            raise Unmeasured(
                f"{path} is not there: profile {profile.name!r} sizes its runs by measured step "
                f"times. Measure them: python -m basisconv bench --costs {profile.name}"
            )
        return MeasuredCosts(read_json(path), path, profile)

    def check_table(self) -> None:
        """Refuse to go on where records stand without the cost table that sized their Runs.

        Raises:
            DamagedFile: if it is gone. A new one would make other Runs of all of them.
        """
        path = cost_table(self.profile.name)
        if self.profile.costs == "table" and not path.exists() and self.store.ids():
            raise DamagedFile(
                f"{path} is gone, by which the Runs of the records in {self.store.folder} were "
                "sized. Put it back, from the repository or the machine that trained them, or "
                "move the records away to start again."
            )

    @cached_property
    def train_images(self) -> int:
        """Images that a Run trains on."""
        return self.profile.train_images or TRAINING_IMAGES[self.profile.data]

    def part(self, train_images: int | None) -> Study:
        """The same study on part of the training images; itself for None.

        Its budgets are counted in dense epochs of that part.
        """
        if train_images is None:
            return self
        changes = {"train_images": train_images}
        return replace(self, profile=self.profile.model_copy(update=changes))

    def on(self, data: DataName) -> Study:
        """The same study on another data set, with as many of its training images.

        Its steps cost what they do on the profile's own: the last layer's outputs hardly count.
        """
        return replace(self, profile=self.profile.model_copy(update={"data": data}))

    def of(self, network: str) -> Study:
        """The same study of a network, by its name in `basisconv.study.training.models`."""
        if network == self.network:
            return self
        own = network == self.profile.network
        return replace(self, other_network=None if own else network)

    def plan(
        self, ratio: float, layers: list[str] | None = None, width: int | None = None, **kind: Any
    ) -> Plan:
        """A plan at one ratio; by default for every 3×3 convolution but the stem.

        Args:
            ratio: the share of basis filters.
            layers: which layers, by name.
            width: of the network; None for the profile's.
            **kind: the form and coefficients, as in `basisconv.make_plan`.
        """
        profile = self.profile
        model = shared_network(self.network, width or profile.width, CLASSES[profile.data])
        return basisconv.make_plan(model, ratio=ratio, layers=layers, **kind)

    def seeds(self, notebook: str, count: int | None = None) -> list[int]:
        """The seeds that a notebook trains with, or the first so many of them.

        Raises:
            ValueError: if the profile has fewer.
        """
        seeds = self.profile.seeds
        if notebook == PILOT:
            found = seeds.pilot
        else:
            found = seeds.confirm if notebook in self.profile.confirm else seeds.explore
        if count is not None and count > len(found):
            raise ValueError(
                f"{notebook} wants {count} seeds, and profile {self.profile.name!r} has {found} "
                "for it: list more under seeds, or ask for fewer."
            )
        return found[:count]

    def tuned(self, method: Method, budget: float) -> dict[str, Any]:
        """The learning rate and batch size of a method's arms at a budget.

        Those that were tuned for its kind at the nearest budget, of two as near the shorter;
        empty where all arms have the profile's `training`.
        """
        of_kind = self.profile.tuned.get(_KINDS.get(method, "basis"))
        if of_kind is None:
            return {}
        nearest = min(of_kind, key=lambda tuned_at: (abs(tuned_at - budget), tuned_at))
        return of_kind[nearest].model_dump()

    def settings(self, method: Method, budget: float) -> dict[str, Any]:
        """The profile's `training` with what is tuned for a method's arms at a budget."""
        return self.profile.training.model_dump() | self.tuned(method, budget)

    def cost(
        self, plan: Plan, width: int | None = None, batch_size: int | None = None,
        optimizer: Optimizer | None = None,
    ) -> float:  # fmt: skip
        """Cost of a training step; what is not given is the profile's."""
        return self.costs.of(self._step(plan, width, batch_size, optimizer))

    def time_quartiles(
        self, phases: Sequence[tuple[int, Plan]], *step: Any, **more: Any
    ) -> tuple[float, float]:
        """Of the time of some steps of each plan, in dense epochs, by the spread of step times.

        All phases are taken at their lower, then at their upper quartile: too wide rather than
        too narrow. The rest is as in `cost`.
        """
        of_each = [self.costs.quartiles(self._step(p, *step, **more)) for _, p in phases]
        low, high = (
            sum(n * q[end] / self.dense_epoch for (n, _), q in zip(phases, of_each, strict=True))
            for end in (0, 1)
        )
        return low, high

    def _step(
        self, plan: Plan, width: int | None = None, batch_size: int | None = None,
        optimizer: Optimizer | None = None,
    ) -> Step:  # fmt: skip
        own = self.profile.training
        return Step(
            plan, width or self.profile.width, batch_size or own.batch_size,
            optimizer or own.optimizer, self.other_network,
        )  # fmt: skip

    @property
    def dense_epoch(self) -> int:
        """Steps of a dense epoch at the budget batch: the unit of budgets."""
        return self.train_images // self.profile.budget_batch

    @property
    def dense_epoch_hours(self) -> float | None:
        """Hours of the machine that a dense epoch takes, by the profile; None where it has none."""
        profile = self.profile
        if profile.dense_step_ms is None:
            return None
        return self.dense_epoch * profile.dense_step_ms / profile.workers / 3.6e6

    def steps(self, budget: float, plan: Plan, *step: Any, **more: Any) -> int:
        """Steps of a plan, at least one, whose time is nearest to a budget; else as in `cost`."""
        return max(1, round(budget * self.dense_epoch / self.cost(plan, *step, **more)))

    def time(self, steps: int, plan: Plan, *step: Any, **more: Any) -> float:
        """The time of some steps of a plan, in dense epochs; see `steps`."""
        return steps * self.cost(plan, *step, **more) / self.dense_epoch

    def narrow_width(self, plan: Plan) -> int:
        """The width at which a dense step costs what the plan's does, as near as can be."""
        target = self.cost(plan)
        return min(self.narrow_widths(plan), key=lambda w: abs(self.cost(Plan(), w) - target))

    def narrow_widths(self, plan: Plan) -> list[int]:
        """The widths that `narrow_width` chooses from: sixteenths of the profile's.

        Of these, the ones whose MACs are half to twice the plan's; with a cost table each is
        measured.
        """
        width, target = self.profile.width, self.network_costs(plan).macs
        step = max(1, width // 16)
        macs = {w: self.network_costs(Plan(), w).macs for w in range(step, width + 1, step)}
        return [w for w in macs if target / 2 <= macs[w] <= 2 * target]

    def same_size_width(self, plan: Plan) -> int:
        """The width at which a dense network has as many parameters as the plan's, nearly."""
        target = self.network_costs(plan).parameters
        return min(
            range(1, self.profile.width + 1),
            key=lambda w: abs(self.network_costs(Plan(), w).parameters - target),
        )

    def network_costs(self, plan: Plan, width: int | None = None) -> Summary:
        """Parameters and MACs of one image."""
        profile = self.profile
        return network_costs(self.network, width or profile.width, CLASSES[profile.data], plan)

    def run(self, phases: list[tuple[int, Plan]], seed: int, **changes: Any) -> Run:
        """A Run with the profile's settings, some of them changed."""
        profile = self.profile
        data = Data(
            name=profile.data, sha256=DIGESTS[profile.data], train_images=profile.train_images
        )
        settings: dict[str, Any] = {
            "network": self.network, "width": profile.width, "data": data,
            "phases": tuple(Phase(steps=steps, plan=plan) for steps, plan in phases), "seed": seed,
            "precision": profile.precision, "compile": profile.compile, "threads": profile.threads,
            **profile.training.model_dump(),
        }  # fmt: skip
        return Run(**settings | changes)


def published_folder(profile: str) -> Path:
    """Where a profile's published records and cost table are."""
    return ROOT / "paper" / "runs" / profile


def cost_table(profile: str) -> Path:
    """A profile's table of measured step costs; see `basisconv.study.timing.costs`."""
    return published_folder(profile) / "costs.json"

"""09: does it hold on other data and in other networks?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

import basisconv
from basisconv.plan import Plan
from basisconv.screening import screening
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.named_arms import (
    EPOCHS,
    TIME,
    Comparison,
    NamedArm,
    add_arm,
    add_comparison,
)
from basisconv.study.experiments.parameters import Positive, Share, Strict
from basisconv.study.records.run import Count, DataName, Kind, Method, Optimizer
from basisconv.study.timing import bench
from basisconv.study.timing import networks as timed_networks
from basisconv.study.training.models import shared_network

if TYPE_CHECKING:
    from basisconv.study.experiments.study import Study

NAME = "09_generalisation"
SCREENING = "screening"
RATIO = 0.25
"""The share of basis filters in other networks: B¼."""


class Screened(Strict):
    """Which network is screened, in so many runs; see `basisconv.screening`."""

    network: str
    levels: Annotated[list[Share], Field(min_length=2)]
    runs: Count


class Networks(Strict):
    """Other networks on the profile's data, in the order in which they are trained.

    For each of `names`: dense and basis filters in all eligible layers for so many `epochs`, and
    dense for the time that the latter take. `screened` is one of them, or null; its runs see
    validation images alone, one seed for each of `seeds` blocks. `seeds` null: all
    of the profile's.
    """

    names: list[str]
    width: Count
    epochs: Positive
    recipe: Optimizer
    threads: Count
    seeds: Count | None
    screened: Screened | None


class Parameters(Strict):
    """Named arms on another data set, `data`, with the profile's network; and other networks.

    See `named_arms` for the arms. `transferred` is the plan, {layer: n_basis}, that 08 chose on
    the profile's data: its arm joins each comparison on the other data once it is named.
    """

    data: DataName
    equal_time: list[Comparison]
    equal_epochs: list[Comparison]
    transferred: dict[str, Count]
    networks: Networks


def draft(study: Study, parameters: Parameters) -> Draft:
    """09: the profile's network on other data, then other networks on the profile's data."""
    facts: dict[str, Any] = {
        "devices": bench.saved_benchmarks(timed_networks.FOLDER),
        "screened_layers": [],
    }
    result = Draft(NAME, study, parameters.model_dump() | facts)
    _other_data(result, parameters)
    for name in parameters.networks.names:
        _other_network(result, name, parameters.networks)
    if parameters.networks.screened is not None:
        _screening(result, parameters.networks, parameters.networks.screened)
    return result


def _other_data(result: Draft, parameters: Parameters) -> None:
    """Equal time first: it has the primary contrast."""
    study = result.study.on(parameters.data)
    own = Draft(NAME, study)
    told = {"network": study.network, "data": parameters.data}
    plan = Plan(parameters.transferred)
    planned = NamedArm("plan of 08", "variant", "basis", [(1.0, plan)], study.profile.width)
    for part, settings in ((TIME, parameters.equal_time), (EPOCHS, parameters.equal_epochs)):
        for setting in settings:
            add_comparison(own, setting, part, detail=told)
            if parameters.transferred:
                add_arm(own, planned, setting, part, max(setting.arms.values()), told)
    result.join(own)


def _other_network(result: Draft, name: str, networks: Networks) -> None:
    """Equal epochs and, in the time that basis filters take for them, equal time."""
    study, width = result.study.of(name), networks.width
    own = Draft(NAME, study)
    every = study.plan(RATIO, width=width)
    kinds: dict[str, tuple[Method, Kind, Plan]] = {
        "D": ("dense", "dense", Plan()),
        "B¼": ("basis", "basis", every),
    }

    def step(kind: Kind) -> tuple[dict[str, Any], tuple[int, int, Any]]:
        settings = study.profile.recipes[networks.recipe].of(kind) | {"threads": networks.threads}
        return settings, (width, settings["batch_size"], settings["optimizer"])

    settings, ours = step("basis")
    taken = round(networks.epochs * (study.train_images // settings["batch_size"]))
    time = study.time(taken, every, *ours)
    for part, length in ((EPOCHS, networks.epochs), (TIME, time)):
        for arm, (method, kind, plan) in kinds.items():
            settings, own_step = step(kind)
            steps = taken if part == EPOCHS else study.steps(time, plan, *own_step)
            own.add_steps(
                f"{name}: {arm}, {networks.recipe}, {part}, {length:.3g}",
                method, [(steps, plan)], length, width,
                seeds=study.seeds(NAME, networks.seeds), settings=settings,
                detail={"arm": arm, "recipe": networks.recipe, "part": part, "network": name,
                        "data": study.profile.data},
            )  # fmt: skip
    result.join(own)


def _screening(result: Draft, networks: Networks, screened: Screened) -> None:
    """Networks with a level in every eligible layer, on exploring seeds and validation images."""
    study, width = result.study.of(screened.network), networks.width
    own = Draft(NAME, study)
    eligible = study.plan(RATIO, width=width).layers
    model = shared_network(study.network, width, 10)
    found = basisconv.layers(model)
    candidates = {name: found[name].out_channels for name in eligible}
    seeds = study.profile.seeds.explore[: networks.seeds]
    design = screening(candidates, screened.levels, screened.runs, blocks=len(seeds))
    settings = study.profile.recipes[networks.recipe].of("basis")
    settings |= {"threads": networks.threads, "test": False}
    steps = round(networks.epochs * (study.train_images // settings["batch_size"]))
    for i, (plan, block) in enumerate(zip(design.plans, design.blocks, strict=True), 1):
        own.add_steps(
            f"{screened.network}: screening {i}", "variant", [(steps, plan)], networks.epochs,
            width, seeds=[seeds[block]], settings=settings,
            detail={"part": SCREENING, "network": screened.network, "data": study.profile.data},
        )  # fmt: skip
    dense = study.network_costs(Plan(), width)
    for index, name in enumerate(candidates):
        few = min(p.layers[name] for p in design.plans if name in p.layers)
        cost = study.network_costs(Plan({name: few}), width)
        result.facts["screened_layers"].append(
            {
                "layer": name, "index": index, "out_channels": candidates[name], "n_basis": few,
                "parameters_saved": dense.parameters - cost.parameters,
                "macs_saved": dense.macs - cost.macs,
            }
        )  # fmt: skip
    result.join(own)

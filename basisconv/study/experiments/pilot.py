"""01b: what the other notebooks' settings are chosen by, on seeds and part of the images apart.

Nothing that it finds enters another notebook by itself: the profile states the choices.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field

from basisconv.plan import Plan
from basisconv.study.experiments.design import Draft, Phases
from basisconv.study.experiments.parameters import PILOT, Positive, Share, Strict, Switch
from basisconv.study.experiments.sensitivity import Sweep, add_layers
from basisconv.study.experiments.study import Study
from basisconv.study.records.run import Count, Method, Optimizer


class CandidateSweep(Sweep):
    """A setting that 03 might take, tried on some of the layers (null for all)."""

    layers: Annotated[list[str], Field(min_length=2)] | None
    seeds: Annotated[int, Field(ge=2)]


class Grid(Strict):
    """Recipes tried at one length: every combination, for each kind of arm.

    `width` is the profile's where it is null. `learning_rates` are those tried of each optimizer;
    its other settings are those of the profile's recipe. `factor_lr_ratios` are Muon's of basis
    arms. All arms take `epochs` passes over the training images, whatever time that is.
    """

    width: Count | None
    epochs: Positive
    kinds: Annotated[list[Literal["dense", "basis", "narrow"]], Field(min_length=1)]
    learning_rates: dict[Optimizer, Annotated[list[Positive], Field(min_length=1)]]
    factor_lr_ratios: Annotated[list[Positive], Field(min_length=1)]
    batch_sizes: Annotated[list[Count], Field(min_length=1)]
    label_smoothings: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=1)]
    seeds: Count


class Parameters(Strict):
    """What the other notebooks' settings are chosen by; validation alone.

    `train_images` are those of the grid and of the spread, and budgets are in dense epochs of
    that part. The grid is `learning_rates` by `batch_sizes`, for each kind of arm at each of
    `budgets`; the spread over `spread_seeds` is that of the profile's own settings at
    `spread_budget`; `sweeps` are settings that 03 might take; `recipes` are grids at equal epochs.
    """

    train_images: Count | None
    ratio: Share
    skip_switch: Switch
    budgets: list[Positive]
    learning_rates: list[Positive]
    batch_sizes: list[Count]
    grid_seeds: Count
    spread_budget: Positive
    spread_seeds: Annotated[int, Field(ge=0)]
    sweeps: list[CandidateSweep]
    recipes: list[Grid] = []


def draft(study: Study, parameters: Parameters) -> Draft:
    """Learning rate and batch size of each kind of arm, the runs' spread, and candidate sweeps.

    The spread and the sweeps have the profile's own settings: what is tuned comes after.
    """
    study = replace(study, profile=study.profile.model_copy(update={"tuned": {}}))
    part = study.part(parameters.train_images)
    facts = parameters.model_dump(exclude={"recipes"}) | {
        "width": study.profile.width, "train_images": part.train_images,
        "dense_epoch_hours": study.dense_epoch_hours, "sweeps": [],
    }  # fmt: skip
    result = Draft(PILOT, part, facts)
    if parameters.budgets:
        _grid(result, parameters)
    _spread(result, parameters)
    for setting in parameters.sweeps:
        _sweep(result, study, setting)
    for grid in parameters.recipes:
        _recipes(result, grid)
    return result


def _grid(result: Draft, parameters: Parameters) -> None:
    study, switch = result.study, parameters.skip_switch
    every = study.plan(parameters.ratio)
    skip: Phases = [(switch, every), (1 - switch, Plan())]
    kinds: dict[Method, tuple[Plan | Phases, int | None]] = {
        "dense": (Plan(), None), "basis": (every, None), "skip": (skip, None),
        "narrow": (Plan(), study.narrow_width(every)),
    }  # fmt: skip
    grid = product(parameters.budgets, kinds, parameters.batch_sizes, parameters.learning_rates)
    for budget, kind, batch_size, rate in grid:
        plan, width = kinds[kind]
        result.add(
            f"{kind} at {budget:g}, batch {batch_size}, rate {rate:g}", kind, plan, budget,
            width, seeds=study.seeds(result.name, parameters.grid_seeds), detail={"part": "grid"},
            changes={"learning_rate": rate, "batch_size": batch_size},
        )  # fmt: skip


def _recipes(result: Draft, grid: Grid) -> None:
    """Every combination of a grid's settings, at equal epochs."""
    study = result.study
    width = grid.width or study.profile.width
    kinds: dict[str, tuple[Plan, int]] = {
        "dense": (Plan(), width),
        "basis": (study.plan(result.facts["ratio"], width=width), width),
        "narrow": (Plan(), width // 2),
    }
    for kind, (name, rates) in product(grid.kinds, grid.learning_rates.items()):
        plan, channels = kinds[kind]
        with_factors = kind == "basis" and name == "muon"
        ratios = grid.factor_lr_ratios if with_factors else [1.0]
        settings = product(rates, ratios, grid.batch_sizes, grid.label_smoothings)
        for rate, ratio, batch, smoothing in settings:
            changes: dict[str, Any] = study.profile.recipes[name].of(kind) | {
                "learning_rate": rate, "factor_lr_ratio": ratio, "batch_size": batch,
                "label_smoothing": smoothing,
            }  # fmt: skip
            label = (
                f"{kind}, width {width}, {grid.epochs:g} epochs, {name} {rate:g}"
                + (f", factors {ratio:g}" if with_factors else "")
                + f", batch {batch}, smoothing {smoothing:g}"
            )
            # A later grid may give a recipe more seeds.
            result.arms = [arm for arm in result.arms if arm.label != label]
            result.add(
                label, kind, plan, grid.epochs, channels,
                steps=round(grid.epochs * (study.train_images // batch)),
                seeds=study.seeds(result.name, grid.seeds),
                detail={"part": "recipes", **changes}, changes=changes,
            )  # fmt: skip


def _spread(result: Draft, parameters: Parameters) -> None:
    study = result.study
    plans: dict[Method, Plan] = {"dense": Plan(), "basis": study.plan(parameters.ratio)}
    for method, plan in plans.items() if parameters.spread_seeds else ():
        result.add(
            f"{method}, spread", method, plan, parameters.spread_budget, detail={"part": "spread"},
            seeds=study.seeds(result.name, parameters.spread_seeds),
        )  # fmt: skip


def _sweep(result: Draft, study: Study, setting: CandidateSweep) -> None:
    part = study.part(setting.train_images)
    own, sweeps = Draft(result.name, part), result.facts["sweeps"]
    detail = {"part": "sweep", "sweep": len(sweeps)}
    add_layers(own, setting, study.profile.training.model_dump(), detail)
    result.join(own)
    dense, *layers = [arm.time or 0.0 for arm in own.arms]
    # What 03 would cost with this setting: all layers, as many seeds, in dense epochs of 03's
    # study and not of the part.
    sweep = setting.seeds * (dense + sum(layers) / len(layers) * len(study.layers))
    sweeps.append(
        setting.model_dump() | {
            "train_images": part.train_images, "width": setting.width or study.profile.width,
            "layers": len(layers), "all_layers": len(study.layers),
            "dense_epochs": sweep * part.dense_epoch / study.dense_epoch,
        }
    )  # fmt: skip

"""05: basis first and dense later, or the reverse: when to switch, and how?"""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import Field

from basisconv.plan import Plan
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.parameters import Direction, Positive, Share, Skip, Strict, Switch
from basisconv.study.experiments.study import Study
from basisconv.study.records.run import Carry, Count, MomentumCarry, Schedule


class Parameters(Strict):
    """05_skip_training: `switches` are shares of the training time spent in the first form.

    `train_images` are the profile's where they are null, and budgets are in dense epochs of
    them; `seeds` is how many of the profile's are taken, null for all. `others` are further ways
    to switch.
    """

    ratio: Share
    budget: Positive
    switches: list[Switch]
    carries: Annotated[list[Carry], Field(min_length=1)]
    momentum: list[MomentumCarry]
    schedules: list[Schedule]
    others: list[Skip]
    train_images: Count | None
    seeds: Count | None


def draft(study: Study, parameters: Parameters) -> Draft:
    """05: basis and then dense, or the reverse, at several switch points."""
    study = study.part(parameters.train_images)
    every, name = study.plan(parameters.ratio), "05_skip_training"
    seeds = study.seeds(name, parameters.seeds)
    facts = parameters.model_dump(exclude={"others"}) | {"train_images": study.train_images}
    result = Draft(name, study, facts)
    result.add("dense", "dense", Plan(), parameters.budget, seeds=seeds)
    result.add("basis", "basis", every, parameters.budget, seeds=seeds)
    for skip in [*_variants(parameters), *parameters.others]:
        unusual = [v for v in (skip.carry, skip.momentum_carry, skip.schedule) if v not in _USUAL]
        result.add_skip(
            f"{skip.label}, {', '.join(unusual)}", skip, every, parameters.budget,
            seeds=seeds, detail=skip.model_dump(),
        )  # fmt: skip
    return result


_USUAL = ("fresh", "one")


def _variants(parameters: Parameters) -> list[Skip]:
    """Both carries at every switch point; the other choices one at a time, at the middle one."""
    if not parameters.switches:
        return []
    middle = parameters.switches[len(parameters.switches) // 2]
    usual: dict[str, Any] = {
        "carry": parameters.carries[0], "momentum_carry": "fresh", "schedule": "one",
    }  # fmt: skip
    variants = [(s, usual | {"carry": c}) for s in parameters.switches for c in parameters.carries]
    others: list[dict[str, Any]] = [{"momentum_carry": m} for m in parameters.momentum]
    others += [{"schedule": s} for s in parameters.schedules]
    variants += [(middle, usual | other) for other in others if usual | other != usual]
    return [
        Skip(direction=direction, switch=point, **changes)
        for direction in get_args(Direction)
        for point, changes in variants
    ]

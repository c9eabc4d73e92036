"""05: basis first and dense later, or the reverse: when to switch, and how?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import Field

from basisconv.plan import Plan
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.parameters import Direction, Positive, Share, Skip, Strict, Switch
from basisconv.study.records.run import Carry, Count, MomentumCarry, Schedule

if TYPE_CHECKING:
    from basisconv.study.experiments.study import Study


class Parameters(Strict):
    """05_skip_training: `switches` are shares of the training time spent in the first form.

    `train_images` are the profile's where they are null, and budgets are in dense epochs of
    them; `seeds` is how many of the profile's are taken, null for all.
    """

    ratio: Share
    budget: Positive
    switches: Annotated[list[Switch], Field(min_length=1)]
    carries: Annotated[list[Carry], Field(min_length=1)]
    momentum: list[MomentumCarry]
    schedules: list[Schedule]
    train_images: Count | None
    seeds: Count | None


def draft(study: Study, parameters: Parameters) -> Draft:
    """05: basis and then dense, or the reverse, at several switch points.

    Both carries at every switch point; the other switches of the protocol one at a time, at the
    middle point.
    """
    study = study.part(parameters.train_images)
    every, name = study.plan(parameters.ratio), "05_skip_training"
    seeds = study.seeds(name, parameters.seeds)
    result = Draft(name, study, parameters.model_dump() | {"train_images": study.train_images})
    result.add("dense", "dense", Plan(), parameters.budget, seeds=seeds)
    result.add("basis", "basis", every, parameters.budget, seeds=seeds)
    middle = parameters.switches[len(parameters.switches) // 2]
    usual: dict[str, Any] = {
        "carry": parameters.carries[0], "momentum_carry": "fresh", "schedule": "one",
    }  # fmt: skip
    variants = [(s, usual | {"carry": c}) for s in parameters.switches for c in parameters.carries]
    others: list[dict[str, Any]] = [{"momentum_carry": m} for m in parameters.momentum]
    others += [{"schedule": s} for s in parameters.schedules]
    variants += [(middle, usual | other) for other in others if usual | other != usual]
    for direction in get_args(Direction):
        for point, changes in variants:
            unusual = [value for value in changes.values() if value not in ("fresh", "one")]
            skip = Skip(direction=direction, switch=point, **changes)
            result.add_skip(
                f"{skip.label}, {', '.join(unusual)}", skip, every, parameters.budget,
                seeds=seeds, detail=skip.model_dump(),
            )  # fmt: skip
    return result

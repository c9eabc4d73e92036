"""07: which layers hurt, from a screening design instead of a sweep?"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from basisconv.cost import Summary
from basisconv.effects import Effects, effects
from basisconv.plan import Plan
from basisconv.screening import screening
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.parameters import Positive, Share, Strict
from basisconv.study.experiments.sensitivity import swept_layers
from basisconv.study.records.run import Arm, Count, Method, Record

if TYPE_CHECKING:
    from basisconv.study.experiments.study import Study

NAME = "07_search"
WARM_UP = "warm-up"
"""The arm whose final weights stay: see `keep_weights` of the profiles."""


class Parameters(Strict):
    """A screening of the layers that 03 sweeps: `runs` networks, each with a level in every layer.

    `levels` are shares of basis filters, the first one is 1, dense. `blocks` are the first so many
    exploring seeds, among which the runs are divided. All train for `epochs`. A dense network of
    the first seed trains for `warm_up` epochs, from whose weights cheap scores are computed.
    """

    levels: Annotated[list[Share], Field(min_length=2)]
    runs: Count
    blocks: Count
    epochs: Positive
    warm_up: Positive

    @field_validator("levels")
    @classmethod
    def _from_dense_down(cls, levels: list[float]) -> list[float]:
        if levels[0] != 1 or any(a <= b for a, b in pairwise(levels)):
            raise ValueError("begin with 1, the dense layer, and descend")
        return levels


def draft(study: Study, parameters: Parameters) -> Draft:
    """07: the runs of the screening design.

    They are exploring runs of as many steps each, whatever these cost.
    """
    result = Draft(NAME, study, parameters.model_dump())
    _add_screening(result, parameters)
    return result


def _add_screening(result: Draft, parameters: Parameters) -> None:
    """Add the runs of the design, an arm each, in the design's order, and the short dense one."""
    study, epochs = result.study, parameters.epochs
    seeds = study.profile.seeds.explore
    if parameters.blocks > len(seeds):
        raise ValueError(
            f"{NAME} wants {parameters.blocks} blocks, and profile {study.profile.name!r} has the "
            f"exploring seeds {seeds}: list more, or ask for fewer."
        )
    settings = study.profile.training.model_dump() | study.tuned("selected", epochs)

    def add(
        label: str, method: Method, plan: Plan, seed: int, length: float, detail: dict[str, Any]
    ) -> None:
        steps = max(1, round(length * (study.train_images // settings["batch_size"])))
        run = study.run([(steps, plan)], seed, **settings)
        result.runs[run.run_id] = run
        arm = Arm(label=label, method=method, run_ids=(run.run_id,), budget=length, detail=detail)
        result.arms.append(arm)

    plans, blocks = screening(outputs(study), parameters.levels, parameters.runs, parameters.blocks)
    for number, (plan, block) in enumerate(zip(plans, blocks, strict=True), start=1):
        detail = {"part": "screening", "block": block, "layers": dict(plan.layers)}
        add(f"run {number}", "selected", plan, seeds[block], epochs, detail)
    add(WARM_UP, "dense", Plan(), seeds[0], parameters.warm_up, {"part": WARM_UP})


def outputs(study: Study) -> dict[str, int]:
    """The layers that are screened, those that 03 sweeps, with their numbers of outputs."""
    dense: Summary = study.network_costs(Plan())
    swept = swept_layers(study, study.profile.notebooks.sensitivity)
    return {name: dense[name].output_shape[1] for name in swept}


def screened_effects(arms: list[Arm], records: Mapping[str, Record]) -> Effects:
    """What each layer costs, from the finished runs of a screening's arms.

    Raises:
        ValueError: if these are too few: see `basisconv.effects.effects`.
    """
    plans, losses, blocks = [], [], []
    for arm in arms:
        detail: dict[str, Any] = arm.detail
        if detail.get("part") != "screening":
            continue
        result = records[arm.run_ids[0]].result
        if result is not None:
            plans.append(Plan(detail["layers"]))
            losses.append(result.val_loss)
            blocks.append(detail["block"])
    return effects(plans, losses, blocks)

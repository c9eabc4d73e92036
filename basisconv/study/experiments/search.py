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
from basisconv.study.experiments.layer_sweep import swept_layers
from basisconv.study.experiments.parameters import Positive, Share, Strict
from basisconv.study.records.run import Arm, Count, Record

if TYPE_CHECKING:
    from basisconv.study.experiments.study import Study

NAME = "07_search"


class Parameters(Strict):
    """A screening of the layers that 03 sweeps: `runs` networks, each with a level in every layer.

    `levels` are shares of basis filters, the first one is 1, dense. `blocks` are the first so many
    exploring seeds, among which the runs are divided. All train for `epochs`.
    """

    levels: Annotated[list[Share], Field(min_length=2)]
    runs: Count
    blocks: Count
    epochs: Positive

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
    """Add the runs of the design, an arm each, in the design's order."""
    study, epochs = result.study, parameters.epochs
    seeds = study.profile.seeds.explore
    if parameters.blocks > len(seeds):
        raise ValueError(
            f"{NAME} wants {parameters.blocks} blocks, and profile {study.profile.name!r} has the "
            f"exploring seeds {seeds}: list more, or ask for fewer."
        )
    settings = study.profile.training.model_dump() | study.tuned("selected", epochs)
    steps = max(1, round(epochs * (study.train_images // settings["batch_size"])))
    plans, blocks = screening(outputs(study), parameters.levels, parameters.runs, parameters.blocks)
    for number, (plan, block) in enumerate(zip(plans, blocks, strict=True), start=1):
        run = study.run([(steps, plan)], seeds[block], **settings)
        result.runs[run.run_id] = run
        result.arms.append(
            Arm(
                label=f"run {number}", method="selected", run_ids=(run.run_id,), budget=epochs,
                detail={"part": "screening", "block": block, "layers": dict(plan.layers)},
            )
        )  # fmt: skip


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
        result = records[arm.run_ids[0]].result
        if detail.get("part") == "screening" and result is not None:
            plans.append(Plan(detail["layers"]))
            losses.append(result.val_loss)
            blocks.append(detail["block"])
    return effects(plans, losses, blocks)

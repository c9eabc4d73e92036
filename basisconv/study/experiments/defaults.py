"""05b: what is each choice worth that the paper leaves open?"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from basisconv.plan import Plan
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.parameters import Positive, Share, Strict
from basisconv.study.experiments.study import Study
from basisconv.study.records.run import Count, Optimizer

NAMES: dict[Optimizer, str] = {"sgd": "SGD", "muon": "Muon"}
"""What tables call the optimizers."""


class Parameters(Strict):
    """One choice changed at a time; `train_images` and `seeds` as in 05.

    `optimizers` are tried with the profile's recipe of that name. Smaller coefficient matrices are
    tried in both forms: the subset form saves parameters by them, the full form time as well.
    `others` are settings of a Run that are changed together, by what tables call them.
    """

    ratio: Share
    budget: Positive
    coef_groups: list[Annotated[int, Field(ge=2)]]
    coef_ranks: list[Count]
    inits: list[Literal["svd", "qr"]]
    train_images: Count | None
    seeds: Count | None
    optimizers: list[Optimizer]
    others: dict[str, dict[str, Any]]


def draft(study: Study, parameters: Parameters) -> Draft:
    """05b: all layers in basis form with our defaults, and with one of them changed."""
    study, ratio = study.part(parameters.train_images), parameters.ratio
    facts = parameters.model_dump(exclude={"optimizers", "others"}) | {
        "train_images": study.train_images
    }
    result = Draft("05b_defaults", study, facts)
    seeds = study.seeds(result.name, parameters.seeds)

    def add(label: str, choice: str, plan: Plan, **changes: Any) -> None:
        result.add(
            label, "variant" if result.arms else "basis", plan, parameters.budget,
            seeds=seeds, changes=changes, detail={"choice": choice},
        )  # fmt: skip

    usual = study.plan(ratio)
    add("our defaults", "default", usual)
    add("full form", "form", study.plan(ratio, form="full"))
    for form in ("subset", "full"):
        for groups in parameters.coef_groups:
            plan = study.plan(ratio, form=form, coef_groups=groups)
            add(f"{form} form, {groups} groups", "coefficients", plan)
        for rank in parameters.coef_ranks:
            plan = study.plan(ratio, form=form, coef_rank=rank)
            add(f"{form} form, rank {rank}", "coefficients", plan)
    add("decay of the product", "decay", usual, decay="product")
    for init in parameters.inits:
        add(f"start from {init.upper()}", "start", usual, init=init)
    for name in parameters.optimizers:
        recipe = study.profile.recipes[name].of("basis")
        add(f"trained by {NAMES[name]}", "optimizer", usual, **recipe)
    for label, changes in parameters.others.items():
        add(label, "other", usual, **changes)
    return result

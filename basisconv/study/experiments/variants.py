"""Variants of what the main experiments take as given: the network's width, and our defaults."""

from __future__ import annotations

from typing import Any

from basisconv.plan import Plan
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.parameters import Defaults, Widths
from basisconv.study.experiments.study import Study


def widths(study: Study, parameters: Widths) -> Draft:
    """02b: dense, all layers and skip training at several widths, at equal time.

    At the profile's own width these are the frontier's Runs, where the settings agree.
    """
    ratio, skip = parameters.ratio, parameters.skip
    facts = parameters.model_dump() | {"width": study.profile.width}
    result = Draft("02b_widths", study, facts)
    for budget in parameters.budgets:
        for width in parameters.widths:
            every = study.plan(ratio, width=width)
            narrower = width < study.profile.width
            dense = study.tuned("narrow" if narrower else "dense", budget)
            result.add(f"dense, width {width}", "dense", Plan(), budget, width, changes=dense)
            result.add(f"all layers, width {width}", "basis", every, budget, width)
            result.add_skip(f"{skip.label}, width {width}", skip, every, budget, width=width)
    return result


def defaults(study: Study, parameters: Defaults) -> Draft:
    """05b: all layers in basis form with our defaults, and with one of them changed."""
    study, ratio = study.part(parameters.train_images), parameters.ratio
    facts = parameters.model_dump() | {"train_images": study.train_images}
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
    return result

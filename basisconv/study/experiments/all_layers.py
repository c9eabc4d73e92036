"""02: basis filters in every layer against dense, at equal epochs and at equal time."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from basisconv.plan import Plan
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.named_arms import EPOCHS, TIME, Comparison, add_comparison
from basisconv.study.experiments.parameters import EDITIONS, Positive, Share, Skip, Strict, Switch
from basisconv.study.experiments.study import Study
from basisconv.study.records.run import Count


class Comparisons(Strict):
    """Arms compared at equal epochs and at equal time; see `named_arms`.

    `ratio` is the share of basis filters of skip training and of the selected layers.
    """

    ratio: Share
    selected: list[str]
    equal_epochs: list[Comparison]
    equal_time: list[Comparison]


class FirstEdition(Strict):
    """The frontier, accuracy over training time.

    `ratios` are the shares of basis filters in all layers at every budget, `ratio` that of the
    arms with a single one. At `extra_budget` stand the arms that have one budget alone:
    `extra_ratios`, and the narrower dense network of equal parameters. `narrow_width` is the
    narrower dense network's at every budget, null for that whose step costs what a basis step does.
    `equal_steps` are shares of basis filters in all layers that train for dense's steps of that
    budget instead, whatever time that is. `dense_budgets` are dense's alone, to bracket a speed-up
    more closely. `selected` (layers) and
    `best_skip` are what 04 and 05 have named, on exploring seeds; empty and null before.
    """

    budgets: Annotated[list[Positive], Field(min_length=1)]
    ratios: Annotated[list[Share], Field(min_length=1)]
    ratio: Share
    skip_switch: Switch
    extra_budget: Positive
    extra_ratios: list[Share]
    equal_steps: Annotated[list[Share], Field(min_length=1)]
    dense_budgets: list[Positive]
    narrow_width: Count | None
    selected: list[str]
    best_skip: Skip | None


# Until desk's second edition takes the first one's place.
Parameters = Annotated[
    Annotated[FirstEdition, Tag(EDITIONS[0])] | Annotated[Comparisons, Tag(EDITIONS[1])],
    Discriminator(lambda v: EDITIONS["equal_time" in (v if isinstance(v, dict) else dir(v))]),
]


def draft(study: Study, parameters: FirstEdition | Comparisons) -> Draft:
    """02: named arms at equal epochs and at equal time, or the frontier over training time."""
    if isinstance(parameters, Comparisons):
        result = Draft("02_all_layers", study, parameters.model_dump())
        parts = {EPOCHS: parameters.equal_epochs, TIME: parameters.equal_time}
        for part, settings in parts.items():
            for setting in settings:
                add_comparison(result, setting, part, parameters.ratio, parameters.selected)
        return result
    ratio, best = parameters.ratio, parameters.best_skip
    every = study.plan(ratio)
    usual = Skip(
        direction="basis→dense", switch=parameters.skip_switch,
        carry="exact", momentum_carry="fresh", schedule="one",
    )  # fmt: skip
    skips = [usual] if best is None else [usual, best]
    narrow = parameters.narrow_width or study.narrow_width(every)
    same_size = study.same_size_width(every)
    facts = {**parameters.model_dump(), "narrow_width": narrow, "same_size_width": same_size}
    result = Draft("02_all_layers", study, facts)
    one = {"ratio": ratio}

    def in_all_layers(f: float, budget: float) -> None:
        label = f"all layers, f = {f:g}"
        result.add(label, "basis", study.plan(f), budget, detail={"ratio": f})

    for budget in parameters.budgets:
        result.add("dense", "dense", Plan(), budget)
        for f in parameters.ratios:
            in_all_layers(f, budget)
        for skip in skips:
            result.add_skip(f"{skip.label}, f = {ratio:g}", skip, every, budget, detail=one)
        if parameters.selected:
            plan = study.plan(ratio, parameters.selected)
            result.add(f"selected, f = {ratio:g}", "selected", plan, budget, detail=one)
        result.add(f"dense, width {narrow}", "narrow", Plan(), budget, width=narrow)
    extra = parameters.extra_budget
    for f in parameters.extra_ratios:
        if extra not in parameters.budgets or f not in parameters.ratios:
            in_all_layers(f, extra)
    result.add(f"dense, width {same_size}, equal size", "same_size", Plan(), extra, width=same_size)
    for budget in dict.fromkeys([extra, *parameters.dense_budgets]):
        if budget not in parameters.budgets:
            result.add("dense", "dense", Plan(), budget)
    batch: int = study.settings("dense", extra)["batch_size"]
    steps = study.steps(extra, Plan(), batch_size=batch)
    for f in parameters.equal_steps:
        label = f"all layers, f = {f:g}, dense's steps"
        result.add(label, "equal_steps", study.plan(f), extra, steps=steps, detail={"ratio": f})
    return result

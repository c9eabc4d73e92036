"""04: does choosing layers by sensitivity beat choosing at random, or the first five?"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Annotated, Literal

from pydantic import Field

from basisconv.controls import inverted_subset, random_subset
from basisconv.knapsack import choose_levels, select, select_by_threshold
from basisconv.plan import Plan
from basisconv.study.experiments import sensitivity
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.parameters import Positive, Share, Strict
from basisconv.study.experiments.sensitivity import Saving, savings, swept_layers
from basisconv.study.experiments.study import Study
from basisconv.study.records.run import Count, Method


class Parameters(Strict):
    """The selected subset and its controls, `draws` random ones of a run each.

    With a `target_time`, a share of dense's, the selected subset has the smallest predicted loss of
    those that take no longer, and the controls have that time. Without, it saves most within
    `loss_share` of what all layers together are predicted to lose, and the controls have its time.
    `threshold` is in nats of validation cross-entropy. The budget is in dense epochs: of time, or
    of steps where `equal` says epochs.
    """

    ratio: Share
    budget: Positive
    equal: Literal["time", "epochs"]
    target_time: Share | None
    loss_share: Annotated[float, Field(ge=0, le=1)]
    threshold: float
    save: Saving
    draws: Count


def draft(study: Study, parameters: Parameters, scores: Mapping[str, float] | None = None) -> Draft:
    """04: the selected subset of the layers that 03 swept against all, none and other subsets.

    The scores are those that 03 measured, unless others are given.
    """
    if scores is None:
        scores = sensitivity.scores(study)
    every = study.plan(parameters.ratio, swept_layers(study, study.profile.notebooks.sensitivity))
    candidates = every.only(list(scores))
    batch: int = study.settings("selected", parameters.budget)["batch_size"]
    saved = savings(study, candidates, parameters.save, batch_size=batch)
    time = savings(study, candidates, "time", batch_size=batch)
    if parameters.target_time is None:
        positive = sum(max(score, 0.0) for score in scores.values())
        chosen = select(scores, saved, parameters.loss_share * positive, candidates)
        target = 1 - sum(time[name] for name in chosen.layers)
    else:
        target = parameters.target_time
        chosen = least_loss(scores, time, target, candidates)
    # The controls have the selected subset's predicted time; where it took none of the layers
    # that save time, or all, there is no other subset of that time.
    useful = {name for name in scores if time[name] > 0}
    controls = bool(useful & chosen.layers.keys()) and bool(useful - chosen.layers.keys())
    facts = {
        **parameters.model_dump(exclude={"equal", "target_time"}), "scores": dict(scores),
        "selected": list(chosen.layers), "controls": controls,
    }  # fmt: skip
    result = Draft("04_selection", study, facts)
    dense, steps = study.cost(Plan(), batch_size=batch), None
    if parameters.equal == "epochs":
        steps = round(parameters.budget * (study.train_images // batch))
        result.facts["equal"] = "epochs"

    def add(label: str, method: Method, plan: Plan, seeds: list[int] | None = None) -> None:
        predicted = study.cost(plan, batch_size=batch) / dense
        result.add(
            label, method, plan, parameters.budget, steps=steps, seeds=seeds,
            detail={"layers": list(plan.layers), "predicted_time": predicted},
        )  # fmt: skip

    add("none (dense)", "dense", Plan())
    add("all", "basis", every)
    add("selected", "selected", chosen)
    add("threshold", "threshold", select_by_threshold(scores, parameters.threshold, candidates))
    add("first five", "first_five", every.only(list(every.layers)[:5]))
    if controls:
        drawn: dict[Plan, None] = {}
        for i in range(100):
            if len(drawn) < parameters.draws:
                plan = random_subset(time, 1.0, target, candidates, seed=i)
                drawn |= {plan: None} if plan != chosen else {}
        # A run each: what is asked is how subsets at random do, and another draw tells more of that
        # than another seed of a draw.
        seeds = cycle(study.seeds(result.name))
        for i, plan in enumerate(drawn):
            add(f"random {i + 1}", "random", plan, [next(seeds)])
        add("inverted", "inverted", inverted_subset(scores, time, 1.0, target, candidates))
    return result


def guess(study: Study) -> Draft:
    """The Runs as they would be if all layers were equally sensitive."""
    swept = swept_layers(study, study.profile.notebooks.sensitivity)
    return draft(study, study.profile.notebooks.selection, dict.fromkeys(swept, 1.0))


def least_loss(
    scores: Mapping[str, float], time: Mapping[str, float], target: float, candidates: Plan
) -> Plan:
    """The subset with the smallest predicted loss of those that take no longer than a target.

    Args:
        scores: predicted loss of each candidate; below zero counts as none.
        time: what each saves, as a share of dense's time.
        target: a share of dense's time.
        candidates: the plan to choose layers from.

    Raises:
        ValueError: if all of them together take longer.
    """
    levels = choose_levels(
        {name: {"dense": 0.0, "basis": max(score, 0.0)} for name, score in scores.items()},
        {name: {"dense": 0.0, "basis": -time[name]} for name in scores},
        target - 1,
    )
    return candidates.only([name for name in scores if levels[name] == "basis"])

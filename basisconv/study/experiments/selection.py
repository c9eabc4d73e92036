"""04: does choosing layers by sensitivity beat choosing at random, or the first five?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from basisconv.knapsack import inverted_subset, random_subset, select, select_by_threshold
from basisconv.plan import Plan
from basisconv.study.experiments import sensitivity
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.layer_sweep import savings
from basisconv.study.experiments.parameters import Positive, Share, Strict
from basisconv.study.records.run import Count, Method

if TYPE_CHECKING:
    from basisconv.study.experiments.study import Study


class Parameters(Strict):
    """The selected subset and its controls, `draws` random ones of a run each.

    `loss_share` is the budget of predicted loss, as a share of what all layers together are
    predicted to cost; `threshold` is in nats of validation cross-entropy.
    """

    ratio: Share
    budget: Positive
    loss_share: Annotated[float, Field(ge=0, le=1)]
    threshold: float
    save: Literal["time", "macs", "parameters"]
    draws: Count


def draft(study: Study, parameters: Parameters, scores: Mapping[str, float] | None = None) -> Draft:
    """04: the selected subset against all, none, random ones, the inverted one, the first five.

    The scores are those that 03 measured, unless others are given.
    """
    if scores is None:
        scores = sensitivity.scores(study)
    every = study.plan(parameters.ratio, study.layers)
    candidates = every.only(list(scores))
    batch = study.tuned("selected", parameters.budget).get("batch_size")
    saved = savings(study, candidates, parameters.save, batch_size=batch)
    time = savings(study, candidates, "time", batch_size=batch)
    positive = sum(max(score, 0.0) for score in scores.values())
    chosen = select(scores, saved, parameters.loss_share * positive, candidates)
    target = 1 - sum(time[name] for name in chosen.layers)
    # The controls have the selected subset's predicted time; where it took none of the layers
    # that save time, or all, there is no other subset of that time.
    useful = {name for name in scores if time[name] > 0}
    controls = bool(useful & chosen.layers.keys()) and bool(useful - chosen.layers.keys())
    facts = {
        **parameters.model_dump(),
        "scores": dict(scores),
        "selected": list(chosen.layers),
        "controls": controls,
    }
    result = Draft("04_selection", study, facts)
    dense = study.cost(Plan(), batch_size=batch)

    def add(label: str, method: Method, plan: Plan, seeds: list[int] | None = None) -> None:
        predicted = study.cost(plan, batch_size=batch) / dense
        result.add(
            label, method, plan, parameters.budget, seeds=seeds,
            detail={"layers": list(plan.layers), "predicted_time": predicted},
        )  # fmt: skip

    add("none (dense)", "dense", Plan())
    add("all", "basis", every)
    add("selected", "selected", chosen)
    add("threshold", "threshold", select_by_threshold(scores, parameters.threshold, candidates))
    add("first five", "first_five", every.only(study.layers[:5]))
    if controls:
        drawn: dict[Plan, None] = {}
        for i in range(100):
            if len(drawn) == parameters.draws:
                break
            plan = random_subset(time, 1.0, target, candidates, seed=i)
            if plan != chosen:
                drawn[plan] = None
        # A run each: what is asked is how subsets at random do, and a draw more tells more of that
        # than another seed of a draw.
        seeds = study.seeds(result.name)
        for i, plan in enumerate(drawn):
            add(f"random {i + 1}", "random", plan, [seeds[i % len(seeds)]])
        add("inverted", "inverted", inverted_subset(scores, time, 1.0, target, candidates))
    return result

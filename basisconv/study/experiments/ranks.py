"""08: a number of basis filters for each layer, against one share for all?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from basisconv.knapsack import choose_levels
from basisconv.plan import Plan
from basisconv.study.experiments import search
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.layer_scores import numbers_of
from basisconv.study.experiments.parameters import Positive, Share, Strict
from basisconv.study.experiments.proxies import Scores
from basisconv.study.experiments.sensitivity import Saving, savings
from basisconv.study.records.run import Count
from basisconv.study.timing.costs import Step

if TYPE_CHECKING:
    from basisconv.study.experiments.study import Study

NAME = "08_ranks"


class Parameters(Strict):
    """All layers at one of `ratios`, and plans with other numbers that cost no more.

    They have 07's levels in 07's layers. `proxy` is the cheap score that chooses as well as the
    screening, `save` what costs are of, and `seeds` how many of the profile's are taken, null for
    all.
    """

    ratios: Annotated[list[Share], Field(min_length=1)]
    epochs: Positive
    proxy: Literal["one shot", "response energy", "curvature", "relative error"]
    save: Saving
    seeds: Count | None


def draft(
    study: Study, parameters: Parameters, scores: Mapping[str, Scores] | None = None
) -> Draft:
    """08: dense, one share for all, and for its cost the plans with the least predicted loss.

    The scores are those of 07's screening, of the proxy and of singular values, unless others are
    given. All arms take dense's steps.

    Raises:
        Waiting: if 07's records, or what it measures, are not there.
    """
    own = study.profile.notebooks.search
    if scores is None:
        cheap = search.cheap_scores(study, own)
        scores = {
            "screening": search.screening_scores(study, own),
            parameters.proxy: cheap[parameters.proxy],
            "singular values": cheap["singular values"],
        }
    outputs = search.outputs(study)
    numbers = numbers_of(outputs, own.levels)
    batch: int = study.settings("selected", parameters.epochs)["batch_size"]
    steps = max(1, round(parameters.epochs * (study.train_images // batch)))
    counts = {
        name: [*own_numbers, *(study.plan(r, [name]).layers[name] for r in parameters.ratios)]
        for name, own_numbers in numbers.items()
    }
    kinds: set[Saving] = {"time", parameters.save}
    saved = {what: _saved(study, counts, what, batch) for what in kinds}
    result = Draft(NAME, study, {**parameters.model_dump(), "levels": own.levels})
    seeds = study.seeds(NAME, parameters.seeds)

    def add(label: str, method: Any, plan: Plan, detail: dict[str, Any]) -> None:
        predicted = 1 - sum(saved["time"][name][m] for name, m in plan.layers.items())
        told = {"predicted_time": predicted, "layers": dict(plan.layers), **detail}
        result.add(
            label, method, plan, parameters.epochs, steps=steps, seeds=seeds, detail=told,
        )  # fmt: skip

    add("dense", "dense", Plan(), {"way": "dense"})
    costs = {
        name: {0: 0.0, **{m: -saved[parameters.save][name][m] for m in numbers[name]}}
        for name in numbers
    }
    for ratio in parameters.ratios:
        every = study.plan(ratio, list(outputs))
        told = {"ratio": ratio}
        add(f"all layers, f = {ratio:g}", "basis", every, {**told, "way": "one share"})
        spent = -sum(saved[parameters.save][name][m] for name, m in every.layers.items())
        for way, each in scores.items():
            losses = {
                name: {0: 0.0, **{m: max(each[name][m], 0.0) for m in numbers[name]}}
                for name in numbers
            }
            chosen = choose_levels(losses, costs, spent)
            plan = Plan({name: m for name, m in chosen.items() if m})
            add(f"by {way}, for f = {ratio:g}", "selected", plan, {**told, "way": way})
    return result


def guess(study: Study) -> Draft:
    """The Runs as they would be if scores were drawn at random."""
    notebooks = study.profile.notebooks
    parameters = notebooks.ranks
    numbers = numbers_of(search.outputs(study), notebooks.search.levels)
    random = np.random.default_rng(0)
    made = {
        way: {name: dict(zip(own, np.sort(random.random(len(own))).tolist(), strict=True))
              for name, own in numbers.items()}
        for way in ("screening", parameters.proxy, "singular values")
    }  # fmt: skip
    return draft(study, parameters, made)


def priced_steps(study: Study) -> list[Step]:
    """The steps whose costs size and choose plans: each layer at each level, and all at a share."""
    notebooks = study.profile.notebooks
    parameters = notebooks.ranks
    batch: int = study.settings("selected", parameters.epochs)["batch_size"]
    numbers = numbers_of(search.outputs(study), notebooks.search.levels)
    every = [study.plan(ratio, list(numbers)) for ratio in parameters.ratios]
    single = [Plan({name: m}) for name, own in numbers.items() for m in own]
    single += [plan.only([name]) for plan in every for name in numbers]
    return [
        Step(plan, study.profile.width, batch, study.profile.training.optimizer)
        for plan in dict.fromkeys([Plan(), *every, *single])
    ]


def _saved(
    study: Study, counts: Mapping[str, list[int]], what: Saving, batch_size: int
) -> dict[str, dict[int, float]]:
    """What each layer saves with each number of basis filters, by `savings`."""
    return {
        name: {
            m: savings(study, Plan({name: m}), what, batch_size=batch_size)[name]
            for m in dict.fromkeys(own)
        }
        for name, own in counts.items()
    }

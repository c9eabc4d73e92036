"""03: which single layers hurt, and how sure is the ranking?

Each convolution alone in basis form next to dense, what each of them saves, and the scores that
the sweep gives to the layers.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from statistics import fmean
from typing import Any, Literal, get_args

from basisconv.plan import Plan
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.parameters import Positive, Share, Strict
from basisconv.study.experiments.study import Study
from basisconv.study.records.run import Count

Saving = Literal["time", "macs", "parameters"]
SAVINGS: tuple[Saving, ...] = get_args(Saving)


class Sweep(Strict):
    """One layer at a time, `epochs` passes over the training images.

    `train_images` and `width` are the profile's where they are null. `layers` are names or globs,
    null for every convolution; `seeds` is how many of the profile's are taken, null for all.
    """

    ratio: Share
    epochs: Positive
    train_images: Count | None
    width: Count | None
    layers: list[str] | None
    seeds: Count | None


Parameters = Sweep


def draft(study: Study, parameters: Sweep) -> Draft:
    """03: each convolution alone in basis form, for as many steps as dense."""
    study = study.part(parameters.train_images)
    facts = parameters.model_dump(exclude={"layers", "seeds"}) | {
        "train_images": study.train_images,
        "width": parameters.width or study.profile.width,
    }
    result = Draft("03_sensitivity", study, facts)
    add_layers(result, parameters, study.settings("dense", parameters.epochs))
    return result


def swept_layers(study: Study, setting: Sweep) -> list[str]:
    """The convolutions that a sweep puts into basis form, in forward order.

    Raises:
        ValueError: for a name or glob that no convolution matches.
    """
    wanted = ["*"] if setting.layers is None else setting.layers
    unknown = [glob for glob in wanted if not any(fnmatchcase(n, glob) for n in study.layers)]
    if unknown:
        raise ValueError(
            f"No convolution is called {', '.join(unknown)}. "
            f"Convolutions: {', '.join(study.layers)}."
        )
    return [name for name in study.layers if any(fnmatchcase(name, glob) for glob in wanted)]


def add_layers(
    draft: Draft, setting: Sweep, settings: dict[str, Any], detail: dict[str, Any] | None = None
) -> None:
    """Add dense and, for each layer, a network with that one in basis form.

    All take dense's steps and settings, and not equal time and their own: a sweep asks what the
    form costs in loss; what it saves is counted apart.

    Args:
        draft: gets the arms; its study has the training images of the setting.
        setting: what is swept.
        settings: learning rate and batch size of every Run.
        detail: what else to keep of each arm.

    Raises:
        ValueError: as `swept_layers`.
    """
    study, width = draft.study, setting.width or draft.study.profile.width
    batch_size: int = settings["batch_size"]
    common: dict[str, Any] = {
        "budget": setting.epochs, "width": width,
        "steps": max(1, round(setting.epochs * (study.train_images // batch_size))),
        "seeds": study.seeds(draft.name, setting.seeds), "changes": settings,
    }  # fmt: skip
    draft.add("dense", "dense", Plan(), detail=detail, **common)
    every = study.plan(setting.ratio, swept_layers(study, setting), width)
    saved = {f"{what}_saved": savings(study, every, what, width, batch_size) for what in SAVINGS}
    for name in every.layers:
        own = {"index": study.layers.index(name), **{what: saved[what][name] for what in saved}}
        draft.add(name, "layer", every.only([name]), detail=own | (detail or {}), **common)


def savings(
    study: Study, candidates: Plan, what: Saving, width: int | None = None,
    batch_size: int | None = None,
) -> dict[str, float]:  # fmt: skip
    """What each layer saves by itself: a share of the dense step's time, MACs, or parameters.

    Width and batch size are the profile's when not given.
    """
    dense = study.network_costs(Plan(), width)
    step = study.cost(Plan(), width, batch_size)

    def saved(plan: Plan) -> float:
        cost = study.network_costs(plan, width)
        if what == "time":
            return 1 - study.cost(plan, width, batch_size) / step
        if what == "macs":
            return dense.macs + dense.macs_backward - cost.macs - cost.macs_backward
        return dense.parameters - cost.parameters

    return {name: saved(candidates.only([name])) for name in candidates.layers}


def scores(study: Study) -> dict[str, float]:
    """Each layer's mean rise in last-step validation cross-entropy over dense of the same seeds.

    Seeds on which dense diverged say nothing. A layer that diverged where dense did not has no
    score: nothing is predicted of it, and it is no candidate.

    Raises:
        Waiting: if a Run of the sweep is missing or failed.
        ValueError: if no layer has a score.
    """
    sweep = draft(study, study.profile.notebooks.sensitivity)
    results = {i: r.result for i, r in sweep.records(sweep.arms).items()}
    reached = {i: None if result is None else result.val_loss for i, result in results.items()}
    losses = {arm.label: [reached[i] for i in arm.run_ids] for arm in sweep.arms}
    dense = losses.pop("dense")
    found: dict[str, float] = {}
    for name, values in losses.items():
        pairs = [(a, b) for a, b in zip(values, dense, strict=True) if b is not None]
        rises = [a - b for a, b in pairs if a is not None]
        if rises and len(rises) == len(pairs):
            found[name] = fmean(rises)
    if not found:
        raise ValueError(
            f"The sweep of {sweep.name} diverged, dense or every layer: no layer has a score to "
            f"select by. Lower the profile's training.learning_rate."
        )
    return found

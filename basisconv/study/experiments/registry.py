"""Each notebook's Runs for a profile, as drafts of labelled arms; training is `sections`' work.

02 to 05 are the paper's experiments. 04 selects by what 03 measured, so its draft needs 03's
records and says `Waiting` without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any, get_args

from basisconv.plan import Plan
from basisconv.search import inverted_subset, random_subset, select, select_by_threshold
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.layer_sweep import add_layers, savings
from basisconv.study.experiments.named_arms import add_comparison
from basisconv.study.experiments.parameters import (
    AllLayers,
    Baseline,
    Comparisons,
    Direction,
    Selection,
    Sensitivity,
    Skip,
    SkipTraining,
    check_parameters,
)
from basisconv.study.experiments.pilot import pilot
from basisconv.study.experiments.study import Study
from basisconv.study.experiments.variants import defaults, widths
from basisconv.study.records.run import Method


class Waiting(LookupError):
    """An experiment needs records that are not there yet; `needs` names whose."""

    def __init__(self, needs: str) -> None:
        super().__init__(f"waits for the records of {needs}")
        self.needs = needs


def draft(study: Study, name: str, parameters: Mapping[str, Any] | None = None) -> Draft:
    """A notebook's arms and Runs, nothing trained.

    Args:
        study: the profile's study.
        name: the notebook, one of `DRAFTS`.
        parameters: the notebook's parameters; the profile's by default.

    Raises:
        ValueError: for an unknown notebook or parameters that do not fit.
        Waiting: if it builds on another's records and these are missing.
    """
    given = study.profile.parameters(name) if parameters is None else dict(parameters)
    return DRAFTS[name](study, check_parameters(name, given))


def baseline(study: Study, parameters: Baseline) -> Draft:
    """01: dense, for its longest budget."""
    cost = study.network_costs(Plan())
    result = Draft("01_baseline", study)
    result.add("dense", "dense", Plan(), parameters.epochs)
    run = next(iter(result.runs.values()))
    result.facts = {
        "parameters": cost.parameters,
        "macs": cost.macs,
        # Another batch than the budget's makes other epochs of the same time.
        "epochs": round(run.steps / (study.train_images // run.batch_size), 2),
        "train_images": study.train_images,
    }
    return result


def comparisons(study: Study, parameters: Comparisons) -> Draft:
    """02: arms at equal epochs and at equal time, under each recipe."""
    result = Draft("02_all_layers", study, parameters.model_dump())
    for part, settings in (
        ("equal epochs", parameters.equal_epochs),
        ("equal time", parameters.equal_time),
    ):
        for setting in settings:
            add_comparison(result, setting, part, parameters.ratio, parameters.selected)
    return result


def all_layers(study: Study, parameters: AllLayers | Comparisons) -> Draft:
    """02: the frontier of accuracy over training time."""
    if isinstance(parameters, Comparisons):
        return comparisons(study, parameters)
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
    batch = study.tuned("dense", extra).get("batch_size")
    steps = study.steps(extra, Plan(), batch_size=batch)
    for f in parameters.equal_steps:
        label = f"all layers, f = {f:g}, dense's steps"
        result.add(label, "equal_steps", study.plan(f), extra, steps=steps, detail={"ratio": f})
    return result


def sensitivity(study: Study, parameters: Sensitivity) -> Draft:
    """03: each convolution alone in basis form, for as many steps as dense."""
    study = study.part(parameters.train_images)
    settings = study.profile.training.model_dump() | study.tuned("dense", parameters.epochs)
    facts = parameters.model_dump() | {
        "train_images": study.train_images,
        "width": parameters.width or study.profile.width,
    }
    result = Draft("03_sensitivity", study, facts)
    add_layers(result, parameters, settings)
    return result


def selection(
    study: Study, parameters: Selection, scores: Mapping[str, float] | None = None
) -> Draft:
    """04: the selected subset against all, none, random ones, the inverted one, the first five.

    The scores are those that 03 measured, unless others are given.
    """
    if scores is None:
        scores = sensitivity_scores(study)
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


def skip_training(study: Study, parameters: SkipTraining) -> Draft:
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
            told = [value for value in changes.values() if value not in ("fresh", "one")]
            skip = Skip(direction=direction, switch=point, **changes)
            result.add_skip(
                f"{skip.label}, {', '.join(told)}", skip, every, parameters.budget,
                seeds=seeds, detail=skip.model_dump(),
            )  # fmt: skip
    return result


def sensitivity_scores(study: Study) -> dict[str, float]:
    """Each layer's mean rise in last-step validation cross-entropy over dense of the same seeds.

    Seeds on which dense diverged say nothing. A layer that diverged where dense did not has no
    score: nothing is predicted of it, and it is no candidate.

    Raises:
        Waiting: if a Run of the sweep is missing or failed.
        ValueError: if no layer has a score.
    """
    sweep = draft(study, "03_sensitivity")
    losses: dict[str, list[float | None]] = {}
    for arm in sweep.arms:
        records = [study.store.get(run_id) for run_id in arm.run_ids]
        if any(record is None or record.status == "failed" for record in records):
            raise Waiting(sweep.name)
        results = [record.result for record in records if record is not None]
        losses[arm.label] = [None if result is None else result.val_loss for result in results]
    dense = losses.pop("dense")
    scores: dict[str, float] = {}
    for name, values in losses.items():
        pairs = [(a, b) for a, b in zip(values, dense, strict=True) if b is not None]
        rises = [a - b for a, b in pairs if a is not None]
        if rises and len(rises) == len(pairs):
            scores[name] = fmean(rises)
    if not scores:
        raise ValueError(
            f"The sweep of {sweep.name} diverged, dense or every layer: no layer has a score to "
            f"select by. Lower the profile's training.learning_rate."
        )
    return scores


# In the order in which they are trained: the pilot first, for the others' settings come from it.
DRAFTS: dict[str, Callable[[Study, Any], Draft]] = {
    "01b_pilot": pilot,
    "01_baseline": baseline,
    "02_all_layers": all_layers,
    "03_sensitivity": sensitivity,
    "04_selection": selection,
    "05_skip_training": skip_training,
    "05b_defaults": defaults,
    "02b_widths": widths,
}

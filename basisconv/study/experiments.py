"""Each notebook's Runs for a profile, as drafts of labelled arms; training is `sections`' work.

02 to 05 are the paper's experiments. 04 selects by what 03 measured, so its draft needs 03's
records and says `Waiting` without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from basisconv.plan import Plan
from basisconv.search import inverted_subset, random_subset, select, select_by_threshold
from basisconv.study.profiles import (
    AllLayers,
    Baseline,
    Selection,
    Sensitivity,
    SkipTraining,
    check_parameters,
)
from basisconv.study.protocol import Draft, Study
from basisconv.study.run import Method


class Waiting(LookupError):
    """An experiment needs records that are not there yet; `needs` names whose."""

    def __init__(self, needs: str) -> None:
        super().__init__(f"waits for the records of {needs}")
        self.needs = needs


def draft(study: Study, name: str, parameters: Mapping[str, Any] | None = None) -> Draft:
    """A notebook's arms and Runs, nothing trained.

    Args:
        study: the profile's study.
        name: the notebook, "01_baseline" to "05_skip_training".
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
    facts = {
        "parameters": cost.parameters,
        "macs": cost.macs,
        "epochs": parameters.epochs,
        "train_images": study.train_images,
    }
    result = Draft("01_baseline", study, facts)
    result.add("dense", "dense", Plan(), parameters.epochs)
    return result


def all_layers(study: Study, parameters: AllLayers) -> Draft:
    """02: the frontier of accuracy over training time."""
    ratio, share = parameters.ratio, parameters.skip_switch
    every, first_five = study.plan(ratio), study.plan(ratio, study.layers[:5])
    narrow = study.narrow_width(every)
    facts = {"ratio": ratio, "skip_switch": share, "narrow_width": narrow}
    result = Draft("02_all_layers", study, facts)
    one = {"ratio": ratio}
    for budget in parameters.budgets:
        result.add("dense", "dense", Plan(), budget)
        for f in parameters.ratios:
            result.add(
                f"all layers, f = {f:g}", "basis", study.plan(f), budget, detail={"ratio": f}
            )
        result.add(f"first five, f = {ratio:g}", "first_five", first_five, budget, detail=one)
        phases = [(share, every), (1 - share, Plan())]
        result.add(f"skip, f = {ratio:g}", "skip", phases, budget, detail=one)
        result.add(f"dense, width {narrow}", "narrow", Plan(), budget, width=narrow)
    return result


def sensitivity(study: Study, parameters: Sensitivity) -> Draft:
    """03: each convolution alone in basis form, for as many steps as dense.

    Equal steps and not equal time: the sweep asks what the form costs in loss; what it saves
    is counted apart.
    """
    result = Draft("03_sensitivity", study, parameters.model_dump())
    result.add("dense", "dense", Plan(), parameters.epochs)
    for index, name in enumerate(study.layers):
        plan = study.plan(parameters.ratio, [name])
        saved = {f"{what}_saved": savings(study, plan, what)[name] for what in SAVINGS}
        result.add(
            name, "layer", plan, parameters.epochs, equal_steps=True,
            detail={"index": index, **saved},
        )  # fmt: skip
    return result


def selection(study: Study, parameters: Selection) -> Draft:
    """04: the selected subset against all, none, random ones and the inverted one."""
    scores = sensitivity_scores(study)
    every = study.plan(parameters.ratio, study.layers)
    candidates = every.only(list(scores))
    saved = savings(study, candidates, parameters.save)
    time_of_every = savings(study, every, "time")
    time = {name: time_of_every[name] for name in scores}
    positive = sum(max(score, 0.0) for score in scores.values())
    chosen = select(scores, saved, parameters.loss_share * positive, candidates)
    step = study.cost(Plan())
    target = step - sum(time[name] for name in chosen.layers)
    arms: list[tuple[str, Method, Plan]] = [
        ("none (dense)", "dense", Plan()),
        ("all", "basis", every),
        ("selected", "selected", chosen),
        ("threshold", "threshold", select_by_threshold(scores, parameters.threshold, candidates)),
    ]
    # The controls have the selected subset's predicted time; where it took none of the layers
    # that save time, or all, there is no other subset of that time.
    useful = {name for name in scores if time[name] > 0}
    controls = bool(useful & chosen.layers.keys()) and bool(useful - chosen.layers.keys())
    if controls:
        draws = (random_subset(time, step, target, candidates, seed=i) for i in range(50))
        distinct = [plan for plan in dict.fromkeys(draws) if plan != chosen]
        arms += [
            (f"random {i + 1}", "random", plan)
            for i, plan in enumerate(distinct[: parameters.draws])
        ]
        arms.append(
            ("inverted", "inverted", inverted_subset(scores, time, step, target, candidates))
        )
    facts = {
        **parameters.model_dump(),
        "scores": scores,
        "selected": list(chosen.layers),
        "controls": controls,
    }
    result = Draft("04_selection", study, facts)
    for label, method, plan in arms:
        predicted = step - sum(time_of_every[name] for name in plan.layers)
        result.add(
            label, method, plan, parameters.budget,
            detail={"layers": list(plan.layers), "predicted_time": predicted},
        )  # fmt: skip
    return result


def skip_training(study: Study, parameters: SkipTraining) -> Draft:
    """05: basis and then dense, or the reverse, at several switch points.

    Both carries at every switch point; the other switches of the protocol one at a time, at the
    middle point.
    """
    every = study.plan(parameters.ratio)
    result = Draft("05_skip_training", study, parameters.model_dump())
    result.add("dense", "dense", Plan(), parameters.budget)
    result.add("basis", "basis", every, parameters.budget)
    middle = parameters.switches[len(parameters.switches) // 2]
    usual = {"carry": str(parameters.carries[0]), "momentum_carry": "fresh", "schedule": "one"}
    variants = [(s, usual | {"carry": c}) for s in parameters.switches for c in parameters.carries]
    others = [{"momentum_carry": str(m)} for m in parameters.momentum]
    others += [{"schedule": str(s)} for s in parameters.schedules]
    variants += [(middle, usual | other) for other in others if usual | other != usual]
    directions = {"basis→dense": (every, Plan()), "dense→basis": (Plan(), every)}
    for direction, (first, second) in directions.items():
        for point, changes in variants:
            told = [value for value in changes.values() if value not in ("fresh", "one")]
            result.add(
                f"{direction} at {point:g}, {', '.join(told)}", "skip",
                [(point, first), (1 - point, second)], parameters.budget,
                detail={"direction": direction, "switch": point, **changes}, changes=changes,
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


SAVINGS = ("time", "macs", "parameters")


def savings(study: Study, candidates: Plan, what: str) -> dict[str, float]:
    """What each layer saves by itself: a share of the dense step's time, MACs, or parameters."""
    dense = study.network_costs(Plan())
    step = study.cost(Plan())
    saved: dict[str, float] = {}
    for name in candidates.layers:
        plan = candidates.only([name])
        cost = study.network_costs(plan)
        saved[name] = {
            "time": step - study.cost(plan),
            "macs": dense.macs + dense.macs_backward - cost.macs - cost.macs_backward,
            "parameters": dense.parameters - cost.parameters,
        }[what]
    return saved


DRAFTS: dict[str, Callable[[Study, Any], Draft]] = {
    "01_baseline": baseline,
    "02_all_layers": all_layers,
    "03_sensitivity": sensitivity,
    "04_selection": selection,
    "05_skip_training": skip_training,
}

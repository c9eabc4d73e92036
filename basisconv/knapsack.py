"""Exact programs: which of the candidate layers go into basis form, and on which level.

A layer's *score* is its sensitivity, the rise in loss when that layer alone is in basis form;
its *saving* is the time (or MACs, or parameters) that this saves. Both are taken to add up over
layers. A score below zero is noise, and counts as no loss rather than as a gain to be spent:

    predicted loss = Σ max(score, 0)        predicted time = total - Σ saving

Layers that save nothing are chosen by the threshold alone, and a plan that comes back has the
candidates' form, n_basis and modes. Subsets are exact (integer programs), and
where two are equally good a second criterion, stated with each, decides: a plan names runs, so it
must not depend on the solver. `choose_levels` takes one of several levels for each layer.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from basisconv.plan import Plan
from basisconv.program import Floats, Subset, fits, solve, total_of

Level = TypeVar("Level", bound=Hashable)
GAP = 1e-4  # of the loss of chosen levels; that of a large network takes minutes to close


def select(
    scores: Mapping[str, float], savings: Mapping[str, float], budget: float, candidates: Plan
) -> Plan:
    """The layers that save most within a budget of predicted loss: an exact knapsack.

    Of subsets that save the same, the one with the smaller predicted loss.

    Args:
        scores: sensitivity of each candidate.
        savings: what each candidate saves, in any one unit; it may be zero or negative.
        budget: the most that the predicted loss may be, in the scores' unit.
        candidates: the plan to choose layers from.

    Returns:
        `candidates` restricted to the chosen layers; dense where none fits.

    Raises:
        ValueError: if scores or savings miss a candidate, name another layer or hold a value
            that is not finite, or if the budget is negative or not finite.
        ImportError: if scipy is not installed.
    """
    check_values("scores", scores, candidates)
    names, saving = useful(savings, candidates)
    loss = counted_losses(scores, names)
    check_number("budget", budget, least=0)
    if not names:
        return candidates.only([])
    bounds = [(loss, 0.0, budget)]
    best = solve(saving, bounds)
    assert best is not None  # nothing at all fits every budget
    kept = solve(-loss, [*bounds, (saving, total_of(saving, best), math.inf)])
    return candidates.only(chosen_names(names, best if kept is None else kept))


def select_by_threshold(scores: Mapping[str, float], threshold: float, candidates: Plan) -> Plan:
    """The paper's rule: every layer whose score is at most a threshold.

    Raises:
        ValueError: as `select`, and if the threshold is not finite.
    """
    check_values("scores", scores, candidates)
    if not math.isfinite(threshold):
        raise ValueError(f"threshold={threshold} must be a finite number.")
    return candidates.only([name for name in candidates.layers if scores[name] <= threshold])


def choose_levels(
    losses: Mapping[str, Mapping[Level, float]],
    costs: Mapping[str, Mapping[Level, float]],
    budget: float,
) -> dict[str, Level]:
    """One level for each layer, with the smallest Σ loss whose Σ cost is within a budget.

    A multiple-choice knapsack (Sinha & Zoltners, 1979), solved to within 1e-4 of the smallest loss.
    Of levels of one layer with the same loss it takes the cheapest.

    Args:
        losses: of each layer, the loss on each of its levels, in any one unit; may be negative.
        costs: the same levels, each with its cost.
        budget: the most that the costs may add up to, in their unit.

    Raises:
        ValueError: if layers or levels differ between losses and costs, a layer has no level, a
            number is not finite, or no choice is within the budget; the message gives the least
            that the costs add up to.
        ImportError: if scipy is not installed.
    """
    if losses.keys() != costs.keys():
        raise ValueError(
            f"losses name {list(losses)} and costs {list(costs)}: not the same layers."
        )
    for name, levels in losses.items():
        if not levels or levels.keys() != costs[name].keys():
            raise ValueError(
                f"{name}: losses and costs need the same levels, at least one, not {list(levels)} "
                f"and {list(costs[name])}."
            )
        if not all(map(math.isfinite, (*levels.values(), *costs[name].values()))):
            raise ValueError(f"{name}: losses and costs must be finite numbers.")
    check_number("budget", budget, least=-math.inf)
    if not losses:
        if budget < 0:
            raise ValueError(f"No choice is within budget={budget:g}: without layers it costs 0.")
        return {}
    pairs: list[tuple[str, Level]] = []
    groups: list[list[int]] = []
    for name in losses:
        efficient = _efficient(losses[name], costs[name])
        groups.append(list(range(len(pairs), len(pairs) + len(efficient))))
        pairs += [(name, level) for level in efficient]
    loss = np.array([float(losses[name][level]) for name, level in pairs])
    cost = np.array([float(costs[name][level]) for name, level in pairs])
    cheapest = tuple(i == group[0] for group in groups for i in group)
    bound = cost, -math.inf, budget
    if not fits(cheapest, bound):
        raise ValueError(
            f"No choice is within budget={budget:g}: the cheapest levels add up to "
            f"{total_of(cost, cheapest):g}."
        )
    best = solve(-loss, [bound], groups, GAP)
    return dict(pair for pair, chosen in zip(pairs, best or cheapest, strict=True) if chosen)


def _efficient(losses: Mapping[Level, float], costs: Mapping[Level, float]) -> list[Level]:
    """The levels that no other one is as cheap and as good as, the cheapest first."""
    kept: list[Level] = []
    for level in sorted(losses, key=lambda level: (costs[level], losses[level])):
        if not kept or losses[level] < losses[kept[-1]]:
            kept.append(level)
    return kept


def useful(savings: Mapping[str, float], candidates: Plan) -> tuple[list[str], Floats]:
    """Names and savings of the candidates that save something; ValueError as `check_values`."""
    check_values("savings", savings, candidates)
    names = [name for name in candidates.layers if savings[name] > 0]
    return names, np.array([float(savings[name]) for name in names])


def counted_losses(scores: Mapping[str, float], names: Sequence[str]) -> Floats:
    """max(score, 0) of each name."""
    return np.array([max(float(scores[name]), 0.0) for name in names])


def chosen_names(names: Sequence[str], subset: Subset) -> list[str]:
    """The names that a subset holds."""
    return [name for name, chosen in zip(names, subset, strict=True) if chosen]


def check_values(what: str, values: Mapping[str, float], candidates: Plan) -> None:
    """Raise ValueError unless there is a finite value for each candidate and for nothing else."""
    known = list(candidates.layers)
    missing = [name for name in known if name not in values]
    unknown = [name for name in values if name not in candidates.layers]
    if missing or unknown:
        raise ValueError(
            f"{what} must name the candidates exactly: missing {missing}, unknown {unknown}. "
            f"Candidates: {', '.join(known) or 'none'}."
        )
    bad = [f"{name}={values[name]}" for name in known if not math.isfinite(values[name])]
    if bad:
        raise ValueError(f"{what} must be finite numbers; these are not: {', '.join(bad)}.")


def check_number(what: str, value: float, least: float) -> None:
    """Raise ValueError unless a value is finite and at least `least`."""
    if not (math.isfinite(value) and value >= least):
        raise ValueError(f"{what}={value} must be a finite number of at least {least:g}.")

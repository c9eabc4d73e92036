"""What a search chooses from: numbers of basis filters for each layer, and what they cost."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from torch import nn

from basisconv.allocation.costs import DENSE, Costs, Level, interpolated
from basisconv.allocation.losses import Score
from basisconv.cost import Summary
from basisconv.plan import Plan
from basisconv.planning import Match, matching, named
from basisconv.responses.batches import check_reached
from basisconv.surgery import convolutions, untouchable
from basisconv.validity import whole

What = Literal["macs", "parameters"]
Numbers = dict[str, list[int]]


def filter_numbers(
    model: nn.Module,
    count: Callable[[Plan], Summary],
    layers: Match | None,
    empty: Plan,
    what: What,
) -> tuple[Numbers, Costs]:
    """The numbers of basis filters with which layers are cheaper than dense, and all counted costs.

    Args:
        model: the network, with dense layers.
        count: costs of the network with a plan, as of `cost.counter`.
        layers: as `search` takes it.
        empty: a plan without layers, of the wanted form.
        what: counts as cost: executed multiplications of a forward pass, or parameters.

    Raises:
        ValueError: if a pattern matches no layer, a layer that is named must stay dense, is not
            reached or gets cheaper with no number, or none is left.

    Warns:
        UserWarning: of layers that must stay dense.
    """
    found = convolutions(model)
    wanted = matching(found, layers, "layers") if layers is not None else set(found)
    asked = named(layers, wanted) if not callable(layers) else set[str]()
    barred = untouchable(model, {name: conv for name, conv in found.items() if name in wanted})
    for name in asked & barred.keys():
        raise ValueError(f"{name} cannot be put in basis form: {barred[name]}.")
    stay = [f"{name}: {why}" for name, why in barred.items()]
    if stay and len(stay) == len(wanted):
        more = f"; and {len(stay) - 3} more" if len(stay) > 3 else ""
        raise ValueError(f"No layer can be put in basis form. {'; '.join(stay[:3])}{more}.")
    dense = count(Plan({}))
    reached = {row.name for row in dense.rows}
    check_reached(sorted(asked - reached or (set() if wanted & reached else wanted)))
    numbers: Numbers = {}
    for name, conv in found.items():
        blocks = int(conv.groups) * empty.coef_groups
        # Of narrow layers an eighth, for 8 would leave hardly a choice; what is cheaper decides.
        step = math.lcm(min(8, max(1, int(conv.out_channels) // 8)), blocks)
        if name in wanted & reached - barred.keys() and conv.out_channels % blocks == 0:
            numbers[name] = list(range(step, int(conv.out_channels), step))
    levels = _counted(count, dense, numbers, empty, what)
    for name, own in levels.items():
        numbers[name] = [m for m in numbers[name] if own[m] < own[DENSE]]
    numbers = {name: own for name, own in numbers.items() if own}
    if missing := sorted(asked - numbers.keys()):
        raise ValueError(
            f"With none of the numbers of basis filters that are tried are there fewer "
            f"{_NOUNS[what]} in {', '.join(missing)}."
        )
    if not numbers:
        raise ValueError(
            f"No layer has fewer {_NOUNS[what]} than dense with any number of basis filters that "
            f"is tried: there is nothing to search."
        )
    if stay:
        warnings.warn(f"Left dense: {'; '.join(stay)}.", stacklevel=3)
    prices = {name: levels[name] for name in numbers}
    whole_network = dense.parameters if what == "parameters" else dense.macs
    return numbers, Costs(prices, whole_network - sum(own[DENSE] for own in prices.values()))


_NOUNS = {"macs": "multiplications", "parameters": "parameters"}


def _counted(
    count: Callable[[Plan], Summary],
    dense: Summary,
    numbers: Mapping[str, Sequence[int]],
    empty: Plan,
    what: What,
) -> dict[str, dict[Level, float]]:
    """Each layer's count with each of its numbers, in as many counts as the longest list has."""
    levels: dict[str, dict[Level, float]] = {
        row.name: {DENSE: getattr(row, what)} for row in dense.rows if row.name in numbers
    }
    for k in range(max(map(len, numbers.values()), default=0)):
        filters = {name: own[k] for name, own in numbers.items() if k < len(own)}
        rows = {row.name: row for row in count(_with(empty, filters)).rows}
        for name, m in filters.items():
            levels[name][m] = getattr(rows[name], what)
    return levels


def _with(empty: Plan, filters: Mapping[str, int]) -> Plan:
    return Plan(filters, empty.form, empty.coef_groups)


def given_costs(
    model: nn.Module,
    costs: Mapping[str, Mapping[Level, float]],
    numbers: Numbers,
    layers: Match | None,
) -> Costs:
    """Other people's seconds, as `search` takes them, for the numbers that lie between them.

    Raises:
        ValueError: for names that are no module's, layers without "dense", values that are not
            numbers of a fitting kind, and layers that are named but missing.
    """
    modules = dict(model.named_modules())
    found = convolutions(model)
    rest, prices = 0.0, dict[str, dict[Level, float]]()
    for name, own in costs.items():
        if name not in modules:
            raise ValueError(f"costs name {name!r}, which is no layer of the model.")
        points = {m: float(seconds) for m, seconds in own.items() if m != DENSE}
        if DENSE not in own or not all(math.isfinite(c) and c >= 0 for c in own.values()):
            raise ValueError(
                f"costs of {name} must be seconds of at least 0, that of {DENSE!r} among them, not "
                f"{dict(own)}."
            )
        if name in found:
            _check_filters("costs", name, points, found[name].out_channels)
        if name not in numbers or not points:
            rest += float(own[DENSE])
            continue
        between = [m for m in numbers[name] if min(points) <= m <= max(points)]
        prices[name] = {DENSE: float(own[DENSE]), **interpolated(points, between)}
    asked = named(layers, set(numbers)) if not callable(layers) else set[str]()
    if missing := sorted(asked - costs.keys()):
        raise ValueError(f"costs have nothing of {', '.join(missing)}.")
    return Costs(prices, rest)


def cheaper(costs: Costs, numbers: Numbers, where: str) -> Costs:
    """The same with those numbers alone that are cheaper than dense.

    Raises:
        ValueError: if no layer has one, `where` being the place where none has.
    """
    layers = {
        name: {DENSE: own[DENSE]}
        | {m: own[m] for m in numbers.get(name, []) if m in own and own[m] < own[DENSE]}
        for name, own in costs.layers.items()
    }
    if all(len(own) == 1 for own in layers.values()):
        raise ValueError(
            f"No layer gets faster in basis form {where}, so no plan can make the network faster: "
            f"with two smaller convolutions in its place, each takes as long as dense or longer."
        )
    return Costs(layers, costs.rest)


def check_scores(model: nn.Module, scores: Mapping[str, Score], numbers: Numbers) -> Numbers:
    """The numbers that scores have a loss for; layers with none are left out.

    Raises:
        ValueError: for names that are no convolution's, candidates without a score, values that
            are no losses, and if no layer is left.
    """
    if not scores:
        return numbers
    found = convolutions(model)
    unknown = [name for name in scores if name not in found]
    missing = [name for name in numbers if name not in scores]
    if unknown or missing:
        raise ValueError(
            f"scores must name all candidates: missing {missing}, unknown {unknown}. Candidates: "
            f"{', '.join(numbers)}."
        )
    known: Numbers = {}
    for name, score in scores.items():
        values = list(score.values()) if isinstance(score, Mapping) else [score]
        if not values or not all(math.isfinite(value) for value in values):
            raise ValueError(f"scores of {name} must be finite numbers, not {score!r}.")
        if isinstance(score, Mapping):
            _check_filters("scores", name, score, found[name].out_channels)
        if name in numbers:
            least = min(score) if isinstance(score, Mapping) else 0
            known[name] = [m for m in numbers[name] if m >= least]
    if not any(known.values()):
        raise ValueError("With the numbers of filters that scores= has, no layer is cheaper.")
    return {name: known[name] for name in numbers if known[name]}


def _check_filters(what: str, name: str, points: Mapping[int, float], rows: int) -> None:
    for m in points:
        if not 1 <= (whole(m) or 0) <= rows:
            raise ValueError(f"{what} of {name}: {m!r} is no number of filters from 1 to {rows}.")

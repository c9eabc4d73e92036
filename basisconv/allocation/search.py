"""search: which layers of a trained network get basis filters, and how many, within a budget.

plan = bc.search(model, data, budget="time=0.6")
print(plan.report)
small = bc.apply_plan(model, plan, init="responses", data=data)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from basisconv.allocation.budget import Budget, Clock, solve
from basisconv.allocation.candidates import What, cheaper, check_scores, filter_numbers, given_costs
from basisconv.allocation.costs import DENSE, Bench, Costs, Level, measure_costs
from basisconv.allocation.losses import Score, change, outputs_of, predict
from basisconv.allocation.report import LayerChoice, SearchReport
from basisconv.cost import Summary, counter
from basisconv.decompose import Form
from basisconv.layer import MODES, BasisConv2d
from basisconv.observe import Forward, Input, arguments
from basisconv.plan import Plan
from basisconv.planning import Match
from basisconv.program import scipy_optimize
from basisconv.responses.batches import check_whole, held_out, take_batches
from basisconv.surgery import check_replaceable, convolutions, swapped


def search(
    model: nn.Module,
    data: object,
    budget: str,
    layers: Match | None = None,
    form: Form = "subset",
    coef_groups: int = 1,
    input: Input | None = None,
    samples: int = 512,
    forward: Forward | None = None,
    costs: Mapping[str, Mapping[Level, float]] | None = None,
    measure: Callable[[nn.Module], float] | None = None,
    scores: Mapping[str, Score] | None = None,
) -> Plan:
    """The plan with the smallest predicted loss within a budget, for a trained network.

    For each layer it decides whether it gets basis filters, and how many of them: a multiple of 8,
    or of an eighth of its outputs where that is less, and of groups · coef_groups, with which it is
    cheaper than dense. Losses add up over layers, and so do costs (see `losses.py` and `costs.py`
    in `basisconv/allocation`), so that the choice is a multiple-choice knapsack, solved exactly. It
    does not judge whether a loss is acceptable: `print(plan.report)` shows what each layer costs,
    saves and is predicted to lose.

    Costs in time are those of a forward pass in evaluation mode, eager, on the model's device, with
    today's number of threads, in its dtype and memory format. The chosen plan is timed against
    dense, interleaved; where it misses the budget by more than 2 %, the target is scaled and the
    plan chosen again, at most three times.

    Args:
        model: the network; layers in basis form count as dense ones. It is left as it was.
        data: an iterable of batches, a tensor or a mapping. A batch is a tensor, a mapping
            (`model(**batch)`), or a tuple or list that begins with one, as of a DataLoader. Labels
            are not used.
        budget: "time=0.6", "macs=0.6" or "parameters=0.6": that share of what the whole dense
            network takes.
        layers: globs and names, or `callable(name, conv) -> bool`: the candidates; None for all
            convolutions, the stem and 1×1 ones included.
        form: "subset" or "full".
        coef_groups: as in `Plan`.
        input: what is timed and counted, as `summary` takes it (with `forward`, a batch); by
            default the first batch.
        samples: the most that are taken of `data`, and held.
        forward: calls the model otherwise, `forward(model, batch)`.
        costs: seconds measured elsewhere, `{layer: {n_basis or "dense": seconds}}`, in place of
            measuring; linear in between. A name with "dense" alone is no candidate, and adds to
            what all plans cost. The same input then gives the same plan, for nothing is timed
            unless `measure` is given.
        measure: seconds of a forward pass of a model that it is given, for the last check, as by
            another runtime.
        scores: losses known otherwise, for every candidate: `{layer: {n_basis: loss}}`, linear in
            between and down to 0 for all filters, in any one unit; or one number a layer, which
            weighs the share of its responses' energy that is lost.

    Returns:
        The plan, with modes and a `report`. "rebuilt" is a mode of plans for parameters alone,
        where that executes fewer multiplications.

    Raises:
        TypeError: for data or an input of no such kind.
        ValueError: if the budget is unknown or no plan meets it (the message has the nearest that
            can be had); if no layer gets cheaper at all; for arguments that do not fit, data
            without a batch, a layer asked for that the data do not reach or that must stay dense,
            a model on several devices, and responses, outputs or kernels that are not finite.
        ImportError: if scipy is not installed.

    Warns:
        UserWarning: of layers that must stay dense, of data that were left, and if the plan
            misses the time by more than 2 % after the last try.
    """
    wanted = Budget.read(budget)
    scipy_optimize()  # without which all that is measured would be in vain
    if wanted.kind != "time" and (costs is not None or measure is not None):
        raise ValueError(f"costs= and measure= are of time, and the budget is {budget!r}.")
    empty = Plan({}, form, coef_groups)
    if isinstance(model, BasisConv2d):
        raise ValueError("The model is itself a BasisConv2d: a search chooses among layers.")
    check_whole(model)
    device = _device(model)
    basis = {n: c for n, c in convolutions(model).items() if isinstance(c, BasisConv2d)}
    check_replaceable(model, basis)
    batches = take_batches(data, samples, forward)
    given = batches[0] if input is None else input
    given = arguments(model, given) if forward is None else given
    given = tree_map_only(Tensor, torch.clone, given)  # for models that write to their input
    with swapped(model, {conv: conv.to_conv2d() for conv in basis.values()}):
        count = counter(model, given, forward)
        what: What = "parameters" if wanted.kind == "parameters" else "macs"
        numbers, prices = filter_numbers(model, count, layers, empty, what)
        numbers = check_scores(model, scores or {}, numbers)
        clock = None
        if wanted.kind == "time":
            bench = Bench(model, given, forward, device, empty)
            clock = Clock(bench, measure) if costs is None or measure is not None else None
            prices = (
                measure_costs(bench, numbers)
                if costs is None
                else given_costs(model, costs, numbers, layers)
            )
            if costs is not None and clock is not None:
                rest = clock.dense() - prices.total({}) + prices.rest
                prices = Costs(prices.layers, max(0.0, rest))
        prices = cheaper(prices, numbers, "on this machine" if costs is None else "by costs=")
        wanted.check(prices)
        numbers = {name: [m for m in own if m != DENSE] for name, own in prices.layers.items()}
        held = held_out(len(batches))
        fitted = [batch for i, batch in enumerate(batches) if i not in held]
        unseen = [batches[i] for i in sorted(held)]
        losses, found = predict(model, fitted, numbers, coef_groups, scores or {}, forward)
        best = solve(wanted, losses, prices, empty, clock)
        plan = _with_modes(best.plan, count) if what == "parameters" else best.plan
        unfitted = None
        if unseen:
            cuts = {name: found[name].cut(m) for name, m in plan.layers.items()}
            before = outputs_of(model, unseen, forward)
            if all(before):
                unfitted = change(outputs_of(model, unseen, forward, cuts), before)
        filters = {name: int(conv.out_channels) for name, conv in convolutions(model).items()}
    chosen = {name: plan.layers.get(name, DENSE) for name in prices.layers}
    tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
    report = SearchReport(
        budget=budget,
        layers=tuple(
            LayerChoice(
                name, filters[name], plan.layers.get(name), own[DENSE], own[chosen[name]],
                losses[name][chosen[name]],
            )
            for name, own in prices.layers.items()
        ),
        dense=prices.total({}),
        predicted=prices.total(chosen),
        ratio=best.ratio,
        timings=best.timings,
        threads=torch.get_num_threads(),
        shape=tuple(tensors[0].shape) if tensors else None,
        device=f"{device}, {_dtype(model)}",
        unfitted=unfitted,
    )  # fmt: skip
    return replace(plan, report=report)


def _with_modes(plan: Plan, count: Callable[[Plan], Summary]) -> Plan:
    """Each layer in the mode that executes fewer multiplications."""
    rebuilt = replace(plan, modes=dict.fromkeys(plan.layers, MODES[1]))
    two, one = ({row.name: row.macs for row in count(p).rows} for p in (plan, rebuilt))
    return replace(plan, modes={n: MODES[1] for n in plan.layers if one[n] < two[n]})


def _device(model: nn.Module) -> torch.device:
    """The one device of a model, or a ValueError."""
    devices = {t.device for t in (*model.parameters(), *model.buffers())}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"The model is on several devices ({names}): move it to one of them.")
    device = next(iter(devices), torch.device("cpu"))
    if device.type == "meta":
        raise ValueError("The model is on the device meta and holds no values: load it first.")
    return device


def _dtype(model: nn.Module) -> str:
    real = (p.dtype for p in model.parameters() if p.is_floating_point())
    return str(next(real, torch.get_default_dtype())).removeprefix("torch.")

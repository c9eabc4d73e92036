"""A budget, and the plan with the smallest loss within it; where it is time, the clock decides."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from basisconv.allocation.costs import DENSE, Bench, Costs, Level
from basisconv.convert import apply_plan
from basisconv.knapsack import choose_levels
from basisconv.plan import Plan
from basisconv.timing import Timing

_MISS, _RESCALES = 0.02, 3


class Budget(NamedTuple):
    """A share of what the dense network takes, and of what."""

    text: str
    kind: str
    share: float

    @classmethod
    def read(cls, text: object) -> Budget:
        """A budget as `search` takes it, or a ValueError."""
        if isinstance(text, str):
            kind, equals, number = text.partition("=")
            try:
                share = float(number)
            except ValueError:
                share = math.nan
            if kind in ("time", "macs", "parameters") and equals and 0 < share < 1:
                return cls(text, kind, share)
        raise ValueError(
            f"budget={text!r} is unknown: give a share between 0 and 1 of what the dense network "
            f"takes, as 'time=0.6', 'macs=0.6' or 'parameters=0.6'."
        )

    def check(self, prices: Costs) -> None:
        """Raise ValueError if even the cheapest plan is predicted to take more."""
        least = prices.least() / prices.total({})
        if least > self.share:
            raise self.out_of_reach(least)

    def out_of_reach(self, nearest: float) -> ValueError:
        """The error of a budget that no plan meets."""
        kept = math.ceil(nearest * 1e3) / 1e3
        return ValueError(
            f"No plan meets {self.text}: the nearest that can be had is {self.kind}={kept:.3f}."
        )


class Try(NamedTuple):
    """A plan, and where it was timed its time relative to dense."""

    plan: Plan
    ratio: float | None = None
    timings: tuple[Timing, Timing] | None = None


def solve(
    wanted: Budget,
    losses: Mapping[str, Mapping[Level, float]],
    prices: Costs,
    empty: Plan,
    clock: Clock | None,
) -> Try:
    """The plan with the smallest loss whose predicted or, with a clock, measured cost fits.

    Where a timed plan misses the budget by more than 2 %, the target is scaled by how far the
    prediction was off, and a plan chosen again, three times at most.

    Args:
        wanted: the budget.
        losses: of each layer on each of its levels.
        prices: costs, of the same layers and levels.
        empty: a plan without layers, of the wanted form.
        clock: times plans; None to trust the prices.

    Raises:
        ValueError: if even the fastest plan is measured to be too slow.

    Warns:
        UserWarning: if no plan that was timed meets the budget to 2 %, and faster ones were left.
    """
    whole, least = prices.total({}), prices.least() - prices.rest
    most = wanted.share * (1 + _MISS)
    aim, tries = wanted.share, list[tuple[float, Try]]()
    for _ in range(1 + _RESCALES):
        room = max(aim * whole - prices.rest, least)
        chosen = choose_levels(losses, prices.layers, room)
        plan = replace(empty, layers={n: m for n, m in chosen.items() if m != DENSE})
        if clock is None:
            return Try(plan)
        if any(tried.plan == plan for _, tried in tries):
            break  # by what was measured, no other is nearer
        ratio, timings = clock.time(plan)
        tries.append((ratio, Try(plan, ratio, timings)))
        if abs(ratio / wanted.share - 1) <= _MISS:
            break
        # A plan that takes what was predicted, but fills the budget badly, is chosen again.
        aim = wanted.share * prices.total(chosen) / whole / ratio
    if meeting := [tried for ratio, tried in tries if ratio <= most]:
        return min(meeting, key=lambda tried: _loss(losses, tried.plan))
    nearest, best = min(tries, key=lambda pair: pair[0])
    if room == least:
        raise wanted.out_of_reach(nearest)
    warnings.warn(
        f"The plan takes {nearest:.3f} of dense's time, and {wanted.text} was asked for: times of "
        f"its layers do not add up.",
        stacklevel=3,
    )
    return best


def _loss(losses: Mapping[str, Mapping[Level, float]], plan: Plan) -> float:
    return math.fsum(own[plan.layers.get(name, DENSE)] for name, own in losses.items())


class Clock:
    """Times whole plans against the dense network: here, or by a callable model → seconds."""

    def __init__(self, bench: Bench, measure: Callable[[nn.Module], float] | None) -> None:
        self._bench, self._measure = bench, measure
        self._dense: float | None = None

    def dense(self) -> float:
        """Seconds of the dense network by the callable."""
        if self._dense is None:
            self._dense = self._seconds(Plan({}))
        return self._dense

    def time(self, plan: Plan) -> tuple[float, tuple[Timing, Timing] | None]:
        """A plan's time relative to dense, and both arms where they were timed here."""
        if self._measure is not None:
            return self._seconds(plan) / self.dense(), None
        arms = {"dense": {}, "plan": self._bench.replaced(plan.layers)}
        timings = self._bench.compare(arms)
        faster, _, _ = timings["plan"].speedup_over(timings["dense"])
        return 1 / faster, (timings["dense"], timings["plan"])

    def _seconds(self, plan: Plan) -> float:
        assert self._measure is not None
        # A copy that is the caller's to export or to compile.
        model = apply_plan(self._bench.model, plan, "random", generator=torch.Generator())
        seconds = float(self._measure(model.eval()))
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"measure= gave {seconds} for a model, which are no seconds.")
        return seconds

"""Subsets to hold a selection against: random ones and the worst one, of the same predicted time.

Scores, savings and predicted time are those of `basisconv.knapsack`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import numpy as np

from basisconv.knapsack import check_number, check_values, chosen_names, counted_losses, useful
from basisconv.plan import Plan
from basisconv.program import Floats, Subset, fits, solve, total_of

_DRAWS = 100_000
_TOLERANCE = 0.02  # how far a predicted time may be from the target, relative to it


def random_subset(
    savings: Mapping[str, float], total: float, target: float, candidates: Plan, seed: int
) -> Plan:
    """A random subset, of a given predicted time, of the layers that save something.

    Each such subset is as likely as any other.

    Args:
        savings: what each candidate saves.
        total: the time of the dense network, in the unit of the savings.
        target: the predicted time to match.
        candidates: the plan to choose layers from.
        seed: of the draw; the same seed gives the same subset.

    Raises:
        ValueError: as `select`, and if no subset is that near; the message says what is.
        ImportError: if scipy is not installed.
    """
    names, saving = useful(savings, candidates)
    low, high = _window(saving, total, target)
    if not names:
        return candidates.only([])
    # Subsets are counted on savings rounded to a grid, over a window widened by all that the
    # rounding can add up to. Those outside the true window are then drawn again, so that
    # the draw is uniform whatever the grid.
    grid = max((high - low) / len(names), math.fsum(saving) / 5_000)
    steps = [round(value / grid) for value in saving]
    first = math.floor(low / grid - len(steps) / 2)
    last = math.ceil(high / grid + len(steps) / 2)
    below = _count(steps)
    generator = random.Random(seed)
    for _ in range(_DRAWS):
        drawn = _draw(steps, below, first, last, generator)
        if fits(drawn, (saving, low, high)):
            return candidates.only(chosen_names(names, drawn))
    raise ValueError(
        f"No subset within {_TOLERANCE:.0%} of {target:g} was found in {_DRAWS} draws."
    )


def inverted_subset(
    scores: Mapping[str, float],
    savings: Mapping[str, float],
    total: float,
    target: float,
    candidates: Plan,
) -> Plan:
    """The worst subset of a given predicted time: the one with the largest predicted loss.

    It may hold layers that save nothing, for they cost accuracy all the same. Of subsets with the
    same predicted loss, the one with the larger sum of raw scores.

    Args:
        scores: sensitivity of each candidate.
        savings: what each candidate saves.
        total: the time of the dense network, in the unit of the savings.
        target: the predicted time to match.
        candidates: the plan to choose layers from.

    Raises:
        ValueError: as `select`, and if no subset is that near; the message says what is.
        ImportError: if scipy is not installed.
    """
    check_values("scores", scores, candidates)
    check_values("savings", savings, candidates)
    names = list(candidates.layers)
    loss, saving = counted_losses(scores, names), np.array([savings[name] for name in names])
    bounds = [(saving, *_window(saving, total, target))]
    if not names:
        return candidates.only([])
    best = solve(loss, bounds)
    assert best is not None  # _window has found one
    raw = np.array([scores[name] for name in names])
    kept = solve(raw, [*bounds, (loss, total_of(loss, best), math.inf)])
    return candidates.only(chosen_names(names, best if kept is None else kept))


def _window(saving: Floats, total: float, target: float) -> tuple[float, float]:
    """The sums of savings that meet the target; a ValueError if no subset's does."""
    check_number("total", total, least=0)
    check_number("target", target, least=0)
    low, high = total - target * (1 + _TOLERANCE), total - target * (1 - _TOLERANCE)
    if low <= 0 <= high:
        return low, high  # dense itself is near enough
    if len(saving) and solve(np.zeros(len(saving)), [(saving, low, high)]) is not None:
        return low, high
    # What is there instead: the largest sum below the window and the smallest above it.
    near = [0.0]
    if len(saving):
        for gain, span in ((saving, (-math.inf, low)), (-saving, (high, math.inf))):
            subset = solve(gain, [(saving, *span)])
            near += [] if subset is None else [total_of(saving, subset)]
    nearest = min((total - value for value in near), key=lambda time: abs(time - target))
    raise ValueError(
        f"No subset of these {len(saving)} layers has a predicted time within "
        f"{_TOLERANCE:.0%} of {target:g}: the nearest is {nearest:g}, and all times lie from "
        f"{total - math.fsum(saving.clip(min=0)):g} to {total - math.fsum(saving.clip(max=0)):g}. "
        "Change the target."
    )


def _count(steps: Sequence[int]) -> list[list[int]]:
    """below[i][v]: how many subsets of steps[i:] have a sum below v, exactly."""
    ways = [1] + [0] * sum(steps)
    counts = [ways]
    for step in reversed(steps):
        ways = [n + (ways[v - step] if v >= step else 0) for v, n in enumerate(ways)]
        counts.append(ways)
    below = []
    for ways in reversed(counts):
        sums = [0]
        for n in ways:
            sums.append(sums[-1] + n)
        below.append(sums)
    return below


def _draw(
    steps: Sequence[int],
    below: Sequence[Sequence[int]],
    first: int,
    last: int,
    generator: random.Random,
) -> Subset:
    """A uniform draw from the subsets whose steps add up to first..last: one layer at a time."""

    def count(sums: Sequence[int], taken: int) -> int:
        top = len(sums) - 1
        low = min(max(first - taken, 0), top)
        return sums[min(max(last + 1 - taken, low), top)] - sums[low]

    taken, drawn = 0, []
    for i, step in enumerate(steps):
        without, with_it = count(below[i + 1], taken), count(below[i + 1], taken + step)
        drawn.append(generator.randrange(without + with_it) >= without)
        taken += step if drawn[-1] else 0
    return tuple(drawn)

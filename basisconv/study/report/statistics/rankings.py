"""Rankings of layers: how alike two are, and how far a sweep of some seeds can be trusted.

As in `stats`, too little to answer from gives NaN, and values that are not finite are an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from basisconv.study.report.statistics.stats import NAN, check_share, paired_values


class Reliability(NamedTuple):
    """How far a sweep of n seeds agrees with another one of n seeds.

    Attributes:
        halves: mean Spearman correlation between the means of two halves of the seeds.
        reliability: `halves` stepped up to all n seeds (Spearman-Brown), at least 0.
        ceiling: its square root, the correlation with these scores' mean that a perfect
            predictor of the true ranking is expected to reach.
    """

    halves: float
    reliability: float
    ceiling: float


class Bootstrap(NamedTuple):
    """A statistic of all rows and its percentile interval over resampled rows."""

    estimate: float
    low: float
    high: float


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation of two scores of the same layers, ties by their mean rank.

    NaN where one of them is constant or has a single layer.

    Raises:
        ValueError: if a score is not finite or the lengths differ.
    """
    a, b = paired_values(x, y)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return NAN
    return float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])


def reliability(scores: ArrayLike, halvings: int = 1000) -> Reliability:
    """Split-half reliability of the mean over seeds of a sweep's scores.

    Half of the seeds is set against the other half (one seed is left out of an odd number),
    over all halvings or, where there are more than `halvings`, that many random ones.

    Args:
        scores: (seeds, layers), each row one seed's scores.
        halvings: how many splits at most.

    Raises:
        ValueError: unless scores is a finite matrix of at least 2 layers.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 2 or not np.isfinite(table).all():
        raise ValueError(
            "scores must be finite numbers of shape (seeds, layers) with at least 2 layers, "
            f"not of shape {table.shape}."
        )
    seeds = len(table)
    if seeds < 2:
        return Reliability(NAN, NAN, NAN)
    halves = float(
        np.mean(
            [
                spearman(table[a].mean(axis=0), table[b].mean(axis=0))
                for a, b in _splits(seeds, halvings)
            ]
        )
    )
    if not halves > 0:  # noise, or constant scores (NaN): there is nothing to step up
        nothing = NAN if math.isnan(halves) else 0.0
        return Reliability(halves, nothing, nothing)
    factor = seeds / (seeds // 2)
    stepped = factor * halves / (1 + (factor - 1) * halves)
    return Reliability(halves, stepped, math.sqrt(stepped))


def reliability_interval(scores: ArrayLike, resamples: int = 500) -> Bootstrap:
    """The reliability with its 95 % interval over resampled layers: how few of them tell little.

    Args:
        scores: (seeds, layers), as in `reliability`.
        resamples: as in `bootstrap`.

    Raises:
        ValueError: as `reliability`.
    """
    layers = np.asarray(scores, dtype=np.float64).T
    return bootstrap(lambda drawn: reliability(drawn.T).reliability, layers, resamples=resamples)


def seeds_for(trust: float, seeds: int, wanted: float) -> float:
    """How many seeds a sweep needs for a reliability, from what it has at some number of seeds.

    The Spearman-Brown formula solved for the number of seeds, rounded up.

    Args:
        trust: the reliability of the mean over `seeds`.
        seeds: how many.
        wanted: the reliability to reach.

    Returns:
        A whole number; infinity where there is no reliability to step up, NaN for NaN.

    Raises:
        ValueError: if wanted is outside (0, 1).
    """
    check_share(wanted, "wanted")
    if math.isnan(trust) or trust >= 1:
        return trust if math.isnan(trust) else 1.0
    if trust <= 0:
        return math.inf
    return float(math.ceil(seeds * wanted / (1 - wanted) * (1 - trust) / trust - 1e-9))


def bootstrap(
    statistic: Callable[[Any], float], scores: ArrayLike, resamples: int = 2000, seed: int = 0
) -> Bootstrap:
    """A statistic's 95 % percentile interval over resampled rows, seeds or layers (Efron, 1979).

    The random numbers are fixed by `seed`, so the same scores always give the same interval.

    Args:
        statistic: takes an array like `scores` and returns a number.
        scores: (rows, ...); whole rows are drawn with replacement.
        resamples: how many times.
        seed: of the draws.

    Raises:
        ValueError: if there are no rows, or a score is not finite.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim == 0 or len(table) == 0 or not np.isfinite(table).all():
        raise ValueError("The bootstrap needs at least one row and finite scores.")
    estimate = float(statistic(table))
    if len(table) < 2:
        return Bootstrap(estimate, NAN, NAN)
    rows = np.random.default_rng(seed).integers(len(table), size=(resamples, len(table)))
    drawn = np.array([statistic(table[row]) for row in rows])
    # A resample of one row repeated may have no value (a constant ranking): it is left out.
    drawn = drawn[~np.isnan(drawn)]
    if len(drawn) == 0:
        return Bootstrap(estimate, NAN, NAN)
    low, high = np.quantile(drawn, [1 - 0.975, 0.975])
    return Bootstrap(estimate, float(low), float(high))


def _splits(seeds: int, most: int) -> list[tuple[list[int], list[int]]]:
    """Pairs of disjoint halves of the seeds: all of them, each once, or `most` random ones."""
    half = seeds // 2
    count = math.comb(seeds, half) * math.comb(seeds - half, half) // 2
    if count > most:
        rng = np.random.default_rng(0)
        shuffles = [rng.permutation(seeds).tolist() for _ in range(most)]
        return [(order[:half], order[half : 2 * half]) for order in shuffles]
    return [
        (list(a), list(b))
        for a in combinations(range(seeds), half)
        for b in combinations([i for i in range(seeds) if i not in a], half)
        if a < b
    ]

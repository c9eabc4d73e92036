"""Two variances by restricted maximum likelihood: of runs, and of the blocks that they come in.

    y = Xβ + e,   V = Var(e) = σ² I + τ ZZ'

with X the indicators of cells and Z those of blocks. REML (Patterson & Thompson, 1971) minimises

    (n - p) log s² + log|I + (τ/σ²) ZZ'| + log|X'(I + (τ/σ²) ZZ')⁻¹X|

over τ/σ², s² being σ² at it. τ is a covariance and may be negative: a bound at 0 would pool the
two variances exactly where they happen to differ, and make tests within blocks too sharp. That,
and the derivatives below, is why this is not statsmodels' MixedLM, with which it agrees elsewhere.

A contrast c'β has the variance v = c'Φc with Φ = (X'V⁻¹X)⁻¹, and Satterthwaite's degrees of freedom

    2 v² / (g'Ag),   g_i = ∂v/∂θ_i = c'ΦX'V⁻¹ V_i V⁻¹XΦc

where A is the inverse of the expected information of θ = (σ², τ) (Giesbrecht & Burns, 1985).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from basisconv.study.report.statistics.linear_models import ROUNDING
from basisconv.study.report.statistics.stats import NAN, Floats

Cell = tuple[str, float]
"""An arm and a budget."""


class Variances(NamedTuple):
    """σ² of one run within its block, and τ of the block, in the squared unit of the values."""

    run: float
    seed: float


@dataclass(frozen=True)
class Part:
    """Cells that share their variances.

    Attributes:
        cells: their names.
        means: estimated, by cell.
        variances: NaN where the runs cannot tell them apart.
        covariance: Φ, of the means.
        slopes: derivatives of Φ by σ² and by τ.
        spread: A, the covariance of the fitted σ² and τ.
    """

    cells: tuple[Cell, ...]
    means: Floats
    variances: Variances
    covariance: Floats
    slopes: tuple[Floats, Floats]
    spread: Floats


def fit_part(y: Floats, cells: ArrayLike, blocks: ArrayLike, names: list[Cell]) -> Part:
    """Fit one pair of variances by a search over τ/σ².

    Where each block has one run, σ² + τ is one variance, with n - p degrees of freedom. Else, where
    runs leave nothing to tell one of the two from, or agree exactly, all but the means is NaN.

    Args:
        y: of the runs.
        cells: of each run.
        blocks: of each run.
        names: of the cells, in the order of their numbers.
    """
    x, z = indicators(cells), indicators(blocks)
    size, cross, sums = z.sum(axis=0), x.T @ x, z.T @ x
    own, totals = x.T @ y, z.T @ y
    n, p = x.shape

    def solve(ratio: float) -> tuple[float, Floats, Floats, float]:
        """Criterion, means, their covariance over σ², and σ² at this τ/σ²."""
        w = ratio / (1 + ratio * size)
        normal = cross - sums.T @ (w[:, None] * sums)
        right = own - sums.T @ (w * totals)
        inverse = np.linalg.inv(normal)
        means = inverse @ right
        e, block = y - x @ means, totals - sums @ means
        scale = float(e @ e - w @ block**2) / (n - p)
        logs = np.log1p(ratio * size).sum() + np.linalg.slogdet(normal)[1]
        criterion = (n - p) * math.log(max(scale, 1e-300)) + logs
        return float(criterion), means, inverse, scale

    within = n - independent(np.hstack([x, z])).shape[1]
    between = n - p - within
    means = own / np.diag(cross)
    residual = y - x @ means
    flat = math.sqrt(residual @ residual) <= ROUNDING * np.abs(y).max()
    if size.max() == 1 and n > p and not flat:
        return _together(float(residual @ residual), n - p, means, cross, names)
    if within < 1 or between < 1 or flat:
        return _unestimable(means, names)
    # V is positive definite for ratios above -1/(largest block).
    least = -1 / size.max()
    grid = np.linspace(-14, 14, 57)
    at = int(np.argmin([solve(least + math.exp(u))[0] for u in grid]))
    found = optimize.minimize_scalar(
        lambda u: solve(least + math.exp(u))[0],
        bounds=(grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]),
        method="bounded",
        options={"xatol": 1e-9},
    )
    ratio = least + math.exp(found.x)
    _, means, inverse, scale = solve(ratio)
    if math.sqrt(max(scale, 0.0)) <= ROUNDING * np.abs(y).max():
        return _unestimable(means, names)
    # P projects out the means; the information of (σ², τ) is ½ tr(P V_i P V_j).
    same = z @ z.T
    v = np.linalg.inv(np.eye(n) + ratio * same) / scale
    phi = scale * inverse
    project = v - v @ x @ phi @ x.T @ v
    directions = (np.eye(n), same)
    moved = [project @ d for d in directions]
    information = np.array([[0.5 * (a * b.T).sum() for b in moved] for a in moved])
    slopes = tuple(phi @ x.T @ v @ d @ v @ x @ phi for d in directions)
    return Part(
        tuple(names), means, Variances(scale, float(ratio * scale)), phi, (slopes[0], slopes[1]),
        np.linalg.inv(information),
    )  # fmt: skip


def _together(square: float, df: int, means: Floats, cross: Floats, names: list[Cell]) -> Part:
    """A part whose two variances are one; it stands in the place of σ²."""
    scale, each = square / df, np.asarray(np.linalg.inv(cross), dtype=np.float64)
    return Part(
        tuple(names), means, Variances(NAN, NAN), scale * each, (each, np.zeros_like(each)),
        np.diag([2 * scale**2 / df, 0.0]),
    )  # fmt: skip


def _unestimable(means: Floats, names: list[Cell]) -> Part:
    """A part whose variances cannot be estimated."""
    gap = np.full((len(names), len(names)), NAN)
    return Part(
        tuple(names), means, Variances(NAN, NAN), gap, (gap, gap), np.full((2, 2), NAN)
    )  # fmt: skip


def indicators(groups: ArrayLike) -> Floats:
    """A column for each group, 1 where a run belongs to it and else 0."""
    found = np.asarray(groups)
    return (found[:, None] == np.unique(found)[None, :]).astype(np.float64)


def independent(columns: Floats) -> Floats:
    """An orthonormal basis of what columns span."""
    u, s, _ = np.linalg.svd(columns, full_matrices=False)
    return u[:, s > 1e-9 * s[0]]

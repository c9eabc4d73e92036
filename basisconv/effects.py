"""What each layer's basis form costs, estimated from the losses of many plans at once.

    y = block + b·Σₗ g(levelₗ) + Σₗ dₗ·g(levelₗ) + noise,    dₗ ~ N(0, τ²)

y is the logarithm of a network's loss, g the common shape of the levels (0 for a dense layer, 1 for
the fewest filters), b what such a layer costs on average, and dₗ how far layer l is from that. Each
level has a coefficient b·g(level) of its own, so that intervals hold for the shape as well. The dₗ
are shrunk to zero as far as the noise asks for: τ by restricted maximum likelihood (REML), the
rest by Henderson's mixed model equations (Robinson, 1991).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from basisconv.plan import Plan

Floats = NDArray[np.float64]
RATIOS = np.concatenate([[0.0], np.geomspace(1e-4, 1e4, 161)])
"""Values of τ²/σ² that the restricted likelihood is compared at."""


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class _Linear:
    """Coefficients, their covariance, and the quantile that a 95 % interval takes."""

    mean: Floats
    covariance: Floats
    quantile: float

    def estimate(self, weights: Floats) -> Estimate:
        """A weighted sum of the coefficients."""
        value = float(weights @ self.mean)
        half = self.quantile * math.sqrt(max(float(weights @ self.covariance @ weights), 0.0))
        return Estimate(value, value - half, value + half)


@dataclass(frozen=True)
class Effects:
    """What the layers cost, in units of log loss.

    Attributes:
        common: what a layer with the fewest filters costs on average (b).
        layers: what each layer with its fewest filters costs (b + dₗ).
        shape: g at each layer's levels: {layer: {n_basis: g}}.
        noise: standard deviation of a run (σ).
        spread: standard deviation of the layers' costs (τ).
        interactions: what two layers of the same block ("layer1.0.…"), and two of the same stage
            ("layer1.…") but not of one block, cost on top of their own; where there are any.
        held_out: root mean square error for a run that the estimate left out.
        held_out_common: the same where all layers cost alike (τ = 0).
    """

    common: Estimate
    layers: dict[str, Estimate]
    shape: dict[str, dict[int, float]]
    noise: float
    spread: float
    interactions: dict[str, Estimate]
    held_out: float
    held_out_common: float
    _fit: _Linear  # of b·g at each level, and of the dₗ in the order of `layers`

    def predict(self, plan: Plan) -> Estimate:
        """The rise of log loss over the dense network that a plan costs, and its interval.

        Raises:
            ValueError: for a layer, or a number of filters in it, that was not screened.
        """
        for name, count in plan.layers.items():
            if count not in self.shape.get(name, {}):
                known = ", ".join(map(str, self.shape.get(name, {}))) or "nothing"
                raise ValueError(
                    f"{name} with {count} basis filters was not screened; of it: {known}."
                )
        return self._fit.estimate(_weights(plan, self.shape))

    def scores(self) -> dict[str, dict[int, float]]:
        """The predicted rise of log loss at each screened level of each layer, for a search."""
        return {
            name: {count: self.predict(Plan({name: count})).value for count in levels}
            for name, levels in self.shape.items()
        }


def effects(
    plans: Sequence[Plan], losses: Sequence[float], blocks: Sequence[Hashable] | None = None
) -> Effects:
    """Estimate what each layer costs from networks that were trained with these plans.

    Args:
        plans: of each run, as from `screening`. Levels are distinguished by their numbers of
            filters, the same number of levels in every layer.
        losses: of each run, above 0: a validation cross-entropy, say.
        blocks: what each run shares with others, as its seed; None for one block.

    Raises:
        ValueError: for lists of different lengths, losses that are not positive and finite, plans
            without layers or with other numbers of levels in some layers, and fewer runs than
            blocks, levels and layers have effects.
        ImportError: if scipy is not installed.
    """
    given = [0] * len(plans) if blocks is None else list(blocks)
    if not len(plans) == len(losses) == len(given):
        raise ValueError(
            f"There are {len(plans)} plans, {len(losses)} losses and {len(given)} blocks: they "
            "must be as many."
        )
    bad = [loss for loss in losses if not (math.isfinite(loss) and loss > 0)]
    if bad:
        raise ValueError(f"Losses must be positive and finite, and not {bad[0]}.")
    levels = _levels(plans)
    fixed = np.array([[block == b for b in dict.fromkeys(given)] for block in given], dtype=float)
    count = fixed.shape[1] + len(next(iter(levels.values()))) + len(levels)
    if len(plans) < count:
        raise ValueError(
            f"{len(plans)} runs cannot tell {count} effects apart ({fixed.shape[1]} blocks, "
            f"{len(next(iter(levels.values())))} levels and {len(levels)} layers)."
        )
    y = np.log(np.array(losses, dtype=float))
    x = np.column_stack([fixed, [_counts(plan, levels) for plan in plans]])
    shape = _shape(levels, x, y)
    table = np.array([_weights(plan, shape)[-len(levels) :] for plan in plans])
    ratio = _restricted_maximum(x, table, y)
    fit, noise = _solve(x, table, y, ratio)
    own = slice(fixed.shape[1], None)
    fit = _Linear(fit.mean[own], fit.covariance[own, own], fit.quantile)
    fewest = {name: Plan({name: some[-1]}) for name, some in levels.items()}
    last = count - fixed.shape[1] - len(levels) - 1  # the coefficient of the fewest filters
    return Effects(
        common=fit.estimate(np.eye(len(fit.mean))[last]),
        layers={name: fit.estimate(_weights(plan, shape)) for name, plan in fewest.items()},
        shape=shape,
        noise=noise,
        spread=noise * math.sqrt(ratio),
        interactions=_interactions(list(levels), x, table, y),
        held_out=_held_out(x, table, y, ratio),
        held_out_common=_held_out(x, table, y, 0.0),
        _fit=fit,
    )


def _weights(plan: Plan, shape: Mapping[str, Mapping[int, float]]) -> Floats:
    """A plan's row: how many of its layers have each level, and then each layer's g."""
    slopes = [g.get(plan.layers.get(name, 0), 0.0) for name, g in shape.items()]
    levels = {name: list(g) for name, g in shape.items()}
    return np.concatenate([_counts(plan, levels), slopes])


def _counts(plan: Plan, levels: Mapping[str, list[int]]) -> Floats:
    """How many of a plan's layers have each level."""
    row = np.zeros(len(next(iter(levels.values()))))
    for name, count in plan.layers.items():
        row[levels[name].index(count)] += 1
    return row


def _levels(plans: Sequence[Plan]) -> dict[str, list[int]]:
    """The numbers of filters that each layer has in some plan, descending."""
    seen: dict[str, set[int]] = {}
    for plan in plans:
        for name, count in plan.layers.items():
            seen.setdefault(name, set()).add(count)
    sizes = {len(counts) for counts in seen.values()}
    if len(sizes) != 1:
        found = (
            "no layers" if not sizes else f"between {min(sizes)} and {max(sizes)} levels a layer"
        )
        raise ValueError(f"The plans have {found}: they need the same number in every layer.")
    return {name: sorted(counts, reverse=True) for name, counts in seen.items()}


def _shape(levels: Mapping[str, list[int]], x: Floats, y: Floats) -> dict[str, dict[int, float]]:
    """Fit g at each layer's levels: least squares on how many layers have each.

    It rises from level to level, and is even steps where the fewest filters cost nothing.
    """
    size = len(next(iter(levels.values())))
    costs = np.linalg.lstsq(x, y, rcond=None)[0][-size:]
    rising = np.maximum.accumulate(costs.clip(min=0))
    g = (rising / costs[-1]).clip(max=1) if costs[-1] > 0 else np.arange(1, size + 1) / size
    return {n: dict(zip(own, g.tolist(), strict=True)) for n, own in levels.items()}


def _solve(x: Floats, z: Floats, y: Floats, ratio: float) -> tuple[_Linear, float]:
    """Henderson's equations for y = x·β + z·d + noise with var(d) = ratio · var(noise).

    The coefficients are β and then d. They are solved for d/√ratio, which exists at 0 as well.
    """
    rows, fixed = x.shape
    design = np.column_stack([x, math.sqrt(ratio) * z])
    penalty = np.diag([0.0] * fixed + [1.0] * z.shape[1])
    inverse = np.linalg.pinv(design.T @ design + penalty, hermitian=True)
    solution = inverse @ design.T @ y
    variance = float(y @ (y - design @ solution)) / (rows - fixed)
    scale = np.array([1.0] * fixed + [math.sqrt(ratio)] * z.shape[1])
    covariance = variance * inverse * scale[:, None] * scale[None, :]
    return _Linear(scale * solution, covariance, _quantile(rows - fixed)), math.sqrt(variance)


def _restricted_maximum(x: Floats, z: Floats, y: Floats) -> float:
    """The ratio of variances with the largest restricted likelihood."""
    rows, fixed = x.shape

    def deviance(ratio: float) -> float:
        v = np.eye(rows) + ratio * z @ z.T
        solved = np.linalg.solve(v, np.column_stack([x, y]))
        information = x.T @ solved[:, :-1]
        beta = np.linalg.solve(information, x.T @ solved[:, -1])
        residual = y - x @ beta
        # y'Py = r'V⁻¹r at the generalised least squares solution.
        square = float(residual @ np.linalg.solve(v, residual))
        logs = np.linalg.slogdet(v)[1] + np.linalg.slogdet(information)[1]
        return float(logs) + (rows - fixed) * math.log(square / (rows - fixed))

    return float(min(RATIOS.tolist(), key=deviance))


def _held_out(x: Floats, z: Floats, y: Floats, ratio: float) -> float:
    """The root mean square error for each run from all the others, the ratio kept."""
    design = np.column_stack([x, math.sqrt(ratio) * z])
    penalty = np.diag([0.0] * x.shape[1] + [1.0] * z.shape[1])
    inverse = np.linalg.pinv(design.T @ design + penalty, hermitian=True)
    hat = design @ inverse @ design.T
    return float(np.sqrt((((y - hat @ y) / (1 - np.diag(hat))) ** 2).mean()))


def _interactions(names: list[str], x: Floats, z: Floats, y: Floats) -> dict[str, Estimate]:
    """Pooled products of pairs of layers, each kind one more coefficient of the model."""
    block = [name.rpartition(".")[0] for name in names]
    stage = [name.partition(".")[0] for name in names]
    pairs = list(combinations(range(len(names)), 2))
    kinds = {
        "same block": [(a, b) for a, b in pairs if block[a] and block[a] == block[b]],
        "same stage": [(a, b) for a, b in pairs if block[a] != block[b] and stage[a] == stage[b]],
    }
    kinds = {kind: found for kind, found in kinds.items() if found}
    extra = [
        sum((z[:, a] * z[:, b] for a, b in found), np.zeros(len(y))) for found in kinds.values()
    ]
    if not extra or len(y) <= x.shape[1] + len(extra):
        return {}
    wider = np.column_stack([x, *extra])
    fit, _ = _solve(wider, z, y, _restricted_maximum(wider, z, y))
    unit = np.eye(len(fit.mean))
    return {kind: fit.estimate(unit[x.shape[1] + i]) for i, kind in enumerate(kinds)}


def _quantile(freedom: int) -> float:
    """Of Student's t, for a 95 % interval."""
    # Here and not at the top: applying a plan needs no scipy.
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError("Estimating effects needs scipy: pip install scipy.") from error
    return float(stats.t.ppf(0.975, freedom))

"""Across training lengths: logit accuracy by arm and budget, with seeds nested in budgets.

    logit(acc_ijk) = μ_ij + s_jk + ε_ijk,   s_jk ~ N(0, τ),   ε_ijk ~ N(0, σ²)

for arm i, budget j and seed k: `logit(acc) ~ arm * budget + (1 | budget:seed)` with the budget as
a category, so that no shape of the learning curve is assumed. Two runs of one budget and seed have
the covariance τ. Fitted by REML (see `reml`), this is the split-plot analysis of variance, with
budget:seed as whole plots, wherever no run is missing. Degrees of freedom are Satterthwaite's.

Where Levene's test finds that variances differ by budget, each budget has a σ² and τ of its own.
The model then falls into one model a budget, and contrasts across budgets add up their variances.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from basisconv.study.report.statistics.linear_models import (
    LEVENE,
    Contrast,
    checked_runs,
    contrast_of,
    levene,
)
from basisconv.study.report.statistics.reml import (
    Cell,
    Part,
    Variances,
    fit_part,
    independent,
    indicators,
)
from basisconv.study.report.statistics.stats import NAN


@dataclass(frozen=True)
class Lengths:
    """The fitted model of several lengths; see `fit_lengths`.

    Attributes:
        levene_p: of equal variances over budgets; NaN where too few residuals say.
        equal_variances: whether all budgets share their variances.
        seeds: of each arm and budget.
    """

    levene_p: float
    equal_variances: bool
    seeds: dict[Cell, frozenset[int]]
    _parts: tuple[Part, ...]

    @property
    def budgets(self) -> tuple[float, ...]:
        """All budgets, ascending."""
        return tuple(sorted({budget for _, budget in self.seeds}))

    def variances(self, budget: float) -> Variances:
        """The fitted variances at a budget; NaN where runs do not tell them apart."""
        return next(
            p.variances for p in self._parts if any(b == budget for _, b in p.cells)
        )  # fmt: skip

    def mean(self, arm: str, budget: float, confidence: float = 0.95) -> Contrast:
        """An arm's mean logit accuracy at a budget, its test being of an accuracy of one half.

        Raises:
            ValueError: if the arm has no run there, or confidence is outside (0, 1).
        """
        n = len(self._of(arm, budget))
        return self._combine({(arm, budget): 1.0}, n, n >= 2, confidence)

    def gap(
        self, a: str, b: str, budget: float | None = None, confidence: float = 0.95
    ) -> Contrast:
        """Logit accuracy of arm a less that of b, at one budget or on average over budgets.

        The average is over the budgets that both have, each with the same weight. All but the
        estimate is NaN where the two share fewer than two seeds at one of them.

        Raises:
            ValueError: if the two have no budget in common, or not this one, or confidence is
                outside (0, 1).
        """
        budgets = self._common(a, b) if budget is None else (budget,)
        return self._gaps(a, b, dict.fromkeys(budgets, 1 / len(budgets)), confidence)

    def difference(self, a: Cell, b: Cell, confidence: float = 0.95) -> Contrast:
        """Logit accuracy of an arm at its budget less that of an arm at another budget.

        Runs of different budgets share no block. All but the estimate is NaN where one of them
        has fewer than two runs; `n` is the smaller number of runs.

        Raises:
            ValueError: if one of them has no run, both are of one budget (see `gap`), or
                confidence is outside (0, 1).
        """
        if a[1] == b[1]:
            raise ValueError(f"{a} and {b} are of one budget: ask for their gap.")
        n = min(len(self._of(*a)), len(self._of(*b)))
        return self._combine({a: 1.0, b: -1.0}, n, n >= 2, confidence)

    def trend(self, a: str, b: str, confidence: float = 0.95) -> Contrast:
        """The slope of the gap between two arms over log2 of the budget: its change per doubling.

        The least-squares slope Σ (x_j - x̄) gap_j / Σ (x_j - x̄)² through the gaps at the budgets
        that both have, with its standard error from the model. NaN with fewer than two budgets,
        and, but for the estimate, with fewer than two shared seeds at one of them.

        Raises:
            ValueError: if the two have no budget in common or confidence is outside (0, 1).
        """
        budgets = self._common(a, b)
        x = np.log2(budgets)
        x = x - x.mean()
        if len(budgets) < 2:
            return contrast_of(NAN, NAN, NAN, 0, confidence)
        weights = dict(zip(budgets, (x / (x @ x)).tolist(), strict=True))
        return self._gaps(a, b, weights, confidence)

    def _gaps(self, a: str, b: str, weights: Mapping[float, float], confidence: float) -> Contrast:
        if a == b:
            raise ValueError(f"A gap needs two arms, not {a!r} twice.")
        shared = [len(self._of(a, t) & self._of(b, t)) for t in weights]
        cells = {(a, t): w for t, w in weights.items()} | {(b, t): -w for t, w in weights.items()}
        return self._combine(cells, sum(shared), min(shared) >= 2, confidence)

    def _combine(
        self, weights: Mapping[Cell, float], n: int, estimable: bool, confidence: float
    ) -> Contrast:
        """A linear combination of cell means."""
        estimate = variance = uncertainty = 0.0
        for part in self._parts:
            c = np.array([weights.get(cell, 0.0) for cell in part.cells])
            if not c.any():
                continue
            estimate += float(c @ part.means)
            variance += float(c @ part.covariance @ c)
            slopes = np.array([c @ slope @ c for slope in part.slopes])
            uncertainty += float(slopes @ part.spread @ slopes)
        if not (estimable and variance > 0 and uncertainty > 0):
            return contrast_of(estimate, NAN, NAN, n, confidence)
        return contrast_of(
            estimate, math.sqrt(variance), 2 * variance**2 / uncertainty, n, confidence
        )

    def _of(self, arm: str, budget: float) -> frozenset[int]:
        if (arm, budget) not in self.seeds:
            raise ValueError(f"No run of {arm!r} at budget {budget} is in the model.")
        return self.seeds[arm, budget]

    def _common(self, a: str, b: str) -> tuple[float, ...]:
        found = tuple(t for t in self.budgets if {(a, t), (b, t)} <= self.seeds.keys())
        if not found:
            raise ValueError(f"{a!r} and {b!r} have no budget in common.")
        return found


def fit_lengths(
    accuracies: ArrayLike,
    arms: Sequence[str],
    budgets: Sequence[float],
    seeds: Sequence[int],
    equal_variances: bool | None = None,
) -> Lengths:
    """Fit `logit(acc) ~ arm * budget + (1 | budget:seed)` by REML.

    Args:
        accuracies: of the runs, as fractions.
        arms: of each run; not every arm needs every budget or seed.
        budgets: of each run, in dense epochs, say.
        seeds: of each run.
        equal_variances: over budgets; None: unless Levene's test rejects it at 0.05.

    Raises:
        ValueError: if lengths differ, an accuracy is outside (0, 1), a budget is not above 0,
            there is no run, or a run comes twice.
    """
    values, arms, seeds = checked_runs(accuracies, arms, seeds)
    times = np.asarray(budgets, dtype=np.float64)
    if not ((values > 0) & (values < 1)).all():
        raise ValueError(f"Accuracies are fractions in (0, 1); these are not: {accuracies!r}.")
    if times.shape != values.shape or not ((times > 0) & np.isfinite(times)).all():
        raise ValueError(f"Each run needs a budget above 0, not {budgets!r}.")
    rows = list(zip(arms, times.tolist(), seeds, strict=True))
    if len(set(rows)) < len(rows):
        raise ValueError("An arm has two runs of one budget and seed: a run was given twice.")
    y = special.logit(values)
    names = list(dict.fromkeys((arm, t) for arm, t, _ in rows))
    cells = np.array([names.index((arm, t)) for arm, t, _ in rows])
    blocks = np.unique([(t, seed) for _, t, seed in rows], axis=0, return_inverse=True)[1]
    lengths = np.unique(times, return_inverse=True)[1]
    design = independent(np.hstack([indicators(cells), indicators(blocks)]))
    levene_p = levene(y - design @ (design.T @ y), design, lengths)
    equal = not levene_p < LEVENE if equal_variances is None else equal_variances
    of_part = np.zeros(len(y), dtype=int) if equal else lengths
    parts = []
    for k in np.unique(of_part):
        inside = of_part == k
        own = [name for i, name in enumerate(names) if i in cells[inside]]
        parts.append(fit_part(y[inside], cells[inside], blocks[inside], own))
    held = {name: frozenset(s for a, t, s in rows if (a, t) == name) for name in names}
    return Lengths(levene_p, equal, held, tuple(parts))


def points(gap: Contrast, accuracy: float) -> Contrast:
    """A logit gap, in percentage points over a rival of the given accuracy (a fraction).

    100 (expit(logit(accuracy) + gap) - accuracy), for the estimate and both ends; p and df are
    those of the logit, and the error is by the delta method.

    Raises:
        ValueError: if the accuracy is outside (0, 1).
    """
    if not 0 < accuracy < 1:
        raise ValueError(f"accuracy={accuracy} is outside (0, 1).")
    at = special.logit(accuracy)
    estimate, low, high = (
        float(100 * (special.expit(at + value) - accuracy))
        for value in (gap.estimate, gap.low, gap.high)
    )
    reached = float(special.expit(at + gap.estimate))
    error = 100 * reached * (1 - reached) * gap.error
    return Contrast(estimate, error, gap.df, low, high, gap.p, gap.n)

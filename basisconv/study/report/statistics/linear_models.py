"""One training length: accuracy by arm and seed, and the contrast of any two arms.

    y_ij = α_i + β_j + ε_ij,   ε_ij ~ N(0, σ²)

for arm i and seed j. Runs of one seed share data order and augmentation, so that seed is a block
(Fisher, 1935); it is fixed, for a handful of seeds tells little of a distribution. The residual is
pooled over arms. Arms may miss seeds: a seed that one arm alone has then says nothing. With two
arms this is the paired t-test over the seeds that they share.

Where variances differ by arm (Levene's test of the residuals), the pooled residual fits no pair. A
contrast is then taken from the model of its two arms alone, whose differences have one variance
whatever the two are: exact, at the price of degrees of freedom. Of three to five seeds the test
sees little: a comparison on which much rests can ask for unequal variances without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, stats
from statsmodels.regression.linear_model import OLS

from basisconv.study.report.statistics.stats import NAN, Floats, check_share

LEVENE = 0.05
"""The level at which Levene's test asks for unequal variances."""
ROUNDING = 1e-9
"""A residual of less than this, relative to the largest value, is none."""

_DRAWS = 1999
"""Of noise, to which Levene's statistic is compared."""


class Contrast(NamedTuple):
    """An estimate with its t-test against 0.

    Attributes:
        estimate: in the unit of the values.
        error: its standard error.
        df: degrees of freedom of the error.
        low: lower end of the confidence interval.
        high: upper end.
        p: two-sided.
        n: seeds that the two arms share, on which it rests.
    """

    estimate: float
    error: float
    df: float
    low: float
    high: float
    p: float
    n: int


def contrast_of(
    estimate: float, error: float, df: float, n: int, confidence: float = 0.95
) -> Contrast:
    """The t-interval and p-value of an estimate; NaN where the error or df is.

    Raises:
        ValueError: if confidence is outside (0, 1).
    """
    check_share(confidence, "confidence")
    if not (error > 0 and df > 0):
        return Contrast(estimate, NAN, NAN, NAN, NAN, NAN, n)
    half = float(stats.t.ppf((1 + confidence) / 2, df)) * error
    p = 2 * float(stats.t.sf(abs(estimate) / error, df))
    return Contrast(estimate, error, df, estimate - half, estimate + half, p, n)


@dataclass(frozen=True)
class Blocks:
    """The fitted model of one length; see `fit_blocks`.

    Attributes:
        arms: their names, in the order in which they came.
        seeds: of each arm.
        levene_p: of equal variances over arms; NaN where too few residuals say.
        equal_variances: whether the contrasts share one pooled residual.
        df: of that residual.
        sd: of one run within its seed by that residual, in the values' unit; NaN without.
    """

    arms: tuple[str, ...]
    seeds: dict[str, frozenset[int]]
    levene_p: float
    equal_variances: bool
    df: float
    sd: float
    _rows: tuple[Floats, tuple[str, ...], tuple[int, ...]]
    _fit: Any
    _part: NDArray[np.int_]

    def contrast(self, a: str, b: str, confidence: float = 0.95) -> Contrast:
        """Arm a less arm b, adjusted for seeds.

        Error, interval and p are NaN where the two share fewer than two seeds or no residual is
        left, and the estimate too where no chain of shared seeds connects them.

        Raises:
            ValueError: for an arm that is not in the model, or confidence outside (0, 1).
        """
        vector = self._vector(a, b)
        n = len(self.seeds[a] & self.seeds[b])
        if not self.equal_variances and n >= 2 and len(self.arms) > 2:
            return self._alone(a, b).contrast(a, b, confidence)
        if vector is None:
            return contrast_of(NAN, NAN, NAN, n, confidence)
        estimate = float(vector @ self._fit.params)
        if n < 2 or not self.sd > 0:
            return contrast_of(estimate, NAN, NAN, n, confidence)
        error = float(np.squeeze(self._fit.t_test(vector).sd))
        return contrast_of(estimate, error, self.df, n, confidence)

    def covariance(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        """The covariance matrix of the pairs' contrasts under the pooled residual.

        Raises:
            ValueError: for an arm that is not in the model, or a pair that is not connected.
        """
        vectors = [self._vector(a, b) for a, b in pairs]
        if any(vector is None for vector in vectors):
            raise ValueError(f"No chain of shared seeds connects every pair of {list(pairs)}.")
        return np.atleast_2d(self._fit.cov_params(r_matrix=np.array(vectors)))

    def _vector(self, a: str, b: str) -> Floats | None:
        for arm in (a, b):
            if arm not in self.arms:
                raise ValueError(f"{arm!r} is none of the model's arms {list(self.arms)}.")
        if a == b:
            raise ValueError(f"A contrast needs two arms, not {a!r} twice.")
        i, j = self.arms.index(a), self.arms.index(b)
        if self._part[i] != self._part[j]:
            return None
        vector = np.zeros(self._fit.model.exog.shape[1])
        vector[i], vector[j] = 1.0, -1.0
        return vector

    def _alone(self, a: str, b: str) -> Blocks:
        values, arms, seeds = self._rows
        rows = [i for i, arm in enumerate(arms) if arm in (a, b)]
        return fit_blocks(
            values[rows], [arms[i] for i in rows], [seeds[i] for i in rows], equal_variances=True
        )


def fit_blocks(
    values: ArrayLike,
    arms: Sequence[str],
    seeds: Sequence[int],
    equal_variances: bool | None = None,
) -> Blocks:
    """Fit `value ~ arm + seed` by least squares.

    Args:
        values: of the runs, all of one training length: accuracy in per cent, say.
        arms: of each run.
        seeds: of each run.
        equal_variances: over arms; None: unless Levene's test rejects it at 0.05.

    Raises:
        ValueError: if lengths differ, a value is not finite, there is none, or a run comes twice.
    """
    y, arms, seeds = checked_runs(values, arms, seeds)
    if len(set(zip(arms, seeds, strict=True))) < len(arms):
        raise ValueError("An arm has two runs of one seed: a run was given twice.")
    names, columns = tuple(dict.fromkeys(arms)), tuple(dict.fromkeys(seeds))
    i = np.array([names.index(arm) for arm in arms])
    j = np.array([columns.index(seed) for seed in seeds])
    design, part = _design(i, j)
    fit = OLS(y, design).fit()
    levene_p = levene(fit.resid, design, i)
    equal = not levene_p < LEVENE if equal_variances is None else equal_variances
    has_residual = fit.df_resid > 0 and math.sqrt(fit.ssr) > ROUNDING * np.abs(y).max()
    return Blocks(
        names,
        {name: frozenset(s for a, s in zip(arms, seeds, strict=True) if a == name)
         for name in names},
        levene_p, equal, float(fit.df_resid), math.sqrt(fit.scale) if has_residual else NAN,
        (y, arms, seeds), fit, part,
    )  # fmt: skip


def levene(residuals: Floats, design: Floats, groups: NDArray[np.int_]) -> float:
    """Levene's test (1960) of equal variances over groups, of residuals about means: its p-value.

    Residuals are scaled by 1/√(1 - leverage) first, for those of a small group are small. The
    statistic is compared with that of normal noise under the same design: with three seeds its F
    distribution rejects equal variances two to ten times too often, and about medians (Brown &
    Forsythe, 1974) the test would never reject unequal ones. NaN where fewer than two groups have
    two residuals, none has three, or all are 0.

    Args:
        residuals: of a least-squares fit.
        design: its matrix, of full column rank.
        groups: of each residual.
    """
    q = np.linalg.qr(design)[0]
    free = 1 - (q**2).sum(axis=1)
    kept = free > ROUNDING
    scale, labels = np.sqrt(free[kept]), groups[kept]
    members = [labels == g for g in np.unique(labels) if (labels == g).sum() > 1]

    def sizes(rows: Floats) -> list[Floats]:
        scaled = rows[:, kept] / scale
        parts = [scaled[:, m] for m in members]
        return [np.abs(part - part.mean(axis=1, keepdims=True)) for part in parts]

    given = sizes(residuals[None])
    # The two residuals of a group of two are as large: of such groups alone the test says nothing.
    if len(members) < 2 or not max(np.ptp(part) for part in given) > ROUNDING * max(
        part.max() for part in given
    ):
        return NAN
    noise = np.random.default_rng(0).standard_normal((_DRAWS, len(residuals)))
    null = _between_over_within(sizes(noise - (noise @ q) @ q.T))
    return float((1 + (null >= _between_over_within(given)).sum()) / (1 + _DRAWS))


def _between_over_within(parts: Sequence[Floats]) -> Floats:
    """The ratio of sums of squares between and within groups, a value a row."""
    counts = np.array([part.shape[1] for part in parts])
    means = np.stack([part.mean(axis=1) for part in parts])
    whole = (counts @ means) / counts.sum()
    within = sum(((p - m[:, None]) ** 2).sum(axis=1) for p, m in zip(parts, means, strict=True))
    ratio: Floats = (counts @ (means - whole) ** 2) / np.maximum(within, np.finfo(float).tiny)
    return ratio


def checked_runs(
    values: ArrayLike, arms: Sequence[str], seeds: Sequence[int]
) -> tuple[Floats, tuple[str, ...], tuple[int, ...]]:
    """A table of runs as arrays of one length.

    Raises:
        ValueError: if lengths differ, a value is not finite, or there is none.
    """
    y = np.asarray(values, dtype=np.float64)
    if y.ndim != 1 or len(y) == 0 or not np.isfinite(y).all():
        raise ValueError(f"values must be a non-empty list of finite numbers, not {values!r}.")
    if not len(y) == len(arms) == len(seeds):
        raise ValueError(f"{len(y)} values have {len(arms)} arms and {len(seeds)} seeds.")
    return y, tuple(arms), tuple(seeds)


def _design(i: NDArray[np.int_], j: NDArray[np.int_]) -> tuple[Floats, NDArray[np.int_]]:
    """Indicators of full rank, arms first, and the part that each arm belongs to.

    Arms and seeds are the nodes of a graph and runs its edges. In each connected part one seed's
    effect is set to 0.
    """
    n_arms, n_seeds = int(i.max()) + 1, int(j.max()) + 1
    edges = sparse.coo_array((np.ones(len(i)), (i, n_arms + j)), shape=(n_arms + n_seeds,) * 2)
    _, part = sparse.csgraph.connected_components(edges, directed=False)
    first = np.unique(part[n_arms:], return_index=True)[1]
    kept = np.setdiff1d(np.arange(n_seeds), first)
    blocks = j[:, None] == kept[None, :]
    return np.hstack([i[:, None] == np.arange(n_arms)[None, :], blocks]).astype(float), part[
        :n_arms
    ]

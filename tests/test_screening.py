"""Screening designs and the effects estimated from them, on responses whose effects are known."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import null_space
from scipy.stats import multivariate_normal

import basisconv as bc

SIXTEEN = {f"layer{s}.{b}.conv{c}": 16 * 2**s for s in (1, 2, 3, 4) for b in (0, 1) for c in (1, 2)}
LEVELS = (1, 1 / 2, 1 / 4, 1 / 8)
G = {1: 0.0, 1 / 2: 0.2, 1 / 4: 0.5, 1 / 8: 1.0}


def table(design: bc.Screening, candidates: dict[str, int]) -> NDArray[np.float64]:
    """The share of basis filters of each run in each layer."""
    return np.array(
        [[plan.layers.get(n, c) / c for n, c in candidates.items()] for plan in design.plans]
    )


def respond(
    design: bc.Screening, costs: NDArray[np.float64], noise: float, seed: int, pair: float = 0.0
) -> list[float]:
    """Losses whose logarithm is block + Σ cost·g, and a planted interaction within blocks."""
    random = np.random.default_rng(seed)
    shares = table(design, SIXTEEN)
    g = np.vectorize(G.get)(shares)
    block = np.array([0.3, -0.2, 0.1, 0.0])[list(design.blocks)]
    names = list(SIXTEEN)
    within = [(a, b) for a, b in combinations(range(16), 2) if names[a][:8] == names[b][:8]]
    both = sum(g[:, a] * g[:, b] for a, b in within)
    log = block + g @ costs + pair * both + noise * random.normal(size=len(g))
    return list(np.exp(log))


def pairs_of_levels(columns: NDArray[np.float64]) -> list[Counter[tuple[float, ...]]]:
    return [
        Counter(map(tuple, columns[:, [a, b]].tolist()))
        for a, b in combinations(range(columns.shape[1]), 2)
    ]


def test_sixty_four_runs_of_four_levels_are_an_orthogonal_array() -> None:
    design = bc.screening(SIXTEEN, seed=3)
    columns = np.column_stack([table(design, SIXTEEN), design.blocks])
    # Strength 2: any two layers, and a layer and the block, have each of 16 pairs four times.
    for pairs in pairs_of_levels(columns):
        assert len(pairs) == 16 and set(pairs.values()) == {4}
    assert {n for plan in design.plans for n in plan.layers.values()} <= {4, 8, 16, 32, 64, 128}
    assert design == bc.screening(SIXTEEN, seed=3)
    assert design.plans != bc.screening(SIXTEEN, seed=4).plans


@pytest.mark.parametrize(
    "layers, levels, runs, blocks",
    [(20, LEVELS, 48, 4), (7, (1, 1 / 4), 12, 1), (5, (1, 1 / 2, 1 / 4), 20, 3)],
)
def test_other_sizes_are_balanced_and_nearly_orthogonal(
    layers: int, levels: tuple[float, ...], runs: int, blocks: int
) -> None:
    candidates = {f"conv{i}": 32 for i in range(layers)}
    design = bc.screening(candidates, levels, runs, blocks)
    columns = table(design, candidates)
    for column in (*columns.T, np.array(design.blocks)):
        counts = Counter(column.tolist()).values()
        assert max(counts) - min(counts) <= 1
    random = np.random.default_rng(0)
    drawn = np.stack([random.permutation(column) for column in columns.T], axis=1)
    assert unevenness(columns) < 0.7 * unevenness(drawn)


def unevenness(columns: NDArray[np.float64]) -> float:
    """The mean square by which pairs of levels differ from being equally often."""
    found = []
    for a, b in combinations(range(columns.shape[1]), 2):
        counts = np.array(
            [
                np.sum((columns[:, a] == x) & (columns[:, b] == y))
                for x in np.unique(columns[:, a])
                for y in np.unique(columns[:, b])
            ]
        )
        found.append(np.var(counts))
    return float(np.mean(found))


def test_seven_layers_on_eight_runs_are_an_orthogonal_array() -> None:
    """The saturated two-level design of eight runs, which exchanges have to find."""
    candidates = {f"conv{i}": 16 for i in range(7)}
    design = bc.screening(candidates, (1, 1 / 4), 8, blocks=1)
    for pairs in pairs_of_levels(table(design, candidates)):
        assert set(pairs.values()) == {2}


def test_effects_are_recovered_under_noise_and_shrink_to_what_is_common() -> None:
    costs = np.random.default_rng(1).gamma(4, 0.01, 16)
    design = bc.screening(SIXTEEN)
    exact = bc.effects(design.plans, respond(design, costs, 1e-6, 0), design.blocks)
    for name, cost in zip(SIXTEEN, costs, strict=True):
        assert exact.layers[name].value == pytest.approx(cost, abs=1e-4)
    for levels in exact.shape.values():
        assert list(levels.values()) == pytest.approx([0.2, 0.5, 1.0], abs=1e-3)
    noisy = bc.effects(design.plans, respond(design, costs, 0.03, 0), design.blocks)
    values = np.array([noisy.layers[name].value for name in SIXTEEN])
    assert np.corrcoef(values, costs)[0, 1] > 0.8
    assert noisy.common.value == pytest.approx(costs.mean(), abs=0.005)
    assert noisy.noise == pytest.approx(0.03, rel=0.3)
    equal = bc.effects(design.plans, respond(design, np.full(16, 0.04), 0.03, 5), design.blocks)
    assert np.std([e.value for e in equal.layers.values()]) < 0.3 * 0.03 / np.sqrt(16)


def test_intervals_cover_and_hold_out_errors_are_true() -> None:
    design = bc.screening(SIXTEEN)
    unseen = bc.screening(SIXTEEN, seed=9)
    inside, total, predicted, left_out, truth = 0, 0, 0, [], []
    for seed in range(40):
        costs = np.random.default_rng(seed).normal(0.04, 0.015, 16)
        found = bc.effects(design.plans, respond(design, costs, 0.02, seed), design.blocks)
        inside += sum(
            found.layers[name].low <= cost <= found.layers[name].high
            for name, cost in zip(SIXTEEN, costs, strict=True)
        )
        total += 16
        plan = unseen.plans[seed]
        g = np.vectorize(G.get)(table(bc.Screening((plan,), (0,)), SIXTEEN))[0]
        e = found.predict(plan)
        predicted += e.low <= float(g @ costs) <= e.high
        left_out.append(found.held_out)
        truth.append(np.log(respond(unseen, costs, 0.02, seed + 1000))[seed] - e.value)
    assert 0.90 <= inside / total <= 0.99
    assert predicted >= 34
    # A run of a plan not seen scatters by the noise and what the estimate is off by.
    shift = np.array([0.3, -0.2, 0.1, 0.0])[[unseen.blocks[seed] for seed in range(40)]]
    assert np.mean(left_out) == pytest.approx(float(np.std(np.array(truth) - shift)), rel=0.25)


def test_the_layers_spread_is_that_of_the_largest_restricted_likelihood() -> None:
    design = bc.screening(SIXTEEN)
    losses = respond(design, np.random.default_rng(3).normal(0.05, 0.02, 16), 0.02, 3)
    found = bc.effects(design.plans, losses, design.blocks)
    shares, y = table(design, SIXTEEN), np.log(losses)
    x = np.column_stack(
        [np.eye(4)[list(design.blocks)], *[(shares == s).sum(axis=1) for s in LEVELS[1:]]]
    )
    z = np.array(
        [[g.get(p.layers.get(n, 0), 0.0) for n, g in found.shape.items()] for p in design.plans]
    )
    # Contrasts that no fixed effect reaches have a normal density of their own.
    free = null_space(x.T)
    contrasts, own = free.T @ y, free.T @ z

    def density(noise: float, spread: float) -> float:
        covariance = noise**2 * np.eye(len(contrasts)) + spread**2 * own @ own.T
        return float(multivariate_normal.logpdf(contrasts, cov=covariance))

    best = density(found.noise, found.spread)
    for noise in np.linspace(0.7, 1.4, 8) * found.noise:
        for spread in np.linspace(0, 2, 9) * found.spread:
            assert density(noise, spread) <= best + 0.01


def test_the_held_out_error_says_whether_layers_differ() -> None:
    design = bc.screening(SIXTEEN)
    costs = np.random.default_rng(2).gamma(2, 0.03, 16)
    apart = bc.effects(design.plans, respond(design, costs, 0.02, 1), design.blocks)
    assert apart.held_out < 0.6 * apart.held_out_common
    alike = bc.effects(design.plans, respond(design, np.full(16, 0.05), 0.02, 1), design.blocks)
    assert alike.held_out == pytest.approx(alike.held_out_common, rel=0.1)


def test_held_out_errors_are_those_of_fits_without_the_run() -> None:
    design = bc.screening(SIXTEEN)
    losses = respond(design, np.full(16, 0.05), 0.02, 1)
    found = bc.effects(design.plans, losses, design.blocks)
    keep = [i for i in range(64) if i != 10]
    # Where layers are alike, τ is 0 with and without the run, and the model is least squares.
    assert found.spread == 0
    without = bc.effects(
        [design.plans[i] for i in keep], [losses[i] for i in keep], [design.blocks[i] for i in keep]
    )
    assert without.spread == 0
    shares = table(design, SIXTEEN)
    counts = [(shares == level).sum(axis=1) for level in LEVELS[1:]]
    x = np.column_stack([np.eye(4)[list(design.blocks)], *counts])
    y = np.log(losses)
    errors = []
    for i in range(64):
        rest = np.arange(64) != i
        beta = np.linalg.lstsq(x[rest], y[rest], rcond=None)[0]
        errors.append(y[i] - x[i] @ beta)
    assert found.held_out_common == pytest.approx(float(np.sqrt(np.mean(np.square(errors)))))


def test_a_planted_interaction_is_found_and_an_absent_one_is_not() -> None:
    design = bc.screening(SIXTEEN)
    costs = np.full(16, 0.04)
    planted = bc.effects(design.plans, respond(design, costs, 0.02, 2, pair=0.05), design.blocks)
    within = planted.interactions["same block"]
    assert within.low > 0 and within.low <= 0.05 <= within.high
    missed = 0
    for seed in range(20):
        none = bc.effects(design.plans, respond(design, costs, 0.02, seed), design.blocks)
        missed += sum(not e.low <= 0 <= e.high for e in none.interactions.values())
    assert missed <= 5  # of 40, at 5 %


def test_scores_are_what_a_search_takes() -> None:
    design = bc.screening(SIXTEEN)
    costs = np.linspace(0.01, 0.1, 16)
    found = bc.effects(design.plans, respond(design, costs, 1e-6, 0), design.blocks)
    scores = found.scores()
    assert scores["layer1.0.conv1"] == pytest.approx({16: 0.002, 8: 0.005, 4: 0.01}, abs=1e-4)
    plan = design.plans[5]
    assert found.predict(plan).value == pytest.approx(
        sum(scores[n][m] for n, m in plan.layers.items()), abs=1e-9
    )


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="no layers"):
        bc.screening({})
    with pytest.raises(ValueError, match="begin with 1"):
        bc.screening(SIXTEEN, levels=(0.5, 0.25))
    with pytest.raises(ValueError, match="descend"):
        bc.screening(SIXTEEN, levels=(1, 0.25, 0.5))
    with pytest.raises(ValueError, match=r"stem: .* not all different"):
        bc.screening({"stem": 4})
    with pytest.raises(ValueError, match="17 runs or more"):
        bc.screening(SIXTEEN, runs=16, blocks=1)
    design = bc.screening(SIXTEEN)
    losses = [1.0] * 64
    with pytest.raises(ValueError, match="64 plans, 63 losses"):
        bc.effects(design.plans, losses[1:], design.blocks)
    with pytest.raises(ValueError, match="positive and finite"):
        bc.effects(design.plans, [*losses[1:], float("nan")], design.blocks)
    with pytest.raises(ValueError, match=r"20 runs cannot tell \d+ effects"):
        bc.effects(design.plans[:20], losses[:20], design.blocks[:20])
    with pytest.raises(ValueError, match="no layers"):
        bc.effects([bc.Plan({})] * 3, [1.0] * 3)
    found = bc.effects(design.plans, respond(design, np.full(16, 0.1), 0.01, 0), design.blocks)
    with pytest.raises(ValueError, match=r"layer1.0.conv1 with 5 basis filters"):
        found.predict(bc.Plan({"layer1.0.conv1": 5}))
    with pytest.raises(ValueError, match="layer9"):
        found.predict(bc.Plan({"layer9": 4}))

"""Selection, matched subsets and choices of levels, against enumeration of all."""

from __future__ import annotations

import math
import sys
from collections import Counter
from itertools import chain, combinations, product

import numpy as np
import pytest
from scipy import stats

import basisconv as bc
from basisconv.controls import inverted_subset, random_subset
from basisconv.knapsack import choose_levels, select, select_by_threshold
from basisconv.plan import Plan

Values = dict[str, float]


def subsets(names):
    return chain.from_iterable(combinations(names, r) for r in range(len(names) + 1))


def total_of(values: Values, names) -> float:
    return math.fsum(values[name] for name in names)


def loss_of(scores: Values, names) -> float:
    return math.fsum(max(scores[name], 0.0) for name in names)


def plan_of(values: Values) -> Plan:
    return Plan({name: 2 + i for i, name in enumerate(values)})


def instance(seed: int) -> tuple[Values, Values]:
    """Scores and savings of a few layers: continuous, or of few levels so that ties abound."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 10))
    if seed % 2:
        scores = rng.normal(0.1, 0.2, count)
        savings = rng.normal(1.0, 1.0, count)
    else:
        scores = rng.integers(-2, 5, count) * 0.1
        savings = rng.integers(-1, 4, count) * 37_748_736.0
    names = [f"layer{i}" for i in range(count)]
    return (
        dict(zip(names, scores.tolist(), strict=True)),
        dict(zip(names, savings.tolist(), strict=True)),
    )


@pytest.mark.parametrize("seed", range(40))
def test_select_is_the_best_of_all_subsets(seed):
    scores, savings = instance(seed)
    budget = 0.1 * (seed % 11)
    chosen = select(scores, savings, budget, plan_of(scores)).layers
    useful = [name for name in scores if savings[name] > 0]
    best = max(
        (total_of(savings, s), -loss_of(scores, s))
        for s in subsets(useful)
        if loss_of(scores, s) <= budget + 1e-9
    )
    assert set(chosen) <= set(useful)
    assert (total_of(savings, chosen), -loss_of(scores, chosen)) == pytest.approx(best, abs=1e-9)


def test_select_fills_a_budget_that_rounding_would_overrun():
    # 0.1 + 0.1 + 0.1 is 0.30000000000000004.
    scores = dict.fromkeys("abcd", 0.1)
    assert len(select(scores, dict.fromkeys("abcd", 1.0), 0.3, plan_of(scores)).layers) == 3


@pytest.mark.parametrize("seed", range(30))
def test_select_is_exact_within_the_solvers_tolerance(seed):
    # The budget is 1e-5 to 1e-8 short of what a subset needs, which the solver takes for enough.
    rng = np.random.default_rng(seed)
    names = [f"layer{i}" for i in range(int(rng.integers(2, 9)))]
    scores = {name: float(rng.uniform(0.1, 1)) for name in names}
    savings = {name: float(rng.uniform(0.1, 1)) for name in names}
    wanted = [name for name in names if rng.random() < 0.6]
    budget = loss_of(scores, wanted) * (1 - 10 ** -rng.uniform(5, 8))
    chosen = select(scores, savings, budget, plan_of(scores)).layers
    best = max(total_of(savings, s) for s in subsets(names) if loss_of(scores, s) <= budget)
    assert loss_of(scores, chosen) <= budget
    assert total_of(savings, chosen) == pytest.approx(best, abs=1e-8)


def test_a_negative_score_does_not_pay_for_another_layer():
    scores = {"better": -5.0, "worse": 0.2}
    savings = {"better": 1.0, "worse": 10.0}
    assert set(select(scores, savings, 0.1, plan_of(scores)).layers) == {"better"}


def test_where_all_layers_save_the_same_the_least_sensitive_are_chosen():
    scores = {"a": 0.05, "b": 0.01, "c": 0.04, "d": 0.02, "e": 0.03}
    # Of three layers, b, d and e or b, d and c are within it.
    chosen = select(scores, dict.fromkeys(scores, 37_748_736.0), 0.075, plan_of(scores))
    assert set(chosen.layers) == {"b", "d", "e"}


def test_select_may_find_nothing():
    scores = {"a": 0.5, "b": 0.4}
    assert select(scores, {"a": 1.0, "b": 1.0}, 0.3, plan_of(scores)) == Plan({})
    assert select(scores, {"a": 0.0, "b": -1.0}, 1e6, plan_of(scores)) == Plan({})
    assert select({}, {}, 1.0, Plan({})) == Plan({})


def test_the_threshold_is_the_highest_score_that_passes():
    scores = {"a": 0.3, "b": 0.1, "c": -0.2, "d": 0.31}
    assert set(select_by_threshold(scores, 0.3, plan_of(scores)).layers) == {"a", "b", "c"}
    assert select_by_threshold(scores, -1.0, plan_of(scores)) == Plan({})


def test_plans_keep_the_candidates_form():
    candidates = Plan(
        {"a": 4, "b": 8, "c": 16},
        form="full",
        coef_groups=2,
        coef_rank=3,
        modes={"a": "rebuilt", "b": "rebuilt"},
    )
    ones = dict.fromkeys("abc", 1.0)
    expected = Plan({"b": 8}, "full", 2, 3, {"b": "rebuilt"})
    scores = {"a": 1.0, "b": 0.0, "c": 1.0}
    assert select(scores, ones, 0.5, candidates) == expected
    assert select_by_threshold(scores, 0.5, candidates) == expected
    only_b = {"a": -1.0, "b": 1.0, "c": 0.0}
    assert random_subset(only_b, 4.0, 3.0, candidates, seed=0) == expected
    only_b_hurts = {"a": 0.0, "b": 1.0, "c": 0.0}
    assert inverted_subset(only_b_hurts, only_b, 4.0, 3.0, candidates) == expected


@pytest.mark.parametrize("seed", range(30))
def test_inverted_is_the_worst_of_all_subsets_of_that_time(seed):
    scores, savings = instance(seed)
    useful = [name for name in scores if savings[name] > 0]
    total = 1.3 * total_of(savings, useful) + 1.0
    # A time that some subset has, as the selected one's always does.
    rng = np.random.default_rng(seed)
    target = total - total_of(savings, [name for name in useful if rng.random() < 0.5])
    chosen = inverted_subset(scores, savings, total, target, plan_of(scores)).layers
    time = total - total_of(savings, chosen)
    assert abs(time - target) <= 0.02 * target * (1 + 1e-9)
    worst = max(
        (loss_of(scores, s), total_of(scores, s))
        for s in subsets(list(scores))
        if abs(total - total_of(savings, s) - target) <= 0.02 * target + 1e-9 * total
    )
    assert (loss_of(scores, chosen), total_of(scores, chosen)) == pytest.approx(worst, abs=1e-9)


def test_the_worst_subset_holds_a_sensitive_layer_that_saves_nothing():
    scores = {"stem": 0.1, "shortcut": -0.1, "a": 0.01, "b": 0.02}
    savings = {"stem": -0.001, "shortcut": 0.0, "a": 0.3, "b": 0.3}
    assert set(inverted_subset(scores, savings, 1.0, 0.7, plan_of(scores)).layers) == {"stem", "b"}
    drawn = [random_subset(savings, 1.0, 0.7, plan_of(savings), seed) for seed in range(20)]
    assert {tuple(plan.layers) for plan in drawn} == {("a",), ("b",)}


def test_random_subsets_are_uniform_over_those_of_that_time():
    rng = np.random.default_rng(3)
    savings = {f"layer{i}": float(s) for i, s in enumerate(rng.uniform(0.03, 0.1, 7))}
    savings["useless"] = -0.01
    total, target = 1.0, 0.75
    valid = {
        frozenset(s)
        for s in subsets([name for name in savings if savings[name] > 0])
        if abs(total - total_of(savings, s) - target) <= 0.02 * target
    }
    assert len(valid) > 8
    drawn = Counter(
        frozenset(random_subset(savings, total, target, plan_of(savings), seed).layers)
        for seed in range(15 * len(valid))
    )
    assert set(drawn) == valid
    assert stats.chisquare(list(drawn.values())).pvalue > 1e-3


def test_random_subsets_of_many_layers_meet_the_time():
    rng = np.random.default_rng(4)
    savings = {f"layer{i}": float(s) for i, s in enumerate(rng.uniform(0.001, 0.016, 60))}
    drawn = set()
    for seed in range(8):
        plan = random_subset(savings, 1.0, 0.7, plan_of(savings), seed)
        assert 1.0 - total_of(savings, plan.layers) == pytest.approx(0.7, rel=0.02)
        drawn.add(plan)
    assert len(drawn) == 8
    assert random_subset(savings, 1.0, 0.7, plan_of(savings), 0) in drawn  # the seed decides


def test_a_time_that_no_subset_has_is_refused_with_what_there_is():
    savings = {"a": 0.1, "b": 0.25, "useless": 0.0}
    scores = dict.fromkeys(savings, 1.0)
    for target, nearest in ((0.83, "0.9"), (0.72, "0.75"), (0.2, "0.65"), (1.5, "1")):
        with pytest.raises(ValueError, match=rf"nearest is {nearest},.*from 0.65 to 1\."):
            random_subset(savings, 1.0, target, plan_of(savings), seed=0)
        with pytest.raises(ValueError, match=rf"nearest is {nearest},"):
            inverted_subset(scores, savings, 1.0, target, plan_of(savings))
    # Nothing to choose from: dense alone, where its time is the one asked for.
    assert random_subset({}, 1.0, 1.01, Plan({}), seed=0) == Plan({})
    assert inverted_subset({}, {}, 1.0, 1.01, Plan({})) == Plan({})
    with pytest.raises(ValueError, match="these 0 layers"):
        random_subset({}, 1.0, 0.5, Plan({}), seed=0)


@pytest.mark.parametrize(
    ("scores", "savings", "message"),
    [
        ({"a": 1.0}, {"a": 1.0, "b": 1.0}, r"scores .*missing \['b'\].*Candidates: a, b"),
        ({"a": 1.0, "b": 1.0}, {"b": 1.0}, r"savings .*missing \['a'\]"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "b": 1.0}, r"scores .*unknown \['c'\]"),
        ({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, r"savings .*unknown \['c'\]"),
        ({"a": math.nan, "b": 1.0}, {"a": 1.0, "b": 1.0}, "scores .*finite.*a=nan"),
        ({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": math.inf}, "savings .*finite.*b=inf"),
    ],
)
def test_scores_and_savings_must_fit_the_candidates(scores, savings, message):
    candidates = Plan({"a": 1, "b": 1})
    with pytest.raises(ValueError, match=message):
        select(scores, savings, 1.0, candidates)
    with pytest.raises(ValueError, match=message):
        inverted_subset(scores, savings, 1.0, 1.0, candidates)
    with pytest.raises(ValueError, match=message):
        if message.startswith("scores"):
            select_by_threshold(scores, 1.0, candidates)
        else:
            random_subset(savings, 1.0, 1.0, candidates, seed=0)


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_numbers_out_of_range_are_refused(bad):
    ones, candidates = {"a": 1.0}, Plan({"a": 1})
    with pytest.raises(ValueError, match="budget="):
        select(ones, ones, bad, candidates)
    with pytest.raises(ValueError, match="total="):
        random_subset(ones, bad, 1.0, candidates, seed=0)
    with pytest.raises(ValueError, match="target="):
        inverted_subset(ones, ones, 1.0, bad, candidates)
    if bad > 0 or math.isnan(bad):
        with pytest.raises(ValueError, match="threshold="):
            select_by_threshold(ones, bad, candidates)


Levels = dict[str, dict[int, float]]


def levels_of(seed: int) -> tuple[Levels, Levels, float]:
    """Losses and costs of a few layers on a few levels each, and a budget that some choice meets.

    Of odd seeds the values are continuous, of even ones few, so that ties abound; levels come in no
    order, and not all of them are worth their cost.
    """
    rng = np.random.default_rng(seed)
    losses, costs = Levels(), Levels()
    for i in range(int(rng.integers(1, 5))):
        count = int(rng.integers(1, 6))
        keys = rng.permutation(100)[:count].tolist()
        a, b = rng.normal(0.5, 0.6, count), rng.uniform(-0.2, 2, count)
        if seed % 2 == 0:
            a, b = np.round(a, 1), np.round(b, 1)
        losses[f"layer{i}"] = dict(zip(keys, a.tolist(), strict=True))
        costs[f"layer{i}"] = dict(zip(keys, b.tolist(), strict=True))
    low, high = (math.fsum(f(c.values()) for c in costs.values()) for f in (min, max))
    budget = low + float(rng.uniform(0, 1)) * (high - low)
    return losses, costs, round(budget, 1) + 0.1 if seed % 2 == 0 else budget


@pytest.mark.parametrize("seed", range(50))
def test_levels_are_the_best_of_all_choices(seed):
    losses, costs, budget = levels_of(seed)
    chosen = choose_levels(losses, costs, budget)
    assert list(chosen) == list(losses)

    def total(values, levels):
        return math.fsum(values[name][level] for name, level in zip(losses, levels, strict=True))

    assert total(costs, chosen.values()) <= budget + 1e-8
    best = min(
        total(losses, levels)
        for levels in product(*losses.values())
        if total(costs, levels) <= budget + 1e-12
    )
    # A ten-thousandth of the loss, and as much of the largest for a loss near zero.
    slack = 1e-4 * (abs(best) + max(abs(v) for levels in losses.values() for v in levels.values()))
    assert total(losses, chosen.values()) <= best + slack


def test_of_levels_with_the_same_loss_the_cheapest_is_taken():
    losses = {"a": {8: 0.0, 16: 0.0, 0: 0.0}, "b": {8: 1.0, 0: 0.0}}
    costs = {"a": {8: 3.0, 16: 2.0, 0: 4.0}, "b": {8: 1.0, 0: 5.0}}
    assert choose_levels(losses, costs, 100.0) == {"a": 16, "b": 0}


def test_a_budget_that_rounding_would_overrun_takes_the_levels_that_fill_it():
    costs = {name: {1: 0.1, 2: 0.2} for name in "abc"}
    losses = {name: {1: 0.0, 2: -1.0} for name in "abc"}
    assert set(choose_levels(losses, costs, 0.6).values()) == {2}  # 0.2 · 3 is above 0.6
    assert set(choose_levels(losses, costs, 0.3).values()) == {1}


def test_many_layers_of_many_levels_are_chosen_to_within_the_gap():
    rng = np.random.default_rng(1)
    losses, costs = Levels(), Levels()
    for i in range(40):
        grid = np.arange(1, 33) / 32
        size = float(rng.uniform(0.5, 2))
        losses[f"{i}"] = dict(enumerate((size * (1 - grid) ** 2).tolist()))
        costs[f"{i}"] = dict(enumerate((size * grid).tolist()))
    total = math.fsum(max(levels.values()) for levels in costs.values())
    chosen = choose_levels(losses, costs, 0.5 * total)
    assert math.fsum(costs[n][m] for n, m in chosen.items()) <= 0.5 * total * (1 + 1e-9)
    # By convexity each layer at a half is the best, and 16/32 is one of the levels.
    best = math.fsum(losses[n][15] for n in losses)
    assert math.fsum(losses[n][m] for n, m in chosen.items()) == pytest.approx(best, rel=2e-4)


def test_a_choice_out_of_reach_is_refused_with_the_least_there_is():
    costs = {"a": {1: 0.5, 2: 1.0}, "b": {1: 0.25}}
    losses = {"a": {1: 1.0, 2: 0.0}, "b": {1: 0.0}}
    with pytest.raises(ValueError, match=r"within budget=0.7: .* add up to 0.75"):
        choose_levels(losses, costs, 0.7)
    assert choose_levels(losses, costs, 0.75) == {"a": 1, "b": 1}
    assert choose_levels({}, {}, 0.0) == {}
    with pytest.raises(ValueError, match="without layers"):
        choose_levels({}, {}, -1.0)


@pytest.mark.parametrize(
    ("losses", "costs", "message"),
    [
        ({"a": {1: 0.0}}, {"b": {1: 0.0}}, "not the same layers"),
        ({"a": {1: 0.0}}, {"a": {2: 0.0}}, "a: .*the same levels"),
        ({"a": {}}, {"a": {}}, "a: .*at least one"),
        ({"a": {1: math.nan}}, {"a": {1: 0.0}}, "a: .*finite"),
        ({"a": {1: 0.0}}, {"a": {1: math.inf}}, "a: .*finite"),
    ],
)
def test_losses_and_costs_must_have_the_same_finite_levels(losses, costs, message):
    with pytest.raises(ValueError, match=message):
        choose_levels(losses, costs, 1.0)
    with pytest.raises(ValueError, match="budget="):
        choose_levels({"a": {1: 0.0}}, {"a": {1: 0.0}}, math.nan)


def test_selection_is_public():
    assert bc.select is select and bc.select_by_threshold is select_by_threshold


def test_without_scipy_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert select_by_threshold({}, 0, Plan({})) == Plan({})
    with pytest.raises(ImportError, match="The search needs scipy: pip install scipy"):
        select({"a": 1.0}, {"a": 1.0}, 1.0, Plan({"a": 1}))

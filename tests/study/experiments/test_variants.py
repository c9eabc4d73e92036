"""02's extra arms, 02b's widths and 05b's defaults before training."""

from __future__ import annotations

from typing import Any

from basisconv.plan import Plan
from basisconv.study.experiments.registry import draft
from basisconv.study.experiments.study import Study


def frontier(study: Study, **changes: Any) -> Any:
    return draft(study, "02_all_layers", study.profile.parameters("02_all_layers") | changes)


def test_the_frontiers_extra_arms_stand_at_their_own_budgets(study: Study) -> None:
    found = frontier(
        study, budgets=[1, 2, 4], ratios=[0.25], extra_budget=2, extra_ratios=[0.125, 0.5],
        dense_budgets=[2.5], equal_steps=[0.25],
    )  # fmt: skip
    budgets: dict[str, list[float | None]] = {}
    for arm in found.arms:
        budgets.setdefault(arm.label, []).append(arm.budget)
    size = found.facts["same_size_width"]
    assert budgets == {
        "dense": [1, 2, 4, 2.5],
        "all layers, f = 0.25": [1, 2, 4],
        "basis→dense at 0.5, f = 0.25": [1, 2, 4],
        f"dense, width {found.facts['narrow_width']}": [1, 2, 4],
        "all layers, f = 0.125": [2],
        "all layers, f = 0.5": [2],
        f"dense, width {size}, equal size": [2],
        "all layers, f = 0.25, dense's steps": [2],
    }


def test_arms_of_equal_steps_train_as_dense_does(study: Study) -> None:
    found = frontier(study, budgets=[1], extra_budget=3, equal_steps=[0.125, 0.5])
    dense = next(arm for arm in found.arms if arm.method == "dense" and arm.budget == 3)
    equal = [arm for arm in found.arms if arm.method == "equal_steps"]
    assert [arm.detail["ratio"] for arm in equal] == [0.125, 0.5]
    for arm in equal:
        plan = study.plan(arm.detail["ratio"])
        assert arm.time < dense.time
        for ours, theirs in zip(arm.run_ids, dense.run_ids, strict=True):
            run = found.runs[ours].model_dump()
            (phase,) = run["phases"]
            assert phase["plan"] == plan.to_dict()
            phase["plan"] = Plan().to_dict()
            assert run == found.runs[theirs].model_dump()


def test_the_network_of_equal_size_is_as_near_in_parameters_as_can_be(study: Study) -> None:
    plan = study.plan(0.25)
    target = study.network_costs(plan).parameters
    gaps = {w: abs(study.network_costs(Plan(), w).parameters - target) for w in range(1, 9)}
    assert gaps[study.same_size_width(plan)] == min(gaps.values())


def test_an_extra_budget_that_no_arm_has_gets_its_dense(study: Study) -> None:
    found = frontier(study, budgets=[1], extra_budget=3, extra_ratios=[0.25], dense_budgets=[1, 3])
    met = [arm for arm in found.arms if arm.method != "equal_steps"]
    at = [(arm.label, arm.budget) for arm in met if arm.budget == 3]
    assert ("dense", 3) in at and ("all layers, f = 0.25", 3) in at
    assert len(at) == len(set(at)) == 3
    dense = [arm.budget for arm in found.arms if arm.method == "dense"]
    assert sorted(dense) == [1, 3]


def test_what_04_and_05_named_joins_the_frontier(study: Study) -> None:
    skip = {"direction": "dense→basis", "switch": 0.25, "carry": "reinit",
            "momentum_carry": "carried", "schedule": "restart"}  # fmt: skip
    layers = study.layers[2:6]
    found = frontier(study, budgets=[4], extra_budget=4, selected=layers, best_skip=skip)
    runs = {arm.label: found.runs[arm.run_ids[0]] for arm in found.arms}
    assert list(runs["selected, f = 0.25"].phases[0].plan.layers) == layers
    best = runs["dense→basis at 0.25, f = 0.25"]
    assert [phase.plan for phase in best.phases] == [Plan(), study.plan(0.25)]
    assert (best.carry, best.momentum_carry, best.schedule) == ("reinit", "carried", "restart")
    assert best.phases[0].steps == study.steps(1, Plan())
    # Judged on seeds that named neither.
    assert {run.seed for run in found.runs.values()} == set(study.profile.seeds.confirm)


def test_widths_share_the_frontiers_runs_at_the_profiles_own(study: Study) -> None:
    given = study.profile.parameters("02b_widths") | {"budgets": [1, 2]}
    found, frontiers = draft(study, "02b_widths", given), draft(study, "02_all_layers")
    own = {i for arm in found.arms if arm.detail["width"] == 8 for i in arm.run_ids}
    assert own <= frontiers.runs.keys()
    for arm in found.arms:
        runs = [found.runs[run_id] for run_id in arm.run_ids]
        assert {run.width for run in runs} == {arm.detail["width"]}
    half = next(a for a in found.arms if a.label == "all layers, width 4" and a.budget == 1)
    plan = found.runs[half.run_ids[0]].phases[0].plan
    assert plan.layers == {name: n // 2 for name, n in study.plan(0.25).layers.items()}
    # Budgets are of the profile's width: a narrower network takes more steps for them.
    (steps,) = next(a for a in found.arms if a.label == "dense, width 4").detail["steps"]
    assert steps == round(6 / study.cost(Plan(), 4)) > 6


def test_each_variant_changes_one_default(study: Study) -> None:
    given = study.profile.parameters("05b_defaults") | {"coef_groups": [2], "coef_ranks": [1]}
    found = draft(study, "05b_defaults", given)
    runs = {arm.label: found.runs[arm.run_ids[0]] for arm in found.arms}
    usual, muon = runs.pop("our defaults"), runs.pop("trained by Muon")
    assert (muon.optimizer, muon.phases[0].plan) == ("muon", usual.phases[0].plan)
    assert (muon.momentum, muon.weight_decay, muon.batch_size) == (0.6, 0.05, usual.batch_size)
    assert usual.optimizer == "sgd"
    assert (usual.phases[0].plan, usual.decay, usual.init) == (
        study.plan(0.25), "factors", "random",
    )  # fmt: skip
    kinds = {
        label: (run.phases[0].plan.form, run.phases[0].plan.coef_groups,
                run.phases[0].plan.coef_rank, run.decay, run.init)
        for label, run in runs.items()
    }  # fmt: skip
    assert kinds == {
        "full form": ("full", 1, None, "factors", "random"),
        "subset form, 2 groups": ("subset", 2, None, "factors", "random"),
        "subset form, rank 1": ("subset", 1, 1, "factors", "random"),
        "full form, 2 groups": ("full", 2, None, "factors", "random"),
        "full form, rank 1": ("full", 1, 1, "factors", "random"),
        "decay of the product": ("subset", 1, None, "product", "random"),
        "start from SVD": ("subset", 1, None, "factors", "svd"),
        "start from QR": ("subset", 1, None, "factors", "qr"),
    }
    assert {run.data.train_images for run in runs.values()} == {200}
    assert not any(run.test for run in runs.values())


def test_the_defaults_are_05s_basis_arm_where_both_agree(study: Study) -> None:
    same = {"train_images": 200, "seeds": 1, "budget": 1}
    skip = draft(study, "05_skip_training", study.profile.parameters("05_skip_training") | same)
    defaults = draft(study, "05b_defaults", study.profile.parameters("05b_defaults") | same)
    basis = next(arm for arm in skip.arms if arm.method == "basis")
    assert basis.run_ids == defaults.arms[0].run_ids

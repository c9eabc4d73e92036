"""Experiments before training: fair arms, paired seeds, and the selection's dependence on 03."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from fake_runs import make_record

from basisconv.plan import Plan
from basisconv.study.experiments import selection, sensitivity
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.profiles import load_profile
from basisconv.study.experiments.registry import TRAINED, draft
from basisconv.study.experiments.sensitivity import savings
from basisconv.study.experiments.study import Study
from basisconv.study.records.files import read_json
from basisconv.study.timing.costs import (
    MacCosts,
    MeasuredCosts,
    Step,
    add_rows,
    table_settings,
    unmeasured_steps,
)


def sweep_done(study: Study, scores: dict[str, float]) -> Draft:
    """Put records of a sweep into the store in which each layer's loss rises by its score."""
    sweep = draft(study, "03_sensitivity")
    for arm in sweep.arms:
        for run_id in arm.run_ids:
            run = sweep.runs[run_id]
            # The seeds differ by much more than the layers, as they do in life.
            study.store.put(make_record(run, loss=2.0 + run.seed + scores.get(arm.label, 0.0)))
    return sweep


def test_layers_come_in_forward_order_stem_first(study: Study) -> None:
    assert len(study.layers) == 20
    assert study.layers[:5] == [
        "conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2",
    ]  # fmt: skip
    sweep_done(study, {})
    selection = draft(study, "04_selection")
    first_five = next(a for a in selection.arms if a.method == "first_five")
    run = selection.runs[first_five.run_ids[0]]
    assert list(run.phases[0].plan.layers) == study.layers[:5]


def test_arms_of_a_budget_spend_the_same_time_to_within_a_step(study: Study) -> None:
    for name in ("02_all_layers", "02b_widths", "05_skip_training", "05b_defaults"):
        for arm in draft(study, name).arms:
            if arm.method == "equal_steps":
                continue
            steps = arm.detail["steps"]
            assert isinstance(steps, list)
            width = int(str(arm.detail["width"]))
            dearest = study.time(1, Plan(), width)
            assert arm.time == pytest.approx(arm.budget, abs=dearest * len(steps))


def test_a_cheaper_step_is_taken_more_often(study: Study) -> None:
    arms = {(a.label, a.budget): a for a in draft(study, "02_all_layers").arms}
    dense = arms["dense", 2].detail["steps"]
    basis = arms["all layers, f = 0.25", 2].detail["steps"]
    assert isinstance(dense, list) and isinstance(basis, list)
    cost = study.cost(study.plan(0.25))
    assert dense == [12] and basis == [round(12 / cost)]


def test_the_narrow_network_costs_what_the_basis_network_costs(study: Study) -> None:
    plan = study.plan(0.25)
    narrow = study.narrow_width(plan)
    gap = abs(study.cost(Plan(), narrow) - study.cost(plan))
    assert all(gap <= abs(study.cost(Plan(), w) - study.cost(plan)) for w in (1, 2, 4, 8))


def test_exploring_and_confirming_runs_keep_their_seeds_and_the_test_set_apart(
    study: Study,
) -> None:
    sweep_done(study, {})
    for name in TRAINED:
        if name in ("07_search", "08_ranks"):  # they have tests of their own
            continue
        confirms, seeds = name in study.profile.confirm, study.profile.seeds
        wanted = seeds.confirm if confirms else seeds.explore
        runs = draft(study, name).runs.values()
        assert {run.test for run in runs} == {confirms}
        if name == "01b_pilot":
            assert {run.seed for run in runs} == set(seeds.pilot)
        elif name in ("05b_defaults", "08b_trained"):  # the first of them
            assert {run.seed for run in runs} == {wanted[0]}
        else:
            assert {run.seed for run in runs} == set(wanted)


def test_the_baseline_is_the_frontiers_own_dense_run_where_their_lengths_agree(
    study: Study,
) -> None:
    baseline = draft(study, "01_baseline").runs.keys()
    assert baseline <= draft(study, "02_all_layers").runs.keys()


def test_the_sweep_swaps_one_layer_and_takes_denses_steps(study: Study) -> None:
    sweep = draft(study, "03_sensitivity")
    assert [arm.label for arm in sweep.arms] == ["dense", *study.layers]
    for arm in sweep.arms[1:]:
        runs = [sweep.runs[i] for i in arm.run_ids]
        assert [list(run.phases[0].plan.layers) for run in runs] == [[arm.label]] * len(runs)
        assert arm.detail["steps"] == sweep.arms[0].detail["steps"]


def test_scores_pair_by_seed(study: Study) -> None:
    wanted = {name: 0.01 * (i - 3) for i, name in enumerate(study.layers)}
    sweep_done(study, wanted)
    assert sensitivity.scores(study) == pytest.approx(wanted)


def test_the_selection_leaves_the_sensitive_layers_and_its_controls_are_fair(
    study: Study,
) -> None:
    sensitive = study.layers[1:8]
    scores = {n: 1.0 if n in sensitive else 0.001 for n in study.layers}
    sweep_done(study, scores)
    arms = {arm.label: arm for arm in draft(study, "04_selection").arms}
    chosen = set(arms["selected"].detail["layers"])  # type: ignore[arg-type]
    time = savings(study, study.plan(0.25, study.layers), "time")
    budget = 0.25 * sum(scores.values())
    assert sum(scores[n] for n in chosen) <= budget
    # The budget pays for one of them, and one that saves most (several save as much).
    (dear,) = chosen & set(sensitive)
    assert time[dear] == max(time[n] for n in sensitive)
    target = arms["selected"].detail["predicted_time"]
    assert target == pytest.approx(1 - sum(time[n] for n in chosen))
    controls = [a for a in arms.values() if a.method in ("random", "inverted")]
    assert len(controls) == 5
    for arm in controls:
        assert arm.detail["predicted_time"] == pytest.approx(target, rel=0.02)
        assert set(arm.detail["layers"]) != chosen  # type: ignore[arg-type]
    worst = sum(scores[n] for n in arms["inverted"].detail["layers"])  # type: ignore[union-attr]
    for arm in controls:
        assert worst >= sum(scores[n] for n in arm.detail["layers"]) - 1e-9  # type: ignore[union-attr]


def diverge(study: Study, sweep: Draft, label: str, seed: int) -> None:
    arm = next(arm for arm in sweep.arms if arm.label == label)
    run = next(sweep.runs[i] for i in arm.run_ids if sweep.runs[i].seed == seed)
    study.store.put(make_record(run, "diverged"))


def test_a_layer_that_diverged_is_no_candidate_and_the_others_are(study: Study) -> None:
    sweep = sweep_done(study, {})
    lost = study.layers[3]
    diverge(study, sweep, lost, seed=1)
    assert sensitivity.scores(study).keys() == set(study.layers) - {lost}
    arms = {arm.label: arm for arm in draft(study, "04_selection").arms}
    assert arms["selected"].detail["layers"] == [n for n in study.layers if n != lost]
    assert arms["all"].detail["layers"] == study.layers


def test_a_seed_on_which_dense_diverged_says_nothing(study: Study) -> None:
    wanted = {name: 0.01 * (i - 3) for i, name in enumerate(study.layers)}
    sweep = sweep_done(study, wanted)
    diverge(study, sweep, "dense", seed=0)
    assert sensitivity.scores(study) == pytest.approx(wanted)
    diverge(study, sweep, "dense", seed=1)
    with pytest.raises(ValueError, match="diverged.*learning_rate"):
        draft(study, "04_selection")


def test_a_selection_of_everything_has_no_controls(study: Study) -> None:
    sweep_done(study, {})  # no layer costs anything, so all are taken
    selection = draft(study, "04_selection")
    assert selection.facts["controls"] is False
    methods = {"dense", "basis", "selected", "threshold", "first_five"}
    assert {arm.method for arm in selection.arms} == methods


def test_skip_training_covers_both_directions_once(study: Study) -> None:
    arms = draft(study, "05_skip_training").arms
    labels = [arm.label for arm in arms]
    assert len(set(labels)) == len(labels)
    ids = [arm.run_ids for arm in arms]
    assert len(set(ids)) == len(ids)
    skips = [a.detail for a in arms if a.method == "skip"]
    assert {d["direction"] for d in skips} == {"basis→dense", "dense→basis"}
    assert {(d["switch"], d["carry"]) for d in skips} >= {
        (s, c) for s in (0.3, 0.6) for c in ("exact", "reinit")
    }


def test_mac_costs_are_ratios_of_executed_macs_forward_and_backward(study: Study) -> None:
    costs = study.costs
    assert isinstance(costs, MacCosts)
    assert costs.of(Step(Plan(), 8, 50)) == 1.0 and costs.of(Step(Plan(), 8, 25)) == 0.5
    dense, every = (study.network_costs(p) for p in (Plan(), study.plan(0.25)))
    want = (every.macs + every.macs_backward) / (dense.macs + dense.macs_backward)
    assert costs.of(Step(study.plan(0.25), 8, 50)) == pytest.approx(want)
    assert costs.of(Step(Plan(), 4, 50)) < 0.3


SMOKE = load_profile("smoke")
HEAD = {"device": "a machine", **table_settings(SMOKE)}


def row(plan: Plan, ratio: float, width: int = 8, batch_size: int = 50) -> dict[str, object]:
    return {"plan": plan.to_dict(), "width": width, "batch_size": batch_size, "ratio": ratio}


def at(plan: Plan, width: int = 8, batch_size: int = 50) -> Step:
    return Step(plan, width, batch_size)


def test_a_cost_table_grows_and_never_changes(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    one, two = Plan({"a": 1}), Plan({"b": 2})
    add_rows(path, HEAD, [row(Plan(), 1.0), row(one, 0.8)])
    add_rows(path, HEAD, [row(one, 0.5), row(two, 0.7)])
    costs = MeasuredCosts(read_json(path), path, SMOKE)
    assert costs.of(at(one)) == 0.8 and costs.of(at(two)) == 0.7
    assert costs.unit == "seconds on a machine"
    with pytest.raises(ValueError, match="other machine"):
        add_rows(path, {**HEAD, "device": "an other machine"}, [row(two, 0.1)])
    assert MeasuredCosts(read_json(path), path, SMOKE).of(at(two)) == 0.7
    narrow, small = at(one, width=4), at(one, batch_size=25)
    assert unmeasured_steps(path, [at(one), narrow, small, narrow]) == [narrow, small]
    assert unmeasured_steps(tmp_path / "none.json", [at(one)]) == [at(one)]


def test_a_row_is_its_optimizers_and_of_sgd_where_it_names_none(tmp_path: Path) -> None:
    path, one = tmp_path / "costs.json", Plan({"a": 1})
    add_rows(path, HEAD, [row(one, 0.8), {**row(one, 0.9), "optimizer": "muon"}])
    costs = MeasuredCosts(read_json(path), path, SMOKE)
    assert costs.of(at(one)) == 0.8
    assert costs.of(at(one)._replace(optimizer="muon")) == 0.9
    dense = at(Plan())._replace(optimizer="muon")  # the unit is SGD's
    assert unmeasured_steps(path, [dense]) == [dense]
    with pytest.raises(ValueError, match="under muon with dense"):
        costs.of(dense)


def test_a_cost_table_of_other_settings_sizes_no_runs(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    add_rows(path, HEAD, [row(Plan({"a": 1}), 0.8)])
    other = load_profile("smoke", ("budget_batch=64",))
    with pytest.raises(
        ValueError,
        match="measured with.*'budget_batch': 50.*run --profile smoke with the same --set",
    ):
        MeasuredCosts(read_json(path), path, other)


def test_a_subset_without_a_row_is_dense_less_its_single_savings(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    both, third = Plan({"a": 1, "b": 2}), Plan({"a": 1, "c": 3})
    rows = [row(both.only(["a"]), 0.8), row(both.only(["b"]), 0.95)]
    # Dense itself is 1, whatever a measurement of it against itself came to.
    add_rows(path, HEAD, [*rows, row(Plan(), 1.02), row(Plan(), 0.2, width=4)])
    costs = MeasuredCosts(read_json(path), path, SMOKE)
    assert costs.of(at(both)) == pytest.approx(1 - 0.2 - 0.05)
    assert costs.of(at(Plan())) == 1.0 and costs.of(at(Plan(), width=4)) == 0.2
    with pytest.raises(ValueError, match="no row.*batch 50 under sgd with c.*bench --costs"):
        costs.of(at(third))
    with pytest.raises(ValueError, match="batch 25 under sgd with dense"):
        costs.of(at(both, batch_size=25))


def test_a_subset_saves_its_part_of_what_the_largest_measured_plan_round_it_does(
    tmp_path: Path,
) -> None:
    path = tmp_path / "costs.json"
    whole = Plan({"a": 1, "b": 2, "c": 3, "d": 4})
    alone = {"a": 0.9, "b": 0.8, "c": 0.95, "d": 0.95}  # they save 0.4 in sum
    other = Plan({"a": 1, "b": 1, "c": 3, "d": 4})  # b has other basis filters
    full = Plan(whole.layers, form="full")
    rows = [row(whole.only([name]), ratio) for name, ratio in alone.items()]
    rows += [row(other, 0.1), row(full, 0.1), row(whole, 0.1, batch_size=25)]
    rows += [row(whole.only(["a", "b", "c"]), 0.65), row(whole, 0.4)]
    add_rows(path, HEAD, rows)
    costs = MeasuredCosts(read_json(path), path, SMOKE)
    # All four save 0.6 together, and a and b three quarters of the sum.
    assert costs.of(at(whole.only(["a", "b"]))) == pytest.approx(1 - 0.75 * 0.6)
    assert costs.of(at(whole.only(["a", "b", "c"]))) == 0.65  # a row of its own
    assert costs.of(at(whole)) == 0.4


def test_a_profile_that_wants_measured_costs_says_how_to_measure_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from basisconv.study.experiments import study as study_module

    monkeypatch.setattr(study_module, "published_folder", lambda name: tmp_path / name)
    study = Study.open("desk", runs=tmp_path / "runs")
    with pytest.raises(ValueError, match=r"bench --costs desk"):
        draft(study, "01_baseline")


def test_an_arm_tells_the_network_that_its_runs_end_with(study: Study) -> None:
    for name in ("02_all_layers", "05_skip_training"):
        found = draft(study, name)
        for arm in found.arms:
            run = found.runs[arm.run_ids[0]]
            cost = study.network_costs(run.phases[-1].plan, run.width)
            told = {key: arm.detail[key] for key in ("parameters", "macs", "executed_macs")}
            assert told == {
                "parameters": cost.parameters,
                "macs": cost.macs_by_parameters,
                "executed_macs": cost.macs,
            }
            assert arm.detail["width"] == run.width
            assert arm.detail["steps"] == [phase.steps for phase in run.phases]


def test_the_frontiers_arms_are_what_they_are_called(study: Study) -> None:
    given = study.profile.parameters("02_all_layers") | {
        "skip_switch": 0.75, "budgets": [4], "extra_budget": 4,
    }  # fmt: skip
    found = draft(study, "02_all_layers", given)
    runs = {arm.method: found.runs[arm.run_ids[0]] for arm in found.arms}
    every = study.plan(0.25)
    assert [phase.plan for phase in runs["skip"].phases] == [every, Plan()]
    assert runs["skip"].phases[0].steps == study.steps(3, every, 8)
    assert runs["skip"].phases[1].steps == study.steps(1, Plan(), 8)
    assert runs["narrow"].width == found.facts["narrow_width"] < 8
    assert runs["same_size"].width == found.facts["same_size_width"] < 8
    others = {m: run for m, run in runs.items() if m not in ("narrow", "same_size")}
    assert all(run.width == 8 for run in others.values())


def test_the_narrow_networks_width_may_be_given(study: Study) -> None:
    given = study.profile.parameters("02_all_layers") | {"narrow_width": 3}
    found = draft(study, "02_all_layers", given)
    assert study.narrow_width(study.plan(0.25)) != 3
    narrow = [arm for arm in found.arms if arm.method == "narrow"]
    assert {found.runs[run_id].width for arm in narrow for run_id in arm.run_ids} == {3}
    assert {arm.label for arm in narrow} == {"dense, width 3"}
    assert found.facts["narrow_width"] == 3


def test_skip_trainings_runs_do_what_their_arms_say(study: Study) -> None:
    found = draft(study, "05_skip_training")
    for arm in (a for a in found.arms if a.method == "skip"):
        run = found.runs[arm.run_ids[0]]
        first, second = (phase.plan for phase in run.phases)
        want = (study.plan(0.25), Plan())
        assert (first, second) == (want if arm.detail["direction"] == "basis→dense" else want[::-1])
        for key in ("carry", "momentum_carry", "schedule"):
            assert getattr(run, key) == arm.detail[key]


def test_savings_are_those_of_the_unit_asked_for(study: Study) -> None:
    plan = study.plan(0.25, study.layers)
    dense = study.network_costs(Plan())
    found = {what: savings(study, plan, what) for what in ("time", "macs", "parameters")}
    for name in study.layers:
        one = study.network_costs(plan.only([name]))
        macs = dense.macs + dense.macs_backward - one.macs - one.macs_backward
        assert found["macs"][name] == macs
        assert found["parameters"][name] == dense.parameters - one.parameters
        # This profile has no clock: its time is the share of executed MACs.
        assert found["time"][name] == pytest.approx(macs / (dense.macs + dense.macs_backward))


def test_the_selection_saves_what_it_is_told_to(study: Study) -> None:
    sweep_done(study, dict.fromkeys(study.layers, 1.0))
    given = study.profile.parameters("04_selection") | {"loss_share": 0.1}
    chosen = {
        what: draft(study, "04_selection", given | {"save": what}).facts["selected"]
        for what in ("time", "parameters")
    }
    # Two of the twenty: the parameters lie in the last stage, the time does not.
    saved = savings(study, study.plan(0.25, study.layers), "parameters")
    assert set(chosen["parameters"]) <= {n for n in study.layers if n.startswith("layer4")}
    assert sum(saved[n] for n in chosen["parameters"]) > sum(saved[n] for n in chosen["time"])


def test_random_subsets_are_drawn_anew(study: Study) -> None:
    sweep_done(study, {name: 0.01 * i for i, name in enumerate(study.layers)})
    made = draft(study, "04_selection")
    random = [a for a in made.arms if a.method == "random"]
    drawn = [tuple(a.detail["layers"]) for a in random]
    assert len(drawn) == len(set(drawn)) == 4
    seeds = [[made.runs[i].seed for i in arm.run_ids] for arm in random]
    assert seeds == [[100], [101], [100], [101]]


def test_a_random_draw_of_the_chosen_subset_does_not_count(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep_done(study, {name: 0.01 * i for i, name in enumerate(study.layers)})
    chosen = draft(study, "04_selection").facts["selected"]
    real = selection.random_subset

    def every_other_is_the_chosen(
        saved: dict[str, float], total: float, target: float, candidates: Plan, seed: int
    ) -> Plan:
        if seed % 2 == 0:
            return candidates.only(chosen)  # type: ignore[arg-type]
        return real(saved, total, target, candidates, seed=seed)

    monkeypatch.setattr(selection, "random_subset", every_other_is_the_chosen)
    random = [a for a in draft(study, "04_selection").arms if a.method == "random"]
    assert len(random) == 4
    assert chosen not in [arm.detail["layers"] for arm in random]


def test_a_row_of_one_form_is_not_anothers(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    add_rows(path, HEAD, [row(Plan({"a": 1}), 0.8), row(Plan({"a": 1}, "full"), 0.7)])
    costs = MeasuredCosts(read_json(path), path, SMOKE)
    assert costs.of(at(Plan({"a": 1}))) == 0.8 and costs.of(at(Plan({"a": 1}, "full"))) == 0.7


def test_an_arm_of_another_batch_size_ends_on_the_same_budget(study: Study) -> None:
    """Budgets are told in dense epochs at the budget batch, whatever the arm trains with."""
    draft_ = Draft("02_all_layers", study)
    for batch_size in (50, 20):
        draft_.add("dense", "dense", Plan(), 2, changes={"batch_size": batch_size})
    large, small = draft_.arms
    assert (large.detail["steps"], small.detail["steps"]) == ([12], [30])
    assert large.time == small.time == 2.0
    assert {run.batch_size for run in draft_.runs.values()} == {50, 20}


def test_a_sweep_takes_the_layers_and_the_seeds_that_it_names(study: Study) -> None:
    some = study.profile.parameters("03_sensitivity") | {"layers": ["layer4.*.conv?"], "seeds": 1}
    sweep = draft(study, "03_sensitivity", some)
    assert [arm.label for arm in sweep.arms[1:]] == [
        "layer4.0.conv1", "layer4.0.conv2", "layer4.1.conv1", "layer4.1.conv2",
    ]  # fmt: skip
    assert {run.seed for run in sweep.runs.values()} == {study.profile.seeds.explore[0]}
    with pytest.raises(ValueError, match=r"No convolution is called layer9\.\*"):
        draft(study, "03_sensitivity", some | {"layers": ["layer4.*", "layer9.*"]})


def test_a_target_time_gives_the_subset_of_that_time_with_the_smallest_predicted_loss(
    study: Study,
) -> None:
    swept = [n for n in study.layers if ".conv" in n]
    scores = {name: 0.001 * (7 * i % 17 + 1) for i, name in enumerate(swept)}
    changes = ("notebooks.03_sensitivity.layers=[layer*.conv*]",)
    part = replace(study, profile=load_profile("smoke", changes))
    assert [arm.label for arm in draft(part, "03_sensitivity").arms[1:]] == swept
    sweep_done(part, scores)
    given = part.profile.parameters("04_selection") | {
        "target_time": 0.6, "equal": "epochs", "draws": 3,
    }  # fmt: skip
    arms = {arm.label: arm for arm in draft(part, "04_selection", given).arms}
    assert arms["all"].detail["layers"] == swept
    assert arms["first five"].detail["layers"] == swept[:5]
    time = savings(part, part.plan(0.25, swept), "time")
    least = min(
        sum(scores[n] for n in names)
        for size in range(len(swept) + 1)
        for names in combinations(swept, size)
        if 1 - sum(time[n] for n in names) <= 0.6
    )
    chosen = arms["selected"].detail["layers"]
    assert sum(scores[n] for n in chosen) == pytest.approx(least, rel=2e-4)  # type: ignore[union-attr]
    for label in ("random 1", "random 2", "random 3", "inverted"):
        assert arms[label].detail["predicted_time"] == pytest.approx(0.6, rel=0.02)
    # As many steps as dense, whatever they cost.
    assert {tuple(arm.detail["steps"]) for arm in arms.values()} == {(6,)}  # type: ignore[arg-type]


def test_other_ways_to_switch_stand_beside_the_usual_ones(study: Study) -> None:
    other = {
        "direction": "dense→basis", "switch": 0.25, "carry": "exact", "momentum_carry": "carried",
        "schedule": "restart",
    }  # fmt: skip
    given = study.profile.parameters("05_skip_training") | {"switches": [], "others": [other]}
    arms = draft(study, "05_skip_training", given).arms
    assert [arm.label for arm in arms] == [
        "dense", "basis", "dense→basis at 0.25, exact, carried, restart",
    ]  # fmt: skip
    assert {k: arms[-1].detail[k] for k in other} == other


def test_other_settings_are_changed_together(study: Study) -> None:
    given = study.profile.parameters("05b_defaults") | {
        "others": {"start from SVD, decay of the product": {"init": "svd", "decay": "product"}}
    }
    made = draft(study, "05b_defaults", given)
    run = made.runs[made.arms[-1].run_ids[0]]
    assert (run.init, run.decay) == ("svd", "product")
    with pytest.raises(ValueError, match="no_such"):
        draft(study, "05b_defaults", given | {"others": {"a": {"no_such": 1}}})


def test_the_baseline_of_a_recipe_is_the_named_arm_of_the_same_epochs(study: Study) -> None:
    given = study.profile.parameters("01_baseline") | {"recipe": "muon", "threads": 2}
    (arm,) = draft(study, "01_baseline", given).arms
    assert arm.label == "D, muon, equal epochs, 2"
    runs = [draft(study, "01_baseline", given).runs[i] for i in arm.run_ids]
    assert [r.seed for r in runs] == study.profile.seeds.confirm
    assert {(r.optimizer, r.threads, r.steps) for r in runs} == {("muon", 2, 12)}

"""Tuned settings: each arm has its own kind's, at the nearest budget, or all have the profile's."""

from __future__ import annotations

from pathlib import Path

import pytest

from basisconv.plan import Plan
from basisconv.study.experiments import study as study_module
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.profiles import load_profile
from basisconv.study.experiments.registry import draft
from basisconv.study.experiments.sensitivity import savings
from basisconv.study.experiments.study import Study
from basisconv.study.timing.costs import add_rows, table_settings


def setting(rate: float, batch: int) -> str:
    return f"{{learning_rate: {rate}, batch_size: {batch}}}"


TUNED = "tuned={" + ", ".join(
    f"{kind}: {{1: {setting(rate, batch)}, 4: {setting(2 * rate, batch)}}}"
    for kind, rate, batch in (
        ("dense", 0.01, 25), ("narrow", 0.02, 50), ("basis", 0.03, 10), ("skip", 0.04, 20),
    )
) + "}"  # fmt: skip


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study.open("smoke", [TUNED], runs=tmp_path / "runs")


@pytest.mark.parametrize(
    ("method", "budget", "rate", "batch"),
    [
        ("dense", 1, 0.01, 25),
        ("dense", 0.25, 0.01, 25),
        ("dense", 2, 0.01, 25),
        ("dense", 2.5, 0.01, 25),  # as near to either: the shorter
        ("dense", 2.6, 0.02, 25),
        ("dense", 8, 0.02, 25),
        ("narrow", 1, 0.02, 50),
        ("same_size", 1, 0.02, 50),
        ("basis", 1, 0.03, 10),
        ("selected", 4, 0.06, 10),
        ("random", 1, 0.03, 10),
        ("first_five", 1, 0.03, 10),
        ("variant", 1, 0.03, 10),
        ("skip", 4, 0.08, 20),
    ],
)
def test_an_arm_has_its_kinds_setting_of_the_nearest_budget(
    study: Study, method: str, budget: float, rate: float, batch: int
) -> None:
    arms = Draft("02_all_layers", study)
    plan = Plan() if method in ("dense", "narrow", "same_size") else study.plan(0.25)
    arms.add("arm", method, plan, budget)  # type: ignore[arg-type]
    for run in arms.runs.values():
        assert (run.learning_rate, run.batch_size) == (rate, batch)
        # And its steps end on the budget with that batch, to within half of one.
        time = run.steps * study.cost(plan, 8, batch) / study.dense_epoch
        assert time == pytest.approx(budget, abs=study.cost(plan, 8, batch) / 12 + 1e-9)
    assert arms.section().facts["tuned"] is True


def test_without_tuned_settings_all_arms_share_the_profiles(tmp_path: Path) -> None:
    study = Study.open("smoke", runs=tmp_path / "runs")
    found = draft(study, "02_all_layers")
    assert {(run.learning_rate, run.batch_size) for run in found.runs.values()} == {(0.05, 50)}
    assert study.tuned("dense", 1) == {} and found.section().facts["tuned"] is False


def test_what_an_arm_is_about_stands_above_what_was_tuned(study: Study) -> None:
    arms = Draft("02_all_layers", study)
    arms.add("arm", "dense", Plan(), 1, changes={"batch_size": 75, "decay": "product"})
    (run, _) = arms.runs.values()
    assert (run.learning_rate, run.batch_size, run.decay) == (0.01, 75, "product")


def test_the_sweeps_layers_train_as_dense_does(study: Study) -> None:
    """What is paired by seed must share its batches."""
    runs = draft(study, "03_sensitivity").runs.values()
    assert {(run.learning_rate, run.batch_size) for run in runs} == {(0.01, 25)}
    assert {run.steps for run in runs} == {300 // 25}


def test_an_arm_of_equal_steps_has_denses_batch_rate_and_steps(study: Study) -> None:
    found = draft(study, "02_all_layers")
    ids = [i for arm in found.arms if arm.method == "equal_steps" for i in arm.run_ids]
    runs = [found.runs[i] for i in ids]
    assert len(runs) == 4  # two shares of basis filters, two seeds
    # Two dense epochs are 12 steps at the budget batch of 50.
    assert {(run.learning_rate, run.batch_size, run.steps) for run in runs} == {(0.01, 25, 24)}


def test_a_sweep_of_another_width_and_batch_saves_of_its_own_dense_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "costs.json"
    monkeypatch.setattr(study_module, "cost_table", lambda name: path)
    study = Study.open("smoke", [TUNED, "costs=table"], runs=tmp_path / "runs")
    ratio = study.profile.notebooks.sensitivity.ratio
    rows = [{"plan": Plan().to_dict(), "width": 4, "batch_size": 25, "ratio": 0.2}]
    for width, batch, dense, step in ((4, 25, 0.2, 0.002), (8, 50, 1.0, 0.001)):
        every = study.plan(ratio, study.layers, width)
        rows += [
            {"plan": every.only([name]).to_dict(), "width": width, "batch_size": batch,
             "ratio": dense - i * step}
            for i, name in enumerate(study.layers)
        ]  # fmt: skip
    add_rows(path, {"device": "a machine", **table_settings(study.profile)}, rows)
    given = study.profile.parameters("03_sensitivity") | {"width": 4}
    _, *layers = draft(study, "03_sensitivity", given).arms
    # The rows fall by a hundredth of their own dense step from layer to layer.
    saved = [arm.detail["time_saved"] for arm in layers]
    assert saved == pytest.approx([0.01 * i for i in range(20)])
    usual = savings(study, study.plan(ratio, study.layers), "time")
    assert list(usual.values()) == pytest.approx([0.001 * i for i in range(20)])


def test_the_pilot_knows_nothing_of_what_it_led_to(study: Study, tmp_path: Path) -> None:
    before = draft(Study.open("smoke", runs=tmp_path / "runs"), "01b_pilot")
    after = draft(study, "01b_pilot")
    assert after.runs == before.runs and after.arms == before.arms


def test_the_baseline_tells_the_epochs_that_it_takes(study: Study, tmp_path: Path) -> None:
    plain = Study.open("smoke", runs=tmp_path / "runs")
    assert draft(plain, "01_baseline").facts["epochs"] == 2.0
    # At half the batch a step costs half, so that the same time is the same epochs.
    assert draft(study, "01_baseline").facts["epochs"] == 2.0
    uneven = Study.open("smoke", [TUNED.replace("batch_size: 25", "batch_size: 40")])
    (run, _) = draft(uneven, "01_baseline").runs.values()
    assert run.steps == 15  # of 40 images, in the time of 12 steps of 50
    assert draft(uneven, "01_baseline").facts["epochs"] == round(15 / 7, 2)


@pytest.mark.parametrize(
    ("tuned", "words"),
    [
        ("{dense: {1: {learning_rate: 0.1, batch_size: 8}}}",
         "tuned has nothing for narrow, basis, skip: .*would be favoured"),
        (TUNED[6:].replace("2 * ", "").replace(", 4: {learning_rate: 0.02, batch_size: 25}", ""),
         "tuned has other budgets for some kinds"),
        ("{dense: {}}", "tuned.dense: .*at least 1"),
        ("{dense: {0: {learning_rate: 0.1, batch_size: 8}}}", "greater than 0"),
        ("{dense: {1: {learning_rate: 0.1}}}", "batch_size: Field required"),
        ("{wide: {1: {learning_rate: 0.1, batch_size: 8}}}", "tuned.wide"),
    ],
)  # fmt: skip
def test_tuned_settings_that_do_not_fit_are_named(tuned: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_profile("smoke", (f"tuned={tuned}",))


def test_the_pilots_seeds_are_its_own_and_it_confirms_nothing() -> None:
    for seed in (0, 100):
        with pytest.raises(ValueError, match=rf"seeds \[{seed}\] are listed twice"):
            load_profile("smoke", (f"seeds.pilot=[7, {seed}]",))
    with pytest.raises(ValueError, match="01b_pilot, which sees validation images alone"):
        load_profile("smoke", ("confirm=[01b_pilot]",))

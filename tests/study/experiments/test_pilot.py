"""The pilot before training: the same grid for every kind of arm, and sweeps on their own part."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from basisconv.plan import Plan
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.registry import draft
from basisconv.study.experiments.study import Study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study.open("smoke", ["dense_step_ms=3600"], runs=tmp_path / "runs")


def parameters(study: Study, **changes: Any) -> dict[str, Any]:
    return study.profile.parameters("01b_pilot") | changes


def of_part(found: Draft, part: str) -> list[Any]:
    return [arm for arm in found.arms if arm.detail["part"] == part]


def test_every_kind_of_arm_has_the_same_grid_at_every_budget(study: Study) -> None:
    found = draft(study, "01b_pilot", parameters(study, budgets=[1, 4], grid_seeds=2))
    grid = of_part(found, "grid")
    settings = {
        (arm.method, arm.budget, arm.detail["learning_rate"], arm.detail["batch_size"])
        for arm in grid
    }
    assert settings == {
        (method, budget, rate, batch)
        for method in ("dense", "basis", "skip", "narrow")
        for budget in (1, 4)
        for rate in (0.05, 0.1)
        for batch in (25, 50)
    }
    assert len(grid) == len(settings) and {len(arm.run_ids) for arm in grid} == {2}
    for arm in grid:
        run = found.runs[arm.run_ids[0]]
        assert (run.learning_rate, run.batch_size) == (
            arm.detail["learning_rate"], arm.detail["batch_size"],
        )  # fmt: skip
        assert run.data.train_images == 200 and not run.test
        # In dense epochs of the part: four steps of 50 images.
        assert arm.time == pytest.approx(arm.budget, abs=0.5 * len(arm.detail["steps"]) / 4)
    plans = {arm.method: [p.plan for p in found.runs[arm.run_ids[0]].phases] for arm in grid}
    every = study.plan(0.25)
    assert plans == {
        "dense": [Plan()],
        "basis": [every],
        "skip": [every, Plan()],
        "narrow": [Plan()],
    }


def test_the_spread_is_that_of_the_profiles_own_settings(study: Study) -> None:
    found = draft(study, "01b_pilot")
    spread = of_part(found, "spread")
    assert Counter(arm.method for arm in spread) == {"dense": 1, "basis": 1}
    for arm in spread:
        runs = [found.runs[run_id] for run_id in arm.run_ids]
        assert [run.seed for run in runs] == [200, 201]
        assert {(run.learning_rate, run.batch_size) for run in runs} == {(0.05, 50)}
    # The grid has that setting too, and its Run is not trained twice.
    assert len(found.runs) < sum(len(arm.run_ids) for arm in found.arms)


def test_a_candidate_sweep_has_its_own_images_width_and_layers(study: Study) -> None:
    found = draft(study, "01b_pilot")
    sweep = of_part(found, "sweep")
    assert [arm.label for arm in sweep] == ["dense", "conv1", "layer1.0.conv1", "layer4.1.conv2"]
    for arm in sweep:
        runs = [found.runs[run_id] for run_id in arm.run_ids]
        assert {(run.width, run.data.train_images, run.steps) for run in runs} == {(4, 100, 2)}
        assert [run.seed for run in runs] == [200, 201]
        assert [list(run.phases[0].plan.layers) for run in runs] == [
            [] if arm.label == "dense" else [arm.label]
        ] * 2
    # Its price is that of a sweep over all layers with these seeds, in the profile's own epochs.
    (told,) = found.facts["sweeps"]
    each = [2 * study.cost(found.runs[arm.run_ids[0]].phases[0].plan, 4) for arm in sweep]
    whole = 2 * (each[0] + 20 * sum(each[1:]) / 3)
    assert told["dense_epochs"] == pytest.approx(whole / 6)  # six steps of 50 are an epoch of 300
    assert (told["layers"], told["all_layers"], told["width"]) == (3, 20, 4)
    # Six steps of 3.6 s in one worker of two.
    assert found.facts["dense_epoch_hours"] == pytest.approx(6 * 3.6 / 3600 / 2)


def test_more_seeds_than_the_profile_has_are_refused(study: Study) -> None:
    with pytest.raises(ValueError, match=r"01b_pilot wants 3 seeds, and .* \[200, 201\]"):
        draft(study, "01b_pilot", parameters(study, spread_seeds=3))


def test_budgets_are_told_in_epochs_of_the_part(study: Study) -> None:
    part = study.part(150)
    assert (study.dense_epoch, part.dense_epoch) == (6, 3)
    assert part.steps(2, Plan()) == 6 and part.time(6, Plan()) == 2.0
    assert study.part(None) is study
    (run, *_) = draft(
        study, "05_skip_training", study.profile.parameters("05_skip_training")
        | {"train_images": 150, "seeds": 1},
    ).runs.values()  # fmt: skip
    assert run.data.train_images == 150 and run.steps == 3


def test_the_sweep_of_03_takes_its_own_images_and_width(study: Study) -> None:
    given = study.profile.parameters("03_sensitivity")
    plain = draft(study, "03_sensitivity", given)
    assert {(r.width, r.data.train_images, r.steps) for r in plain.runs.values()} == {(8, 300, 6)}
    given |= {"train_images": 200, "width": 4, "epochs": 3}
    own = draft(study, "03_sensitivity", given)
    assert {(r.width, r.data.train_images, r.steps) for r in own.runs.values()} == {(4, 200, 12)}
    assert (own.facts["width"], own.facts["train_images"]) == (4, 200)
    saved = {arm.label: arm.detail["parameters_saved"] for arm in own.arms[1:]}
    wider = {arm.label: arm.detail["parameters_saved"] for arm in plain.arms[1:]}
    assert all(saved[name] < wider[name] for name in study.layers)

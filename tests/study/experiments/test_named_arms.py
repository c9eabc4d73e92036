"""Arms by short names: what they stand for, and how many steps they take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from basisconv.plan import Plan
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.named_arms import named_arm
from basisconv.study.experiments.profiles import Recipe
from basisconv.study.experiments.registry import draft
from basisconv.study.experiments.study import Study

# 300 images in batches of 50 and 25: a dense epoch has 6 and 12 steps.
USUAL: dict[str, Any] = {"label_smoothing": 0.1, "warmup": 0.2}
RECIPES = {
    "sgd": Recipe(batch_size=50, learning_rate=0.1, weight_decay=0.0005, **USUAL),
    "muon": Recipe(
        optimizer="muon", batch_size=25, learning_rate=0.2, momentum=0.6, weight_decay=0.05,
        factor_lr_ratio=0.5, learning_rates={"basis": 0.07}, **USUAL,
    ),
}  # fmt: skip


@pytest.fixture
def study(study: Study) -> Study:
    return replace(study, profile=study.profile.model_copy(update={"recipes": RECIPES}))


def compared(study: Study, **parts: Any) -> Draft:
    parameters = {"ratio": 0.25, "selected": ["layer1.0.conv1"], "equal_epochs": []}
    return draft(study, "02_all_layers", parameters | {"equal_time": []} | parts)


def test_a_name_stands_for_a_plan_a_width_and_a_kind(study: Study) -> None:
    def arm(name: str) -> Any:
        return named_arm(study, name, 0.25, ["layer1.0.conv1"])

    assert (arm("D").phases, arm("D").width, arm("D").kind) == ([(1.0, Plan())], 8, "dense")
    assert (arm("D½").width, arm("D½").kind, arm("D¾").width) == (4, "narrow", 6)
    (_, eighth) = arm("B⅛").phases[0]
    assert eighth == study.plan(0.125) and len(eighth.layers) == 16
    assert arm("S¾").phases == [(0.75, study.plan(0.25)), (0.25, Plan())]
    assert arm("selected").phases == [(1.0, Plan({"layer1.0.conv1": 2}))]


@pytest.mark.parametrize("name", ["", "E", "D2", "B", "S1/4", "Dx", "d"])
def test_another_name_is_refused(study: Study, name: str) -> None:
    with pytest.raises(ValueError, match="no arm"):
        named_arm(study, name, 0.25, [])


def test_selected_without_layers_is_refused(study: Study) -> None:
    with pytest.raises(ValueError, match="names none"):
        named_arm(study, "selected", 0.25, [])


def test_at_equal_epochs_all_take_denses_steps_and_a_switch_is_a_share_of_them(
    study: Study,
) -> None:
    arms = {"D": 2, "S¼": 1, "B¼": 1, "D½": 1}
    setting = {"recipe": "muon", "length": 2, "threads": 2, "arms": arms}
    found = compared(study, equal_epochs=[setting])
    runs = {arm.detail["arm"]: [found.runs[i] for i in arm.run_ids] for arm in found.arms}
    assert {name: len(r) for name, r in runs.items()} == arms
    steps = {name: [p.steps for p in r[0].phases] for name, r in runs.items()}
    assert steps == {"D": [24], "S¼": [6, 18], "B¼": [24], "D½": [24]}
    assert {r.seed for r in runs["D"]} == {100, 101} and all(r.test for r in runs["D"])
    rates = {name: r[0].learning_rate for name, r in runs.items()}
    assert rates == {"D": 0.2, "S¼": 0.2, "B¼": 0.07, "D½": 0.2}
    shared = {(r[0].optimizer, r[0].batch_size, r[0].momentum, r[0].threads) for r in runs.values()}
    assert shared == {("muon", 25, 0.6, 2)}
    assert {name: r[0].width for name, r in runs.items()} == {"D": 8, "S¼": 8, "B¼": 8, "D½": 4}


def test_at_equal_time_each_arm_ends_nearest_to_the_time(study: Study) -> None:
    setting = {"recipe": "sgd", "length": 3, "threads": 1, "arms": {"D": 1, "B¼": 1, "S½": 1}}
    found = compared(study, equal_time=[setting])
    cost = study.cost(study.plan(0.25), 8, 50, "sgd")
    assert 0.2 < cost < 0.6
    arms = {arm.detail["arm"]: arm for arm in found.arms}
    assert arms["D"].detail["steps"] == [18]
    assert arms["B¼"].detail["steps"] == [round(18 / cost)]
    first, second = arms["S½"].detail["steps"]
    assert abs(first - second) <= 1
    for arm in found.arms:
        assert arm.time == pytest.approx(3, abs=0.5 / 6 + 0.001)
    assert all(arm.budget == 3 for arm in found.arms)

"""09 before training: other data's Runs, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from basisconv.study.data.sets import DIGESTS
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.registry import draft
from basisconv.study.experiments.study import Study
from basisconv.study.report.statistics.analysis_plan import load_plan
from basisconv.study.training.phases import initial_network

NAME = "09_generalisation"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study.open("smoke", runs=tmp_path / "runs")


def changed(study: Study, **changes: object) -> Draft:
    return draft(study, NAME, study.profile.parameters(NAME) | changes)


def test_desk2_trains_cifar100_as_the_analysis_plan_says(tmp_path: Path) -> None:
    study, plan = Study.open("desk2", runs=tmp_path), load_plan()
    found = draft(study, NAME)
    trained: dict[tuple[object, ...], dict[object, int]] = {}
    for arm in found.arms:
        runs = [found.runs[i] for i in arm.run_ids]
        assert tuple(run.seed for run in runs) == plan.seeds[: len(runs)]
        assert all(run.test and run.data.sha256 == DIGESTS[run.data.name] for run in runs)
        key = (runs[0].data.name, runs[0].optimizer, arm.detail["part"], arm.budget)
        if runs[0].network == "resnet18":
            trained.setdefault(key, {})[arm.detail["arm"]] = len(runs)
    planned = {
        ("cifar100", c.recipe, f"equal {c.equal}", c.length): dict(c.arms)
        for c in plan.comparisons.values()
        if c.data == "cifar100"
    }
    assert trained == planned


def test_the_networks_of_other_data_have_its_classes_and_no_other_id_changed(
    study: Study,
) -> None:
    setting = {"recipe": "muon", "length": 1, "threads": 1, "arms": {"D": 1}}
    runs = {}
    for data in ("cifar10", "cifar100"):
        (run,) = changed(study, data=data, equal_epochs=[setting]).runs.values()
        assert run.data.name == data and run.data.sha256 == DIGESTS[data]
        runs[data] = run
    ten, hundred = runs.values()
    assert ten.run_id != hundred.run_id
    assert ten.model_dump(exclude={"data"}) == hundred.model_dump(exclude={"data"})
    assert initial_network(hundred, 100).fc.out_features == 100


def test_an_unknown_data_set_is_refused(study: Study) -> None:
    with pytest.raises(ValueError, match="09_generalisation: data: .*'cifar100'"):
        changed(study, data="mnist")

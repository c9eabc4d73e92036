"""09 before training: other data's Runs, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from basisconv.plan import Plan
from basisconv.study.data.sets import DIGESTS
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.registry import draft
from basisconv.study.experiments.study import Study
from basisconv.study.records.files import read_json
from basisconv.study.records.run import Run
from basisconv.study.report.statistics.analysis_plan import load_plan
from basisconv.study.timing.costs import (
    MacCosts,
    MeasuredCosts,
    Step,
    add_rows,
    table_settings,
)
from basisconv.study.training.phases import initial_network, restored_network

NAME = "09_generalisation"
NETWORKS: dict[str, object] = {
    "names": ["vgg16_bn"], "width": 8, "epochs": 2, "recipe": "muon", "threads": 1, "seeds": 2,
    "screened": None,
}  # fmt: skip
NONE = NETWORKS | {"names": []}


def changed(study: Study, **changes: object) -> Draft:
    return draft(study, NAME, study.profile.parameters(NAME) | changes)


def test_desk2_trains_cifar100_as_the_analysis_plan_says(tmp_path: Path) -> None:
    study, plan = Study.open("desk2", ["costs=macs"], runs=tmp_path), load_plan()
    found = draft(study, NAME)
    trained: dict[tuple[object, ...], dict[object, int]] = {}
    for arm in found.arms:
        runs = [found.runs[i] for i in arm.run_ids]
        if arm.detail["part"] == "screening":
            continue
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
        found = changed(study, data=data, equal_epochs=[setting], networks=NONE)
        (run,) = found.runs.values()
        assert run.data.name == data and run.data.sha256 == DIGESTS[data]
        runs[data] = run
    ten, hundred = runs.values()
    assert ten.run_id != hundred.run_id
    assert ten.model_dump(exclude={"data"}) == hundred.model_dump(exclude={"data"})
    assert initial_network(hundred, 100).fc.out_features == 100


def test_an_unknown_data_set_is_refused(study: Study) -> None:
    with pytest.raises(ValueError, match="09_generalisation: data: .*'cifar100'"):
        changed(study, data="mnist")


def by_arm(found: Draft, part: str) -> dict[object, list[Run]]:
    return {
        arm.detail["arm"]: [found.runs[i] for i in arm.run_ids]
        for arm in found.arms
        if arm.detail["part"] == part
    }


def test_another_network_meets_dense_at_its_epochs_and_in_its_time(study: Study) -> None:
    found = changed(study, equal_epochs=[], networks=NETWORKS)
    epochs, time = by_arm(found, "equal epochs"), by_arm(found, "equal time")
    own = study.of("vgg16_bn")
    every = own.plan(0.25, width=8)
    assert len(every.layers) == 12
    assert all(r.network == "vgg16_bn" and r.width == 8 for r in found.runs.values())
    assert [r.phases[0].plan for r in epochs["B¼"]] == [every] * 2
    assert [r.phases[0].plan for r in epochs["D"]] == [Plan()] * 2
    assert {r.steps for runs in epochs.values() for r in runs} == {12}
    # The same training serves both comparisons; dense gets as long.
    assert time["B¼"] == epochs["B¼"] and len(found.runs) == 6
    ours, dense = (own.network_costs(plan, 8) for plan in (every, Plan()))
    ratio = (ours.macs + ours.macs_backward) / (dense.macs + dense.macs_backward)
    assert [r.steps for r in time["D"]] == [round(12 * ratio)] * 2
    assert 2 <= time["D"][0].steps <= 5


def test_a_screening_sees_validation_images_alone_and_all_levels_equally(study: Study) -> None:
    screened = {"network": "vgg16_bn", "levels": [1, 0.5], "runs": 16}
    found = changed(study, equal_epochs=[], networks=NONE | {"screened": screened})
    runs = list(found.runs.values())
    assert len(runs) == 16 and not any(run.test for run in runs)
    assert [run.seed for run in runs] == [0] * 8 + [1] * 8
    plans = [run.phases[0].plan.layers for run in runs]
    eligible = study.of("vgg16_bn").plan(0.5, width=8).layers
    for name, count in eligible.items():
        assert sorted(plan.get(name, 0) for plan in plans) == [0] * 8 + [count] * 8


def test_the_plan_of_08_joins_every_comparison_of_other_data_once_it_is_named(
    study: Study,
) -> None:
    setting = {"recipe": "muon", "length": 2, "threads": 1, "arms": {"D": 2, "B¼": 1}}
    plan = {"layer1.0.conv1": 2, "layer4.1.conv2": 8}
    found = changed(
        study, data="cifar100", transferred=plan, equal_time=[setting], equal_epochs=[setting],
        networks=NONE,
    )  # fmt: skip
    for part in ("equal time", "equal epochs"):
        runs = by_arm(found, part)["plan of 08"]
        assert [r.phases[0].plan for r in runs] == [Plan(plan)] * 2
        assert {r.data.name for r in runs} == {"cifar100"}


def test_rows_of_other_networks_lie_in_the_table_of_the_profile(
    study: Study, tmp_path: Path
) -> None:
    path = tmp_path / "costs.json"
    vgg = Step(Plan(), 8, 50, "muon", "vgg16_bn")
    row = {"plan": Plan().to_dict(), "width": 8, "batch_size": 50, "optimizer": "muon"}
    head = {"device": "a machine", **table_settings(study.profile)}
    add_rows(path, head, [{**row, "ratio": 1.1}, {**row, "ratio": 0.2, "network": "vgg16_bn"}])
    costs = MeasuredCosts(read_json(path), path, study.profile)
    assert (costs.of(vgg._replace(network=None)), costs.of(vgg)) == (1.1, 0.2)
    with pytest.raises(ValueError, match="no row for resnet50, width 8"):
        costs.of(vgg._replace(network="resnet50"))
    own, other = study.network_costs(Plan()), study.of("vgg16_bn").network_costs(Plan())
    want = (other.macs + other.macs_backward) / (own.macs + own.macs_backward)
    assert MacCosts(study.profile, 10).of(vgg) == pytest.approx(want)


def test_an_unknown_network_and_one_without_an_eligible_layer_are_refused(study: Study) -> None:
    with pytest.raises(ValueError, match="'vgg17' is unknown. There are: resnet18"):
        changed(study, networks=NETWORKS | {"names": ["vgg17"]})
    with pytest.raises(ValueError, match="No Conv2d is left.*depthwise"):
        changed(study, networks=NETWORKS | {"names": ["mobilenet_v2"]})


def test_weights_of_another_number_of_classes_are_refused(study: Study) -> None:
    setting = {"recipe": "muon", "length": 1, "threads": 1, "arms": {"D": 1}}
    run = next(iter(changed(study, data="cifar100", equal_epochs=[setting]).runs.values()))
    ten = initial_network(run, 10).state_dict()
    with pytest.raises(ValueError, match=r"not the weights of phase 0: .*\[10, 64\].*\[100, 64\]"):
        restored_network(run, 0, 100, ten)

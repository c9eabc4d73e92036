"""07 before training: the design's runs, and the short one whose weights are kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from fake_runs import make_record

from basisconv.plan import Plan
from basisconv.screening import screening
from basisconv.study.experiments import layer_scores, ranks, search
from basisconv.study.experiments.design import Draft, Waiting
from basisconv.study.experiments.registry import draft, runs_with_kept_weights
from basisconv.study.experiments.study import Study
from basisconv.study.records.publish import publish
from basisconv.study.records.run import Run
from basisconv.study.records.store import Store


def screened(study: Study, **changes: Any) -> list[tuple[Plan, int, Any]]:
    """The plans of the design with their seeds and runs, in its order."""
    made = draft(study, "07_search", study.profile.parameters("07_search") | changes)
    arms = [arm for arm in made.arms if arm.detail["part"] == "screening"]
    runs = [made.runs[arm.run_ids[0]] for arm in arms]
    return [(run.phases[0].plan, run.seed, run) for run in runs]


def test_every_run_of_the_design_is_trained_on_the_seed_of_its_block(study: Study) -> None:
    plans, blocks = screening(
        {name: study.network_costs(Plan())[name].output_shape[1] for name in study.layers},
        [1, 0.25], 24, 2,
    )  # fmt: skip
    found = screened(study)
    assert [plan for plan, *_ in found] == list(plans)
    assert [seed for _, seed, _ in found] == [[0, 1][block] for block in blocks]
    assert {(run.steps, run.test) for *_, run in found} == {(6, False)}


def test_the_layers_are_those_that_are_swept_and_the_orthogonal_array_is_taken(
    tmp_path: Path,
) -> None:
    sets = ("notebooks.03_sensitivity.layers=[layer*.conv*]", "seeds.explore=[0, 1, 2, 3]")
    study = Study.open("smoke", sets, tmp_path / "runs")
    levels = [1, 0.5, 0.25, 0.125]
    found = screened(study, levels=levels, runs=64, blocks=4, epochs=0.5)
    names = [name for name in study.layers if ".conv" in name]
    assert Counter(seed for _, seed, _ in found) == {seed: 16 for seed in range(4)}
    for a, b in zip(names, names[1:], strict=False):
        pairs = Counter((p.layers.get(a), p.layers.get(b)) for p, *_ in found)
        assert set(pairs.values()) == {4} and len(pairs) == 16
    assert {run.steps for *_, run in found} == {3}


def test_the_design_needs_no_step_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it can be trained before a machine is quiet enough to measure any."""
    from basisconv.study.experiments import study as study_module
    from basisconv.study.experiments.cost_table import ensure_costs

    monkeypatch.setattr(study_module, "published_folder", lambda name: tmp_path / name)
    study = Study.open("smoke", ["costs=table"], tmp_path / "runs")
    assert ensure_costs(study, ["07_search"])
    assert len(draft(study, "07_search").runs) == 25


def test_the_weights_of_the_short_dense_run_are_kept(study: Study) -> None:
    made = draft(study, "07_search")
    (arm,) = [arm for arm in made.arms if arm.label == "warm-up"]
    assert set(arm.run_ids) <= runs_with_kept_weights(study)
    run = made.runs[arm.run_ids[0]]
    assert (run.phases[0].plan, run.steps, run.seed, run.test) == (Plan(), 2, 0, False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"levels": [0.5, 0.25]}, "begin with 1"),
        ({"levels": [1, 0.25, 0.5]}, "begin with 1"),
        ({"blocks": 3}, r"wants 3 blocks.*exploring seeds \[0, 1\]"),
        ({"runs": 21}, "cannot tell 22 effects apart"),
    ],
)
def test_a_design_that_cannot_be_made_is_refused(
    study: Study, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        screened(study, **changes)


def costs(study: Study) -> dict[str, float]:
    """What each layer costs at a quarter in these tests, in log loss, in no order."""
    return {name: 0.01 * (1 + 7 * i % 20) for i, name in enumerate(study.layers)}


def train(study: Study, runs: Iterable[Run]) -> None:
    """Put records in which log loss rises by what the layers in basis form cost."""
    of = costs(study)
    for run in runs:
        rise = sum(of[name] for name in run.phases[0].plan.layers)
        study.store.put(make_record(run, loss=math.exp(rise)))


def scored(study: Study) -> None:
    """Keep cheap scores of which curvature is right, and the others fall with the depth."""
    parameters = study.profile.notebooks.search
    numbers = layer_scores.numbers_of(search.outputs(study), parameters.levels)
    of = costs(study)
    ways = ("one shot", "response energy", "curvature", "singular values")
    found = {
        way: {
            name: {str(m): of[name] if way == "curvature" else 1.0 / (i + 1) for m in own}
            for i, (name, own) in enumerate(numbers.items())
        }
        for way in ways
    }
    key = draft(study, "07_search").facts["measured"]
    study.store.put_measured(key, {"scores": found})


def everything_there(study: Study) -> Draft:
    for name in ("03_sensitivity", "04_selection"):
        train(study, draft(study, name).runs.values())
    train(study, draft(study, "07_search").runs.values())
    scored(study)
    return draft(study, "07_search")


def test_choices_wait_for_the_sweep_the_subsets_the_screening_and_the_scores(study: Study) -> None:
    for name in ("03_sensitivity", "04_selection", "07_search"):
        assert draft(study, "07_search").waits == f"waits for the records of {name}"
        train(study, draft(study, name).runs.values())
    made = draft(study, "07_search")
    assert made.waits == "waits for the records of 07_search" and len(made.arms) == 25
    scored(study)
    made = draft(study, "07_search")
    assert not made.waits
    assert {arm.detail["part"] for arm in made.arms} == {
        "screening", "warm-up", "evidence", "choice",
    }  # fmt: skip


def test_each_way_chooses_the_least_loss_of_its_own_within_the_target_time(study: Study) -> None:
    made = everything_there(study)
    arms = {arm.detail["way"]: arm for arm in made.arms if arm.detail["part"] == "choice"}
    # Those that know what layers cost choose alike; the screening from all runs at once.
    right = arms["sweep"].detail["layers"]
    assert arms["curvature"].detail["layers"] == arms["screening"].detail["layers"] == right
    assert arms["depth"].detail["layers"] != right and "chance" not in arms
    for arm in arms.values():
        assert arm.detail["predicted_time"] <= 0.6  # type: ignore[operator]
        runs = [made.runs[run_id] for run_id in arm.run_ids]
        assert [(run.seed, run.test, run.steps) for run in runs] == [
            (100, True, 6), (101, True, 6),
        ]  # fmt: skip
    last: Any = arms["last layers"].detail["layers"]
    assert last == study.layers[-len(last) :]
    screening = [arm for arm in made.arms if arm.detail["part"] == "screening"]
    assert not any(made.runs[i].test for arm in screening for i in arm.run_ids)


def test_the_sweeps_choice_is_the_run_that_04_has(tmp_path: Path) -> None:
    sets = ("notebooks.04_selection.equal=epochs", "notebooks.04_selection.target_time=0.6")
    study = Study.open("smoke", sets, tmp_path / "runs")
    made = everything_there(study)
    labels = {arm.label: arm.run_ids for arm in made.arms}
    assert labels["chosen by sweep"] == labels["selected"]


def test_measured_scores_are_published_with_their_section(study: Study, tmp_path: Path) -> None:
    train(study, everything_there(study).runs.values())
    made = draft(study, "07_search")
    publish(study.store, made.section(), tmp_path / "smoke")
    there = Store(tmp_path / "smoke")
    key = made.facts["measured"]
    assert there.measured(key) == study.store.measured(key) is not None


def test_numbers_for_each_layer_wait_for_the_search_and_cost_no_more(study: Study) -> None:
    with pytest.raises(Waiting, match="07_search"):
        draft(study, "08_ranks")
    everything_there(study)
    made = draft(study, "08_ranks")
    arms = {arm.detail["way"]: arm.detail for arm in made.arms}
    assert list(arms) == [
        "dense", "one share", "screening", "response energy", "singular values",
    ]  # fmt: skip
    share: Any = arms["one share"]
    assert share["layers"] == dict(study.plan(0.3, study.layers).layers)
    for way in ("screening", "response energy"):
        detail: Any = arms[way]
        assert detail["predicted_time"] <= share["predicted_time"] + 1e-9
        assert 0 < len(detail["layers"]) < 20
    of = costs(study)

    def cost(way: str) -> float:
        return sum(of[name] for name in arms[way]["layers"])  # type: ignore[union-attr]

    assert cost("screening") < cost("one share")
    steps = ranks.priced_steps(study)
    singles = {tuple(step.plan.layers.items()) for step in steps if len(step.plan.layers) == 1}
    outputs = search.outputs(study)
    shares = study.plan(0.3, list(outputs)).layers
    assert singles == {((n, m),) for n, c in outputs.items() for m in (c // 4, shares[n])}

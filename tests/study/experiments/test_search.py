"""07 before training: the design's runs, and the short one whose weights are kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from basisconv.plan import Plan
from basisconv.screening import screening
from basisconv.study.experiments.registry import draft, runs_with_kept_weights
from basisconv.study.experiments.study import Study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study.open("smoke", runs=tmp_path / "runs")


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
    assert runs_with_kept_weights(study) == set(arm.run_ids)
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

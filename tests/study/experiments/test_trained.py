"""08b: which networks are cut, and rows that are measured once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_runs import make_record

from basisconv.study import cli
from basisconv.study.execution.many_runs import RunsReport
from basisconv.study.experiments import pipeline, trained
from basisconv.study.experiments import study as study_module
from basisconv.study.experiments.pipeline import Unfinished, make_section
from basisconv.study.experiments.registry import check_parameters, draft, runs_with_kept_weights
from basisconv.study.experiments.study import Study, published_folder
from basisconv.study.records.publish import published

NAME = "08b_trained"


class FakeWork:
    """Measures nothing, and counts."""

    made: list[tuple[Any, ...]] = []

    def __init__(self, study: Study, parameters: Any, runtime: str, run: Any) -> None:
        self.run = run

    def measured(self, wanted: dict[str, Any], known: list[Any]) -> dict[str, Any]:
        assert wanted["run_id"] == self.run.run_id and len(known) == len(self.made)
        self.made.append((wanted["seed"], wanted["way"], wanted["share"], wanted["trained"]))
        return {"device": "abacus", "threads": 1, "times": {"16": [0.7, 0.6, 0.8]}}


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    monkeypatch.setattr(trained, "_Work", FakeWork)
    monkeypatch.setattr(FakeWork, "made", [])
    return FakeWork.made


def smoke(folder: Path, *changes: str) -> Study:
    return Study.open("smoke", changes, runs=folder / "runs")


def rows(study: Study) -> list[dict[str, Any]]:
    found: Any = draft(study, NAME).facts["rows"]
    return list(found)


def measure(study: Study, stop: Callable[[], bool] = lambda: False) -> bool:
    parameters: Any = check_parameters(NAME, study.profile.parameters(NAME))
    return trained.measure(study, parameters, stop)


def test_desk2_cuts_the_dense_networks_of_02(tmp_path: Path) -> None:
    study = Study.open("desk2", runs=tmp_path)
    ours, theirs = draft(study, NAME), draft(study, "02_all_layers")
    assert set(ours.runs) <= set(theirs.runs)
    cut = trained._cut_runs(ours)
    longest = max(run.steps for run in theirs.runs.values() if run.width == study.profile.width)
    assert len(cut) == 3 and {run.steps for run in cut} == {longest}


@pytest.mark.parametrize("name", ["smoke", "quick", "desk", "desk2", "paper"])
def test_every_profile_keeps_the_weights_that_it_cuts(tmp_path: Path, name: str) -> None:
    study = Study.open(name, ("costs=macs",), runs=tmp_path)
    cut = {run.run_id for run in trained._cut_runs(draft(study, NAME))}
    assert cut and cut <= runs_with_kept_weights(study)


def test_rows_are_measured_once_and_an_interrupted_measurement_goes_on(
    tmp_path: Path, work: list[tuple[Any, ...]]
) -> None:
    study = smoke(tmp_path, "notebooks.08b_trained.epochs.arms={D: 2, D½: 1}")
    left = iter([False, False, True])
    assert measure(study, lambda: next(left)) is False
    assert len(rows(study)) == 2 == len(work)
    assert measure(study) is True
    # The narrower network once, and of both seeds seven ways and one of them trained.
    assert len(work) == len(set(work)) == 1 + 2 * 8 and len(rows(study)) == 17
    assert work[0] == (100, "D½", None, False)
    for seed in (100, 101):  # trained networks are those that were cut before
        own = [key[1:] for key in work if key[0] == seed]
        assert own.index(("responses", 0.6, False)) < own.index(("responses", 0.6, True))
    assert measure(study, lambda: True) is True
    assert len(work) == 17


def test_a_section_has_the_rows_of_its_own_settings(
    tmp_path: Path, work: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "train_runs", lambda *_, **__: RunsReport(2, (), ()))
    study = smoke(tmp_path)
    section = make_section(study, NAME)
    assert section.facts["rows"] == rows(study) and len(rows(study)) == 9
    fewer = smoke(tmp_path, "notebooks.08b_trained.ways=[svd]")
    assert [row["way"] for row in rows(fewer)] == ["D½", "svd", "responses"]
    other = smoke(tmp_path, "notebooks.08b_trained.batch_sizes=[8]")
    assert rows(other) == []
    longer = smoke(tmp_path, "notebooks.08b_trained.epochs.length=2", "keep_weights={}")
    assert rows(longer) == []
    with pytest.raises(Unfinished, match="08b_trained: measurements are left"):
        make_section(other, NAME, stop=lambda: True)  # type: ignore[arg-type]


def test_times_are_eager_where_onnxruntime_is_not_installed(
    tmp_path: Path, work: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = smoke(tmp_path, "notebooks.08b_trained.runtime=onnxruntime")
    monkeypatch.setattr(trained, "available", lambda _: "eager")
    measure(study)
    assert draft(study, NAME).facts["runtime"] == "eager" and len(rows(study)) == 9
    work.clear()
    monkeypatch.setattr(trained, "available", lambda wanted: wanted)
    left = iter([False, True])
    measure(study, lambda: next(left))
    assert draft(study, NAME).facts["runtime"] == "onnxruntime" and len(rows(study)) == 1


def test_publishing_takes_the_measurements_along(
    tmp_path: Path, work: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "ROOT", tmp_path)
    study = Study.open("smoke")
    for run in draft(study, NAME).runs.values():
        study.store.put(make_record(run))
    measure(study)
    assert cli.main(["publish", NAME, "--profile", "smoke"]) == 0
    folder = published_folder("smoke")
    section = published(folder)[NAME]
    assert section.facts["rows"] == rows(study) and len(rows(study)) == 9
    # What is published is what its profile drafts from the published files.
    assert draft(Study.open("smoke", runs=folder), NAME).section() == section


def test_what_is_cut_must_have_kept_its_weights(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="no final weights"):
        measure(smoke(tmp_path))


def test_networks_of_one_size_share_its_times_and_a_cut_comes_before_its_epoch() -> None:
    def row(way: str, trained: bool = False) -> dict[str, Any]:
        return {"run_id": "0", "way": way, "share": 0.5, "trained": trained}

    known = [row("svd"), row("search"), row("search", True)]
    assert trained._same_size(row("responses"), known) is known[0]
    assert trained._same_size(row("search", True), known) is known[1]
    assert trained._same_size(row("balf"), known) is None

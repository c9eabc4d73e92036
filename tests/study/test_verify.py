"""`verify` looks at every file that results hang on, and changes none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_runs import contents, make_record, make_run
from torture.subjects import cost_table as write_costs

from basisconv.study import cli
from basisconv.study.experiments import study as study_module
from basisconv.study.experiments.study import Study, cost_table, published_folder
from basisconv.study.records.checkpoint import (
    Checkpoints,
    Position,
    TrainingState,
    checkpoint_files,
)
from basisconv.study.records.publish import publish
from basisconv.study.records.run import Arm, Section
from basisconv.study.training.rng import global_streams
from basisconv.study.verify import verify


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Two records, of which one is published, a checkpoint and a cost table."""
    monkeypatch.setattr(study_module, "ROOT", tmp_path)
    study = Study.open("desk")
    for seed in (0, 1):
        study.store.put(make_record(make_run(seed)))
    run = make_run(2)
    losses = global_streams()["cpu"]
    position = Position(
        phase=0, step=3, first=0, eager=False, history=(), seconds={}, notes=(),
        device_kinds=("abacus",),
    )  # fmt: skip
    state = TrainingState(position, {"a": losses}, {}, losses, {})
    Checkpoints(study.store.checkpoints(run.run_id), run).save(state)
    arm = Arm(label="dense", method="dense", run_ids=(make_run(0).run_id,))
    section = Section(name="01_baseline", profile="desk", arms=(arm,), facts={})
    publish(study.store, section, published_folder("desk"))
    write_costs(cost_table("desk"), "desk")
    return study


def test_sound_files_are_counted_and_left_alone(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(tmp_path)
    assert cli.main(["verify", "--profile", "desk"]) == 0
    assert capsys.readouterr() == (
        "2 records, 1 checkpoints, 1 published records, 1 manifests, 1 cost tables are sound\n", ""
    )  # fmt: skip
    assert contents(tmp_path) == before


def test_a_cost_table_that_is_gone_is_named(study: Study) -> None:
    cost_table("desk").unlink()
    (problem,) = verify(study).problems
    assert problem.startswith(f"{cost_table('desk')} is gone, by which the Runs")


def record(study: Study) -> Path:
    return study.store.path(make_run(1).run_id)


def checkpoint(study: Study) -> Path:
    return checkpoint_files(study.store.checkpoints(make_run(2).run_id))[0]


def published_record(study: Study) -> Path:
    return published_folder("desk") / f"{make_run(0).run_id}.json"


def manifest(study: Study) -> Path:
    return published_folder("desk") / "manifest.json"


def table(study: Study) -> Path:
    return cost_table("desk")


@pytest.mark.parametrize("which", [record, checkpoint, published_record, manifest, table])
def test_each_damaged_file_is_named(
    study: Study, capsys: pytest.CaptureFixture[str], which: Callable[[Study], Path]
) -> None:
    path = which(study)
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    assert cli.main(["verify", "--profile", "desk"]) == 1
    output = capsys.readouterr().err.splitlines()
    assert str(path) in output[0] and "sha256" in output[0]
    assert output[-1].startswith("basisconv: ") and "not what was written" in output[-1]


def test_files_under_wrong_names_are_named(study: Study) -> None:
    record(study).rename(study.store.folder / "notes.json")
    other = study.store.checkpoints(make_run(3).run_id)
    checkpoint(study).parent.rename(other)
    first, second = verify(study).problems
    assert "'notes' is not a run id" in first
    assert str(other) in second and make_run(2).run_id in second


def test_a_published_record_or_a_manifest_that_is_gone_is_named(study: Study) -> None:
    path = published_record(study)
    data = path.read_bytes()
    path.unlink()
    (problem,) = verify(study).problems
    assert make_run(0).run_id in problem
    path.write_bytes(data)
    manifest(study).unlink()
    (problem,) = verify(study).problems
    assert str(manifest(study)) in problem


def test_records_of_an_incomplete_section_are_sound(study: Study) -> None:
    arm = Arm(label="dense", method="dense", run_ids=tuple(make_run(s).run_id for s in (0, 1, 7)))
    section = Section(name="01_baseline", profile="desk", arms=(arm,), facts={})
    publish(study.store, section, published_folder("desk"), incomplete=True)
    findings = verify(study)
    assert findings.sound["published records"] == 2 and findings.problems == []


def test_another_profiles_manifest_and_cost_table_are_refused(study: Study, tmp_path: Path) -> None:
    arm = Arm(label="dense", method="dense", run_ids=(make_run(0).run_id,))
    section = Section(name="01_baseline", profile="paper", arms=(arm,), facts={})
    publish(study.store, section, tmp_path / "paper")
    manifest(study).write_bytes((tmp_path / "paper" / "manifest.json").read_bytes())
    table(study).write_bytes(write_costs(tmp_path / "costs.json", "smoke").read_bytes())
    first, second = verify(study).problems
    assert "the manifest of profile paper" in first
    assert "was measured with" in second and str(table(study)) in second


def test_a_checkpoint_that_its_training_has_just_removed_is_not_a_problem(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(path: Path, run_id: str) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr("basisconv.study.records.checkpoint.read_checkpoint", gone)
    findings = verify(study)
    assert findings.problems == [] and findings.sound["checkpoints"] == 0


def test_an_empty_store_has_nothing_to_verify(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", "--profile", "smoke", "--runs", str(tmp_path / "none")]) == 0
    assert "Nothing to verify" in capsys.readouterr().out

"""The measured cost table: every plan of a profile's experiments, timed as its Runs train."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from basisconv.plan import Plan
from basisconv.study import costs, protocol, step_costs
from basisconv.study.experiments import draft
from basisconv.study.files import read_json
from basisconv.study.protocol import Study
from basisconv.study.step_costs import ensure_costs, measure_costs
from basisconv.timing import Timing

SETTINGS = ["width=4", "training.batch_size=4", "costs=table"]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The table's place for the test, empty; torch's threads are put back afterwards."""
    path = tmp_path / "published" / "costs.json"
    for room in (step_costs, protocol):
        monkeypatch.setattr(room, "cost_table", lambda name: path)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    return path


def fake_times(seen: list[tuple[object, ...]]):  # type: ignore[no-untyped-def]
    def times(models: dict[str, nn.Module], x: torch.Tensor, *options: object) -> object:
        seen.append((tuple(x.shape), *options))
        return {"dense": Timing((1.0,) * 5, 0.0), "plan": Timing((0.2, 0.3, 0.4, 0.5, 0.6), 0.0)}

    return times


def test_every_plan_that_a_profile_trains_is_measured_once(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study.open("smoke", SETTINGS, runs=tmp_path / "runs")
    assert measure_costs(study, repeats=1) == table
    measured = costs.MeasuredCosts(read_json(table), table, study.profile)
    # The study sizes its Runs by the table from now on.
    for name in ("01_baseline", "02_all_layers", "03_sensitivity", "05_skip_training"):
        for run in draft(study, name).runs.values():
            assert all(measured.step(phase.plan, run.width) > 0 for phase in run.phases)
    assert measured.step(Plan(), 4) == 1.0
    assert all(measured.step(Plan(), width) > 0 for width in study.widths)
    # Any subset that 04 may select has its layers' single savings.
    assert measured.step(study.plan(0.25, study.layers[3:9]), 4) < 1.5
    # A second call measures what is new alone, and changes nothing.
    before = table.read_bytes()
    timed: list[tuple[object, ...]] = []
    monkeypatch.setattr(step_costs, "step_times", fake_times(timed))
    measure_costs(study, repeats=1)
    assert not timed and table.read_bytes() == before


def test_steps_are_timed_as_the_profile_trains_them(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch, precision and compilation; and a ratio is ours over dense, quartiles in order."""
    seen: list[tuple[object, ...]] = []
    monkeypatch.setattr(step_costs, "step_times", fake_times(seen))
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    changes = ["width=4", "costs=table", "threads=2", "precision=bfloat16", "compile=true"]
    study = Study.open("smoke", changes, runs=tmp_path / "runs")
    row = read_json(measure_costs(study, repeats=7))["rows"][0]
    assert set(seen) == {((50, 3, 32, 32), 7, "bfloat16", True)} and threads == [2]
    assert row["ratio"] == pytest.approx(0.4)
    assert row["quartiles"] == pytest.approx([0.3, 0.5])


def test_a_profile_that_wants_a_table_and_has_none_measures_it_first(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[object, ...]] = []
    monkeypatch.setattr(step_costs, "step_times", fake_times(seen))
    ensure_costs(Study.open("smoke", runs=tmp_path / "runs"))  # sized by MACs: wants none
    assert not seen and not table.exists()
    ensure_costs(Study.open("smoke", SETTINGS, runs=tmp_path / "runs"))
    assert seen and table.exists()
    seen.clear()
    ensure_costs(Study.open("smoke", SETTINGS, runs=tmp_path / "runs"))
    assert not seen


def test_a_table_of_other_settings_is_refused_before_anything_is_timed(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[object, ...]] = []
    monkeypatch.setattr(step_costs, "step_times", fake_times(seen))
    measure_costs(Study.open("smoke", SETTINGS, runs=tmp_path / "runs"))
    before = table.read_bytes()
    seen.clear()
    other = Study.open("smoke", [*SETTINGS, "training.batch_size=8"], runs=tmp_path / "runs")
    with pytest.raises(ValueError, match="batch_size.*4"):
        measure_costs(other)
    assert not seen and table.read_bytes() == before

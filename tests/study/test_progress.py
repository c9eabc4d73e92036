"""The plan as a table: each Run counted once, and hours from records, the profile, or nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_runs import make_record

from basisconv.plan import Plan
from basisconv.study.data.sets import EVALUATED_IMAGES, load
from basisconv.study.experiments import study as study_module
from basisconv.study.experiments.registry import TRAINED, draft
from basisconv.study.experiments.study import Study
from basisconv.study.progress import Counts, Progress, RunTimes, progress_by_section, table
from basisconv.study.records.run import Run
from basisconv.study.timing.costs import add_rows, reference_step, table_settings


def rows(study: Study) -> dict[str, Progress]:
    found, _ = progress_by_section(study)
    return {row.section: row for row in found}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study.open("smoke", ["dense_step_ms=500"], runs=tmp_path / "runs")


def steps(run: Run) -> int:
    """A run's evaluation, worked out by hand for smoke: 200 validation and 1,000 test images."""
    images = run.data.train_images
    assert images is not None
    per_epoch = images // run.batch_size
    return (run.steps + per_epoch - 1) // per_epoch * 200 + 1000 * run.test


def test_every_section_is_there_and_no_run_is_counted_twice(study: Study) -> None:
    found = rows(study)
    assert list(found) == list(TRAINED)
    assert found["04_selection"].waits == "waits for the records of 03_sensitivity"
    assert not found["03_sensitivity"].waits
    assert found["07_search"].waits == "waits for the records of 03_sensitivity"
    assert found["08_ranks"].waits == "waits for the records of 07_search"
    known = [name for name in TRAINED if name not in ("04_selection", "08_ranks")]
    runs = {i for name in known for i in draft(study, name).runs}
    assert sum(found[name].runs for name in known) == len(runs)
    # The frontier's dense runs at the longest budget are the baseline's.
    frontier = draft(study, "02_all_layers")
    assert found["02_all_layers"].runs == len(frontier.runs) - 2
    assert found["02_all_layers"].arms == len(frontier.arms)
    assert found["01b_pilot"].seeds == (1, 2)


def test_hours_are_steps_by_their_costs_and_the_profiles_dense_step(study: Study) -> None:
    row = rows(study)["01_baseline"]
    # Two runs of 12 dense steps of half a second, two at a time; and each evaluates 200 images
    # twice and 1,000 once, at a third of a training step's cost an image.
    each = 12 * 0.5 * (1 + 1400 / (12 * 50) / 3)
    assert row.hours == pytest.approx(2 * each / 2 / 3600)
    assert row.step_ms == pytest.approx(each / 12 * 1000)
    assert row.hours == pytest.approx(row.runs * row.steps * row.step_ms / 2 / 3.6e6)
    assert (row.runs, row.steps, row.status) == (2, 12, Counts(0, 0, 0, 2))
    assert row.left == row.hours


def test_records_of_this_kind_of_device_say_better(study: Study) -> None:
    runs = list(draft(study, "01_baseline").runs.values())
    study.store.put(make_record(runs[0], seconds=30.0))
    other = make_record(runs[1], seconds=9999.0, kind="another machine")
    study.store.put(other)
    row = rows(study)["01_baseline"]
    assert row.hours == pytest.approx(2 * 30 / 2 / 3600)
    assert (row.status, row.left) == (Counts(2, 0, 0, 0), 0.0)
    # Other widths than those measured go by all of them: half the width costs as its MACs say.
    frontier = draft(study, "02_all_layers")
    found = rows(study)["02_all_layers"]
    assert found.hours is not None and found.hours > 0
    work = {
        i: sum(p.steps * study.cost(p.plan, r.width) for p in r.phases)
        * (1 + steps(r) / r.steps / 50 / 3)
        for i, r in frontier.runs.items()
    }  # fmt: skip
    second = 30 / (12 * (1 + 1400 / 600 / 3))
    own = set(frontier.runs) - {run.run_id for run in runs}
    assert found.hours == pytest.approx(sum(work[i] for i in own) * second / 2 / 3600)


def test_a_machine_that_nobody_timed_is_unknown(tmp_path: Path) -> None:
    study = Study.open("smoke", runs=tmp_path / "runs")
    found = rows(study)
    assert all(row.hours is row.step_ms is row.left is None for row in found.values())
    assert found["01_baseline"].runs == 2
    lines = table(list(found.values())).splitlines()
    runs = str(sum(row.runs for row in found.values()))
    assert lines[-1].split() == ["all", runs, "?", "0", "0", "0", runs, "?"]
    assert RunTimes.of(study).hours_left(draft(study, "01_baseline").runs.values()) is None


def test_slow_runs_do_not_change_the_estimated_time(study: Study) -> None:
    for run, seconds in zip(draft(study, "01_baseline").runs.values(), (3000, 30), strict=True):
        study.store.put(make_record(run, seconds=seconds))
    assert rows(study)["01_baseline"].hours == pytest.approx(2 * 30 / 2 / 3600)


def test_what_is_left_is_what_has_no_result_less_the_steps_of_checkpoints(study: Study) -> None:
    runs = list(draft(study, "01_baseline").runs.values())
    hours = rows(study)["01_baseline"].hours
    assert hours is not None
    folder = study.store.checkpoints(runs[0].run_id)
    folder.mkdir(parents=True)
    (folder / f"{9:09d}-{'0' * 64}.pt").touch()
    study.store.put(make_record(runs[1], "failed"))
    row = rows(study)["01_baseline"]
    assert (row.hours, row.status) == (hours, Counts(0, 1, 0, 1))
    assert row.left == pytest.approx(hours / 2 * (1 - 9 / 12) + hours / 2)
    assert RunTimes.of(study).hours_left(runs) == pytest.approx(row.left)


def test_a_profile_without_its_cost_table_is_planned_by_macs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "costs.json"
    monkeypatch.setattr(study_module, "cost_table", lambda name: path)
    opened = ["costs=table", "dense_step_ms=1"]
    found, by_macs = progress_by_section(Study.open("smoke", opened, runs=tmp_path / "runs"))
    assert by_macs and all(row.hours for row in found)
    # Half measured, as `run --minutes` may leave it: no more is known of most steps.
    study = Study.open("smoke", opened, runs=tmp_path / "runs")
    dense = reference_step(study.profile)
    row = {"plan": Plan().to_dict(), "width": dense.width, "batch_size": dense.batch_size}
    add_rows(path, {"device": "d", "device_kind": "k", **table_settings(study.profile)},
             [row | {"ratio": 1.0, "quartiles": [1.0, 1.0]}])  # fmt: skip
    assert study.cost(Plan(), dense.width, dense.batch_size) == 1
    again, by_macs = progress_by_section(study)
    assert by_macs and again == found
    # By executed MACs nothing stands in for anything.
    assert not progress_by_section(Study.open("smoke", runs=tmp_path / "runs"))[1]


def test_the_table_adds_up() -> None:
    made = [
        Progress("01_baseline", 1, (3,), 3, 1000.0, 500.0, 0.5, 0.25, Counts(1, 0, 1, 1)),
        Progress(
            "04_selection", 9, (1, 2, 3), 18, 400.0, 250.0, 1.5, 1.5, Counts(0, 2, 0, 16), "waits"
        ),
    ]
    head, first, second, last = table(made).splitlines()
    assert head.split() == [
        "section", "arms", "seeds", "runs", "steps", "ms", "hours", "done", "failed", "running",
        "missing", "hours", "left",
    ]  # fmt: skip
    assert first.split() == "01_baseline 1 3 3 1000 500 0.5 1 0 1 1 0.2".split()
    assert second.split()[:12] == "04_selection 9 1–3 18 400 250 1.5 0 2 0 16 1.5".split()
    assert second.endswith("(its runs are a guess: it waits)")
    assert last.split() == "all 21 2.0 1 2 1 17 1.8".split()


def test_the_sizes_of_the_evaluated_splits_are_the_data_sets() -> None:
    data = load("cifar10-sample")
    assert EVALUATED_IMAGES["cifar10-sample"] == (len(data.validation), len(data.test))

"""The commands: what they say, their exit status, and that bad input writes nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fake_runs import make_record, make_run

import basisconv
from basisconv.study.cli import main
from basisconv.study.execution import stopping
from basisconv.study.execution.many_runs import RunsReport
from basisconv.study.execution.many_runs import train_runs as real_sweep
from basisconv.study.execution.stopping import Stop
from basisconv.study.experiments import cost_table, pipeline
from basisconv.study.experiments import study as study_module
from basisconv.study.experiments.registry import draft
from basisconv.study.experiments.study import Study
from basisconv.study.records.checkpoint import Checkpoints
from basisconv.study.records.files import DamagedFile
from basisconv.study.records.publish import published
from basisconv.study.records.run import Record, Run
from basisconv.study.records.store import Store
from basisconv.study.report.make import make_report
from basisconv.study.timing import bench

ROOT = Path(__file__).parents[2]


def fake_train(run: Run, checkpoints: Checkpoints | None = None) -> Record:
    """A record without training; the run of seed 101 fails."""
    if run.seed == 101:
        raise RuntimeError("no such luck")
    return make_record(run, loss=1.0 + run.seed / 10, kind="test")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    def sweep(runs: list[Run], store: Store, **options: object) -> object:
        return real_sweep(runs, store, **{**options, "train": fake_train, "workers": 1})  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "train_runs", sweep)


class Called(NamedTuple):
    """A command's status and what it wrote."""

    status: int
    out: str
    err: str


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Called]:
    """Runs a command on a profile, with a store of the test's own."""

    def run(command: str, *more: str, profile: str = "smoke", runs: str = "runs") -> Called:
        options = ["--profile", profile, "--runs", str(tmp_path / runs), *more]
        return Called(main([*command.split(), *options]), *capsys.readouterr())

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["reproduce", "--profile", "huge"], "no profile 'huge'. Profiles: desk, desk2, paper"),
        (
            ["reproduce", "--profile", "smoke", "--set", "widht=3"],
            "Did you mean 'width'",
        ),
        (["status", "--profile", "smoke", "--set", "width=-1"], "width: Input should be"),
        (["run", "--profile", "desk", "--set", "costs=tables"], "costs: Input should be"),
        (["run", "--executor", "slurm"], "executor: Input should be 'local' or 'ray'"),
        (["merge", "nowhere", "--profile", "smoke"], "nowhere holds no records"),
        (["publish", "99_none", "--profile", "smoke"], "no notebook '99_none'"),
        (["data", "sample"], "data sample writes a new folder"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_1(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert output.err.startswith("basisconv: ") and words in output.err
    assert "Traceback" not in output.err and not output.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [["reproduced"], ["status", "--profil", "x", "y"], [], ["run", "--minutes", "-1"]],
)
def test_an_unknown_command_or_option_is_exit_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.usefixtures("fake")
def test_run_trains_what_is_missing_and_names_what_failed(call: Any, study: Study) -> None:
    run = call("run")
    assert run.status == 1 and "01_baseline" in run.err and "--retry-failed" in run.err
    sweep_runs = draft(study, "03_sensitivity").runs
    assert all(study.store.get(run_id) for run_id in sweep_runs)  # after the failures in 01, 02
    status = call("status")
    counts = {line.split()[0]: line.split()[7:11] for line in status.out.splitlines()[2:]}
    assert status.status == 0 and counts["01_baseline"] == ["1", "1", "0", "0"]
    assert counts["02_all_layers"][2:] == ["0", "0"]
    assert counts["02_all_layers"][0] == counts["02_all_layers"][1]  # one seed of two fails
    assert counts["03_sensitivity"] == ["42", "0", "0", "0"]


@pytest.mark.usefixtures("fake")
def test_a_time_limit_is_not_a_failure_and_status_says_what_is_left(call: Any) -> None:
    run = call("run", "--minutes", "0")
    assert run.status == 0 and "01_baseline: 2 runs are left" in run.err
    status = call("status")
    (baseline,) = [line for line in status.out.splitlines() if line.startswith("01_baseline")]
    assert status.status == 0 and baseline.split()[-5:] == ["0", "0", "0", "2", "?"]
    assert "it waits for the records of 03_sensitivity" in status.out


@pytest.mark.usefixtures("fake")
def test_a_section_is_trained_by_its_name_and_no_other(call: Any, study: Study) -> None:
    assert call("run 01b_pilot").status == 0
    assert study.store.all().keys() == draft(study, "01b_pilot").runs.keys()
    unknown = call("run 01_none")
    assert unknown.status == 1
    assert "No runs belong to ['01_none']. Sections: 01b_pilot," in unknown.err


def test_status_estimates_hours_before_step_times_are_measured(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "cost_table", lambda name: tmp_path / "costs.json")
    status = call("status", profile="desk")
    (whole,) = [line for line in status.out.splitlines() if line.startswith("all ")]
    # Without step times a plan costs its multiplications; the profile's text has what was measured.
    stated = float(re.search(r"about (\d+) hours", status.out)[1])
    assert 0.8 < float(whole.split()[2]) / stated < 1.25 and "bench --costs desk" in status.out


@pytest.mark.usefixtures("fake")
def test_merge_adds_records_of_another_machine(call: Any, tmp_path: Path) -> None:
    call("run", runs="there")
    merge = f"merge {tmp_path / 'there'}"
    first, second = call(merge), call(merge)
    added = int(first.out.split()[0])
    assert (first.status, second.status) == (0, 0)
    assert added > 50 and second.out.startswith(f"0 added, {added} known")
    # One byte changed by hand: nothing more is taken in.
    record = next((tmp_path / "there").glob("*.json"))
    record.write_bytes(record.read_bytes().replace(b'"val_loss": 1.', b'"val_loss": 0.', 1))
    refused = call(merge)
    assert refused.status == 1 and record.name in refused.err


def test_records_of_another_profile_are_not_merged(call: Any, tmp_path: Path) -> None:
    merge = f"merge {study_module.published_folder('desk')}"
    refused = call(merge, profile="paper")
    assert refused.status == 1
    assert "holds records of profile desk, not of paper: add --profile desk." in refused.err
    assert not (tmp_path / "runs").exists()
    merged = call(merge, profile="desk")
    assert merged.status == 0
    assert merged.out.endswith(f" added, 0 known, in {tmp_path / 'runs'}\n")


def test_minutes_are_of_the_whole_command(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now, over = [0.0], []

    def sweep(runs: list[Run], store: Store, stop: Stop, **_: object) -> RunsReport:
        over.append(stop())
        now[0] += 60.0
        for run in runs:
            store.put(make_record(run))
        return RunsReport(len(runs), (), ())

    monkeypatch.setattr(pipeline, "train_runs", sweep)
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    # 03 first, which 04 waits for; then 04, and 02 is too late.
    assert call("run 04_selection 02_all_layers", "--minutes", "1.5").status == 0
    assert over == [False, False, True]


@pytest.mark.usefixtures("fake")
def test_a_dry_run_names_the_runs_and_does_nothing(call: Any, study: Study) -> None:
    dry = call("run --dry-run")
    assert dry.status == 0
    for name in ("01_baseline", "02_all_layers", "03_sensitivity", "05_skip_training"):
        wanted = draft(study, name).runs
        assert f"{name}: {len(wanted)} runs to train, unknown time" in dry.out
        assert all(f"  {run_id}  resnet18, width " in dry.out for run_id in wanted)
        assert all(f"\n  {arm.label}\n" in dry.out for arm in draft(study, name).arms)
    assert "04_selection: waits for" in dry.out
    assert not study.store.folder.exists()

    # Failed runs are named when they would be trained, and steps that are done are output.
    call("run")
    assert "01_baseline: 0 runs to train\n" in call("run --dry-run").out
    (failed,) = [i for i in draft(study, "01_baseline").runs if study.store.get(i).status != "done"]
    folder = study.store.checkpoints(failed)
    folder.mkdir(parents=True)
    (folder / f"{7:09d}-{'0' * 64}.pt").touch()
    out = call("run --dry-run --retry-failed").out
    assert f"01_baseline: 1 runs to train, unknown time\n  dense\n    {failed}" in out
    assert "seed 101, 0 basis layers, " in out and " steps, 7 of them done\n" in out


def test_of_two_results_of_a_gpu_run_the_first_stays_and_the_output_says_so(
    call: Any, tmp_path: Path
) -> None:
    here, there = (Store(tmp_path / name) for name in ("runs", "there"))
    for store, loss in ((here, 1.0), (there, 2.0)):
        store.put(make_record(make_run(), loss=loss, kind="NVIDIA H100"))
    for _ in range(2):
        merged = call(f"merge {there.folder}")
        assert merged.status == 0 and make_run().run_id in merged.out
        assert merged.out.startswith("0 added, 0 known, 1 not added")
    assert here.get(make_run().run_id).result.val_loss == 1.0


def test_publishing_trains_nothing_and_names_what_is_missing(call: Any, tmp_path: Path) -> None:
    refused = call("publish 01_baseline")
    assert refused.status == 1 and "has no record of 2 of the runs" in refused.err
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.usefixtures("fake")
def test_what_there_is_of_a_section_is_published_when_asked_for(
    call: Any, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("run")
    wanted = draft(study, "03_sensitivity").runs
    study.store.path(next(iter(wanted))).unlink()
    monkeypatch.setattr(study_module, "ROOT", tmp_path)
    published = call("publish 03_sensitivity --incomplete")
    left = len(wanted) - 1
    assert published.status == 0
    assert published.out == f"03_sensitivity: {left} records published, 0 known, 1 missing\n"
    verified = call("verify")
    assert verified.status == 0 and f"{left} published records, 1 manifests" in verified.out


@pytest.mark.usefixtures("fake")
def test_an_incomplete_larger_section_leaves_the_complete_one_shown(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = "--set", "seeds.confirm=[100]"
    call("run 01_baseline", *fewer)
    monkeypatch.setattr(study_module, "ROOT", tmp_path)
    assert call("publish 01_baseline", *fewer).status == 0
    larger = call("publish 01_baseline --incomplete")
    assert larger.status == 0 and larger.out == (
        "01_baseline: 0 records published, 1 known, 1 missing, and the complete section published "
        "before is still shown\n"
    )
    (shown,) = published(study_module.published_folder("smoke")).values()
    assert len(shown.run_ids) == 1


def test_missing_data_stop_a_run_once_and_before_any_training(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASISCONV_DATA", str(tmp_path / "nowhere"))
    run = call("run", "--set", "data=cifar10")
    assert run.status == 1
    assert run.err.count("basisconv: ") == 1 and str(tmp_path / "nowhere") in run.err
    assert not list(tmp_path.rglob("*.json"))


def test_a_section_edited_by_hand_is_refused(tmp_path: Path) -> None:
    study = Study(Study.open("smoke").profile, Store(tmp_path / "runs"), tmp_path)
    pipeline.make_section(study, "10_claims")
    path = tmp_path / "sections" / "10_claims.json"
    assert list(pipeline.sections(study)) == ["10_claims"]
    path.write_text(path.read_text().replace("smoke", "paper"))
    with pytest.raises(DamagedFile, match="10_claims.json"):
        pipeline.sections(study)


def test_the_module_runs_and_data_where_says_what_there_is() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "basisconv", "data", "where"],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"BASISCONV_DATA": ""},
    )  # fmt: skip
    assert done.returncode == 0 and "cifar10-sample" in done.stdout


@pytest.mark.parametrize(
    ("command", "unbuffered", "status", "words"),
    [
        ("--help", "", 0, ""),
        ("data where", "", 141, ""),  # at the last flush
        ("data where", "1", 141, ""),  # at once
        ("verify --profile smoke --runs .", "", 1, r"[^\n]+\nbasisconv: 1 files are not .+\n"),
    ],
)
def test_a_reader_that_closes_the_pipe_is_not_an_error(
    command: str, unbuffered: str, status: int, words: str, tmp_path: Path
) -> None:
    (tmp_path / f"{'0' * 16}.json").touch()  # a damaged record
    reader, stdout = os.pipe()
    os.close(reader)
    with open(stdout, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "basisconv", *command.split()],
            cwd=tmp_path, stdout=closed, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert re.fullmatch(words, done.stderr), done.stderr


@pytest.mark.usefixtures("fake")
def test_failed_runs_are_trained_again_when_asked_and_each_is_counted_once(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = "seeds.explore=[0, 101]", "seeds.confirm=[100, 102]"
    given = ["03_sensitivity", "04_selection", "05_skip_training"]
    given += [word for change in changes for word in ("--set", change)]
    run = call("run", *given)
    # 03's 21 and 05's; 04 waits for 03, whose failures it does not count anew.
    study = Study.open("smoke", changes, tmp_path / "runs")
    failed = [r for r in study.store.all().values() if r.status == "failed"]
    assert run.status == 1 and len(failed) > 21
    assert f"basisconv: {len(failed)} runs failed" in run.err
    assert f"{tmp_path / 'runs'} hold the traceback" in run.err
    monkeypatch.setattr(sys.modules[__name__], "fake_train", lambda run, _: _lucky(run))
    assert call("run", *given).status == 1  # failures stand until asked
    assert call("run --retry-failed", *given).status == 0
    assert all(record.status == "done" for record in study.store.all().values())
    # 04 is made on the way, and 05 after it.
    assert set(draft(study, "04_selection").runs) <= study.store.all().keys()


_train_or_fail = fake_train


def _lucky(run: Run) -> Record:
    record = _train_or_fail(run.model_copy(update={"seed": 0}))
    return record.model_copy(update={"run": run})


def test_the_claims_read_the_records_of_every_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(Study.open("smoke").profile, Store(tmp_path / "runs"), tmp_path)
    for name in ("01_baseline", "03_sensitivity"):
        found = draft(study, name)
        for run in found.runs.values():
            study.store.put(fake_train(run.model_copy(update={"seed": 0})).model_copy(
                update={"run": run}
            ))  # fmt: skip
        pipeline.make_section(study, name)
    read: dict[str, object] = {}

    class Nothing:
        def save(self, folder: Path) -> list[Path]:
            return []

    def build_claims(
        found: object, records: dict[str, Record], profile: str, preliminary: bool
    ) -> Nothing:
        assert (profile, preliminary) == ("smoke", True)
        read.update(records)
        return Nothing()

    monkeypatch.setattr("basisconv.study.report.make.build_claims", build_claims)
    make_report(study, pipeline.make_section(study, "10_claims"))
    assert read.keys() == study.store.all().keys()


def test_the_timings_take_all_the_threads_that_the_profile_trains_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(Study.open("smoke").profile, Store(tmp_path / "runs"), tmp_path)
    monkeypatch.setattr(bench, "measure", lambda *_, **given: given)
    (facts,) = pipeline.make_section(study, "06_timing").facts["devices"]
    assert facts == {"threads": 2}


def test_a_published_profile_shows_the_benchmarks_of_every_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = Study.open("smoke", ["notebooks.06_timing.devices=all"]).profile
    study = Study(profile, Store(tmp_path / "runs"), tmp_path)
    there: list[dict[str, object]] = []
    monkeypatch.setattr(bench, "saved_benchmarks", lambda *_: list(there))
    monkeypatch.setattr(bench, "benchmark_device", lambda repeats: {"repeats": repeats})
    monkeypatch.setattr(bench, "save_benchmark", lambda facts, _: there.append(facts))
    assert pipeline.make_section(study, "06_timing").facts["devices"] == [{"repeats": 2}]
    there.append({"device": "another"})
    facts = pipeline.make_section(study, "06_timing").facts
    assert facts["devices"] == [{"repeats": 2}, {"device": "another"}]


@pytest.mark.parametrize("preliminary", [True, False])
def test_the_profile_alone_says_whether_its_results_settle_anything(
    tmp_path: Path, preliminary: bool
) -> None:
    """Not a list of names elsewhere: figures, claims and the PDF follow the YAML."""
    profile = Study.open("smoke", [f"preliminary={str(preliminary).lower()}"]).profile
    study = Study(profile, Store(tmp_path / "runs"), tmp_path)
    make_report(study, pipeline.make_section(study, "00_method"))
    report = make_report(study, pipeline.make_section(study, "10_claims"))
    verdicts = set(report.tables["claims"].frame["verdict"])
    assert (verdicts == {"not yet measured"}) == preliminary
    texts = (tmp_path / "figures" / "method_costs.svg").read_text()
    assert ("<!-- smoke -->" in texts) == preliminary


def test_the_benchmark_and_a_cost_table_take_the_turns_that_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[dict[str, float | None]] = []

    def measure(*study: Study, **turns: float | None) -> None:
        taken.append(turns)
        raise ValueError("measured")

    monkeypatch.setattr(cost_table, "measure_table", measure)
    monkeypatch.setattr(bench, "benchmark_device", measure)
    for how in ([], ["--costs", "smoke"]):
        for turns in ([], ["--repeats", "3"]):
            assert main(["bench", *how, *turns]) == 1
    assert main(["bench", "--minutes", "9"]) == 1
    # Without the option each takes its own number.
    every = {"minutes": None}
    assert taken == [every, every | {"repeats": 3}, {}, {"repeats": 3}, {"minutes": 9.0}]


def test_status_says_what_is_published_and_how_to_merge_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["status", "--profile", "desk"]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("published in")]
    assert "paper/runs/desk: 00_method, " in line and "merge paper/runs/desk" in line


def test_the_console_script_is_the_module(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"basisconv {basisconv.__version__}\n"

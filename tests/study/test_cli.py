"""The commands: what they say, their exit status, and that bad input writes nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

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
def test_run_trains_what_is_missing_and_names_what_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = str(tmp_path / "runs")
    assert main(["run", "--profile", "smoke", "--runs", runs]) == 1
    output = capsys.readouterr().err
    assert "01_baseline" in output and "--retry-failed" in output
    study = Study.open("smoke", runs=Path(runs))
    sweep_runs = draft(study, "03_sensitivity").runs
    assert all(study.store.get(run_id) for run_id in sweep_runs)  # after the failures in 01, 02
    assert main(["status", "--profile", "smoke", "--runs", runs]) == 0
    lines = capsys.readouterr().out.splitlines()
    counts = {line.split()[0]: line.split()[7:11] for line in lines[2:]}
    assert counts["01_baseline"] == ["1", "1", "0", "0"]
    assert counts["02_all_layers"][2:] == ["0", "0"]
    assert counts["02_all_layers"][0] == counts["02_all_layers"][1]  # one seed of two fails
    assert counts["03_sensitivity"] == ["42", "0", "0", "0"]


@pytest.mark.usefixtures("fake")
def test_a_time_limit_is_not_a_failure_and_status_says_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = str(tmp_path / "runs")
    assert main(["run", "--profile", "smoke", "--runs", runs, "--minutes", "0"]) == 0
    assert "01_baseline: 2 runs are left" in capsys.readouterr().err
    assert main(["status", "--profile", "smoke", "--runs", runs]) == 0
    out = capsys.readouterr().out
    (baseline,) = [line for line in out.splitlines() if line.startswith("01_baseline")]
    assert baseline.split()[-5:] == ["0", "0", "0", "2", "?"]
    assert "it waits for the records of 03_sensitivity" in out


@pytest.mark.usefixtures("fake")
def test_a_section_is_trained_by_its_name_and_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    assert main(["run", "01b_pilot", "--profile", "smoke", "--runs", str(runs)]) == 0
    study = Study.open("smoke", runs=runs)
    assert study.store.all().keys() == draft(study, "01b_pilot").runs.keys()
    assert main(["run", "01_none", "--profile", "smoke", "--runs", str(runs)]) == 1
    assert "No runs belong to ['01_none']. Sections: 01b_pilot," in capsys.readouterr().err


def test_status_estimates_hours_before_step_times_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "cost_table", lambda name: tmp_path / "costs.json")
    assert main(["status", "--profile", "desk", "--runs", str(tmp_path / "runs")]) == 0
    output = capsys.readouterr().out
    (whole,) = [line for line in output.splitlines() if line.startswith("all ")]
    # Without step times a plan costs its multiplications; the profile's text has what was measured.
    stated = float(re.search(r"about (\d+) hours", output)[1])
    assert 0.8 < float(whole.split()[2]) / stated < 1.25 and "bench --costs desk" in output


@pytest.mark.usefixtures("fake")
def test_merge_adds_records_of_another_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["run", "--profile", "smoke", "--runs", str(tmp_path / "there")])
    capsys.readouterr()
    here = ["--profile", "smoke", "--runs", str(tmp_path / "here")]
    assert main(["merge", str(tmp_path / "there"), *here]) == 0
    first = capsys.readouterr().out
    assert main(["merge", str(tmp_path / "there"), *here]) == 0
    second = capsys.readouterr().out
    added = int(first.split()[0])
    assert added > 50 and second.startswith(f"0 added, {added} known")
    # One byte changed by hand: nothing more is taken in.
    record = next((tmp_path / "there").glob("*.json"))
    record.write_bytes(record.read_bytes().replace(b'"val_loss": 1.', b'"val_loss": 0.', 1))
    assert main(["merge", str(tmp_path / "there"), *here]) == 1
    assert record.name in capsys.readouterr().err


def test_records_of_another_profile_are_not_merged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = study_module.published_folder("desk")
    runs = tmp_path / "runs"
    assert main(["merge", str(desk), "--profile", "paper", "--runs", str(runs)]) == 1
    output = capsys.readouterr().err
    assert "holds records of profile desk, not of paper: add --profile desk." in output
    assert not runs.exists()
    assert main(["merge", str(desk), "--profile", "desk", "--runs", str(runs)]) == 0
    assert capsys.readouterr().out.endswith(f" added, 0 known, in {runs}\n")


def test_minutes_are_of_the_whole_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, over = [0.0], []

    def sweep(runs: list[Run], store: Store, stop: Stop, **_: object) -> RunsReport:
        over.append(stop())
        now[0] += 60.0
        for run in runs:
            store.put(make_record(run))
        return RunsReport(len(runs), (), ())

    monkeypatch.setattr(pipeline, "train_runs", sweep)
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    runs = ["--profile", "smoke", "--runs", str(tmp_path / "runs")]
    # 03 first, which 04 waits for; then 04, and 02 is too late.
    assert main(["run", *runs, "--minutes", "1.5", "04_selection", "02_all_layers"]) == 0
    assert over == [False, False, True]


@pytest.mark.usefixtures("fake")
def test_a_dry_run_names_the_runs_and_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ["--profile", "smoke", "--runs", str(tmp_path / "runs")]
    assert main(["run", *runs, "--dry-run"]) == 0
    out = capsys.readouterr().out
    study = Study.open("smoke", runs=tmp_path / "runs")
    for name in ("01_baseline", "02_all_layers", "03_sensitivity", "05_skip_training"):
        wanted = draft(study, name).runs
        assert f"{name}: {len(wanted)} runs to train, unknown time" in out
        assert all(f"  {run_id}  resnet18, width " in out for run_id in wanted)
        assert all(f"\n  {arm.label}\n" in out for arm in draft(study, name).arms)
    assert "04_selection: waits for" in out
    assert not (tmp_path / "runs").exists()

    # Failed runs are named when they would be trained, and steps that are done are output.
    main(["run", *runs])
    capsys.readouterr()
    assert main(["run", *runs, "--dry-run"]) == 0
    assert "01_baseline: 0 runs to train\n" in capsys.readouterr().out
    (failed,) = [i for i in draft(study, "01_baseline").runs if study.store.get(i).status != "done"]
    folder = study.store.checkpoints(failed)
    folder.mkdir(parents=True)
    (folder / f"{7:09d}-{'0' * 64}.pt").touch()
    assert main(["run", *runs, "--dry-run", "--retry-failed"]) == 0
    out = capsys.readouterr().out
    assert f"01_baseline: 1 runs to train, unknown time\n  dense\n    {failed}" in out
    assert "seed 101, 0 basis layers, " in out and " steps, 7 of them done\n" in out


def test_of_two_results_of_a_gpu_run_the_first_stays_and_the_output_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = (Store(tmp_path / name) for name in ("here", "there"))
    for store, loss in ((here, 1.0), (there, 2.0)):
        store.put(make_record(make_run(), loss=loss, kind="NVIDIA H100"))
    command = ["merge", str(there.folder), "--profile", "smoke", "--runs", str(here.folder)]
    for _ in range(2):
        assert main(command) == 0
        output = capsys.readouterr().out
        assert output.startswith("0 added, 0 known, 1 not added") and make_run().run_id in output
    record = here.get(make_run().run_id)
    assert record is not None and record.result is not None and record.result.val_loss == 1.0


def test_publishing_trains_nothing_and_names_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    assert main(["publish", "01_baseline", "--profile", "smoke", "--runs", str(runs)]) == 1
    assert "has no record of 2 of the runs" in capsys.readouterr().err
    assert not list(runs.rglob("*.json"))


@pytest.mark.usefixtures("fake")
def test_what_there_is_of_a_section_is_published_when_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = ["--profile", "smoke", "--runs", str(tmp_path / "runs")]
    main(["run", *runs])
    records = sorted((tmp_path / "runs").glob("*.json"))
    wanted = draft(Study.open("smoke", runs=tmp_path / "runs"), "03_sensitivity").runs
    next(path for path in records if path.stem in wanted).unlink()
    monkeypatch.setattr(study_module, "ROOT", tmp_path)
    capsys.readouterr()
    assert main(["publish", "03_sensitivity", *runs, "--incomplete"]) == 0
    output = capsys.readouterr().out
    assert output == f"03_sensitivity: {len(wanted) - 1} records published, 0 known, 1 missing\n"
    assert main(["verify", *runs]) == 0
    assert f"{len(wanted) - 1} published records, 1 manifests" in capsys.readouterr().out


@pytest.mark.usefixtures("fake")
def test_an_incomplete_larger_section_leaves_the_complete_one_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = ["--profile", "smoke", "--runs", str(tmp_path / "runs")]
    fewer = [*runs, "--set", "seeds.confirm=[100]"]
    main(["run", "01_baseline", *fewer])
    monkeypatch.setattr(study_module, "ROOT", tmp_path)
    assert main(["publish", "01_baseline", *fewer]) == 0
    capsys.readouterr()
    assert main(["publish", "01_baseline", *runs, "--incomplete"]) == 0
    output = capsys.readouterr().out
    assert output == (
        "01_baseline: 0 records published, 1 known, 1 missing, and the complete section published "
        "before is still shown\n"
    )
    (shown,) = published(study_module.published_folder("smoke")).values()
    assert len(shown.run_ids) == 1


def test_missing_data_stop_a_run_once_and_before_any_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASISCONV_DATA", str(tmp_path / "nowhere"))
    arguments = [
        "run",
        "--profile",
        "smoke",
        "--set",
        "data=cifar10",
        "--runs",
        str(tmp_path / "r"),
    ]
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert output.err.count("basisconv: ") == 1 and str(tmp_path / "nowhere") in output.err
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
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    command = ["run", "--profile", "smoke", "--runs", str(runs)]
    changes = ["--set", "seeds.explore=[0, 101]", "--set", "seeds.confirm=[100]"]
    assert main([*command, *changes]) == 1
    output = capsys.readouterr().err
    # 03's 21 and 05's; 04 waits for 03, whose failures it does not count anew.
    study = Study.open("smoke", ["seeds.explore=[0, 101]", "seeds.confirm=[100]"], runs)
    failed = [r for r in study.store.all().values() if r.status == "failed"]
    assert len(failed) > 21 and f"basisconv: {len(failed)} runs failed" in output
    assert f"{runs} hold the traceback" in output
    monkeypatch.setattr(sys.modules[__name__], "fake_train", lambda run, _: _lucky(run))
    assert main([*command, *changes]) == 1  # failures stand until asked
    assert main([*command, *changes, "--retry-failed"]) == 0
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
        found: object, records: dict[str, Record], profile: str, unsettled: tuple[str, ...]
    ) -> Nothing:
        assert (profile, unsettled) == ("smoke", ("smoke",))
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
    monkeypatch.setattr(bench, "saved_benchmarks", lambda: list(there))
    monkeypatch.setattr(bench, "benchmark_device", lambda repeats: {"repeats": repeats})
    monkeypatch.setattr(bench, "save_benchmark", there.append)
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
    taken: list[dict[str, int]] = []

    def measure(*study: Study, **turns: int) -> None:
        taken.append(turns)
        raise ValueError("measured")

    monkeypatch.setattr(cost_table, "measure_table", measure)
    monkeypatch.setattr(bench, "benchmark_device", measure)
    for how in ([], ["--costs", "smoke"]):
        for turns in ([], ["--repeats", "3"]):
            assert main(["bench", *how, *turns]) == 1
    # Without the option each takes its own number.
    assert taken == [{}, {"repeats": 3}] * 2


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

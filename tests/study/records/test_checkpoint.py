"""Trainings paused and gone on with: the same result, and nothing believed unseen."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_runs
import torch
from fake_runs import no_space, strays
from small_runs import BASIS, compiles_dense_alone

import basisconv as bc
from basisconv.study.data.sets import Dataset, Split, load
from basisconv.study.records import checkpoint, files
from basisconv.study.records.checkpoint import (
    CheckpointNotSaved,
    Checkpoints,
    Paused,
    TrainingState,
)
from basisconv.study.records.environment import device_kind
from basisconv.study.records.files import DamagedFile
from basisconv.study.records.run import Phase, Record, Run
from basisconv.study.training import phases, stopwatch
from basisconv.study.training import train as training
from basisconv.study.training.train import train

OTHER = bc.Plan({"layer1.0.conv1": 4, "layer4.1.conv2": 8}, form="full")


def make_run(*phases: tuple[int, bc.Plan], **changes: Any) -> Run:
    """Epochs of three steps; phases end inside of them."""
    own = {"test": True, "momentum_carry": "carried"}
    return small_runs.make_run(*phases or [(2, BASIS), (2, bc.Plan())], **own | changes)


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations of one batch; they take most of these tests' time otherwise."""

    def few(name: str, train_images: int | None) -> Dataset:
        data = load(name, train_images)
        validation, test = (
            Split(s.images[:40], s.labels[:40]) for s in (data.validation, data.test)
        )
        return dataclasses.replace(data, validation=validation, test=test)

    monkeypatch.setattr(training, "load", few)


def asked(*times: int) -> Callable[[], bool]:
    """Stops at those of the times that it is asked."""
    count = itertools.count()
    return lambda: next(count) in times


def never_asked() -> bool:
    return False


def until_done(run: Run, folder: Path, *stops: int) -> tuple[Record, int]:
    """Train with a pause at so many times of asking in each session; and how many there were."""
    for session in itertools.count(1):
        stop = asked(*stops[session - 1 : session])
        try:
            return train(run, Checkpoints(folder, run, stop=stop)), session
        except Paused:
            pass
    raise AssertionError


def paused(run: Run, folder: Path, *times: int, **options: Any) -> Checkpoints:
    checkpoints = Checkpoints(folder, run, stop=asked(*times), **options)
    with pytest.raises(Paused):
        train(run, checkpoints)
    return checkpoints


def test_a_run_paused_anywhere_gives_the_same_result(tmp_path: Path) -> None:
    """Before each step, amid each evaluation, before and after both switches."""
    run = make_run((2, BASIS), (2, OTHER), (1, bc.Plan()))
    whole = train(run).result
    assert whole is not None
    for stop in itertools.count():
        record, sessions = until_done(run, tmp_path / str(stop), stop)
        assert record.result == whole, f"paused at {stop}"
        if sessions == 1:  # it ended before it was asked so often
            break
    # 5 steps, 2 evaluations and the test set's.
    assert stop == 5 + 2 + 1


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"carry": "reinit", "momentum": 0.0}, {"momentum_carry": "fresh", "init": "svd"},
        {"schedule": "restart", "decay": "product"},
        {"optimizer": "muon", "momentum": 0.6, "factor_lr_ratio": 0.5},
    ],
)  # fmt: skip
def test_a_run_paused_before_every_step_gives_the_same_result(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = make_run(**changes)
    # The first asking is at the step before which the last session ended.
    record, sessions = until_done(run, tmp_path, *[1] * 4)
    assert sessions > 4 and record.result == train(run).result


def test_another_process_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "load", load)
    run = make_run((4, BASIS), (1, bc.Plan()))
    paused(run, tmp_path, 2)
    code = (
        "import sys, torch; from basisconv.study.records.run import Run\n"
        "from basisconv.study.training.train import train\n"
        "from basisconv.study.records.checkpoint import Checkpoints\n"
        "torch.rand(7); run = Run.model_validate_json(sys.argv[1])\n"
        "print(train(run, Checkpoints(sys.argv[2], run)).model_dump_json())"
    )
    there = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code, run.model_dump_json(), tmp_path],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"},
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert there.returncode == 0, there.stderr
    record = Record.model_validate_json(there.stdout)
    assert record.result == train(run).result
    assert record.measurement.notes == ("went on from step 2",)


def test_the_memory_format_of_weights_and_momentum_is_kept(tmp_path: Path) -> None:
    """By which a CPU and cuDNN choose their kernels, and so the last bits."""
    run = make_run()
    seen: list[dict[str, tuple[Any, ...]]] = []

    def layout(trained: Any) -> dict[str, tuple[Any, ...]]:
        momentum = training.momentum_of(trained.model, trained.optimizer)
        named = [*trained.model.state_dict().items(), *momentum.items()]
        return {f"{i} {n}": (t.stride(), t.dtype) for i, (n, t) in enumerate(named)}

    trained = training._Training(run)
    for _ in range(2):  # one session writes it, the next reads it
        trained.checkpoints = Checkpoints(tmp_path, run, stop=asked(3))
        with pytest.raises(Paused):
            trained.result()
        seen.append(layout(trained))
        trained = training._Training(run, Checkpoints(tmp_path, run))
        assert layout(trained) == seen[-1]
    kernel = trained.model.get_parameter("layer1.0.conv1.weight")
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert not kernel.is_contiguous()


def test_seconds_add_up_and_the_record_notes_the_sessions(tmp_path: Path) -> None:
    run = make_run()
    with pytest.MonkeyPatch.context() as patch:
        clock = itertools.count(0, 10)
        patch.setattr(stopwatch.time, "perf_counter", lambda: float(next(clock)))
        paused(run, tmp_path, 1)
        (state,) = [
            checkpoint.read_checkpoint(p, run.run_id) for p in checkpoint.checkpoint_files(tmp_path)
        ]
        before = state.position.seconds
    assert before["train"] == 10 and before["total"] > before["train"] + before["data"]
    measured = train(run, Checkpoints(tmp_path, run)).measurement
    assert measured.seconds["total"] > before["total"]
    assert measured.seconds["data"] > before["data"]
    assert measured.seconds["train"] > before["train"]
    assert measured.notes == ("went on from step 1",)
    assert measured.environment["device_kind"] == device_kind()


def test_a_training_resumed_on_another_device_notes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    monkeypatch.setattr(training, "device_kind", lambda: "abacus")
    paused(run, tmp_path, 2)
    monkeypatch.undo()
    kind = train(run, Checkpoints(tmp_path, run)).measurement.environment["device_kind"]
    assert kind == f"abacus then {device_kind()}"


def test_torchs_own_streams_are_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network here does; a user's with dropout would."""

    def with_dropout(*args: Any) -> torch.nn.Module:
        model = original(*args)
        model.layer4 = torch.nn.Sequential(*model.layer4, torch.nn.Dropout(0.5))
        return model

    original = phases.build_network
    monkeypatch.setattr(phases, "build_network", with_dropout)
    run = make_run((4, bc.Plan()))
    whole = train(run).result
    torch.manual_seed(3)  # whatever ran before in this process
    record, _ = until_done(run, tmp_path, 2)
    assert record.result == whole


def test_a_phase_that_does_not_compile_is_eager_and_the_next_one_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = compiles_dense_alone(monkeypatch)
    run = make_run(compile=True)
    with pytest.warns(UserWarning, match="torch.compile is not used"):
        paused(run, tmp_path, 1)
    assert asked == [BASIS]
    record = train(run, Checkpoints(tmp_path, run))
    assert asked == [BASIS, bc.Plan()]
    eager, went_on = record.measurement.notes
    assert eager.startswith("from step 0 on eager") and went_on == "went on from step 1"


def test_checkpoints_are_written_at_their_interval_and_two_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = make_run((5, bc.Plan())), []
    step = training._Training._one_step

    def spy(self: Any, *args: Any) -> torch.Tensor:
        seen.append(
            [checkpoint.step_of_file(path) for path in checkpoint.checkpoint_files(tmp_path)]
        )
        return step(self, *args)

    monkeypatch.setattr(training._Training, "_one_step", spy)
    train(run, Checkpoints(tmp_path, run, seconds=0))
    assert seen[:3] == [[0], [1, 0], [2, 1]] and len(checkpoint.checkpoint_files(tmp_path)) == 2
    seen.clear()
    train(run, Checkpoints(tmp_path / "none", run))  # at the default interval, much too short
    assert not (tmp_path / "none").exists()
    clock = itertools.count()  # a second for each look at it; a checkpoint takes one of its own
    monkeypatch.setattr("basisconv.study.records.checkpoint.time.monotonic", lambda: next(clock))
    monkeypatch.setattr(checkpoint, "_KEPT", 9)
    train(run, Checkpoints(tmp_path / "some", run, seconds=3))
    assert [checkpoint.step_of_file(p) for p in checkpoint.checkpoint_files(tmp_path / "some")] == [
        4,
        2,
    ]


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_a_bad_checkpoint_falls_back_to_the_other_and_says_so(tmp_path: Path) -> None:
    run = make_run()
    whole = train(run).result
    paused(run, tmp_path, 2, seconds=0)
    newest, older = checkpoint.checkpoint_files(tmp_path)
    damaged(newest)
    with pytest.warns(UserWarning, match=f"refused: {newest}.*expected sha256"):
        record = train(run, Checkpoints(tmp_path, run, seconds=0))
    assert record.result == whole
    output = record.measurement.notes
    assert (
        output[0] == "went on from step 1" and "expected sha256" in output[1] and len(output) == 2
    )
    # The bad one is gone, rather than counted as one of the two that are kept.
    left = checkpoint.checkpoint_files(tmp_path)
    assert len(left) == 2 and newest not in left and older not in left


def test_without_a_sound_checkpoint_the_run_starts_again(tmp_path: Path) -> None:
    run = make_run()
    paused(run, tmp_path, 2, seconds=0)
    for path in checkpoint.checkpoint_files(tmp_path):
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="0 bytes"):
        record = train(run, Checkpoints(tmp_path, run))
    assert record.result == train(run).result
    assert [note.partition(":")[0] for note in record.measurement.notes] == [
        "a checkpoint was refused"
    ] * 2


def renamed(path: Path, data: bytes) -> Path:
    """A file with the digest that it needs, as only somebody on purpose would make it."""
    new = path.with_name(f"{path.name[:9]}-{checkpoint.hashlib.sha256(data).hexdigest()}.pt")
    path.unlink()
    new.write_bytes(data)
    return new


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"width": 16}, {"phases": (Phase(steps=4, plan=bc.Plan()),)}]
)
def test_another_runs_checkpoint_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    run = make_run()
    other = run.model_copy(update=change)
    paused(other, tmp_path, 2)
    with pytest.warns(UserWarning, match=f"{other.run_id}.* expected .*{run.run_id}"):
        record = train(run, Checkpoints(tmp_path, run))
    assert record.result == train(run).result


@pytest.mark.parametrize("name", ["SCHEMA", "NUMERICS", "FORMAT"])
def test_another_versions_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run = make_run()
    monkeypatch.setattr(checkpoint, name, 0)
    paused(run, tmp_path, 2)
    monkeypatch.undo()
    (path,) = checkpoint.checkpoint_files(tmp_path)
    with pytest.raises(DamagedFile, match=f"{name.lower()}.: 0.*{name.lower()}.: 1"):
        checkpoint.read_checkpoint(path, run.run_id)


def test_a_state_that_does_not_fit_the_run_is_refused_and_changes_nothing(
    tmp_path: Path,
) -> None:
    run = make_run()
    paused(run, tmp_path, 1)
    (path,) = checkpoint.checkpoint_files(tmp_path)
    state = checkpoint.read_checkpoint(path, run.run_id)
    later = state.position.model_copy(update={"phase": 1})
    missing = {n: t for n, t in state.weights.items() if n != "fc.bias"}
    nonsense: list[dict[str, Any]] = [
        {"position": later.model_copy(update={"phase": 7})},
        {"position": later},  # the second phase is dense
        {"weights": missing},
        {"weights": {**missing, "fc.bias": torch.zeros(11)}},
        {"momentum": {**state.momentum, "fc.bias": torch.zeros(11)}},
        {"momentum": {**state.momentum, "fc.beans": torch.zeros(10)}},
        {"streams": {"cpu": torch.zeros(3)}},
        {"streams": {}},
    ]
    trained = training._Training(run)
    before = {n: t.clone() for n, t in trained.model.state_dict().items()}
    for changes in nonsense:
        with pytest.raises(ValueError):
            trained._restore(dataclasses.replace(state, **changes))
    assert trained.step == 0 and trained.notes == []
    assert all(torch.equal(before[n], t) for n, t in trained.model.state_dict().items())


class Payload:
    """What unpickling it would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    paused(run, tmp_path, 1)
    (path,) = checkpoint.checkpoint_files(tmp_path)
    trap = tmp_path / "executed"
    hidden = Path(tmp_path / "hidden.pt")
    torch.save({"position": Payload(trap)}, hidden)
    for data in (pickle.dumps(Payload(trap)), hidden.read_bytes()):
        path = renamed(path, data)
        with pytest.raises(DamagedFile, match="is not a checkpoint"):
            checkpoint.read_checkpoint(path, run.run_id)
    # Without its digest not a byte of it reaches torch.
    path.write_bytes(b"x")
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(DamagedFile, match="expected sha256"):
        checkpoint.read_checkpoint(path, run.run_id)
    assert not trap.exists()


@pytest.mark.parametrize("values", [[1], {"format": 1}, {"position": {}}, {"more": 1}])
def test_what_is_not_a_checkpoint_is_refused(tmp_path: Path, values: Any) -> None:
    run = make_run()
    paused(run, tmp_path, 0)
    (path,) = checkpoint.checkpoint_files(tmp_path)
    if isinstance(values, dict) and values != {"format": 1}:
        values = {**torch.load(path, weights_only=True), **values}
    torch.save(values, tmp_path / "made.pt")
    path = renamed(path, (tmp_path / "made.pt").read_bytes())
    with pytest.raises(DamagedFile, match="is not a checkpoint"):
        checkpoint.read_checkpoint(path, run.run_id)
    with pytest.raises(DamagedFile, match="none in its name"):
        checkpoint.read_checkpoint(path.rename(path.with_name("newest.pt")), run.run_id)


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_ends_the_training_and_leaves_the_older_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run = make_run()
    paused(run, tmp_path, 2, seconds=0)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(files.os, where, no_space)
    with pytest.raises(CheckpointNotSaved, match="Nothing was written") as error:
        train(run, Checkpoints(tmp_path, run, seconds=0))
    assert str(tmp_path) in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_next_write_removes_files_of_killed_writers(tmp_path: Path) -> None:
    run = make_run()
    stray = tmp_path / ".000000001-0.pt.00000000-1-00000000.tmp"
    stray.touch()
    checkpoints = paused(run, tmp_path, 1)
    assert strays(tmp_path) == []
    checkpoints.remove()
    assert not tmp_path.exists()
    checkpoints.remove()


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = make_run()
    trained = training._Training(run)
    written: list[TrainingState] = []
    checkpoints = Checkpoints(tmp_path, run, stop=asked(3))
    keep = checkpoints.save_if_due
    checkpoints.save_if_due = lambda state: keep(lambda: written.append(state()) or written[-1])  # type: ignore[method-assign,func-returns-value]
    trained.checkpoints = checkpoints
    with pytest.raises(Paused, match="after step 3"):
        trained.result()
    (path,) = checkpoint.checkpoint_files(tmp_path)
    got, wanted = checkpoint.read_checkpoint(path, run.run_id), written[-1]
    assert got.position == wanted.position and torch.equal(got.losses, wanted.losses)
    for name in ("weights", "momentum", "streams"):
        mine, theirs = getattr(got, name), getattr(wanted, name)
        assert list(mine) == list(theirs) and mine
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)

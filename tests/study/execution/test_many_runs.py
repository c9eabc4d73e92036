from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
import types
from functools import partial
from pathlib import Path

import pytest
import torch
from fake_runs import (
    AfterStarts,
    fake_train,
    make_record,
    make_run,
    no_space,
    pids,
    strays,
    trained,
)

from basisconv.study.data.packs import MissingData
from basisconv.study.execution.many_runs import RunsReport, train_runs
from basisconv.study.execution.one_run import Trainer
from basisconv.study.execution.stopping import Stop
from basisconv.study.execution.workers import _Worker
from basisconv.study.progress import Counts, count_runs, steps_done
from basisconv.study.records import environment, files
from basisconv.study.records.checkpoint import CheckpointNotSaved
from basisconv.study.records.environment import UnsuitableMachine
from basisconv.study.records.files import DamagedFile
from basisconv.study.records.store import ConflictingResults, Store

ROOT = Path(__file__).parents[3]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


def ids(runs):
    return [run.run_id for run in runs]


def snapshot(store):
    return {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")}


def test_each_run_is_trained_once_in_order_and_a_second_call_does_nothing(store, log, capsys):
    runs = [make_run(seed) for seed in (3, 1, 2)]
    train = partial(fake_train, log=log)
    for workers in (1, 2):
        report = train_runs([*runs, runs[0]], store, workers=workers, train=train)
        assert report == RunsReport(done=3, failed=(), left=())
        assert trained(log) == ids(runs)
        if workers == 1:
            before = snapshot(store)
            out, err = capsys.readouterr()
            assert out == "" and "3/3 runs" in err and "100 %" in err
    assert snapshot(store) == before
    assert capsys.readouterr() == ("", "")


def test_two_workers_train_many_runs(store, log, capfd):
    runs = [make_run(seed) for seed in range(8)]
    train = partial(fake_train, log=log, seconds=0.2, raising=[2], diverging=[5])
    report = train_runs(runs, store, workers=2, train=train)
    assert (report.done, report.failed, report.left) == (7, (runs[2].run_id,), ())
    assert sorted(trained(log)) == sorted(ids(runs))
    assert 1 <= len(pids(log)) <= 2 and os.getpid() not in pids(log)
    assert [store.get(i).status for i in ids([runs[5], runs[0]])] == ["diverged", "done"]
    output = capfd.readouterr().err
    assert (
        f"Run {runs[2].run_id} (resnet18, width 16, seed 2) failed: RuntimeError: seed 2" in output
    )
    assert f"Run {runs[5].run_id} (resnet18, width 16, seed 5) diverged" in output
    assert "8/8 runs" in output


def timed_train(run, checkpoints, folder):
    """Leaves a file with the times of its start and end."""
    start = time.time()
    time.sleep(0.3)
    (folder / run.run_id).write_text(f"{start} {time.time()}")
    return make_record(run)


def test_a_run_of_two_threads_comes_first_and_replaces_two_workers(store, tmp_path):
    runs = [make_run(0), make_run(1), *(make_run(seed, threads=2) for seed in (2, 3))]
    train_runs(runs, store, workers=2, train=partial(timed_train, folder=tmp_path))
    small = [tuple(map(float, (tmp_path / i).read_text().split())) for i in ids(runs[:2])]
    large = [tuple(map(float, (tmp_path / i).read_text().split())) for i in ids(runs[2:])]
    assert large[0][1] <= large[1][0]  # never two of them
    assert all(large[1][1] <= start for start, _ in small)


def test_a_run_of_more_threads_than_there_are_runs_alone(store, log):
    runs = [make_run(seed, threads=8) for seed in range(2)]
    report = train_runs(runs, store, workers=2, train=partial(fake_train, log=log))
    assert report.done == 2


def test_an_exception_is_recorded_and_retried_only_when_asked(store, log, capsys):
    runs = [make_run(seed) for seed in range(3)]
    train = partial(fake_train, log=log, raising=[1])
    train_runs(runs, store, workers=1, train=train)
    record = store.get(runs[1].run_id)
    assert record.status == "failed" and record.result is None
    assert record.error.startswith("Traceback") and "fake_train" in record.error
    assert record.error.endswith("RuntimeError: seed 1 has no luck\n")
    assert record.measurement.environment["device_kind"]

    lucky = partial(fake_train, log=log)
    assert train_runs(runs, store, workers=1, train=lucky).failed == (runs[1].run_id,)
    assert len(trained(log)) == 3
    report = train_runs(runs, store, workers=1, train=lucky, retry_failed=True)
    assert report == RunsReport(done=3, failed=(), left=())
    assert trained(log)[3:] == [runs[1].run_id]


def test_a_gpu_that_stops_working_ends_training_after_that_run(store, log, monkeypatch):
    """After an illegal access, say, all that follows in the process would fail, and be recorded."""
    runs = [make_run(seed) for seed in range(4)]
    environment.environment()  # from here on remembered: there is no CUDA to ask
    monkeypatch.setattr(environment, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    train_runs(runs[:2], store, workers=1, train=partial(fake_train, log=log, raising=[0]))

    def broken():
        raise torch.AcceleratorError("an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    with pytest.raises(UnsuitableMachine, match=f"{runs[2].run_id}.*seed 2 has no luck.*continues"):
        train_runs(runs, store, workers=1, train=partial(fake_train, log=log, raising=[2]))
    assert [r and r.status for r in map(store.get, ids(runs))] == ["failed", "done", "failed", None]


def test_diverged_runs_count_as_done_and_are_not_retried(store, log):
    runs = [make_run(seed) for seed in range(2)]
    train = partial(fake_train, log=log, diverging=[0, 1])
    for _ in range(2):
        report = train_runs(runs, store, workers=1, train=train, retry_failed=True)
        assert report == RunsReport(done=2, failed=(), left=())
    assert len(trained(log)) == 2


def test_a_time_limit_starts_nothing_more_and_the_next_call_continues(store, log):
    runs = [make_run(seed) for seed in range(6)]
    train = partial(fake_train, log=log)
    assert train_runs(runs, store, stop=Stop(0), train=train).left == tuple(runs)
    assert trained(log) == []
    report = train_runs(runs, store, workers=1, stop=AfterStarts(log, 2), train=train)
    assert report == RunsReport(done=2, failed=(), left=tuple(runs[2:]))
    assert train_runs(runs, store, workers=1, train=train).left == ()
    assert trained(log) == ids(runs)


@pytest.mark.parametrize("values", [{"workers": 0}, {"checkpoint_seconds": -1}])
def test_invalid_limits_are_refused(store, values):
    with pytest.raises(ValueError, match="at least one worker, and no negative time"):
        train_runs([make_run()], store, **values)


def test_the_default_trainer_is_the_real_one(store, log, monkeypatch):
    real = types.SimpleNamespace(train=partial(fake_train, log=log))
    monkeypatch.setitem(sys.modules, "basisconv.study.training.train", real)
    assert train_runs([make_run()], store).done == 1
    assert trained(log) == [make_run().run_id]


@pytest.mark.parametrize("damage", [lambda d: d.replace(b"12345", b"12346"), lambda d: d[:-1]])
def test_a_damaged_record_is_refused_before_anything_is_trained(store, log, damage):
    runs = [make_run(seed) for seed in range(3)]
    store.put(make_record(runs[2]))
    path = store.path(runs[2].run_id)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedFile, match=path.name):
        train_runs(runs, store, train=partial(fake_train, log=log))
    assert trained(log) == []


def test_a_full_disk_ends_training_and_keeps_what_was_there(store, log, monkeypatch):
    runs = [make_run(seed) for seed in range(4)]
    train_runs(runs[:2], store, workers=1, train=partial(fake_train, log=log))
    before = snapshot(store)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", no_space)
        with pytest.raises(OSError, match="Nothing was written"):
            train_runs(runs, store, workers=1, train=partial(fake_train, log=log))
    assert set(store.all()) == set(ids(runs[:2])) and strays(store.folder) == []
    assert all(snapshot(store)[store.path(i)] == before[store.path(i)] for i in ids(runs[:2]))
    train_runs(runs, store, workers=1, train=partial(fake_train, log=log))
    assert trained(log) == ids([*runs[:3], runs[2], runs[3]])


def test_a_full_disk_in_a_worker_ends_training_after_the_current_runs(store, log, capfd):
    runs = [make_run(seed) for seed in range(40)]  # more than one worker gets done meanwhile
    train = partial(fake_train, log=log, seconds=0.3, full_disk=[0])
    with pytest.raises(OSError, match="Nothing was written") as error:
        train_runs(runs, store, workers=2, train=train)
    assert error.value.filename == str(store.path(runs[0].run_id))
    begun = trained(log)
    assert set(store.all()) == set(begun) - {runs[0].run_id} != set()
    assert len(begun) < len(runs) and strays(store.folder) == []
    assert "the current ones end first" in capfd.readouterr().err


def test_a_killed_worker_costs_only_its_run(store, log, capfd):
    runs = [make_run(seed) for seed in range(6)]
    train = partial(fake_train, log=log, seconds=0.1, dying=[1])
    report = train_runs(runs, store, workers=2, train=train)
    lost = runs[1].run_id
    assert report == RunsReport(done=5, failed=(), left=(runs[1],), killed=(lost,))
    assert sorted(trained(log)) == sorted(ids(runs))
    output = f"Run {lost} (resnet18, width 16, seed 1) was killed and is still to be trained"
    assert f"{output}: its process ended with code -9" in capfd.readouterr().err
    assert train_runs(runs, store, train=partial(fake_train, log=log)).left == ()


@pytest.mark.skipif(not Path("/proc").exists(), reason="signals are reported by Linux's /proc")
def test_ctrl_c_reaches_no_worker_not_even_one_that_is_still_starting(store):
    before = signal.getsignal(signal.SIGINT)
    worker = _Worker(Trainer(store))
    try:
        status = Path(f"/proc/{worker.process.pid}/status").read_text().splitlines()
        (ignored,) = [int(line.split()[1], 16) for line in status if line.startswith("SigIgn:")]
        assert ignored >> (signal.SIGINT - 1) & 1
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        worker.process.kill()
        worker.process.join()


def test_after_many_killed_workers_no_more_runs_are_started(store, log, monkeypatch):
    monkeypatch.setattr("basisconv.study.execution.many_runs.MOST_KILLED", 1)
    runs = [make_run(seed) for seed in range(6)]
    report = train_runs(runs, store, train=partial(fake_train, log=log, dying=range(6)))
    assert 1 <= len(report.killed) == len(trained(log)) <= 2
    assert report.left == tuple(runs)


def sleep_instead(monkeypatch, nap):
    clock = types.SimpleNamespace(sleep=nap, monotonic=time.monotonic)
    monkeypatch.setattr("basisconv.study.execution.many_runs.time", clock)


def test_a_run_that_another_process_trains_is_awaited(store, log, monkeypatch):
    runs = [make_run(seed) for seed in range(3)]
    lock = store.lock(runs[0].run_id)
    naps = []

    def nap(seconds):
        naps.append(trained(log))
        if len(naps) == 2:
            store.put(make_record(runs[0], loss=7.0))
            lock.release()

    sleep_instead(monkeypatch, nap)
    lock.acquire()
    report = train_runs(runs, store, workers=1, train=partial(fake_train, log=log))
    assert report == RunsReport(done=3, failed=(), left=())
    assert naps == [ids(runs[1:])] * 2 and trained(log) == ids(runs[1:])
    assert store.get(runs[0].run_id).result.val_loss == 7.0


def test_a_run_whose_process_died_is_trained(store, log, monkeypatch):
    lock = store.lock(make_run().run_id)
    sleep_instead(monkeypatch, lambda seconds: lock.release())
    lock.acquire()
    assert train_runs([make_run()], store, train=partial(fake_train, log=log)).done == 1
    assert trained(log) == ids([make_run()])


def test_a_failure_that_another_process_has_just_retried_is_not_retried(store, log):
    runs = [make_run(0), make_run(1)]
    for run in runs:
        store.put(make_record(run, "failed"))

    def train(run, checkpoints):
        if run == runs[0]:  # meanwhile, elsewhere: run 1 was retried, and failed once more
            store.put(make_record(runs[1], "failed", seconds=2.0))
        return fake_train(run, checkpoints, log)

    report = train_runs(runs, store, workers=1, train=train, retry_failed=True)
    assert trained(log) == ids(runs[:1])
    assert report.failed == (runs[1].run_id,)


SWEEP = """
import sys
from functools import partial
from pathlib import Path
from fake_runs import fake_train, make_run
from basisconv.study.records.store import Store
from basisconv.study.execution.many_runs import train_runs

if __name__ == "__main__":
    folder, count, workers, seconds = Path(sys.argv[1]), *map(float, sys.argv[2:])
    runs = [make_run(seed) for seed in range(int(count))]
    train = partial(fake_train, log=folder / "log", seconds=seconds)
    report = train_runs(runs, Store(folder / "runs"), workers=int(workers), train=train)
    assert report.done == count and not report.left, report
"""


def start_sweep(folder, count, workers, seconds):
    script = folder / "script.py"
    script.write_text(SWEEP)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, script, folder, str(count), str(workers), str(seconds)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_two_processes_on_one_store_train_each_run_once(tmp_path, store, log):
    runs = [make_run(seed) for seed in range(20)]
    with start_sweep(tmp_path, len(runs), 1, 0.1) as other:
        wait_until(lambda: trained(log))
        report = train_runs(runs, store, workers=1, train=partial(fake_train, log=log, seconds=0.1))
        assert other.wait(60) == 0, other.stderr.read()
    assert report == RunsReport(done=20, failed=(), left=())
    assert sorted(trained(log)) == sorted(ids(runs))
    assert pids(log) == {os.getpid(), other.pid}


def running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_ended_call_keeps_its_records_and_leaves_no_process(tmp_path, store, log, kind):
    """This trainer knows of no pause: at Ctrl-C and SIGTERM it is let finish, for it is short."""
    runs = [make_run(seed) for seed in range(8)]
    with start_sweep(tmp_path, len(runs), 2, 1.0) as process:
        wait_until(lambda: len(trained(log)) >= 4)
        if kind == signal.SIGINT:
            os.killpg(process.pid, kind)  # as a terminal does: to the workers as well
        else:
            process.send_signal(kind)
        output = process.communicate(timeout=60)[1]
    assert process.returncode == -kind
    wait_until(lambda: not any(map(running, pids(log))))
    if kind == signal.SIGINT:
        assert output.count("Traceback") == 1 and "KeyboardInterrupt" in output
        assert strays(store.folder) == []
    kept, begun = set(store.all()), trained(log)
    assert 2 <= len(kept) <= len(begun) < len(runs)
    assert (kept == set(begun)) == (kind != signal.SIGKILL)

    assert train_runs(runs, store, workers=1, train=partial(fake_train, log=log)).left == ()
    assert set(trained(log)[len(begun) :]) == set(ids(runs)) - kept
    assert strays(store.folder) == []


def test_an_interrupt_of_training_in_this_process_leaves_no_record(store, log):
    def train(run, checkpoints):
        if run.seed == 1:
            raise KeyboardInterrupt
        return fake_train(run, checkpoints, log)

    runs = [make_run(seed) for seed in range(3)]
    with pytest.raises(KeyboardInterrupt):
        train_runs(runs, store, workers=1, train=train)
    assert set(store.all()) == {runs[0].run_id}
    assert train_runs(runs, store, workers=1, train=partial(fake_train, log=log)).done == 3


def test_threads_share_a_store(store, log):
    runs = [make_run(seed) for seed in range(12)]
    train = partial(fake_train, log=log, seconds=0.01)
    threads = [
        threading.Thread(
            target=train_runs, args=(runs, store), kwargs={"workers": 1, "train": train}
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(trained(log)) == sorted(ids(runs))


def test_status_counts_each_run_once(store):
    store.put(make_record(make_run(2), "failed"))
    store.put(make_record(make_run(3), "diverged"))
    store.put(make_record(make_run(4), kind="abacus"))
    runs = [make_run(seed) for seed in range(5)]
    assert count_runs([*runs, make_run(0)], store) == Counts(2, 1, 0, 2)


def test_status_counts_running_runs_and_steps_of_checkpoints(store):
    runs = [make_run(seed) for seed in range(4)]
    store.put(make_record(runs[0]))
    with store.lock(runs[1].run_id), store.lock(runs[2].run_id):
        assert count_runs(runs, store) == Counts(1, 0, 2, 1)
    assert count_runs(runs, store) == Counts(1, 0, 0, 3)
    assert steps_done(runs[3], store) == 0
    # Of its 30 steps, run 3 has taken 10, and then 20.
    folder = store.checkpoints(runs[3].run_id)
    folder.mkdir(parents=True)
    for step in (10, 20):
        (folder / f"{step:09d}-{'0' * 64}.pt").touch()
        (folder / "unknown.pt").touch()
    assert steps_done(runs[3], store) == 20


def test_status_does_not_prevent_training(store, log):
    """It takes a lock for a moment; whoever comes then finds the run locked, and looks again."""
    run = make_run()
    with store.lock(run.run_id):
        pass  # somebody who died
    looks = []

    def look(seconds):
        looks.append(store.is_training(run.run_id))
        probe.release()

    probe = store.lock(run.run_id)
    probe.acquire()
    with pytest.MonkeyPatch.context() as patch:
        sleep_instead(patch, look)
        assert train_runs([run], store, train=partial(fake_train, log=log)).done == 1
    assert looks == [True] and not store.is_training(run.run_id)
    assert not store.is_training(make_run(7).run_id)


def test_checkpoints_of_a_finished_run_whose_process_was_killed_are_removed(store, log):
    runs = [make_run(seed) for seed in range(3)]
    for run, kind in zip(runs, ("done", "failed", "diverged"), strict=True):
        store.put(make_record(run, kind))
        store.checkpoints(run.run_id).mkdir(parents=True)
    with store.lock(runs[2].run_id):  # it lives, and is about to remove it itself
        train_runs(runs, store, train=partial(fake_train, log=log))
        assert [store.checkpoints(i).exists() for i in ids(runs)] == [False, True, True]
    train_runs(runs, store, train=partial(fake_train, log=log))
    assert [store.checkpoints(i).exists() for i in ids(runs)] == [False, True, False]
    assert trained(log) == []


def test_a_failed_run_keeps_its_checkpoint_and_a_result_removes_it(store):
    run = make_run()

    def train(run, checkpoints):
        checkpoints.folder.mkdir(parents=True, exist_ok=True)
        seen.append(len(list(checkpoints.folder.iterdir())))
        (checkpoints.folder / str(len(seen))).touch()
        if len(seen) == 1:
            raise MemoryError
        return make_record(run)

    seen = []
    assert train_runs([run], store, train=train).failed == (run.run_id,)
    assert train_runs([run], store, train=train, retry_failed=True).done == 1
    assert seen == [0, 1] and not store.checkpoints(run.run_id).exists()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("words", ["No space", "CIFAR-10 is not here"])
def test_what_this_machine_lacks_ends_training_without_a_failed_run(store, workers, words):
    train = unsaved_train if words == "No space" else unfit_train
    with pytest.raises(OSError, match=words):
        train_runs([make_run(seed) for seed in range(4)], store, workers=workers, train=train)
    assert store.all() == {}


@pytest.mark.parametrize(
    ("status", "loss", "kind", "stands"),
    [
        ("done", 1.5, None, 1.5),  # the same
        ("done", 2.5, "cpu of another kind", 2.5),  # the first stands
        ("done", 2.5, None, "other results"),
        ("failed", 1.5, None, 1.5),
    ],
)
def test_a_record_merged_during_the_training_is_compared_with_its_result(
    store, status, loss, kind, stands
):
    run = make_run()

    def train(run, checkpoints):
        store.add([make_record(run, status, loss, kind)])
        return make_record(run)

    if isinstance(stands, str):
        with pytest.raises(ConflictingResults, match=stands):
            train_runs([run], store, train=train)
        stands = loss
    else:
        assert train_runs([run], store, train=train).done == 1
    assert store.get(run.run_id).result.val_loss == stands


def unfit_train(run, checkpoints):
    raise MissingData("CIFAR-10 is not here")


def unsaved_train(run, checkpoints):
    raise CheckpointNotSaved(errno.ENOSPC, "No space left on device", "somewhere")

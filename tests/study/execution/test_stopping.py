"""Signals and time limits: the step ends, a checkpoint is written, and the next call goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from fake_runs import AfterStarts, fake_train, make_run, trained

from basisconv.study.execution import stopping
from basisconv.study.execution.many_runs import RunsReport, train_runs
from basisconv.study.execution.stopping import Stop, Terminated, sigterm_raises, stop_on_signals
from basisconv.study.experiments.registry import draft
from basisconv.study.experiments.study import Study
from basisconv.study.records.checkpoint import Checkpoints, Paused, checkpoint_files
from basisconv.study.records.run import Record, Run
from basisconv.study.records.store import Store
from basisconv.study.training.train import train

ROOT = Path(__file__).parents[3]


def test_stop_says_yes_after_its_time_or_a_signal() -> None:
    assert not Stop()() and not Stop(1000)() and Stop(0)()
    stop = Stop()
    stop.handle(signal.SIGTERM)
    stop.handle(signal.SIGINT)
    assert stop() and stop.signal == signal.SIGTERM


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_a_handled_signal_is_raised_after_the_block(
    number: int, raised: type[BaseException]
) -> None:
    stop, after = Stop(), []
    with sigterm_raises(), pytest.raises(raised):
        with stop_on_signals(stop):
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # as `timeout` does: the process, then its group
            assert stop()
            after.append("the block goes on")
        after.append("never")
    assert after == ["the block goes on"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_a_signal_inside_a_task_ends_the_loop(number: int, raised: type[BaseException]) -> None:
    """asyncio keeps what a task raises for whoever awaits it, and nobody need do so.

    Through such tasks papermill watches its kernel, and a signal may come while one runs.
    """
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # nobody asks for the task's exception, here too

    async def watch() -> None:
        signal.raise_signal(number)

    async def notebook() -> None:
        task = asyncio.create_task(watch())
        await asyncio.sleep(5)
        await task

    try:
        with sigterm_raises(), pytest.raises(raised):
            loop.run_until_complete(asyncio.wait_for(notebook(), 2))
    finally:
        loop.close()


def test_a_second_ctrl_c_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_REPEAT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt), stop_on_signals(Stop()):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")


def test_ignored_signals_stay_ignored_and_threads_change_nothing() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop = Stop()
        with stop_on_signals(stop):
            os.kill(os.getpid(), signal.SIGINT)
        assert not stop()
    finally:
        signal.signal(signal.SIGINT, before)
    seen: list[object] = []

    def elsewhere() -> None:
        with stop_on_signals(Stop()):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def patient_train(run: Run, checkpoints: Checkpoints, log: Path, signalled: int = -1) -> Record:
    """Until it is asked to stop; one run's own worker gets a SIGTERM of its own."""
    record = fake_train(run, checkpoints, log)
    if run.seed == signalled:
        os.kill(os.getpid(), signal.SIGTERM)
    while run.seed != 0 and not checkpoints.stop():
        time.sleep(0.01)
    if run.seed != 0:
        raise Paused("after step 3")
    return record


@pytest.mark.parametrize("workers", [1, 2])
def test_a_time_limit_pauses_runs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], workers: int
) -> None:
    runs, store, log = [make_run(seed) for seed in range(5)], Store(tmp_path / "r"), tmp_path / "l"
    stop, start = AfterStarts(log, 1 + workers), time.monotonic()
    report = train_runs(
        runs, store, workers=workers, stop=stop, train=partial(patient_train, log=log)
    )
    assert time.monotonic() - start < 120  # theirs to start, too, on a busy machine
    assert report == RunsReport(done=1, failed=(), left=tuple(runs[1:]))
    assert len(trained(log)) == 1 + workers
    output = capfd.readouterr().err
    assert output.count("was paused: after step 3") == workers


def test_a_worker_that_gets_sigterm_pauses_only_its_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs, store, log = [make_run(seed) for seed in (0, 7, 0, 0)], Store(tmp_path / "r"), tmp_path
    runs = [run.model_copy(update={"width": 16 + i}) for i, run in enumerate(runs)]
    report = train_runs(runs, store, train=partial(patient_train, log=log / "l", signalled=7))
    assert report == RunsReport(3, (), (runs[1],), killed=(runs[1].run_id,))
    assert f"Run {runs[1].run_id}" in capfd.readouterr().err


def command(folder: Path, *more: str) -> subprocess.Popen[str]:
    """The smoke profile's runs or a section's, in two workers, a checkpoint at each step."""
    return subprocess.Popen(
        [sys.executable, "-m", "basisconv", "run", *more, "--profile", "smoke", "--runs",
         str(folder), "--checkpoint-seconds", "0"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_signal_ends_the_command_with_a_checkpoint_and_the_next_resumes(tmp_path: Path) -> None:
    # Long enough that one worker is not at its end before the other has begun.
    longer = "notebooks.01_baseline.epochs=8"
    study = Study.open("smoke", [longer], runs=tmp_path)
    runs = list(draft(study, "01_baseline").runs.values())
    assert len(runs) == study.profile.workers == 2
    with command(tmp_path, "01_baseline", "--set", longer) as process:
        end = time.monotonic() + 120
        while not all(len(checkpoint_files(study.store.checkpoints(r.run_id))) == 2 for r in runs):
            assert time.monotonic() < end and process.poll() is None, process.communicate()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGTERM)  # to workers, too: so a terminal or a cluster does
        out, output = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "the same command continues" in output and "Traceback" not in output
    assert output.count("was paused: after step ") == 2
    assert study.store.all() == {}
    assert train_runs(runs, study.store).done == 2
    for run in runs:
        record = study.store.get(run.run_id)
        assert record is not None and record.result == train(run).result
        assert record.measurement.notes[0].startswith("went on from step ")
        assert not study.store.checkpoints(run.run_id).exists()

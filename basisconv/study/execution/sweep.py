"""Many runs: each trained once, by local processes or Ray, with one progress bar; what is left."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from shutil import rmtree
from types import TracebackType
from typing import Self

from filelock import Timeout
from tqdm import tqdm

from basisconv.study.execution.attempt import Outcome, Train
from basisconv.study.execution.ray_team import RayTeam
from basisconv.study.execution.stopping import Stop, stop_on_signals
from basisconv.study.execution.workers import Executor, InProcess, ProcessTeam, Team
from basisconv.study.records.checkpoint import CHECKPOINT_SECONDS
from basisconv.study.records.files import remove_stray_files
from basisconv.study.records.run import Record, Run
from basisconv.study.records.store import Store, needs_training

# Workers that a sweep may lose before it stops: a machine without memory would kill every one.
MOST_KILLED = 5
# Seconds between looks at runs that other processes are training.
_LOOK_AGAIN = 1.0


@dataclass(frozen=True)
class RunsReport:
    """Where the runs of a sweep stand at its end.

    Attributes:
        done: how many have a result, diverged ones included.
        failed: ids of those whose record is a failure, made now or earlier.
        left: those without a record.
        killed: ids of those whose worker was ended from outside, as when memory is short; they
            are left, and a next sweep takes them up again where their checkpoint is.
    """

    done: int
    failed: tuple[str, ...]
    left: tuple[Run, ...]
    killed: tuple[str, ...] = ()


def train_runs(
    runs: Sequence[Run],
    store: Store,
    *,
    workers: int = 2,
    threads: int = 1,
    stop: Stop | None = None,
    retry_failed: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    train: Train | None = None,
    executor: Executor = "local",
    gpu_per_run: float = 1.0,
) -> RunsReport:
    """Train the runs that have no record yet.

    Several sweeps may share a store: each run is trained by one of them, and the others wait for
    its record. An exception in a training becomes a record with its traceback, and the sweep goes
    on; so it does when a worker is killed. At Ctrl-C and SIGTERM the trainings at hand end their
    step and leave a checkpoint, from which the next sweep goes on; then the signal does what it
    otherwise would have done (raise KeyboardInterrupt, end the process). A second Ctrl-C does so
    at once.

    Args:
        runs: what to train, in this order; a run named twice counts once.
        store: where records are looked up and put.
        workers: local processes side by side; with one, or one run to train, this process trains.
        threads: of a usual run; one of more has several workers' place.
        stop: when it says so no run is started, and those at hand are put aside as at a signal.
        retry_failed: whether runs whose record is a failure are trained again.
        checkpoint_seconds: between two checkpoints of a training, which is what it loses at most
            when its process is killed.
        train: one Run -> its Record, picklable; None for `basisconv.study.training.train.train`.
        executor: "local", or "ray" for as many tasks as a Ray cluster has room for: the one at
            $RAY_ADDRESS, or one of this machine alone. A run whose worker or node dies is begun
            again there, a few times.
        gpu_per_run: the share of a GPU that Ray gives to a run, where there are GPUs.

    Returns:
        Where all of the runs stand.

    Raises:
        ValueError: if workers < 1 or checkpoint_seconds < 0.
        ModuleNotFoundError: if Ray is asked for and not installed.
        DamagedFile: if a record is not what was written; nothing is trained then.
        OSError: when a record or a checkpoint cannot be written.
    """
    if workers < 1 or checkpoint_seconds < 0:
        raise ValueError(
            f"workers={workers}, checkpoint_seconds={checkpoint_seconds}: a sweep needs a worker "
            "and no negative time."
        )
    stop = stop or Stop()
    remove_stray_files(store.folder)
    wanted = {run.run_id: run for run in runs}
    seen = {run_id: store.get(run_id) for run_id in wanted}
    # Those of more threads first: they are the long ones.
    ordered = sorted(wanted.values(), key=lambda run: run.threads, reverse=True)
    todo = deque(run for run in ordered if needs_training(seen[run.run_id], retry_failed))
    killed: list[str] = []
    _remove_leftovers(seen, store)
    if todo:
        count = min(workers, len(todo))
        team: Team
        if executor == "ray":
            team = RayTeam(store, train, stop, checkpoint_seconds, gpu_per_run)
        elif count > 1:
            team = ProcessTeam(count * threads, store, train, stop, checkpoint_seconds)
        else:
            team = InProcess(store, train, stop, checkpoint_seconds)
        with stop_on_signals(stop):
            try:
                with _Progress(wanted.values(), todo) as progress, team:
                    _train_all(todo, seen, team, stop, progress, killed)
            finally:
                remove_stray_files(store.folder)
    records = {run_id: store.get(run_id) for run_id in wanted}
    failed = tuple(i for i, record in records.items() if record and record.status == "failed")
    left = tuple(wanted[i] for i, record in records.items() if record is None)
    return RunsReport(len(records) - len(failed) - len(left), failed, left, tuple(killed))


def _train_all(
    todo: deque[Run],
    seen: dict[str, Record | None],
    team: Team,
    stop: Stop,
    progress: _Progress,
    killed: list[str],
) -> None:
    locked: list[Run] = []
    while True:
        # Time is looked at before each start: training in this process happens inside it.
        while todo and team.has_room(todo[0]) and len(killed) < MOST_KILLED and not stop():
            run = todo.popleft()
            team.start(run, seen[run.run_id])
        if team.busy():
            if stop():
                team.pause()
            for outcome in _outcomes(team, progress):
                progress.tell(outcome)
                if outcome.status == "locked":
                    locked.append(outcome.run)
                # One put aside unasked had a SIGTERM of its own.
                if outcome.status in ("killed", "paused") and not stop():
                    killed.append(outcome.run.run_id)
            progress.refresh()
        elif locked and not todo and not stop():
            # Somebody else trains these. Their record comes, or their lock goes with them.
            progress.refresh()
            time.sleep(_LOOK_AGAIN)
            todo.extend(locked)
            locked.clear()
        else:
            return


def _outcomes(team: Team, progress: _Progress) -> list[Outcome]:
    try:
        return team.outcomes(timeout=1.0)
    except Exception as error:
        if team.busy():
            said = str(error).removesuffix(".")
            progress.say(f"{said}. Nothing more is started; the runs at hand end first.")
        raise


def _remove_leftovers(seen: Mapping[str, Record | None], store: Store) -> None:
    """Remove the checkpoints of runs whose trainer was killed between its record and that."""
    for run_id, record in seen.items():
        folder = store.checkpoints(run_id)
        if record and record.status != "failed" and folder.exists():
            with suppress(Timeout), store.lock(run_id).acquire(blocking=False):
                rmtree(folder, ignore_errors=True)


class _Progress:
    """One bar on stderr: runs by number, and time left by their weight."""

    def __init__(self, wanted: Iterable[Run], todo: Iterable[Run]) -> None:
        runs, ahead = list(wanted), list(todo)
        total = sum(map(_weight, runs))
        self._runs, self._ended = len(runs), len(runs) - len(ahead)
        self._bar = tqdm(
            desc=self._count(),
            total=total,
            # What was there before counts as progress, but not into the pace.
            initial=total - sum(map(_weight, ahead)),
            smoothing=0,
            file=sys.stderr,
            bar_format="{desc} |{bar}| {percentage:3.0f} % [{elapsed} gone, {remaining} left]",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def tell(self, outcome: Outcome) -> None:
        """Count a run that has ended, and name it if something went wrong."""
        run, status, error = outcome
        if status == "locked":
            return
        if status != "done":
            reason = (error or "").strip().rpartition("\n")[2]
            name = f"{run.run_id} ({run.network}, width {run.width}, seed {run.seed})"
            self.say(f"Run {name} {_WORDS[status]}: {reason}")
        if status not in ("killed", "paused"):
            self._ended += 1
            self._bar.set_description_str(self._count(), refresh=False)
            self._bar.update(_weight(run))

    def refresh(self) -> None:
        """Keep the clock going, where it can be drawn over."""
        if sys.stderr.isatty():
            self._bar.refresh()

    def say(self, line: str) -> None:
        """Put a line above the bar."""
        tqdm.write(line, file=sys.stderr)

    def _count(self) -> str:
        return f"{self._ended}/{self._runs} runs"


_WORDS = {
    "failed": "failed",
    "diverged": "diverged",
    "killed": "was lost and stays to be trained",
    "paused": "was put aside",
}


def _weight(run: Run) -> float:
    """Roughly what a run costs beside another: images times the square of the width."""
    return float(run.steps * run.batch_size * run.width**2)

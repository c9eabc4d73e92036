"""Many runs: each trained once, by local processes or Ray, with one progress bar."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from shutil import rmtree

from filelock import Timeout
from tqdm import tqdm

from basisconv.study.execution.one_run import Outcome, Train, Trainer
from basisconv.study.execution.ray_team import RayTeam
from basisconv.study.execution.stopping import Stop, stop_on_signals
from basisconv.study.execution.workers import Executor, InProcess, ProcessTeam, Team
from basisconv.study.records.checkpoint import CHECKPOINT_SECONDS
from basisconv.study.records.files import remove_stray_files
from basisconv.study.records.run import Record, Run
from basisconv.study.records.store import Store, needs_training

# After this many killed workers no run is started: a machine short of memory would kill them all.
MOST_KILLED = 5
# Seconds between looks at runs that other processes are training.
_RETRY_SECONDS = 1.0

_STATUS_WORDS = {"killed": "was killed and is still to be trained", "paused": "was paused"}


@dataclass(frozen=True)
class RunsReport:
    """The state of all runs in the end.

    Attributes:
        done: how many have a result, diverged ones included.
        failed: ids of those whose record is a failure, made now or earlier.
        left: those without a record.
        killed: ids of those whose worker was ended from outside, as when memory is short. They
            are among `left`, and the next call resumes them from their checkpoints.
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
    keep_weights: frozenset[str] = frozenset(),
) -> RunsReport:
    """Train the runs that have no record yet.

    Several processes may call this on one store: each run is trained by one of them, and the
    others wait for its record. An exception in a training becomes a record with its traceback, and
    the other runs are trained; likewise when a worker is killed. At Ctrl-C and SIGTERM the
    current steps end and leave checkpoints, from which the next call resumes; then the signal
    does what it would have done (raise KeyboardInterrupt, end the process). A second Ctrl-C does
    so at once.

    Args:
        runs: what to train, in this order; duplicates count once.
        store: where records are looked up and written.
        workers: parallel local processes. With one worker, or one run, this process trains.
        threads: of a usual run; a run of more takes the place of several workers.
        stop: when it says so no run is started, and trainings stop as at a signal.
        retry_failed: whether to train failed runs again.
        checkpoint_seconds: between two checkpoints of a training: what a killed one loses at most.
        train: as in `Trainer`.
        executor: "local", or "ray" for as many tasks as a Ray cluster has room for: the one at
            $RAY_ADDRESS, or a new one on this machine. Ray restarts a run whose worker or node
            dies a few times.
        gpu_per_run: the share of a GPU that Ray gives to a run, where there are GPUs.
        keep_weights: as in `Trainer`.

    Raises:
        ValueError: if workers < 1 or checkpoint_seconds < 0.
        ModuleNotFoundError: if Ray is asked for and not installed.
        DamagedFile: if a record was changed after it was written; nothing is trained then.
        OSError: when a record or a checkpoint cannot be written.
    """
    if workers < 1 or checkpoint_seconds < 0:
        raise ValueError(
            f"workers={workers}, checkpoint_seconds={checkpoint_seconds}: there must be at least "
            "one worker, and no negative time."
        )
    stop = stop or Stop()
    remove_stray_files(store.folder)
    wanted = {run.run_id: run for run in runs}
    seen = {run_id: store.get(run_id) for run_id in wanted}
    # Runs of more threads first: they are the long ones.
    ordered = sorted(wanted.values(), key=lambda run: run.threads, reverse=True)
    todo = deque(run for run in ordered if needs_training(seen[run.run_id], retry_failed))
    killed: list[str] = []
    _remove_old_checkpoints(seen, store)
    if todo:
        trainer = Trainer(store, train, checkpoint_seconds, keep_weights)
        count = min(workers, len(todo))
        team: Team
        if executor == "ray":
            team = RayTeam(trainer, stop, gpu_per_run)
        elif count > 1:
            team = ProcessTeam(trainer, stop, count * threads)
        else:
            team = InProcess(trainer, stop)
        with stop_on_signals(stop):
            try:
                with _progress_bar(wanted.values(), todo) as bar, team:
                    _train_all(todo, seen, team, stop, bar, killed)
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
    bar: _ProgressBar,
    killed: list[str],
) -> None:
    locked: list[Run] = []
    while True:
        # `stop` is asked before each start: `InProcess` trains inside it.
        while todo and team.has_room(todo[0]) and len(killed) < MOST_KILLED and not stop():
            run = todo.popleft()
            team.start(run, seen[run.run_id])
        if team.busy():
            if stop():
                team.pause()
            for outcome in _outcomes(team):
                bar.count(outcome)
                if outcome.status == "locked":
                    locked.append(outcome.run)
                # A run that paused although nothing asked for it had a SIGTERM of its own.
                if outcome.status in ("killed", "paused") and not stop():
                    killed.append(outcome.run.run_id)
        elif locked and not todo and not stop():
            # Other processes train these: their records appear, or their locks are released.
            time.sleep(_RETRY_SECONDS)
            todo.extend(locked)
            locked.clear()
        else:
            return
        if sys.stderr.isatty():
            bar.refresh()


def _outcomes(team: Team) -> list[Outcome]:
    try:
        return team.outcomes(timeout=1.0)
    except Exception as error:
        if team.busy():
            reason = str(error).removesuffix(".")
            _print(f"{reason}. No more runs are started; the current ones end first.")
        raise


def _remove_old_checkpoints(seen: Mapping[str, Record | None], store: Store) -> None:
    """Remove the checkpoints of runs whose process was killed just after it wrote the record."""
    for run_id, record in seen.items():
        folder = store.checkpoints(run_id)
        if record and record.status != "failed" and folder.exists():
            with suppress(Timeout), store.lock(run_id).acquire(blocking=False):
                rmtree(folder, ignore_errors=True)


class _ProgressBar(tqdm):  # type: ignore[type-arg]
    """A bar on stderr that counts runs, and estimates the time left by their cost."""

    ended, runs = 0, 0

    def count(self, outcome: Outcome) -> None:
        """Count a run that has ended, and name it if something went wrong."""
        run, status, error = outcome
        if status == "locked":
            return
        if status != "done":
            reason = (error or "").strip().rpartition("\n")[2]
            name = f"{run.run_id} ({run.network}, width {run.width}, seed {run.seed})"
            _print(f"Run {name} {_STATUS_WORDS.get(status, status)}: {reason}")
        if status not in ("killed", "paused"):
            self.ended += 1
            self.set_description_str(f"{self.ended}/{self.runs} runs", refresh=False)
            self.update(_relative_cost(run))


def _progress_bar(wanted: Iterable[Run], todo: Iterable[Run]) -> _ProgressBar:
    runs, left = list(wanted), list(todo)
    total = sum(map(_relative_cost, runs))
    bar = _ProgressBar(
        desc=f"{len(runs) - len(left)}/{len(runs)} runs",
        total=total,
        # Earlier records count as progress, but not for the estimate of the time left.
        initial=total - sum(map(_relative_cost, left)),
        smoothing=0,
        file=sys.stderr,
        bar_format="{desc} |{bar}| {percentage:3.0f} % [{elapsed} gone, {remaining} left]",
    )
    bar.runs, bar.ended = len(runs), len(runs) - len(left)
    return bar


def _print(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def _relative_cost(run: Run) -> float:
    return float(run.steps * run.batch_size * run.width**2)

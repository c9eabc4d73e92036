"""One run: its lock, its checkpoints, its training and its record; alone or under torchrun."""

from __future__ import annotations

import contextlib
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from filelock import Timeout

from basisconv.study.records.checkpoint import (
    CHECKPOINT_SECONDS,
    CheckpointNotSaved,
    Checkpoints,
    Paused,
    TrainingState,
)
from basisconv.study.records.environment import (
    UnsuitableMachine,
    environment,
    peak_memory_bytes,
    still_computes,
)
from basisconv.study.records.run import Measurement, Record, Run
from basisconv.study.records.store import Store
from basisconv.study.training.distributed import Group

Train = Callable[[Run, Checkpoints], Record]

# Longer than `Store.is_training` holds a lock.
_RETRY_SECONDS = 0.5


class Outcome(NamedTuple):
    """What became of a run.

    `status` is the record's, or "locked" (another process is training it), or "paused" (stopped
    with a checkpoint), or "killed" (the worker died before it had a record).
    """

    run: Run
    status: str
    error: str | None = None


@dataclass(frozen=True)
class Trainer:
    """How runs are trained and where their records go; workers get a pickled copy.

    Attributes:
        store: takes the records.
        train: what trains, picklable; None for `basisconv.study.training.train.train`.
        checkpoint_seconds: between two checkpoints.
        keep_weights: ids of the runs whose state after the last step stays.
    """

    store: Store
    train: Train | None = None
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    keep_weights: frozenset[str] = frozenset()

    def train_under_lock(
        self, run: Run, seen: Record | None, stop: Callable[[], bool] = lambda: False
    ) -> Outcome:
        """Train a run, unless another process trains it or has trained it.

        Training resumes from the run's checkpoint. A failed run keeps its checkpoint for the next
        attempt.

        Args:
            run: what to train.
            seen: the record that the caller saw. If there is another one by now, that one stands.
            stop: whether to stop the training; asked before every step.

        Raises:
            OSError: when the record or a checkpoint cannot be written.
            UnsuitableMachine: if this machine lacks what the run needs, or its GPU no longer
                computes after this run failed. The failure is then on record.
            ConflictingResults: if another result was merged meanwhile; see `Store.add`.
        """
        lock = try_lock(run, seen, self.store)
        if isinstance(lock, Outcome):
            return lock
        with lock:
            folder = self.store.checkpoints(run.run_id)
            kept = run.run_id in self.keep_weights
            weights = self.store.weights(run.run_id) if kept else None
            checkpoints = Checkpoints(folder, run, self.checkpoint_seconds, stop, weights)
            try:
                record = train_to_record(run, checkpoints, self.train)
            except Paused as paused:
                return Outcome(run, "paused", str(paused))
            self.store.write_result(record, seen)
            if record.status != "failed":
                checkpoints.remove()
            elif not still_computes():
                reason = (record.error or "").strip().rpartition("\n")[2]
                raise UnsuitableMachine(
                    f"The GPU stopped working for this process in run {run.run_id} ({reason}). "
                    "The same command continues with the other runs."
                )
        return Outcome(run, record.status, record.error)


def try_lock(run: Run, seen: Record | None, store: Store) -> contextlib.ExitStack | Outcome:
    """A run's lock, held until the stack is closed; or the outcome, if there is nothing to do.

    Args:
        run: what is to be trained.
        seen: the record that the caller saw. If there is another one by now, that one stands.
        store: has the lock and the record.
    """
    with contextlib.ExitStack() as lock:
        try:
            lock.enter_context(store.lock(run.run_id).acquire(blocking=False))
        except Timeout:
            return Outcome(run, "locked", "another process is training it")
        record = store.get(run.run_id)
        if record is None or record == seen:
            return lock.pop_all()
    return Outcome(run, record.status, record.error)


def train_to_record(run: Run, checkpoints: Checkpoints, train: Train | None) -> Record:
    """Train a run; an exception becomes its record.

    Raises:
        Paused: when the checkpoints' `stop` asks for it.
        CheckpointNotSaved: if a checkpoint cannot be written.
        UnsuitableMachine: if this machine lacks what the run needs; another may have it.
    """
    start = time.perf_counter()
    if train is None:  # imported here: counting what is missing needs no networks
        from basisconv.study.training.train import train as default_train

        train = default_train
    try:
        return train(run, checkpoints)
    except (Paused, CheckpointNotSaved, UnsuitableMachine):
        raise
    except Exception:
        return Record(
            run=run,
            status="failed",
            result=None,
            error=traceback.format_exc(),
            measurement=Measurement(
                seconds={"total": time.perf_counter() - start},
                environment=environment(),
                peak_memory_bytes=peak_memory_bytes(),
            ),
        )


def train_distributed(
    run: Run,
    store: Store,
    group: Group,
    stop: Callable[[], bool],
    keep_weights: frozenset[str] = frozenset(),
) -> Outcome | None:
    """Train a run that has no record yet, or a failed one, with all processes of a group.

    The first process has the lock, writes the checkpoints and the record; the others follow it.

    Args:
        run: of as many processes as the group.
        store: takes the record; all processes read its checkpoints.
        group: all of its processes make this call.
        stop: whether to stop the training; one process's yes counts for all.
        keep_weights: as in `Trainer`.

    Returns:
        The outcome; None for all processes but the first.

    Raises:
        OSError: when the record or a checkpoint cannot be written.
        DamagedFile: if there is a record that was changed after it was written.
    """
    from basisconv.study.training.train import train

    def any_stops() -> bool:
        return group.any(stop())

    if group.rank > 0:
        if group.broadcast(False):
            folder = store.checkpoints(run.run_id)
            with contextlib.suppress(Paused):
                train(run, _ReadOnlyCheckpoints(folder, run, math.inf, any_stops), group)
        return None
    started = False

    def train_with_all(run: Run, checkpoints: Checkpoints) -> Record:
        nonlocal started
        started = group.broadcast(True)
        return train(run, checkpoints, group)

    trainer = Trainer(store, train_with_all, keep_weights=keep_weights)
    record = store.get(run.run_id)
    failure = record if record is not None and record.status == "failed" else None
    outcome = trainer.train_under_lock(run, failure, any_stops)
    if outcome.status == "locked":  # perhaps only for `Store.is_training`
        time.sleep(_RETRY_SECONDS)
        outcome = trainer.train_under_lock(run, failure, any_stops)
    if not started:
        group.broadcast(False)
    return outcome


class _ReadOnlyCheckpoints(Checkpoints):
    """Checkpoints that the first process writes and the others read."""

    def save_if_due(self, state: Callable[[], TrainingState]) -> None:
        if self.stop():
            raise Paused("together with the first process")

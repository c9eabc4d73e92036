"""One attempt at a run: its lock, its checkpoints, its training and its record."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple

from filelock import Timeout

from basisconv.study.records.checkpoint import (
    CHECKPOINT_SECONDS,
    CheckpointNotSaved,
    Checkpoints,
    Paused,
)
from basisconv.study.records.environment import (
    UnsuitableMachine,
    environment,
    peak_memory_bytes,
    still_computes,
)
from basisconv.study.records.run import Measurement, Record, Run
from basisconv.study.records.store import Store

Train = Callable[[Run, Checkpoints], Record]


class Outcome(NamedTuple):
    """What became of a run that was given to a worker.

    `status` is the record's, or "locked" (another process is training it), or "paused" (it was
    put aside with a checkpoint), or "killed" (the worker ended before it had a record).
    """

    run: Run
    status: str
    error: str | None = None


def train_under_lock(
    run: Run,
    seen: Record | None,
    store: Store,
    train: Train | None,
    stop: Callable[[], bool] = lambda: False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Outcome:
    """Train a run, unless somebody else is at it or has been since the sweep looked.

    It goes on from its checkpoint, which is kept until there is a result: a run that failed, for
    want of memory perhaps, goes on when it is tried again.

    Args:
        run: what to train.
        seen: the record that was there when the sweep looked; another one found now stands.
        store: takes the record, under the run's lock.
        train: what trains; None for `basisconv.study.training.train.train`.
        stop: whether to put the run aside, asked before every step.
        checkpoint_seconds: between two checkpoints.

    Raises:
        OSError: when the record or a checkpoint cannot be written.
        UnsuitableMachine: if this machine lacks what the run needs, or its GPU computes no more
            after this run failed; the failure is on record, and the next runs would fail too.
        ConflictingResults: if another result was merged in meanwhile; see `Store.add`.
    """
    claimed = try_lock(run, seen, store)
    if isinstance(claimed, Outcome):
        return claimed
    with claimed:
        folder = store.checkpoints(run.run_id)
        checkpoints = Checkpoints(folder, run, checkpoint_seconds, stop)
        try:
            record = train_to_record(run, checkpoints, train)
        except Paused as paused:
            return Outcome(run, "paused", str(paused))
        store.write_result(record, seen)
        if record.status != "failed":
            checkpoints.remove()
        elif not still_computes():
            reason = (record.error or "").strip().rpartition("\n")[2]
            raise UnsuitableMachine(
                f"After run {run.run_id} the GPU computes nothing more in this process ({reason}). "
                "The same command goes on from the records, without that run."
            )
    return Outcome(run, record.status, record.error)


def try_lock(run: Run, seen: Record | None, store: Store) -> contextlib.ExitStack | Outcome:
    """A run's lock, held until the stack is closed; or the outcome, if there is nothing to do.

    Args:
        run: what is to be trained.
        seen: the record that was there when the sweep looked; another one found now stands.
        store: where the lock is, and the record.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(store.lock(run.run_id).acquire(blocking=False))
        except Timeout:
            return Outcome(run, "locked", "another process trains it")
        record = store.get(run.run_id)
        if record is None or record == seen:
            return held.pop_all()
    return Outcome(run, record.status, record.error)


def train_to_record(run: Run, checkpoints: Checkpoints, train: Train | None) -> Record:
    """Train a run; an exception becomes its record.

    Args:
        run: what to train.
        checkpoints: where to go on from and what to leave behind.
        train: what trains; None for `basisconv.study.training.train.train`.

    Raises:
        Paused: when the checkpoints' `stop` asks for it.
        CheckpointNotSaved: if a checkpoint cannot be written.
        UnsuitableMachine: if this machine lacks what the run needs: another may have it.
    """
    start = time.perf_counter()
    try:
        return (train or _default())(run, checkpoints)
    except (Paused, CheckpointNotSaved, UnsuitableMachine):
        raise
    except Exception:  # whatever it was: its record tells, and the sweep's other runs go on
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


def _default() -> Train:
    # Networks and data are loaded by those who train, not by those who count what is missing.
    from basisconv.study.training.train import train

    return train

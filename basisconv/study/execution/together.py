"""One Run, trained by the processes that torchrun has started, or by this one alone.

The first process keeps the run's lock, its checkpoints and its record, as a sweep's workers do;
the others follow it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from basisconv.study.execution.attempt import Outcome, train_under_lock
from basisconv.study.execution.stopping import Stop
from basisconv.study.records.checkpoint import Checkpoints, Paused, TrainingState
from basisconv.study.records.run import Record, Run
from basisconv.study.records.store import Store
from basisconv.study.training.parallel import Group
from basisconv.study.training.train import train

# Seconds, longer than a look at a lock takes.
_LOOK_AGAIN = 0.5


def train_distributed(run: Run, store: Store, group: Group, stop: Stop) -> Outcome | None:
    """Train a run that has no record yet, or a failure's.

    Args:
        run: of as many processes as the group.
        store: takes the record; all processes read its checkpoints.
        group: all of its processes make this call.
        stop: whether to put the run aside; what one process's says counts for all.

    Returns:
        What became of it; None for all processes but the first.

    Raises:
        OSError: when the record or a checkpoint cannot be written.
        DamagedFile: if there is a record, but not as it was written.
    """

    def stopping() -> bool:
        return group.any(stop())

    return (_train_as_first if group.rank == 0 else _train_as_other)(run, store, group, stopping)


def _train_as_first(run: Run, store: Store, group: Group, stopping: Callable[[], bool]) -> Outcome:
    begun = False

    def train_with_all(run: Run, checkpoints: Checkpoints) -> Record:
        nonlocal begun
        begun = group.broadcast(True)
        return train(run, checkpoints, group)

    record = store.get(run.run_id)
    failure = record if record is not None and record.status == "failed" else None
    outcome = train_under_lock(run, failure, store, train_with_all, stopping)
    if outcome.status == "locked":  # perhaps by somebody who only looked whether it is
        time.sleep(_LOOK_AGAIN)
        outcome = train_under_lock(run, failure, store, train_with_all, stopping)
    if not begun:
        group.broadcast(False)
    return outcome


def _train_as_other(run: Run, store: Store, group: Group, stopping: Callable[[], bool]) -> None:
    if group.broadcast(False):
        checkpoints = _ReadOnlyCheckpoints(store.checkpoints(run.run_id), run, math.inf, stopping)
        try:
            train(run, checkpoints, group)
        except Paused:
            pass


class _ReadOnlyCheckpoints(Checkpoints):
    """Checkpoints that the first process writes and the others read."""

    def save_if_due(self, state: Callable[[], TrainingState]) -> None:
        if self.stop():
            raise Paused("put aside with the first process")

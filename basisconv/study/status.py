"""How many runs are done, and how far the others are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from basisconv.study.checkpoint import paths, step_of
from basisconv.study.run import Run
from basisconv.study.store import Store


@dataclass(frozen=True)
class Status:
    """How many runs stand where.

    Attributes:
        done: those with a result, diverged ones included.
        failed: those whose record is a failure.
        running: those without a record that a living process trains.
        missing: the others.
    """

    done: int
    failed: int
    running: int
    missing: int


def status(runs: Iterable[Run], store: Store) -> Status:
    """Count the runs that are done, failed, running and missing.

    Args:
        runs: what was wanted; a run named twice counts once.
        store: where their records are.

    Raises:
        DamagedFile: if a record is not what was written.
    """
    records = {run_id: store.get(run_id) for run_id in {run.run_id for run in runs}}
    counts = Counter(record.status for record in records.values() if record)
    left = [run_id for run_id, record in records.items() if record is None]
    running = sum(map(store.training, left))
    return Status(
        counts["done"] + counts["diverged"], counts["failed"], running, len(left) - running
    )


def steps_done(run: Run, store: Store) -> int:
    """The step that a run's latest checkpoint says it stands at; 0 without one."""
    return max(map(step_of, paths(store.checkpoints(run.run_id))), default=0)

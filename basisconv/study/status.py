"""How many runs are done, and how long the missing ones will take."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from basisconv.study.checkpoint import paths, step_of
from basisconv.study.environment import device_kind
from basisconv.study.run import Record, Run
from basisconv.study.store import Store


@dataclass(frozen=True)
class Status:
    """How many runs stand where, and the time left.

    Attributes:
        done: those with a result, diverged ones included.
        failed: those whose record is a failure.
        running: those without a record that a living process trains.
        missing: the others.
        hours: until the running and the missing ones are trained on this kind of device; None
            when nothing has been measured on one.
    """

    done: int
    failed: int
    running: int
    missing: int
    hours: float | None


def status(runs: Iterable[Run], store: Store, workers: int = 2) -> Status:
    """Count the runs that are done, failed, running and missing, and estimate the time left.

    The estimate takes the seconds of done runs on this kind of device, of the same network and
    width where there are any, in proportion to `weight`; steps that a checkpoint holds are done.

    Args:
        runs: what was wanted; a run named twice counts once.
        store: where their records are.
        workers: how many will train side by side.

    Raises:
        DamagedFile: if a record is not what was written.
    """
    wanted = {run.run_id: run for run in runs}
    records = {run_id: store.get(run_id) for run_id in wanted}
    left = {
        run: 1 - steps_done(run, store) / run.steps
        for i, run in wanted.items()
        if records[i] is None
    }
    running = sum(store.training(run.run_id) for run in left)
    counts = Counter(record.status for record in records.values() if record)
    seconds = _seconds(left, [record for record in records.values() if record])
    hours = None if seconds is None else seconds / min(workers, max(1, len(left))) / 3600
    return Status(
        counts["done"] + counts["diverged"], counts["failed"], running, len(left) - running, hours
    )


def steps_done(run: Run, store: Store) -> int:
    """The step that a run's latest checkpoint says it stands at; 0 without one."""
    return max(map(step_of, paths(store.checkpoints(run.run_id))), default=0)


def weight(run: Run) -> float:
    """Roughly what a run costs beside another: images times the square of the width."""
    return float(run.steps * run.batch_size * run.width**2)


def _seconds(left: Mapping[Run, float], records: Iterable[Record]) -> float | None:
    """What the given share of each run takes."""
    here = device_kind()
    spent: dict[object, float] = defaultdict(float)
    weights: dict[object, float] = defaultdict(float)
    for record in records:
        if record.status == "done" and record.measurement.environment.get("device_kind") == here:
            for key in (_size(record.run), None):  # None collects all sizes
                spent[key] += record.measurement.seconds["total"]
                weights[key] += weight(record.run)
    if not left:
        return 0.0
    if not weights:
        return None
    keys = {run: _size(run) if _size(run) in weights else None for run in left}
    return sum(left[run] * weight(run) * spent[key] / weights[key] for run, key in keys.items())


def _size(run: Run) -> tuple[str, int]:
    return run.network, run.width

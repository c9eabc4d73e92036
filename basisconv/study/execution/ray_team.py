"""A team of Ray tasks: the runs of a sweep on the cores and GPUs of a machine or of a cluster.

A task whose worker or node dies is begun again by Ray. Where it sees the sweep's store (on one
machine, on a network file system) it works as a local process does: under the run's lock, from its
checkpoint, and it writes the record itself. Where it does not, this process holds the lock and the
record comes back through Ray; such a run cannot be put aside.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Self

from basisconv.study.execution.attempt import (
    Outcome,
    Train,
    train_to_record,
    train_under_lock,
    try_lock,
)
from basisconv.study.execution.ray_cluster import import_ray, ray_cluster
from basisconv.study.execution.stopping import Stop
from basisconv.study.records.checkpoint import Checkpoints
from basisconv.study.records.environment import ROOT, UnsuitableMachine
from basisconv.study.records.files import temporary_path
from basisconv.study.records.run import NUMERICS, Record, Run
from basisconv.study.records.store import Store

# How often a run is begun again whose worker or node died, before the sweep counts it as lost.
RETRIES = 3


class _Task(NamedTuple):
    run: Run
    seen: Record | None
    claimed: ExitStack | None
    """The run's lock, where this process holds it."""


class RayTeam:
    """A team of as many Ray tasks as the cluster has room for.

    Args:
        store: takes the records.
        train: as `basisconv.study.training.train.train`, which None stands for.
        stop: whether the sweep is to end.
        checkpoint_seconds: between two checkpoints of a run.
        gpu_per_run: the share of a GPU that one run takes, where the cluster has GPUs.

    Raises:
        ModuleNotFoundError: if Ray is not installed.
    """

    def __init__(
        self,
        store: Store,
        train: Train | None,
        stop: Stop,
        checkpoint_seconds: float,
        gpu_per_run: float,
    ) -> None:
        self._ray = import_ray()
        self._store, self._train, self._stop = store, train, stop
        self._checkpoint_seconds, self._gpu_per_run = checkpoint_seconds, gpu_per_run
        self._remote = self._ray.remote(max_retries=RETRIES)(_task)
        # A task sees it exactly if its folder is this one, and not another machine's of that name.
        self._token = temporary_path(store.folder / "shared")
        self._ending = False
        self._threads = 1
        self._busy: dict[Any, _Task] = {}
        self._known: list[Outcome] = []
        self._cluster = ExitStack()

    def __enter__(self) -> Self:
        self._cluster.enter_context(ray_cluster(self._ray))
        self._cluster.callback(self._token.unlink, missing_ok=True)
        self._token.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._ending = True
        with self._cluster:
            try:
                # As with local processes: after an error the others finish the run that they are
                # on, after an interrupt nobody waits.
                while self._busy and (kind is None or issubclass(kind, Exception)):
                    if self._stop():
                        self.pause()
                    with suppress(Exception):
                        self.outcomes(timeout=1.0)
            finally:
                for task, (_, _, claimed) in self._busy.items():
                    self._ray.cancel(task, force=True)
                    if claimed is not None:
                        claimed.close()

    def has_room(self, run: Run) -> bool:
        return len(self._busy) < self._room()

    def busy(self) -> bool:
        return bool(self._busy or self._known)

    def start(self, run: Run, seen: Record | None) -> None:
        self._threads = max(self._threads, run.threads)
        self._token.touch()
        task = self._submit(
            run, _train_in_store, seen, self._store, self._token.name, self._checkpoint_seconds,
            self._train,
        )  # fmt: skip
        self._busy[task] = _Task(run, seen, None)

    def outcomes(self, timeout: float) -> list[Outcome]:
        if not self._ending:
            self._token.touch()  # old temporary files are swept away
        if self._busy:
            ready, _ = self._ray.wait(list(self._busy), timeout=0 if self._known else timeout)
            for task in ready:
                self._end(task)
        known, self._known = self._known, []
        return known

    def pause(self) -> None:
        self._ending = True
        self._token.unlink(missing_ok=True)
        for task, (_, _, claimed) in self._busy.items():
            if claimed is not None:
                self._ray.cancel(task, force=True)

    def _end(self, task: Any) -> None:
        run, seen, claimed = self._busy.pop(task)
        with claimed or nullcontext():
            answer = self._answer(task, run)
            if isinstance(answer, Record):
                self._store.write_result(answer, seen)
                if answer.status != "failed":
                    Checkpoints(self._store.checkpoints(run.run_id), run).remove()
                answer = Outcome(run, answer.status, answer.error)
        if answer is None and self._ending:
            answer = Outcome(run, "paused", "before its first step")
        if answer is None:
            self._start_without_store(run, seen)
        else:
            self._known.append(answer)

    def _answer(self, task: Any, run: Run) -> Outcome | Record | None:
        errors = self._ray.exceptions
        lost = (
            errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError,
            errors.OutOfMemoryError,
        )  # fmt: skip
        try:
            answer = self._ray.get(task)
        except lost as error:
            reason = f"Ray began it {1 + RETRIES} times, then {type(error).__name__}"
            return Outcome(run, "killed", reason)
        except errors.TaskCancelledError:
            return Outcome(run, "paused", "without a checkpoint, where the store is not seen")
        except errors.RayError as error:  # a node that lacks a package, say
            raise RuntimeError(f"Ray could not train run {run.run_id}: {error}") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _start_without_store(self, run: Run, seen: Record | None) -> None:
        """Have a run trained where its store is not seen."""
        claimed = try_lock(run, seen, self._store)
        if isinstance(claimed, Outcome):
            self._known.append(claimed)
            return
        with claimed:
            task = self._submit(run, _train_without_store, self._train)
            self._busy[task] = _Task(run, seen, claimed.pop_all())

    def _submit(self, run: Run, work: Callable[..., object], *arguments: object) -> Any:
        gpu = self._gpu_share(self._nodes())
        task = self._remote.options(num_cpus=run.threads, num_gpus=gpu)
        return task.remote(run, work, *arguments)

    def _nodes(self) -> list[dict[str, float]]:
        """What each living node has of each resource."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _gpu_share(self, nodes: list[dict[str, float]]) -> float:
        """What a run is given of a GPU; asked for each run, for a cluster may grow."""
        return self._gpu_per_run if any(has.get("GPU") for has in nodes) else 0.0

    def _room(self) -> int:
        """How many runs the cluster's nodes hold side by side, whoever else uses them."""
        room, nodes = 0, self._nodes()
        share = self._gpu_share(nodes)
        for has in nodes:
            fit = has.get("CPU", 0) // self._threads
            if share:
                on_each = int(1 / share + 1e-6)  # ten tenths are a whole
                fit = min(fit, has.get("GPU", 0) * on_each)
            room += int(fit)
        return max(1, room)  # in a cluster that has no node yet, one waits for it


def _task(run: Run, work: Callable[..., object], *arguments: object) -> object:
    """Do some work for a run; what it raises is returned, as Ray would wrap it up."""
    try:
        if run.numerics != NUMERICS:
            raise RuntimeError(
                f"{ROOT} on {platform.node()} is basisconv of numerics {NUMERICS}, the sweep's of "
                f"{run.numerics}. Bring it up to date, or remove it: the sweep's own is sent to "
                "where there is none."
            )
        return work(run, *arguments)
    except UnsuitableMachine as unfit:
        return RuntimeError(f"{platform.node()} cannot train run {run.run_id}: {unfit}")
    except Exception as error:
        return error


def _train_in_store(
    run: Run,
    seen: Record | None,
    store: Store,
    token: str,
    checkpoint_seconds: float,
    train: Train | None,
) -> Outcome | None:
    """Attend to a run while the token is there; None if it is not, or its folder is another."""
    path = store.folder / token
    if not path.exists():
        return None
    return train_under_lock(run, seen, store, train, _FileGone(path), checkpoint_seconds)


def _train_without_store(run: Run, train: Train | None) -> Record:
    """Train a run away from its store."""
    with TemporaryDirectory() as folder:
        return train_to_record(run, Checkpoints(folder, run, math.inf), train)


class _FileGone:
    """Called before every step: whether a file is gone, looked for once a second."""

    def __init__(self, path: Path) -> None:
        self._path, self._gone, self._looked = path, False, time.monotonic()

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._gone and now - self._looked >= 1.0:
            self._gone, self._looked = not self._path.exists(), now
        return self._gone

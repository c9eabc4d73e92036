"""Ray tasks as workers: the runs on the cores and GPUs of a machine or of a cluster.

Ray restarts a task whose worker or node dies. Where the task sees the store (on one machine, on a
network file system) it works as a local process does: under the run's lock, from its checkpoint,
and it writes the record itself. Where it does not, this process has the lock and the record comes
back through Ray; such a run cannot be paused.
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

from basisconv.study.execution.one_run import Outcome, Train, Trainer, train_to_record, try_lock
from basisconv.study.execution.ray_cluster import import_ray, ray_cluster
from basisconv.study.execution.stopping import Stop
from basisconv.study.records.checkpoint import Checkpoints
from basisconv.study.records.environment import ROOT, UnsuitableMachine
from basisconv.study.records.files import temporary_path
from basisconv.study.records.run import NUMERICS, Record, Run

# How often Ray restarts a run whose worker or node died, before it counts as killed.
RETRIES = 3


class _Task(NamedTuple):
    run: Run
    seen: Record | None
    lock: ExitStack | None
    """The run's lock, where this process has it."""


class RayTeam:
    """As many Ray tasks as the cluster has room for.

    Args:
        trainer: what trains.
        stop: whether to end.
        gpu_per_run: the share of a GPU that one run takes, where the cluster has GPUs.

    Raises:
        ModuleNotFoundError: if Ray is not installed.
    """

    def __init__(self, trainer: Trainer, stop: Stop, gpu_per_run: float) -> None:
        self._ray = import_ray()
        self._trainer, self._stop, self._gpu_per_run = trainer, stop, gpu_per_run
        self._remote = self._ray.remote(max_retries=RETRIES)(_task)
        # A task that finds this file sees the store, and not another machine's folder of that name.
        self._token = temporary_path(trainer.store.folder / "shared")
        self._ending = False
        self._threads = 1
        self._busy: dict[Any, _Task] = {}
        self._outcomes: list[Outcome] = []
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
                # As with local processes: after an error the others finish their runs, after an
                # interrupt nobody waits.
                while self._busy and (kind is None or issubclass(kind, Exception)):
                    if self._stop():
                        self.pause()
                    with suppress(Exception):
                        self.outcomes(timeout=1.0)
            finally:
                for task, (_, _, lock) in self._busy.items():
                    self._ray.cancel(task, force=True)
                    if lock is not None:
                        lock.close()

    def has_room(self, run: Run) -> bool:
        return len(self._busy) < self._room()

    def busy(self) -> bool:
        return bool(self._busy or self._outcomes)

    def start(self, run: Run, seen: Record | None) -> None:
        self._threads = max(self._threads, run.threads)
        self._token.touch()
        task = self._submit(run, _train_in_store, seen, self._trainer, self._token.name)
        self._busy[task] = _Task(run, seen, None)

    def outcomes(self, timeout: float) -> list[Outcome]:
        if not self._ending:
            self._token.touch()  # `remove_stray_files` removes old temporary files
        if self._busy:
            ready, _ = self._ray.wait(list(self._busy), timeout=0 if self._outcomes else timeout)
            for task in ready:
                self._end(task)
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def pause(self) -> None:
        self._ending = True
        self._token.unlink(missing_ok=True)
        for task, (_, _, lock) in self._busy.items():
            if lock is not None:
                self._ray.cancel(task, force=True)

    def _end(self, task: Any) -> None:
        run, seen, lock = self._busy.pop(task)
        store = self._trainer.store
        with lock or nullcontext():
            answer = self._answer(task, run)
            if isinstance(answer, Record):
                store.write_result(answer, seen)
                if answer.status != "failed":
                    Checkpoints(store.checkpoints(run.run_id), run).remove()
                answer = Outcome(run, answer.status, answer.error)
        if answer is None and self._ending:
            answer = Outcome(run, "paused", "before its first step")
        if answer is None:
            self._start_without_store(run, seen)
        else:
            self._outcomes.append(answer)

    def _answer(self, task: Any, run: Run) -> Outcome | Record | None:
        errors = self._ray.exceptions
        lost = (
            errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError,
            errors.OutOfMemoryError,
        )  # fmt: skip
        try:
            answer = self._ray.get(task)
        except lost as error:
            reason = f"Ray started it {1 + RETRIES} times, then {type(error).__name__}"
            return Outcome(run, "killed", reason)
        except errors.TaskCancelledError:
            return Outcome(run, "paused", "without a checkpoint, for its node has no access to it")
        except errors.RayError as error:  # a node that lacks a package, say
            raise RuntimeError(f"Ray could not train run {run.run_id}: {error}") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _start_without_store(self, run: Run, seen: Record | None) -> None:
        """Have a run trained where its store is not seen."""
        if run.run_id in self._trainer.keep_weights:
            raise RuntimeError(
                f"Run {run.run_id} keeps its final weights, and its node does not see "
                f"{self._trainer.store.folder}: give --runs a folder that all nodes see."
            )
        lock = try_lock(run, seen, self._trainer.store)
        if isinstance(lock, Outcome):
            self._outcomes.append(lock)
            return
        with lock:
            task = self._submit(run, _train_without_store, self._trainer.train)
            self._busy[task] = _Task(run, seen, lock.pop_all())

    def _submit(self, run: Run, work: Callable[..., object], *arguments: object) -> Any:
        gpu = self._gpu_share(self._nodes())
        task = self._remote.options(num_cpus=run.threads, num_gpus=gpu)
        return task.remote(run, work, *arguments)

    def _nodes(self) -> list[dict[str, float]]:
        """What each living node has of each resource."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _gpu_share(self, nodes: list[dict[str, float]]) -> float:
        """A run's share of a GPU; asked for each run, because a cluster may grow."""
        return self._gpu_per_run if any(has.get("GPU") for has in nodes) else 0.0

    def _room(self) -> int:
        """How many runs fit on the cluster's nodes, whoever else uses them."""
        room, nodes = 0, self._nodes()
        share = self._gpu_share(nodes)
        for has in nodes:
            fit = has.get("CPU", 0) // self._threads
            if share:
                per_gpu = int(1 / share + 1e-6)  # ten tenths are a whole
                fit = min(fit, has.get("GPU", 0) * per_gpu)
            room += int(fit)
        return max(1, room)  # in a cluster without nodes yet, one run waits for the first


def _task(run: Run, work: Callable[..., object], *arguments: object) -> object:
    """Do some work for a run; an exception is returned, because Ray would wrap a raised one."""
    try:
        if run.numerics != NUMERICS:
            raise RuntimeError(
                f"{ROOT} on {platform.node()} is basisconv of numerics {NUMERICS}, not "
                f"{run.numerics}. Update it, or remove it: the package is sent to nodes that "
                "have none."
            )
        return work(run, *arguments)
    except UnsuitableMachine as reason:
        return RuntimeError(f"{platform.node()} cannot train run {run.run_id}: {reason}")
    except Exception as error:
        return error


def _train_in_store(run: Run, seen: Record | None, trainer: Trainer, token: str) -> Outcome | None:
    """Train a run while the token is there; None if it is not, or its folder is another."""
    path = trainer.store.folder / token
    return trainer.train_under_lock(run, seen, _FileGone(path)) if path.exists() else None


def _train_without_store(run: Run, train: Train | None) -> Record:
    with TemporaryDirectory() as folder:
        return train_to_record(run, Checkpoints(folder, run, math.inf), train)


class _FileGone:
    """Called before every step: whether a file is gone; looks once a second."""

    def __init__(self, path: Path) -> None:
        self._path, self._gone, self._looked = path, False, time.monotonic()

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._gone and now - self._looked >= 1.0:
            self._gone, self._looked = not self._path.exists(), now
        return self._gone

"""Processes that train one run after another, and what happens when one of them is killed.

A worker lives as long as the sweep, because importing torch takes seconds. Each has a process and
a pipe of its own, so that the end of one is known at once, with the run that it was on, and
touches no other.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Literal, Protocol, Self

from basisconv.study.execution.attempt import Outcome, Train, train_under_lock
from basisconv.study.execution.stopping import Stop
from basisconv.study.records.run import Record, Run
from basisconv.study.records.store import Store

Executor = Literal["local", "ray"]


class Team(Protocol):
    """Whoever trains the runs of a sweep."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None: ...

    def has_room(self, run: Run) -> bool:
        """Whether a run can be started now."""
        ...

    def busy(self) -> bool:
        """Whether a run has been started whose outcome is still to come."""
        ...

    def start(self, run: Run, seen: Record | None) -> None:
        """Have a run trained; see `train_under_lock`."""
        ...

    def outcomes(self, timeout: float) -> list[Outcome]:
        """What has come out, after waiting for the first of it for `timeout` seconds at most."""
        ...

    def pause(self) -> None:
        """Have all that are at it put their runs aside."""
        ...


class InProcess:
    """A team of nobody: runs are trained in this process."""

    def __init__(
        self, store: Store, train: Train | None, stop: Stop, checkpoint_seconds: float
    ) -> None:
        self._store, self._train, self._stop = store, train, stop
        self._checkpoint_seconds = checkpoint_seconds
        self._outcomes: list[Outcome] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        pass

    def has_room(self, run: Run) -> bool:
        return not self._outcomes

    def busy(self) -> bool:
        return bool(self._outcomes)

    def start(self, run: Run, seen: Record | None) -> None:
        self._outcomes.append(
            train_under_lock(
                run, seen, self._store, self._train, self._stop, self._checkpoint_seconds
            )
        )

    def outcomes(self, timeout: float) -> list[Outcome]:
        taken, self._outcomes = self._outcomes, []
        return taken

    def pause(self) -> None:
        pass  # the training asks by itself


class ProcessTeam:
    """A team of local processes, each started when it is first needed.

    All that train have at most `threads` threads together; a run of more has the machine to itself.
    """

    def __init__(
        self, threads: int, store: Store, train: Train | None, stop: Stop, checkpoint_seconds: float
    ) -> None:
        self._threads, self._store, self._train, self._stop = threads, store, train, stop
        self._checkpoint_seconds = checkpoint_seconds
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, Run]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        workers = [*self._idle, *(worker for worker, _ in self._busy.values())]
        for worker in workers:
            worker.pipe.close()
        try:
            # After an error (a full disk) the others finish the run that they are on, for hours
            # may be in it; after an interrupt nobody waits.
            if kind is None or issubclass(kind, Exception):
                while alive := [worker for worker in workers if worker.process.is_alive()]:
                    if self._stop():
                        self.pause()
                    wait([worker.process.sentinel for worker in alive], 1.0)
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.join()

    def has_room(self, run: Run) -> bool:
        taken = sum(busy.threads for _, busy in self._busy.values())
        return not taken or taken + run.threads <= self._threads

    def busy(self) -> bool:
        return bool(self._busy)

    def start(self, run: Run, seen: Record | None) -> None:
        self._idle = [worker for worker in self._idle if worker.process.is_alive()]
        worker = self._idle.pop() if self._idle else self._new_worker()
        self._busy[worker.pipe] = worker, run
        with contextlib.suppress(OSError):  # killed just now: `outcomes` will find out
            worker.pipe.send((run, seen))

    def outcomes(self, timeout: float) -> list[Outcome]:
        ready = set(wait(list(self._busy), timeout))
        return [self._outcome(pipe) for pipe in list(self._busy) if pipe in ready]

    def pause(self) -> None:
        for worker, _ in self._busy.values():
            worker.process.terminate()

    def _new_worker(self) -> _Worker:
        return _Worker(self._store, self._train, self._checkpoint_seconds)

    def _outcome(self, pipe: Connection) -> Outcome:
        worker, run = self._busy.pop(pipe)
        try:
            answer = pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            code = worker.process.exitcode
            # By SIGTERM, or on its own when that was noted before the run had come.
            if code in (0, -signal.SIGTERM) and self._stop():
                return Outcome(run, "paused", "before its first step")
            return Outcome(run, "killed", f"its process ended with code {code}")
        if isinstance(answer, Outcome) and answer.status == "paused":
            worker.pipe.close()
            worker.process.join()  # a worker that was told to stop ends
            return answer
        self._idle.append(worker)
        if isinstance(answer, Exception):
            raise answer
        return answer


class _Worker:
    def __init__(self, store: Store, train: Train | None, checkpoint_seconds: float) -> None:
        # Spawned, not forked: a forked torch may hang in its thread pool or on CUDA.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, store, train, checkpoint_seconds)
        self.process = context.Process(target=_serve, args=arguments)
        with _ctrl_c_ignored():
            self.process.start()
        theirs.close()  # so that the pipe ends when the worker does


@contextlib.contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """A process that is started here ignores Ctrl-C from its first instruction on.

    It reaches every process of the terminal, and the sweep's own decides what it means. Only a main
    thread can have it ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(pipe: Connection, store: Store, train: Train | None, checkpoint_seconds: float) -> None:
    """A worker's life: run in, outcome out, until the pipe is closed or SIGTERM comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for those that a thread has started
    stop = Stop()
    signal.signal(signal.SIGTERM, stop.handle)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while not stop():
        try:
            if not pipe.poll(1.0):  # a signal that is noted does not end a wait
                continue
            run, seen = pipe.recv()
        except (EOFError, OSError):
            return
        answer: Outcome | Exception
        try:
            answer = train_under_lock(run, seen, store, train, stop, checkpoint_seconds)
        except Exception as error:
            answer = error
        with contextlib.suppress(OSError):  # nobody listens; the record is in the store
            pipe.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # a killed sweep must not leave a training behind that nobody asked for

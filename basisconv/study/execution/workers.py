"""Local workers: this process, or processes that train one run after another.

A worker process lives as long as there are runs, because importing torch takes seconds. Each has
a process and a pipe of its own, so the end of one is known at once, with the run that it was
training, and affects no other.
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

from basisconv.study.execution.one_run import Outcome, Trainer
from basisconv.study.execution.stopping import Stop
from basisconv.study.records.run import Record, Run

Executor = Literal["local", "ray"]


class Team(Protocol):
    """Who trains the runs."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None: ...

    def has_room(self, run: Run) -> bool:
        """Whether a run can be started now."""
        ...

    def busy(self) -> bool:
        """Whether a run was started whose outcome has not been returned."""
        ...

    def start(self, run: Run, seen: Record | None) -> None:
        """Have a run trained; see `Trainer.train_under_lock`."""
        ...

    def outcomes(self, timeout: float) -> list[Outcome]:
        """New outcomes, after waiting at most `timeout` seconds for the first."""
        ...

    def pause(self) -> None:
        """Have all running trainings stop with a checkpoint."""
        ...


class InProcess:
    """Trains runs in this process."""

    def __init__(self, trainer: Trainer, stop: Stop) -> None:
        self._trainer, self._stop = trainer, stop
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
        self._outcomes.append(self._trainer.train_under_lock(run, seen, self._stop))

    def outcomes(self, timeout: float) -> list[Outcome]:
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def pause(self) -> None:
        pass  # the training asks `stop` itself


class ProcessTeam:
    """Local processes, each started when first needed.

    All trainings have at most `threads` threads together; a run that needs more runs alone.
    """

    def __init__(self, trainer: Trainer, stop: Stop, threads: int) -> None:
        self._trainer, self._stop, self._threads = trainer, stop, threads
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, Run]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        workers = [*self._idle, *(worker for worker, _ in self._busy.values())]
        for worker in workers:
            worker.pipe.close()
        try:
            # After an error, such as a full disk, the others finish their runs, which may have
            # taken hours; after an interrupt nobody waits.
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
        worker = self._idle.pop() if self._idle else _Worker(self._trainer)
        self._busy[worker.pipe] = worker, run
        with contextlib.suppress(OSError):  # just killed: `outcomes` will notice
            worker.pipe.send((run, seen))

    def outcomes(self, timeout: float) -> list[Outcome]:
        ready = set(wait(list(self._busy), timeout))
        return [self._outcome(pipe) for pipe in list(self._busy) if pipe in ready]

    def pause(self) -> None:
        for worker, _ in self._busy.values():
            worker.process.terminate()

    def _outcome(self, pipe: Connection) -> Outcome:
        worker, run = self._busy.pop(pipe)
        try:
            answer = pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            code = worker.process.exitcode
            # By SIGTERM, or with 0 when that came before the run did.
            if code in (0, -signal.SIGTERM) and self._stop():
                return Outcome(run, "paused", "before its first step")
            return Outcome(run, "killed", f"its process ended with code {code}")
        if isinstance(answer, Outcome) and answer.status == "paused":
            worker.pipe.close()
            worker.process.join()  # it ends after SIGTERM
            return answer
        self._idle.append(worker)
        if isinstance(answer, Exception):
            raise answer
        return answer


class _Worker:
    def __init__(self, trainer: Trainer) -> None:
        # Spawned, not forked: a forked torch may hang in its thread pool or on CUDA.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, trainer))
        with _ctrl_c_ignored():
            self.process.start()
        theirs.close()  # so that the pipe ends when the worker does


@contextlib.contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Processes started here ignore Ctrl-C from their first instruction on.

    Ctrl-C reaches every process of the terminal, and the parent decides what it means. Only a main
    thread can change how it is handled.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(pipe: Connection, trainer: Trainer) -> None:
    """A worker's life: run in, outcome out, until the pipe is closed or SIGTERM comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where another thread started this process
    stop = Stop()
    signal.signal(signal.SIGTERM, stop.handle)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while not stop():
        try:
            if not pipe.poll(1.0):  # a handled signal does not end a wait
                continue
            run, seen = pipe.recv()
        except (EOFError, OSError):
            return
        answer: Outcome | Exception
        try:
            answer = trainer.train_under_lock(run, seen, stop)
        except Exception as error:
            answer = error
        with contextlib.suppress(OSError):  # the parent is gone; the record is in the store
            pipe.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # when the parent is killed, its trainings end

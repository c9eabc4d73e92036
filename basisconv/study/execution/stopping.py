"""When trainings are to stop: their time is over, or a signal asks for it.

A signal is remembered, the current step ends, a checkpoint is written, and only then does the
signal do what it would have done at once.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# One Ctrl-C may arrive twice: at the process and, a moment later, at its group.
_REPEAT_SECONDS = 1.0


class Terminated(SystemExit):
    """SIGTERM, as KeyboardInterrupt is SIGINT.

    A SystemExit, because asyncio lets only that and KeyboardInterrupt out of a task, and papermill
    runs its kernel through tasks.
    """


class Stop:
    """Called before every step: whether to stop the training.

    Args:
        seconds: from now on, after which it says yes.

    Attributes:
        signal: the one that came, if one did; from then on it says yes, too.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self.signal: int | None = None
        self._deadline = time.monotonic() + seconds
        self._received = math.inf

    def __call__(self) -> bool:
        return self.signal is not None or time.monotonic() >= self._deadline

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal.

        Raises:
            KeyboardInterrupt: at a second Ctrl-C.
        """
        now = time.monotonic()
        if number == signal.SIGINT and now - self._received > _REPEAT_SECONDS:
            raise KeyboardInterrupt
        if self.signal is None:
            self.signal, self._received = number, now


@contextmanager
def stop_on_signals(stop: Stop) -> Iterator[None]:
    """In this block SIGINT and SIGTERM go to `stop`; after it, the one that came is raised again.

    Ignored signals (SIGINT under nohup, for one) stay ignored. Outside the main thread nothing is
    changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in ours:
        signal.signal(number, stop.handle)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
    if stop.signal is not None:
        signal.raise_signal(stop.signal)


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """In this block SIGTERM raises `Terminated`, so that files and processes are cleaned up."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

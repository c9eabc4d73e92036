"""When trainings are to be put aside: their time is over, or a signal asks for it.

A signal is noted, the step at hand ends, a checkpoint is written, and only then does the signal
do what it would have done at once.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# One Ctrl-C may come twice: to the process and, a moment later, to its group.
_ECHO_SECONDS = 1.0


class Terminated(SystemExit):
    """SIGTERM, as KeyboardInterrupt is SIGINT.

    Of SystemExit, because asyncio lets that and KeyboardInterrupt alone out of a task: any other
    exception waits in it for somebody who asks, and papermill runs its kernel through tasks.
    """


class Stop:
    """Called before every step: whether to put the training aside.

    Args:
        seconds: from now on, after which it says so.

    Attributes:
        signal: the one that came, if one did; from then on it says so too.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self.signal: int | None = None
        self._deadline = time.monotonic() + seconds
        self._noted = math.inf

    def __call__(self) -> bool:
        return self.signal is not None or time.monotonic() >= self._deadline

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal.

        Raises:
            KeyboardInterrupt: at a second Ctrl-C, of somebody who will not wait.
        """
        now = time.monotonic()
        if number == signal.SIGINT and now - self._noted > _ECHO_SECONDS:
            raise KeyboardInterrupt
        if self.signal is None:
            self.signal, self._noted = number, now


@contextmanager
def stop_on_signals(stop: Stop) -> Iterator[None]:
    """In this block SIGINT and SIGTERM are noted; after it, the one that came is raised again.

    Signals that are ignored (as SIGINT under nohup) stay so, and in another thread than the main
    one nothing is changed.
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

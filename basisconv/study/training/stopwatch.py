"""Wall seconds by part, of work that may be paused and resumed in another process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Stopwatch:
    """Runs from the moment it is made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._spent: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the seconds of a block under a name."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spent[name] = self._spent.get(name, 0.0) + time.perf_counter() - start

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add the `seconds` of an earlier session."""
        for name, spent in seconds.items():
            self._spent[name] = self._spent.get(name, 0.0) + spent

    def seconds(self) -> dict[str, float]:
        """What each part took so far, without open blocks, and "total"."""
        total = self._spent.get("total", 0.0) + time.perf_counter() - self._start
        return {**self._spent, "total": total}

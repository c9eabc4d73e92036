"""The points of an atomic write at which something may go wrong."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from unittest import mock

from basisconv.study.records import files

POINTS = ("opened", "half written", "written", "synced", "renamed")
Act = Callable[[str, str], None]  # the file's own name, the point


@contextmanager
def at_writes(act: Act) -> Iterator[None]:
    """In this block `act` is called at each point of each write, to kill or to raise."""
    names: list[str] = []
    fsync, replace = os.fsync, os.replace

    def opened(path: Path, mode: str) -> _File:
        # The temporary file is .NAME.WRITER.tmp
        names[:] = [Path(path).name[1:].rsplit(".", 2)[0]]
        return _File(open(path, mode), names[0], act)

    def synced(descriptor: int) -> None:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):  # the file's own, not its folder's
            act(names[0], "written")
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        act(names[0], "synced")
        replace(source, target)
        act(names[0], "renamed")

    with (
        mock.patch.object(files, "open", opened, create=True),
        mock.patch.object(files.os, "fsync", synced),
        mock.patch.object(files.os, "replace", renamed),
    ):
        yield


class _File:
    def __init__(self, file: IO[Any], name: str, act: Act) -> None:
        self._file, self._name, self._act = file, name, act
        self.flush, self.fileno = file.flush, file.fileno

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._act(self._name, "opened")
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        self._act(self._name, "half written")
        self._file.write(data[len(data) // 2 :])

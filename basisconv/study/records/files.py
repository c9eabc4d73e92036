"""Files that are complete or absent, and whose damage is noticed.

A killed writer leaves the old file or the new one, never a mixture: bytes go to a temporary file
in the same folder, to the disk, and are then renamed. A JSON file has the sha256 of its own bytes
as its last entry, so a flipped bit, a truncation or an edit by hand is noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The digest is the last entry and covers all bytes but its own 64.
_HEAD = b' "sha256": "'
_TAIL = b'"\n}\n'
_DIGEST = 64

# A temporary file's name: the file's own, then machine (whose process ids these are), process and
# a random part.
_STRAY = re.compile(r"^\..+\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.tmp$")
_STRAY_SECONDS = 24 * 3600


class DamagedFile(ValueError):
    """A file was changed after it was written, or this version cannot read it."""


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write a file completely, or leave the old one.

    Args:
        path: the file; its folder is made when it is missing.
        data: all of its bytes.

    Raises:
        OSError: when the disk is full or the file cannot be written. The old file then stands,
            and no temporary file is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # an interrupt as well
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            reason = f"{error.strerror or error}. Nothing was written; an older file is unchanged"
            raise OSError(error.errno, reason, str(path)) from error
        raise
    _fsync_folder(path.parent)


def _fsync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, on systems that can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def temporary_path(path: Path) -> Path:
    """A new name in a file's folder, for this process only; see `remove_stray_files`."""
    writer = f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.name}.{writer}.tmp")


def canonical(payload: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8.

    Raises:
        ValueError: for NaN and infinities, which JSON lacks.
    """
    text = json.dumps(
        payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def write_json(path: str | Path, payload: Mapping[str, Any]) -> None:
    """Write a readable JSON object that ends with the sha256 of all of its other bytes.

    A file that holds just that already is left alone.

    Args:
        path: the file, written by `write_atomic`.
        payload: JSON values; "sha256" is not free as a key.

    Raises:
        ValueError: if the payload holds the key "sha256", NaN or an infinity.
        OSError: as `write_atomic`.
    """
    if "sha256" in payload:
        raise ValueError(f"{path}: the key 'sha256' is the file's own checksum; rename the entry.")
    text = json.dumps(payload, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    entries = text.removesuffix("}").rstrip("\n").encode()
    start = entries + (b",\n" if payload else b"\n") + _HEAD
    data = start + _digest(start + _TAIL) + _TAIL
    with contextlib.suppress(OSError):
        if Path(path).read_bytes() == data:
            return
    write_atomic(path, data)


def read_json(path: str | Path) -> dict[str, Any]:
    """Read what `write_json` wrote, without the checksum.

    Raises:
        DamagedFile: if the raw bytes are not those that were written.
        FileNotFoundError: if there is no such file.
    """
    data = Path(path).read_bytes()
    start, stated = data[: -_DIGEST - len(_TAIL)], data[-_DIGEST - len(_TAIL) : -len(_TAIL)]
    remedy = "Put back an unchanged copy, or delete the file to have it made again."
    if not (start.endswith(b"\n" + _HEAD) and data.endswith(_TAIL)):
        raise DamagedFile(
            f"{path} ({len(data)} bytes) is cut short or was not written by basisconv: "
            f"expected a JSON object that ends with its sha256. {remedy}"
        )
    found = _digest(start + _TAIL)
    if found != stated:
        raise DamagedFile(
            f"{path} was changed after it was written: expected sha256 "
            f"{stated.decode('ascii', 'backslashreplace')}, found {found.decode()}. {remedy}"
        )
    try:
        payload = json.loads(data)
        del payload["sha256"]
    except (ValueError, TypeError, RecursionError) as error:
        # The checksum is right: somebody made this file on purpose.
        raise DamagedFile(f"{path} is not a JSON object: {error}. {remedy}") from error
    return payload


def remove_stray_files(folder: str | Path) -> None:
    """Remove the temporary files that killed writers left in a folder.

    Files of living processes on this machine stay, and so do those of other machines until they
    are a day old.
    """
    for path in Path(folder).glob(".*.tmp"):
        match = _STRAY.match(path.name)
        if match is None:
            continue
        with contextlib.suppress(FileNotFoundError):  # its writer, or another process, was faster
            old = time.time() - path.stat().st_mtime > _STRAY_SECONDS
            if old or (match[1] == _machine() and not _alive(int(match[2]))):
                path.unlink()


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _alive(pid: int) -> bool:
    if os.name != "posix":  # elsewhere os.kill would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

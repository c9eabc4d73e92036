"""Records on disk: one file a run, named by its id, and one lock a run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from basisconv.study.records.environment import repeats_exactly
from basisconv.study.records.files import DamagedFile, read_json, write_json
from basisconv.study.records.run import Record, Run

_RUN_ID = re.compile("[0-9a-f]{16}")
_NAMED = 10


class MissingRuns(ValueError):
    """Runs that have no record; `run_ids` holds all of them, the message the first few."""

    def __init__(self, run_ids: Sequence[str], folder: Path) -> None:
        super().__init__(run_ids, folder)
        self.run_ids, self.folder = tuple(run_ids), folder

    def __str__(self) -> str:
        more = len(self.run_ids) - _NAMED
        named = ", ".join(self.run_ids[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        return (
            f"{self.folder} has no record of {len(self.run_ids)} of the runs asked for: {named}. "
            "`python -m basisconv run --profile PROFILE` trains what is missing, "
            "`python -m basisconv merge DIR` adds records made elsewhere."
        )


class ConflictingResults(ValueError):
    """Two CPUs of one kind got different results from the same Run."""


@dataclass(frozen=True)
class MergeReport:
    """What became of the records that were to be added, as run ids.

    Attributes:
        added: new, or in place of a failure.
        known: here already with the same result, or failures of runs that have a record here.
        kept: not added, because there is another result of another kind of device or of a GPU.
    """

    added: tuple[str, ...]
    known: tuple[str, ...]
    kept: tuple[str, ...]


class Store:
    """A folder of records."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()  # workers may have another current folder

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r})"

    def path(self, run_id: str) -> Path:
        """Where a run's record is or will be.

        Raises:
            ValueError: if that is not a run id, so no name leads out of the folder.
        """
        if not _RUN_ID.fullmatch(run_id):
            raise ValueError(f"{run_id!r} is not a run id: those are 16 hexadecimal digits.")
        return self.folder / f"{run_id}.json"

    def lock(self, run_id: str) -> FileLock:
        """The lock of whoever trains a run; it is released when the process ends, however."""
        path = self._lock_file(run_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)

    def is_training(self, run_id: str) -> bool:
        """Whether a living process has the run's lock.

        The lock is taken for a moment, because only that shows whether its holder is alive. Who
        wants to train the run at that moment finds it locked, and tries again.
        """
        if not self._lock_file(run_id).exists():
            return False
        try:
            self.lock(run_id).acquire(blocking=False).lock.release()
        except Timeout:
            return True
        return False

    def checkpoints(self, run_id: str) -> Path:
        """The folder of a run's checkpoints, which exists while it is paused or being trained."""
        return self.folder / "checkpoints" / self.path(run_id).stem

    def weights(self, run_id: str) -> Path:
        """The folder of a run's final state, which exists only where it was kept."""
        return self.folder / "weights" / self.path(run_id).stem

    def measured(self, key: str) -> dict[str, Any] | None:
        """What was measured once and is no run's, or None; `key` is a hash of what decides it.

        Raises:
            DamagedFile: if its file is not what was written.
        """
        path = self._measured_file(key)
        return read_json(path) if path.exists() else None

    def put_measured(self, key: str, values: Mapping[str, Any]) -> None:
        """Keep what was measured once.

        Raises:
            OSError: when it cannot be written.
        """
        path = self._measured_file(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, dict(values))

    def _measured_file(self, key: str) -> Path:
        return self.folder / "measured" / self.path(key).name

    def get(self, run_id: str) -> Record | None:
        """A run's record, or None when there is none.

        Raises:
            DamagedFile: if its file is not what was written, or another run's.
        """
        path = self.path(run_id)
        try:
            record = Record.load(path)
        except FileNotFoundError:
            return None
        if record.run_id != run_id:
            raise DamagedFile(
                f"{path} holds the record of run {record.run_id}: it was renamed or copied. "
                "Delete it, or give it back its name."
            )
        return record

    def put(self, record: Record) -> None:
        """Write a record, over an older one of the same run.

        Raises:
            OSError: when it cannot be written; the older one then stands.
        """
        record.save(self.path(record.run_id))

    def write_result(self, record: Record, seen: Record | None) -> None:
        """Write the record of a training; its lock must be held.

        Args:
            record: its result.
            seen: the record at its start. If another was merged meanwhile, the two are compared
                as in `add`.

        Raises:
            OSError: as `put`.
            ConflictingResults: as `add`.
        """
        with self.exclusive():
            if self.get(record.run_id) == seen:
                self.put(record)
            else:
                self.add([record])

    def records(self, run_ids: Iterable[str]) -> dict[str, Record]:
        """The records of runs, by id, in the order asked for.

        Raises:
            MissingRuns: naming those without a record.
            DamagedFile: as `get`.
        """
        found = {run_id: self.get(run_id) for run_id in run_ids}
        missing = [run_id for run_id, record in found.items() if record is None]
        if missing:
            raise MissingRuns(missing, self.folder)
        return {run_id: record for run_id, record in found.items() if record is not None}

    def untrained(self, runs: Iterable[Run], retry_failed: bool = False) -> list[Run]:
        """The runs without a record, each once; with `retry_failed` failed ones too."""
        unique = {run.run_id: run for run in runs}
        return [run for i, run in unique.items() if needs_training(self.get(i), retry_failed)]

    def all(self) -> dict[str, Record]:
        """Every record in the folder, by id.

        Raises:
            DamagedFile: as `get`.
        """
        return self.records(self.ids())

    def ids(self) -> list[str]:
        """The ids of the runs that have a record in the folder, sound or not."""
        stems = (path.stem for path in self.folder.glob("*.json"))
        return sorted(stem for stem in stems if _RUN_ID.fullmatch(stem))

    def add(self, records: Iterable[Record]) -> MergeReport:
        """Add records made elsewhere, under `exclusive`; adding them again changes nothing.

        Raises:
            ConflictingResults: if one has another result than the record here and both were made
                on the same kind of CPU; nothing is written then. GPUs may differ: see
                `environment.repeats_exactly`.
            DamagedFile: as `get`.
        """
        added, known, kept, conflicts = [], [], [], []
        for record in records:
            here = self.get(record.run_id)
            if here is None:
                added.append(record)
            elif record.status == "failed" or here.same_result(record):
                known.append(record)
            elif here.status == "failed":
                added.append(record)
            elif not _must_agree(here, record):
                kept.append(record)
            else:
                conflicts.append(record)
        if conflicts:
            ids = ", ".join(record.run_id for record in conflicts)
            raise ConflictingResults(
                f"{self.folder} has other results of {ids}, made on the same kind of CPU "
                f"({_device_kind(conflicts[0])}), where they must be equal. Nothing was added: "
                "find out which are wrong, delete those files and merge again."
            )
        for record in added:
            self.put(record)
        return MergeReport(_ids(added), _ids(known), _ids(kept))

    def merge(self, folder: str | Path) -> MergeReport:
        """Add all records of another folder, after all of them were verified.

        Raises:
            FileNotFoundError: if there is no such folder, or no record in it.
            DamagedFile: if one of the records is damaged; nothing is written then.
            ConflictingResults: as `add`.
        """
        records = Store(folder).all()
        if not records:
            raise FileNotFoundError(
                f"{folder} holds no records. Name a folder of files like 0123456789abcdef.json, "
                "such as the build/PROFILE/runs of another machine."
            )
        with self.exclusive():
            return self.add(records.values())

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other processes from writing results, merging and publishing."""
        path = self.folder / "locks" / "records.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path):
            yield

    def _lock_file(self, run_id: str) -> Path:
        return self.folder / "locks" / f"{self.path(run_id).stem}.lock"


def needs_training(record: Record | None, retry_failed: bool) -> bool:
    """Whether a run with this record still has to be trained."""
    return record is None or (retry_failed and record.status == "failed")


def _must_agree(one: Record, other: Record) -> bool:
    kind = _device_kind(one)
    return kind == _device_kind(other) and repeats_exactly(kind)


def _device_kind(record: Record) -> str:
    return record.measurement.environment.get("device_kind", "")


def _ids(records: Iterable[Record]) -> tuple[str, ...]:
    return tuple(record.run_id for record in records)

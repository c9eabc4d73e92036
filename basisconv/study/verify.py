"""Compares every record, checkpoint, manifest and cost table of a profile with its checksum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from basisconv.study.experiments.study import Study, cost_table, published_folder
from basisconv.study.records import checkpoint
from basisconv.study.records.files import DamagedFile, read_json
from basisconv.study.records.publish import manifest_path, published
from basisconv.study.records.store import Store
from basisconv.study.timing.costs import MeasuredCosts


@dataclass
class Findings:
    """What was checked.

    Attributes:
        sound: how many files of each kind are unchanged.
        problems: a sentence for each of the others.
    """

    sound: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def check(self, kind: str, look: Callable[[], object]) -> None:
        """Read a file, and count it or keep the error."""
        self.sound.setdefault(kind, 0)
        try:
            look()
        except FileNotFoundError:
            pass  # its training has just removed it
        except (ValueError, OSError) as error:
            self.problems.append(str(error))
        else:
            self.sound[kind] += 1


def verify(study: Study) -> Findings:
    """Check all files on which results depend; nothing is changed.

    These are the records, checkpoints, final weights and measurements of the working store, and
    in paper/runs the published records and measurements, their manifest and the cost table. (For
    data sets see `verify_sets`.)
    """
    findings = Findings()
    folder = published_folder(study.profile.name)
    _check_records(findings, "records", study.store)
    for kind in ("checkpoints", "weights"):
        for path in sorted((study.store.folder / kind).glob("*/*.pt")):
            findings.check(kind, partial(checkpoint.read_checkpoint, path, path.parent.name))
    _check_records(findings, "published records", Store(folder))
    if manifest_path(folder).exists() or _records(Store(folder)):
        findings.check("manifests", partial(_check_manifest, folder))
    table = cost_table(study.profile.name)
    if table.exists():
        findings.check("cost tables", lambda: MeasuredCosts(read_json(table), table, study.profile))
    else:
        try:
            study.check_table()
        except DamagedFile as gone:
            findings.problems.append(str(gone))
    return findings


def _check_records(findings: Findings, kind: str, store: Store) -> None:
    for path in _records(store):
        findings.check(kind, partial(store.get, path.stem))
    for path in sorted((store.folder / "measured").glob("*.json")):
        findings.check("measurements", partial(store.measured, path.stem))


def _records(store: Store) -> list[Path]:
    others = {manifest_path(store.folder).name, cost_table("").name}
    return sorted(path for path in store.folder.glob("*.json") if path.name not in others)


def _check_manifest(folder: Path) -> None:
    if not manifest_path(folder).exists():
        raise DamagedFile(
            f"{manifest_path(folder)} is gone, which names the sections of the records in its "
            "folder. Put it back, or publish their sections again."
        )
    for section in published(folder).values():
        Store(folder).records(section.run_ids)

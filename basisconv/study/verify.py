"""Every record, checkpoint, manifest and cost table of a profile, held against its checksum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from basisconv.study.experiments.study import Study, cost_table, published_folder
from basisconv.study.records import checkpoint
from basisconv.study.records.files import DamagedFile, read_json
from basisconv.study.records.publish import manifest_path, read_manifest
from basisconv.study.records.store import Store
from basisconv.study.timing.costs import MeasuredCosts


@dataclass
class Findings:
    """What was looked at, and what is wrong with it.

    Attributes:
        sound: how many files of each kind are what was written.
        problems: a sentence for each of the others.
    """

    sound: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def check(self, kind: str, look: Callable[[], object]) -> None:
        """Look at a file, and count it or keep what it raises."""
        self.sound.setdefault(kind, 0)
        try:
            look()
        except FileNotFoundError:
            pass  # a training at hand has just removed it
        except (ValueError, OSError) as error:
            self.problems.append(str(error))
        else:
            self.sound[kind] += 1


def verify(study: Study) -> Findings:
    """Look at all files of a profile that results hang on; nothing is changed.

    These are the records and checkpoints of the working store, and beside the paper the published
    records, the manifest of their sections and the cost table. (`data.data_verify` looks at data
    sets.)
    """
    findings = Findings()
    folder = published_folder(study.profile.name)
    _check_records(findings, "records", study.store)
    for path in sorted((study.store.folder / "checkpoints").glob("*/*.pt")):
        findings.check("checkpoints", partial(checkpoint.read_checkpoint, path, path.parent.name))
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


def _records(store: Store) -> list[Path]:
    beside = {manifest_path(store.folder).name, cost_table("").name}
    return sorted(path for path in store.folder.glob("*.json") if path.name not in beside)


def _check_manifest(folder: Path) -> None:
    records, named = Store(folder), set[str]()
    for entry in read_manifest(folder).values():
        if entry.complete:
            records.records(entry.section.run_ids)
        named.update(run_id for section in entry.sections() for run_id in section.run_ids)
    if unnamed := sorted({path.stem for path in _records(records)} - named):
        raise DamagedFile(
            f"{manifest_path(folder)} is gone or older than the records beside it: no section "
            f"names {', '.join(unnamed)}. Put it back, or publish their sections again; or, where "
            "they are what publishing had replaced when it was killed, delete them."
        )

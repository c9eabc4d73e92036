"""Published records: the copies that the paper is built from, and the manifest of its sections.

    paper/runs/<profile>/0123456789abcdef.json   one record
    paper/runs/<profile>/manifest.json           {"sections": {name: {"complete", "section"}}}

A section that grows, by a budget say, stands beside the complete one as its `successor` until it
is complete as well, so that its records can be kept as they come. The manifest is written last,
so that it never names a record that is not there yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from basisconv.study.records.files import DamagedFile, read_json, write_json
from basisconv.study.records.run import SCHEMA, Record, Section, check_schema
from basisconv.study.records.store import MergeReport, MissingRuns, Store


@dataclass(frozen=True)
class PublishReport(MergeReport):
    """What became of a section's records, as run ids.

    Attributes:
        removed: of the section that was replaced, and named by no other.
    """

    removed: tuple[str, ...]


def publish(
    store: Store, section: Section, destination: str | Path, incomplete: bool = False
) -> PublishReport:
    """Copy a section's records to the published ones and mark the section complete.

    Args:
        store: where the records were made.
        section: what is published; one of the same name is replaced, with those of its records
            that no section names any more, but for a successor that is still to come.
        destination: the folder of the profile's published records.
        incomplete: publish what there is of a section whose runs are not all trained, so that
            nothing is lost with this machine. The section is shown once it is complete, and one
            of the same name that is complete already until then.

    Raises:
        MissingRuns: if runs of the section have no record, unless it may be incomplete and was
            not complete before.
        ValueError: if one of them failed, unless it may be incomplete: those are left out then;
            and if what is incomplete would replace published records by none.
        ConflictingResults: if another result of one of them was published already.
        DamagedFile: if a record or the manifest is damaged. In all of these cases nothing is
            written.
    """
    if incomplete:
        found = [store.get(run_id) for run_id in section.run_ids]
        records = [record for record in found if record and record.status != "failed"]
    else:
        records = list(store.records(section.run_ids).values())
        if failed := [record.run_id for record in records if record.status == "failed"]:
            raise ValueError(
                f"Section {section.name} cannot be published: of its runs {', '.join(failed)} "
                "failed. `python -m basisconv run --profile PROFILE --retry-failed` trains them "
                "again."
            )
    with Store(destination).exclusive():
        return _replace(records, section, Path(destination))


def _replace(records: list[Record], section: Section, destination: Path) -> PublishReport:
    """Put a section and its records in the place of what was published of it, being alone."""
    before = read_manifest(destination)
    # What was published before counts: this store may be new, on another machine.
    missing = set(unpublished(section, destination)) - {record.run_id for record in records}
    old = before.get(section.name)
    if missing and old and old.complete and old.section == section:
        raise MissingRuns(sorted(missing), Store(destination).folder)
    entries = {**before, section.name: _entry(old, section, not missing)}
    unnamed = [Store(destination).path(i) for i in sorted(_named(before) - _named(entries))]
    removed = tuple(path.stem for path in unnamed if path.exists())
    if missing and removed:
        raise ValueError(
            f"Section {section.name} as asked for lacks {len(missing)} of its records, and would "
            f"take the place of one with {len(removed)} published records that it has no use for. "
            "That one is kept until the new one is complete: train what is missing and publish it "
            "then, or publish it with the settings (--set) that it was published with."
        )
    report = Store(destination).add(records)
    values = {name: entry.dump() for name, entry in entries.items()}
    write_json(manifest_path(destination), {"schema_version": SCHEMA, "sections": values})
    for path in unnamed:
        path.unlink(missing_ok=True)
    return PublishReport(report.added, report.known, report.kept, removed)


def unpublished(section: Section, destination: str | Path) -> list[str]:
    """The runs of a section that have no published record."""
    there = Store(destination)
    return [run_id for run_id in section.run_ids if there.get(run_id) is None]


def published(destination: str | Path) -> dict[str, Section]:
    """The complete sections of a folder of published records, by name; none without a manifest.

    Whether their records are there, `Store(destination).records(section.run_ids)` tells.

    Raises:
        DamagedFile: if the manifest is not what was written, or is another profile's.
    """
    entries = read_manifest(destination)
    return {name: entry.section for name, entry in entries.items() if entry.complete}


class Entry(NamedTuple):
    """A section in the manifest.

    Attributes:
        complete: all of its records were published.
        section: its arms and facts.
        successor: of a complete one, what shall take its place and lacks records yet.
    """

    complete: bool
    section: Section
    successor: Section | None = None

    def sections(self) -> tuple[Section, ...]:
        """The section and its successor."""
        return (self.section,) if self.successor is None else (self.section, self.successor)

    def dump(self) -> dict[str, Any]:
        """The entry as the manifest has it; no successor leaves no trace."""
        values = {"complete": self.complete, "section": self.section.model_dump(mode="json")}
        if self.successor is not None:
            values["successor"] = self.successor.model_dump(mode="json")
        return values


def _entry(before: Entry | None, section: Section, complete: bool) -> Entry:
    """What becomes of a section's entry when it is published again."""
    if before is None or not before.complete:
        return Entry(complete, section)
    if not complete:
        return Entry(True, before.section, section)
    later = before.successor
    done = later is None or set(later.run_ids) <= set(section.run_ids)
    return Entry(True, section, None if done else later)


def read_manifest(destination: str | Path) -> dict[str, Entry]:
    """Every section of a folder of published records, by name.

    Raises:
        DamagedFile: if the manifest is not what was written, or is another profile's.
    """
    path = manifest_path(destination)
    try:
        values = read_json(path)
    except FileNotFoundError:
        return {}
    check_schema(path, values)
    try:
        sections: dict[str, Any] = values["sections"]
        entries = {
            name: Entry(
                bool(entry["complete"]),
                Section.model_validate(entry["section"]),
                Section.model_validate(entry["successor"]) if "successor" in entry else None,
            )
            for name, entry in sections.items()
        }
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise DamagedFile(
            f"{path} is not a manifest of sections: {error}. Put back an unchanged copy, or "
            "delete it and publish its sections again."
        ) from error
    profiles = {s.profile for entry in entries.values() for s in entry.sections()}
    if others := profiles - {path.parent.name}:
        raise DamagedFile(
            f"{path} is the manifest of profile {', '.join(others)}: put back the one that belongs "
            "there."
        )
    return entries


def _named(entries: Mapping[str, Entry]) -> set[str]:
    return {i for entry in entries.values() for s in entry.sections() for i in s.run_ids}


def manifest_path(destination: str | Path) -> Path:
    """Where a folder of published records names its sections."""
    return Path(destination) / "manifest.json"

"""Published records: the copies that the paper is built from, and the manifest of its sections.

    paper/runs/<profile>/0123456789abcdef.json   one record
    paper/runs/<profile>/manifest.json           {"sections": {name: {"complete", "section"}}}

The manifest is written last, so it never names a record that is not there yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from basisconv.study.records.files import DamagedFile, read_json, write_json
from basisconv.study.records.run import SCHEMA, Section, check_schema
from basisconv.study.records.store import MergeReport, MissingRuns, Store


class Entry(NamedTuple):
    """A section in the manifest, and whether all of its records were published."""

    complete: bool
    section: Section


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
    """Copy a section's records to the published ones, and the section to the manifest.

    Args:
        store: where the records were made. What was published before counts as well.
        section: what is published; one of the same name is replaced, with those of its records
            that no section names any more.
        destination: the folder of the profile's published records.
        incomplete: copy the records that there are of a section whose runs are not all trained,
            so that they are kept. A complete section of that name stays in the manifest.

    Raises:
        MissingRuns: if runs of the section have no record, unless it may be incomplete.
        ValueError: if one of them failed, unless it may be incomplete.
        ConflictingResults: if another result of one of them was published already.
        DamagedFile: if a record or the manifest is damaged. In all of these cases nothing is
            written.
    """
    target = Store(destination)
    found = [record for run_id in section.run_ids if (record := store.get(run_id))]
    records = [record for record in found if record.status != "failed"]
    trained = {record.run_id for record in records}
    if failed := [record.run_id for record in found if record.run_id not in trained]:
        if not incomplete:
            raise ValueError(
                f"Section {section.name} cannot be published: of its runs {', '.join(failed)} "
                "failed. `python -m basisconv run --profile PROFILE --retry-failed` trains them "
                "again."
            )
    missing = [i for i in unpublished(section, destination) if i not in trained]
    if missing and not incomplete:
        raise MissingRuns(missing, store.folder)
    with target.exclusive():
        before = read_manifest(destination)
        complete = trained.issuperset(unpublished(section, destination))
        old = before.get(section.name)
        stays = old is not None and old.complete and not complete
        entries = before if stays else {**before, section.name: Entry(complete, section)}
        report = target.add(records)
        key = section.facts.get("measured")
        if isinstance(key, str) and (values := store.measured(key)) is not None:
            target.put_measured(key, values)
        manifest = {
            name: {"complete": entry.complete, "section": entry.section.model_dump(mode="json")}
            for name, entry in entries.items()
        }
        write_json(manifest_path(destination), {"schema_version": SCHEMA, "sections": manifest})
        # Incomplete sections may yet need records that no complete one names.
        unnamed = _named(before) - _named(entries) if complete else ()
        paths = [path for path in map(target.path, sorted(unnamed)) if path.exists()]
        for path in paths:
            path.unlink()
    removed = tuple(path.stem for path in paths)
    return PublishReport(report.added, report.known, report.kept, removed)


def unpublished(section: Section, destination: str | Path) -> list[str]:
    """The runs of a section that have no published record."""
    there = Store(destination)
    return [run_id for run_id in section.run_ids if there.get(run_id) is None]


def published(destination: str | Path) -> dict[str, Section]:
    """The complete sections of a folder of published records, by name; none without a manifest.

    `Store(destination).records(section.run_ids)` are their records.

    Raises:
        DamagedFile: if the manifest was changed after it was written, or is another profile's.
    """
    entries = read_manifest(destination)
    return {name: entry.section for name, entry in entries.items() if entry.complete}


def read_manifest(destination: str | Path) -> dict[str, Entry]:
    """Every section of a folder of published records, by name.

    Raises:
        DamagedFile: if the manifest was changed after it was written, or is another profile's.
    """
    path = manifest_path(destination)
    try:
        values = read_json(path)
    except FileNotFoundError:
        return {}
    check_schema(path, values)
    try:
        entries = {
            name: Entry(bool(entry["complete"]), Section.model_validate(entry["section"]))
            for name, entry in values["sections"].items()
        }
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise DamagedFile(
            f"{path} is not a manifest of sections: {error}. Put back an unchanged copy, or "
            "delete it and publish its sections again."
        ) from error
    if others := {entry.section.profile for entry in entries.values()} - {path.parent.name}:
        raise DamagedFile(
            f"{path} is the manifest of profile {', '.join(others)}: put back the one that belongs "
            "there."
        )
    return entries


def manifest_path(destination: str | Path) -> Path:
    """Where a folder of published records names its sections."""
    return Path(destination) / "manifest.json"


def _named(entries: Mapping[str, Entry]) -> set[str]:
    return {run_id for entry in entries.values() for run_id in entry.section.run_ids}

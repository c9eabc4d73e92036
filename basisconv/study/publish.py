"""Published records: the copies that the paper is built from, and the manifest of its sections.

    paper/runs/<profile>/0123456789abcdef.json   one record
    paper/runs/<profile>/manifest.json           {"sections": {name: {"complete", "section"}}}

The manifest is written last, so that it never names a record that is not there yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from basisconv.study.files import DamagedFile, read_json, write_json
from basisconv.study.run import SCHEMA, Section, check_schema
from basisconv.study.store import MergeReport, Store


def publish(store: Store, section: Section, destination: str | Path) -> MergeReport:
    """Copy a section's records to the published ones and mark the section complete.

    Args:
        store: where the records were made.
        section: what is published; one of the same name is replaced.
        destination: the folder of the profile's published records.

    Raises:
        MissingRuns: if runs of the section have no record.
        ValueError: if one of them failed.
        ConflictingResults: if another result of one of them was published already.
        DamagedFile: if a record or the manifest is damaged. In all of these cases nothing is
            written.
    """
    records = store.records(section.run_ids)
    failed = [run_id for run_id, record in records.items() if record.status == "failed"]
    if failed:
        raise ValueError(
            f"Section {section.name} cannot be published: of its runs {', '.join(failed)} failed. "
            "`python -m basisconv run --profile PROFILE --retry-failed` trains them again."
        )
    sections = {**published(destination), section.name: section}
    report = Store(destination).add(records.values())
    entries = {
        name: {"complete": True, "section": entry.model_dump(mode="json")}
        for name, entry in sections.items()
    }
    write_json(_manifest(destination), {"schema_version": SCHEMA, "sections": entries})
    return report


def published(destination: str | Path) -> dict[str, Section]:
    """The complete sections of a folder of published records, by name; none without a manifest.

    Whether their records are there, `Store(destination).records(section.run_ids)` tells.

    Raises:
        DamagedFile: if the manifest is not what was written, or is another profile's.
    """
    path = _manifest(destination)
    try:
        values = read_json(path)
    except FileNotFoundError:
        return {}
    check_schema(path, values)
    try:
        entries: dict[str, Any] = values["sections"]
        sections = {
            name: Section.model_validate(entry["section"])
            for name, entry in entries.items()
            if entry["complete"]
        }
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise DamagedFile(
            f"{path} is not a manifest of sections: {error}. Put back an unchanged copy, or "
            "delete it and publish its sections again."
        ) from error
    if others := {section.profile for section in sections.values()} - {path.parent.name}:
        raise DamagedFile(
            f"{path} is the manifest of profile {', '.join(others)}: put back the one that belongs "
            "there."
        )
    return sections


def _manifest(destination: str | Path) -> Path:
    return Path(destination) / "manifest.json"

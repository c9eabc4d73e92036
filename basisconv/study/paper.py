"""Which results the paper shows, and where its PDF goes.

Once the headline section is published (`paper/runs/<profile>/`) the paper shows the published
sections, made from their records without training. Until then it shows what a reproduction left
in `build/<profile>/`, marked as preliminary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from pathlib import Path

from basisconv.study.experiments.study import Study, published_folder
from basisconv.study.records.environment import ROOT
from basisconv.study.records.files import write_atomic
from basisconv.study.records.publish import published
from basisconv.study.records.run import Record, Section
from basisconv.study.records.store import Store
from basisconv.study.report import CLAIMS_NAME, Report, build, build_claims, compile_paper

HEADLINE = "02_all_layers"
FINDINGS = ROOT / "docs" / "findings.md"
_BLOCK = re.compile(r"(<!-- claims[^>]*-->\n).*?(<!-- end of claims -->)", re.DOTALL)


def build_paper(study: Study) -> Path:
    """Compile the PDF of a profile from what its notebooks saved.

    Raises:
        ValueError: if they have not saved all that the text asks for.
    """
    name = study.profile.name
    if not (study.folder / "numbers").exists():
        raise ValueError(
            f"Profile {name!r} has not been reproduced here, so there is nothing to show. "
            f"Do that first: make reproduce PROFILE={name}"
        )
    return compile_paper(
        study.folder, study.folder / "paper.pdf", preliminary=study.profile.preliminary
    )


def build_published(profile: str) -> Path:
    """Make tables, figures, numbers, the PDF and the table of claims from published records.

    Files of other sections and profiles are removed, because the PDF shows whatever it finds.

    Raises:
        MissingRuns: naming missing records of a complete section.
    """
    sections, records = _published(profile)
    reports = {name: _report(name, profile, sections, records) for name in (*sections, CLAIMS_NAME)}
    results, figures = ROOT / "paper" / "results", ROOT / "figures"
    _remove_others({path for report in reports.values() for path in report.save(results, figures)})
    path = compile_paper(results, ROOT / "paper" / "paper.pdf", figures=figures)
    text = FINDINGS.read_text(encoding="utf-8")
    write_atomic(FINDINGS, with_claims(text, reports[CLAIMS_NAME]).encode())
    return path


def _remove_others(made: Set[Path]) -> None:
    """Remove older files of the same kinds from the folders of those just made."""
    for folder, suffix in {(path.parent, path.suffix) for path in made}:
        for path in set(folder.glob(f"*{suffix}")) - made:
            path.unlink(missing_ok=True)


def published_report(name: str) -> Report:
    """What the paper and a notebook show of a published section; nothing is trained.

    Raises:
        ValueError: if the section is not published.
        MissingRuns: naming missing records of any published section.
    """
    profile = best_published()
    sections, records = _published(profile) if profile else ({}, {})
    if profile is None or name not in (*sections, CLAIMS_NAME):
        raise ValueError(
            f"Section {name!r} is not published yet. Published: {', '.join(sections) or 'none'}."
        )
    return _report(name, profile, sections, records)


def _published(profile: str) -> tuple[dict[str, Section], dict[str, Record]]:
    folder = published_folder(profile)
    sections = published(folder)
    ids = (run_id for section in sections.values() for run_id in section.run_ids)
    return sections, Store(folder).records(ids)


def _report(
    name: str, profile: str, sections: Mapping[str, Section], records: Mapping[str, Record]
) -> Report:
    if name == CLAIMS_NAME:
        return build_claims(sections, records, profile)
    return build(sections[name], records)


def with_claims(findings: str, claims: Report) -> str:
    """The page of findings with a new table of claims between its two comments.

    Raises:
        ValueError: if the comments are not there.
    """
    table = claims.tables["claims"].markdown()
    text, found = _BLOCK.subn(lambda block: f"{block[1]}{table}{block[2]}", findings)
    if not found:
        raise ValueError(f"{FINDINGS.name} has lost the two comments around its table of claims.")
    return text


def best_published() -> str | None:
    """The profile that the paper shows: paper, else desk, if its headline is published."""
    for profile in ("paper", "desk"):
        if HEADLINE in published(published_folder(profile)):
            return profile
    return None

"""Which results the paper shows, and where its PDF goes.

Published sections (`paper/runs/<profile>/`) are shown as soon as the headline section is among
them: their tables, figures and numbers are made again from the records, without training. Until
then the paper is built from what a reproduction left in `build/<profile>/`, marked as preliminary.
"""

from __future__ import annotations

from pathlib import Path

from basisconv.study.environment import ROOT
from basisconv.study.protocol import Study, published_folder
from basisconv.study.publish import published
from basisconv.study.report import build, build_claims, compile_paper
from basisconv.study.store import Store

HEADLINE = "02_all_layers"


def build_paper(study: Study) -> Path:
    """Compile the PDF of a profile from what its notebooks saved.

    Raises:
        ValueError: if they have not saved all that the text asks for.
    """
    return compile_paper(
        study.folder, study.folder / "paper.pdf", preliminary=study.profile.preliminary
    )


def build_published(profile: str) -> Path:
    """Make tables, figures, numbers and the PDF from a profile's published records.

    Raises:
        MissingRuns: naming records of a complete section that are not there.
    """
    folder = published_folder(profile)
    sections, store = published(folder), Store(folder)
    results = ROOT / "paper" / "results"
    every = store.records(i for section in sections.values() for i in section.run_ids)
    reports = [build(section, every) for section in sections.values()]
    reports.append(build_claims(sections, every, profile))
    for report in reports:
        report.save(results)
    return compile_paper(results, ROOT / "paper" / "paper.pdf")


def best_published() -> str | None:
    """The profile that the paper shows: paper, else desk, if its headline is published."""
    for profile in ("paper", "desk"):
        if HEADLINE in published(published_folder(profile)):
            return profile
    return None

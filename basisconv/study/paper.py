"""The paper: which results it shows, and the PDF of `paper/paper.typ` with them.

Once the headline section is published (`paper/runs/<profile>/`) the paper shows the published
sections, made from their records without training. Until then it shows what a reproduction left
in `build/<profile>/`, marked as preliminary.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import typst

from basisconv.study.experiments.profiles import load_profile
from basisconv.study.experiments.registry import EXPERIMENTS
from basisconv.study.experiments.study import Study, published_folder
from basisconv.study.records.environment import ROOT
from basisconv.study.records.files import write_atomic
from basisconv.study.records.publish import published
from basisconv.study.records.run import Record, Section
from basisconv.study.records.store import Store
from basisconv.study.report import CLAIMS_NAME, Report, build, build_claims

SOURCE = ROOT / "paper" / "paper.typ"
HEADLINE = "02_all_layers"
FINDINGS = ROOT / "docs" / "findings.md"
_BLOCK = re.compile(r"(<!-- claims[^>]*-->\n).*?(<!-- end of claims -->)", re.DOTALL)
# A fixed instant, so that the same results give the same bytes.
_TIMESTAMP = 0


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


def compile_paper(
    results: Path, output: Path, *, figures: Path | None = None, preliminary: bool | None = None
) -> Path:
    """Build the PDF from saved reports; the same results give the same bytes.

    Sections that have no `numbers/<section>.json` print "not yet measured".

    Args:
        results: a folder that `Report.save` filled.
        output: where the PDF goes; written whole or not at all.
        figures: where `Report.save` put the figures; None for `figures` in the same folder.
        preliminary: write the profile's name across every page; by default as the profile says.

    Returns:
        `output`.

    Raises:
        ValueError: if the folder has no section, sections of two profiles, or lacks a number,
            table or figure that the text asks for.
    """
    results = results.resolve()
    figures = (figures or results / "figures").resolve()
    # typst reads nothing above its root: the folder that holds the text and the results.
    root = Path(os.path.commonpath([SOURCE.parent, results, figures]))
    inputs = {
        "results": "/" + results.relative_to(root).as_posix(),
        "figures": "/" + figures.relative_to(root).as_posix(),
        "index": json.dumps(index(results, preliminary)),
    }
    try:
        made = typst.compile(
            str(SOURCE), root=str(root), ignore_system_fonts=True, format="pdf",
            sys_inputs=inputs, timestamp=_TIMESTAMP,
        )  # fmt: skip
    except typst.TypstError as error:
        hints = " ".join(getattr(error, "hints", ()))
        raise ValueError(
            f"The paper cannot be built from {results}: {error}. {hints} Run the notebooks of "
            "that profile again, so that its tables, figures and numbers are complete."
        ) from error
    write_atomic(output, made)
    return output


def index(results: Path, preliminary: bool | None = None) -> dict[str, Any]:
    """Which sections a results folder holds, and what to print for the others.

    Raises:
        ValueError: if there is no section, there are sections of two profiles, or a file of numbers
            is damaged.
    """
    found = {}
    for name in EXPERIMENTS:
        path = results / "numbers" / f"{name}.json"
        if path.exists():
            try:
                found[name] = json.loads(path.read_text(encoding="utf-8"))["profile"]
            except (ValueError, TypeError, KeyError):
                raise ValueError(
                    f"{path} is not what a notebook saved. Delete it, and run {name} again."
                ) from None
    profiles = sorted(set(found.values()))
    if len(profiles) != 1:
        raise ValueError(
            f"{results / 'numbers'} holds sections of {len(profiles)} profiles "
            f"({', '.join(profiles) or 'none'}); the paper shows one. Run the notebooks of one "
            "profile first: make reproduce."
        )
    profile = load_profile(profiles[0])
    return {
        "profile": profile.name,
        "planned": profile.model_dump(mode="json", by_alias=True),
        "preliminary": profile.preliminary if preliminary is None else preliminary,
        "sections": {
            name: {
                "measured": name in found,
                "text": f"{e.title[:1].upper()}{e.title[1:]}: not yet measured at this profile.",
            }
            for name, e in EXPERIMENTS.items()
        },
    }

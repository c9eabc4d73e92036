"""The PDF: `paper/paper.typ` with the numbers, tables and figures of one results folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import typst

from basisconv.study.experiments.profiles import load_profile
from basisconv.study.experiments.registry import EXPERIMENTS
from basisconv.study.records.environment import ROOT
from basisconv.study.records.files import write_atomic

SOURCE = ROOT / "paper" / "paper.typ"

# A fixed instant, so that the same results give the same bytes.
_TIMESTAMP = 0


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

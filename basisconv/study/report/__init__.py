"""Records become tables, figures, claims and the numbers that the paper prints.

    report = build(section, records)    # one section of the paper
    report.tables["frontier"]           # a table in a notebook
    report.figures["frontier"]          # a figure
    report.numbers["headline"]          # a sentence made from intervals and tests
    report.save(folder)                 # figures/, tables/, numbers/

Nothing here trains, and nothing knows networks: what a section holds is all that a report sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from basisconv.study.experiments.profiles import load_profile
from basisconv.study.experiments.registry import EXPERIMENTS, NOTEBOOKS
from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, places, style
from basisconv.study.report.claims import NAME as CLAIMS_NAME
from basisconv.study.report.claims import build_claims
from basisconv.study.report.output import Plot, Report, Table

__all__ = ["CLAIMS_NAME", "SECTIONS", "Plot", "Report", "Table", "build", "build_claims"]

_BUILDERS: dict[str, Callable[[Section, Mapping[str, Record]], Report]] = {
    name: import_module(f"{__name__}.{experiment.report}").build
    for name, experiment in EXPERIMENTS.items()
    if name != CLAIMS_NAME
}

SECTIONS: tuple[str, ...] = NOTEBOOKS
"""The sections of the paper, in its order."""


def build(
    section: Section, records: Mapping[str, Record], preliminary: bool | None = None
) -> Report:
    """Tables, figures and numbers of one section, with notes on lost runs and on the devices.

    Args:
        section: its arms and facts.
        records: at least those of the section's runs, by run id.
        preliminary: write the profile's name across the figures; by default as the profile says.

    Raises:
        ValueError: for a section without a report, or one whose runs have no records.
    """
    if section.name not in _BUILDERS:
        raise ValueError(
            f"There is no report for section {section.name!r}. Sections: "
            f"{', '.join(_BUILDERS)}; {CLAIMS_NAME} is made by build_claims."
        )
    trial = load_profile(section.profile).preliminary if preliminary is None else preliminary
    with style.drawing():
        report = _BUILDERS[section.name](section, records)
        for name, plot in report.figures.items() if trial else ():
            if name != "method":  # it draws no measurement
                style.watermark(plot.figure, section.profile)
    lost = arms.lost_note(arms.measure(section, records))
    trained = places.trained_on(records[run_id] for run_id in section.run_ids)
    notes = [*report.numbers.get("notes", []), *lost, *trained]
    report.numbers["notes"] = list(dict.fromkeys(notes))
    return report

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

from basisconv.study.experiments.registry import EXPERIMENTS, NOTEBOOKS
from basisconv.study.records.run import Record, Section
from basisconv.study.report import places, style
from basisconv.study.report.claims import NAME as CLAIMS_NAME
from basisconv.study.report.claims import build_claims
from basisconv.study.report.output import Plot, Report, Table
from basisconv.study.report.paper import compile_paper

__all__ = [
    "CLAIMS_NAME", "SECTIONS", "Plot", "Report", "Table", "build", "build_claims", "compile_paper",
]  # fmt: skip

# A report has the name of its experiment's module.
_BUILDERS: dict[str, Callable[[Section, Mapping[str, Record]], Report]] = {
    name: import_module(f"{__name__}.{experiment.module.__name__.rpartition('.')[2]}").build
    for name, experiment in EXPERIMENTS.items()
    if name != CLAIMS_NAME
}

SECTIONS: tuple[str, ...] = NOTEBOOKS
"""The sections of the paper, in its order."""


def build(
    section: Section, records: Mapping[str, Record], preliminary: bool | None = None
) -> Report:
    """Tables, figures and numbers of one section.

    Args:
        section: its arms and facts.
        records: at least those of the section's runs, by run id.
        preliminary: write the profile's name across the figures; by default for the profiles
            smoke and quick.

    Raises:
        ValueError: for a section without a report, or one whose runs have no records.
    """
    if section.name not in _BUILDERS:
        raise ValueError(
            f"There is no report for section {section.name!r}. Sections: "
            f"{', '.join(_BUILDERS)}; {CLAIMS_NAME} is made by build_claims."
        )
    report = _BUILDERS[section.name](section, records)
    own = (records[run_id] for run_id in section.run_ids)
    report.numbers["notes"] += places.trained_on(own)
    trial = section.profile in style.TRIAL_PROFILES if preliminary is None else preliminary
    if trial:
        for name, plot in report.figures.items():
            if name != "method":  # it draws no measurement
                with style.drawing():
                    style.watermark(plot.figure, section.profile)
    return report

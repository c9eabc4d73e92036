"""A section's report, made and saved where the paper finds it."""

from __future__ import annotations

from basisconv.study.experiments.pipeline import sections
from basisconv.study.experiments.study import Study
from basisconv.study.records.files import write_json
from basisconv.study.records.run import Section
from basisconv.study.report import CLAIMS_NAME, build, build_claims
from basisconv.study.report.output import Report


def make_report(study: Study, section: Section) -> Report:
    """Tables, figures and numbers of a section, saved where the paper finds them.

    What was saved is listed in `outputs/<section>.json`, by which the driver knows that a
    notebook came to its end.
    """
    profile = study.profile
    if section.name == CLAIMS_NAME:
        others = sections(study)
        records = study.store.records(i for other in others.values() for i in other.run_ids)
        report = build_claims(others, records, profile.name, profile.preliminary)
    else:
        report = build(section, study.store.records(section.run_ids), profile.preliminary)
    saved = [str(path.relative_to(study.folder)) for path in report.save(study.folder)]
    write_json(study.folder / "outputs" / f"{section.name}.json", {"outputs": saved})
    return report

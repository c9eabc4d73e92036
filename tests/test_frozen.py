"""What is published stays as it is: the runs of each section, and the numbers made from them.

`frozen.json` holds a sha256 of each table's and figure's data and of each number and each table's
cells that the paper prints; not of captions, titles, sentences or images. Rewrite it only when
a new edition of the records replaces the published one, after `make paper`, and look at what
changed in it:

    python tests/test_frozen.py
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from basisconv.study.experiments.registry import TRAINED, draft
from basisconv.study.experiments.study import Study, published_folder
from basisconv.study.records.environment import ROOT
from basisconv.study.records.files import canonical
from basisconv.study.records.publish import published
from basisconv.study.records.store import Store
from basisconv.study.report import build, build_claims, style

EDITION = published_folder("desk")
FROZEN = Path(__file__).with_name("frozen.json")


@pytest.mark.parametrize("name", [name for name in TRAINED if name in published(EDITION)])
def test_a_published_section_is_what_its_profile_drafts_today(name: str) -> None:
    before = published(EDITION)[name]
    now = draft(Study.open("desk", runs=EDITION), name).section()
    assert [arm.label for arm in now.arms] == [arm.label for arm in before.arms]
    others = {}
    for arm, old in zip(now.arms, before.arms, strict=True):
        new, kept = arm.model_dump(mode="json"), old.model_dump(mode="json")
        if fields := [field for field in kept if new[field] != kept[field]]:
            others[f"{arm.label} at {arm.budget}"] = fields
    assert not others, f"other arms than the published ones: {others}"
    assert now.facts == before.facts
    assert now == before


def save_reports(results: Path, figures: Path) -> None:
    """The data and numbers of every published section and of the claims; no images."""
    sections = published(EDITION)
    records = Store(EDITION).records(i for s in sections.values() for i in s.run_ids)
    reports = [build(section, records) for section in sections.values()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "FORMATS", ())
        for report in (*reports, build_claims(sections, records, "desk")):
            report.save(results, figures)


def digests(results: Path, figures: Path) -> dict[str, str]:
    """The sha256 of all that is frozen, by name."""
    data: dict[str, bytes] = {}
    for kind, folder in (("table", results / "tables"), ("figure", figures)):
        data |= {f"{kind} {p.stem}": p.read_bytes() for p in folder.glob("*.csv")}
    for path in (results / "numbers").glob("*.json"):
        numbers = json.loads(path.read_text(encoding="utf-8"))
        for name, value in numbers["values"].items():
            data[f"value {name} of {path.stem}"] = canonical(value)
        for name, table in numbers["tables"].items():
            data[f"cells of table {name}"] = canonical(table["rows"])
    return {name: hashlib.sha256(held).hexdigest() for name, held in sorted(data.items())}


def changed(now: dict[str, str]) -> list[str]:
    """The names of all that differs from what is frozen, is gone or is new."""
    frozen = json.loads(FROZEN.read_text(encoding="utf-8"))
    return sorted(name for name in frozen.keys() | now.keys() if frozen.get(name) != now.get(name))


def test_the_published_records_give_the_frozen_numbers(tmp_path: Path) -> None:
    save_reports(tmp_path / "results", tmp_path / "figures")
    differs = changed(digests(tmp_path / "results", tmp_path / "figures"))
    assert not differs, f"made from the same records, these differ: {differs}"


def test_the_committed_numbers_are_the_frozen_ones() -> None:
    differs = changed(digests(ROOT / "paper" / "results", ROOT / "figures"))
    assert not differs, f"in paper/results and figures these differ: {differs}"


if __name__ == "__main__":
    now = digests(ROOT / "paper" / "results", ROOT / "figures")
    print("changed:", *changed(now) if FROZEN.exists() else ("all",), sep="\n  ")
    FROZEN.write_text(json.dumps(now, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

"""The PDF: built from generated numbers alone, the same bytes every time, or not at all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import synthetic
import typst

from basisconv.study import paper, report

FOLDER = paper.SOURCE.parent
SECTIONS = FOLDER / "sections"


def save_all(folder: Path, profile: str = "desk", without: tuple[str, ...] = ()) -> Path:
    sections, records = synthetic.all_sections(profile)
    kept = {name: section for name, section in sections.items() if name not in without}
    for section in kept.values():
        report.build(section, records).save(folder)
    if "10_claims" not in without:
        report.build_claims(kept, records, profile).save(folder)
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_all(tmp_path_factory.mktemp("results"))


@pytest.fixture
def copy(results: Path, tmp_path: Path) -> Path:
    """A results folder that a test may break."""
    return Path(shutil.copytree(results, tmp_path / "copy"))


def told(results: Path, kind: str) -> str:
    """All text of the paper's elements of one kind, as typst sees it."""
    found = typst.query(
        str(paper.SOURCE), kind, root="/", ignore_system_fonts=True,
        sys_inputs={
            "results": str(results), "figures": str(results / "figures"),
            "index": json.dumps(paper.index(results)),
        },
    )  # fmt: skip
    return found if isinstance(found, str) else found.decode()


def test_the_same_results_give_the_same_bytes(results: Path, copy: Path, tmp_path: Path) -> None:
    first = paper.compile_paper(results, tmp_path / "a.pdf").read_bytes()
    second = paper.compile_paper(copy, tmp_path / "elsewhere" / "b.pdf").read_bytes()
    assert first.startswith(b"%PDF") and len(first) > 100_000
    assert first == second


def test_every_section_has_its_figures_and_tables(results: Path) -> None:
    sections, records = synthetic.all_sections()
    made = [report.build(section, records) for section in sections.values()]
    made.append(report.build_claims(sections, records, "desk"))
    figures = json.loads(told(results, "figure"))
    labels = {entry["label"].strip("<>") for entry in figures}
    assert labels == {f"fig-{name}" for r in made for name in r.figures} | {
        f"tab-{name}" for r in made for name in r.tables
    }


def test_the_second_edition_has_its_figures_and_tables(tmp_path: Path) -> None:
    made = report.build(*synthetic.named_arms(tmp_path / "runs"))
    made.save(tmp_path)
    assert paper.compile_paper(tmp_path, tmp_path / "paper.pdf").stat().st_size > 50_000
    labels = {entry["label"].strip("<>") for entry in json.loads(told(tmp_path, "figure"))}
    assert labels == {f"fig-{name}" for name in made.figures} | {
        f"tab-{name}" for name in made.tables
    }
    assert "per doubling" in json.dumps(made.numbers["values"])


def drop_number(folder: Path) -> None:
    path = folder / "numbers" / "02_all_layers.json"
    numbers = json.loads(path.read_text())
    del numbers["headline"]
    path.write_text(json.dumps(numbers))


def drop_figure(folder: Path) -> None:
    (folder / "figures" / "skip.pdf").unlink()


def drop_table(folder: Path) -> None:
    path = folder / "numbers" / "10_claims.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tables": {}}))


@pytest.mark.parametrize(
    ("damage", "named"),
    [(drop_number, "headline"), (drop_figure, r"skip\.pdf"), (drop_table, "claims")],
)
def test_what_is_missing_stops_the_build(
    damage: Callable[[Path], None], named: str, copy: Path, tmp_path: Path
) -> None:
    damage(copy)
    output = tmp_path / "paper.pdf"
    output.write_bytes(b"the older one")
    with pytest.raises(ValueError, match=rf"cannot be built from .*{named}"):
        paper.compile_paper(copy, output)
    assert output.read_bytes() == b"the older one"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", report.SECTIONS)
def test_a_section_that_was_not_measured_says_so(name: str, copy: Path, tmp_path: Path) -> None:
    (copy / "numbers" / f"{name}.json").unlink()
    paper.compile_paper(copy, tmp_path / "paper.pdf")
    text = paper.index(copy)["sections"][name]["text"]
    assert text.endswith("not yet measured at this profile.")
    assert text in told(copy, "emph")


def test_the_paper_knows_every_section(results: Path) -> None:
    assert tuple(paper.index(results)["sections"]) == report.SECTIONS


def test_sections_of_two_profiles_or_of_none_are_refused(copy: Path, tmp_path: Path) -> None:
    sections, records = synthetic.all_sections("quick")
    report.build(sections["04_selection"], records).save(copy)
    with pytest.raises(ValueError, match=r"sections of 2 profiles \(desk, quick\)"):
        paper.compile_paper(copy, tmp_path / "paper.pdf")
    with pytest.raises(ValueError, match=r"sections of 0 profiles \(none\)"):
        paper.compile_paper(tmp_path / "nothing", tmp_path / "paper.pdf")
    assert not (tmp_path / "paper.pdf").exists()


LONG = ("02_all_layers", "03_sensitivity", "04_selection", "05_skip_training", "06_timing")


def test_trial_profiles_are_watermarked_and_report_no_results(tmp_path: Path) -> None:
    folder = save_all(tmp_path, "quick", without=LONG)
    assert paper.index(folder)["preliminary"]
    assert not paper.index(folder, preliminary=False)["preliminary"]
    marked = paper.compile_paper(folder, tmp_path / "a.pdf").read_bytes()
    plain = paper.compile_paper(folder, tmp_path / "b.pdf", preliminary=False).read_bytes()
    assert marked != plain


# What prose may not hold: a result typed by hand. Numbers come from the files; those that stand
# in the text are the constants below, by section, each as it is written there.
NAMES = ("ResNet-18", "CIFAR-10", "arXiv 2408.06024")
CONSTANTS = {
    "abstract": ["15 %", "95 %"],  # the paper's claim, quoted
    "introduction": ["15 %"],
    "method": [],
    "protocol": ["32 × 32", "3 × 3", "500", "20", "95 %", "±0.2", "{ 50 }", "{ 128 }"],
    "results": [],
    "frontier": [],
    "comparisons": [],
    "claims": [],
    "discussion": [],
    "choices": ["3.6", "27"],  # of equation 3 at f = 1/4; columns of the stem's kernel
    "appendix": [],
}
MATHS = ("introduction", "method", "protocol", "choices")  # where equations have digits


def typed_numbers(name: str, source: str) -> list[str]:
    """Numbers in a section's prose that are neither constants nor part of the markup."""
    text = re.sub(r"//.*", "", source)
    text = re.sub(r"^#import.*$", "", text, flags=re.M)
    text = re.sub(r'"[^"]*"', "", text)  # names of sections, figures, tables; words in maths
    text = re.sub(r"[@<][\w-]+>?", "", text)  # references and labels
    text = re.sub(r"\b[\d.]+(fr|pt|em|mm)\b", "", text)
    text = re.sub(r"\bcolumns: 1\b", "", text)
    if name in MATHS:
        text = re.sub(r"\$[^$]*\$", "", text)
    for constant in (*NAMES, *CONSTANTS[name]):
        text = text.replace(constant, "")
    return re.findall(r"[\d.,]*\d[\d.,]*(?: ?%)?", text)


def test_all_sections_are_scanned() -> None:
    assert {path.stem for path in SECTIONS.glob("*.typ")} == set(CONSTANTS)
    prose = (FOLDER / "paper.typ").read_text(encoding="utf-8").split("#show: paper.with(")[1]
    assert re.findall(r"\d+", prose) == ["2408", "06024"]


@pytest.mark.parametrize("name", CONSTANTS)
def test_no_result_is_typed_by_hand(name: str) -> None:
    assert typed_numbers(name, (SECTIONS / f"{name}.typ").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "typed", ["reaches 84.2 % accuracy", "a gain of $0.4$ points", "is 2.4× faster", "in 3 seeds"]
)
def test_the_scan_finds_a_typed_result(typed: str) -> None:
    source = (SECTIONS / "results.typ").read_text(encoding="utf-8")
    assert len(typed_numbers("results", f"{source}\nThe network {typed}.\n")) == 1


def test_citations_and_references_match() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in SECTIONS.glob("*.typ"))
    known = set(re.findall(r"^@\w+\{(\w+),", (FOLDER / "refs.bib").read_text(), flags=re.M))
    labels = set(re.findall(r"<([\w-]+)>", text))
    cited = {key for key in re.findall(r"@([\w]+)(?![\w-])", text) if key not in labels}
    assert cited - {"fig", "tab"} == known

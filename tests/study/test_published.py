"""The paper from published records alone, and what the README and the findings say of them."""

from __future__ import annotations

import json
import re
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from synthetic import all_sections

from basisconv.study import paper
from basisconv.study.experiments.profiles import load_profile
from basisconv.study.experiments.registry import NOTEBOOKS
from basisconv.study.experiments.study import Study, published_folder
from basisconv.study.records.files import read_json, write_json
from basisconv.study.records.publish import publish, published
from basisconv.study.records.store import MissingRuns, Store
from basisconv.study.report import build_claims

README = paper.ROOT / "README.md"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of the test's own with a synthetic desk study published in it."""
    monkeypatch.setattr(paper, "ROOT", tmp_path)
    findings = tmp_path / "docs" / "findings.md"
    monkeypatch.setattr(paper, "FINDINGS", findings)
    monkeypatch.setattr(paper, "published_folder", lambda name: tmp_path / "runs" / name)
    findings.parent.mkdir()
    findings.write_text("# x\n<!-- claims -->\nOLD TABLE\n<!-- end of claims -->\ny\n")
    sections, records = all_sections("desk")
    store = Store(tmp_path / "store")
    for record in records.values():
        store.put(record)
    for section in sections.values():
        publish(store, section, tmp_path / "runs" / "desk")
    return tmp_path


def test_the_paper_is_rebuilt_from_records_in_under_a_minute_and_is_the_same(root: Path) -> None:
    assert paper.best_published() == "desk"
    start = time.process_time()
    path = paper.build_published("desk")
    assert time.process_time() - start < 60  # this process's, for others may want the machine
    assert path == root / "paper" / "paper.pdf" and path.read_bytes().startswith(b"%PDF")
    files = [p for p in root.rglob("*") if p.is_file()]
    names = {p.relative_to(root).as_posix() for p in files}
    assert {"figures/frontier.svg", "figures/method.png", "figures/sensitivity.csv"} <= names
    assert {"paper/results/tables/claims.md", "paper/results/numbers/10_claims.json"} <= names
    before = {p: p.read_bytes() for p in files}
    paper.build_published("desk")
    assert {p: p.read_bytes() for p in files} == before
    text = paper.FINDINGS.read_text()
    assert text.startswith(
        "# x\n<!-- claims -->\n| the paper's claim, as described |"
    ) and text.endswith("claims -->\ny\n")
    assert "OLD TABLE" not in text


def test_what_is_published_no_more_leaves_the_paper(root: Path) -> None:
    gone = paper.published_report("04_selection")
    paper.build_published("desk")
    there = set(root.rglob("*"))
    results, figures = root / "paper" / "results", root / "figures"
    expected = {path for path in there if path.stem == gone.name}
    for folder, names in ((results / "tables", gone.tables), (figures, gone.figures)):
        expected |= {path for name in names for path in folder.glob(f"{name}.*")}
    (figures / "README.md").touch()

    manifest = root / "runs" / "desk" / "manifest.json"
    values = read_json(manifest)
    values["sections"][gone.name]["complete"] = False
    write_json(manifest, values)
    paper.build_published("desk")
    left = set(root.rglob("*"))
    assert there - left == expected and left - there == {figures / "README.md"}
    assert not paper.index(results)["sections"][gone.name]["measured"]
    assert f"needs {gone.name}" in paper.FINDINGS.read_text()


def test_a_missing_record_stops_the_build_and_is_named(root: Path) -> None:
    section = published(root / "runs" / "desk")["03_sensitivity"]
    gone = section.run_ids[3]
    Store(root / "runs" / "desk").path(gone).unlink()
    with pytest.raises(MissingRuns, match=f"{gone}.*basisconv run"):
        paper.build_published("desk")
    assert not (root / "paper").exists()


def test_a_profile_that_was_not_reproduced_is_named_whatever_is_published(root: Path) -> None:
    smoke = replace(Study.open("smoke"), folder=root / "build")
    with pytest.raises(ValueError, match="^Profile 'smoke' has not been reproduced here"):
        paper.build_paper(smoke)
    assert not smoke.folder.exists()


def test_without_a_headline_nothing_counts_as_published(root: Path) -> None:
    (root / "runs" / "desk" / "manifest.json").unlink()
    assert paper.best_published() is None


def test_the_findings_show_what_is_published_now() -> None:
    shown = paper.best_published()
    sections = published(published_folder(shown)) if shown else {}
    store = Store(published_folder(shown or "desk"))
    records = store.records(i for s in sections.values() for i in s.run_ids)
    claims = build_claims(sections, records, shown or "desk")
    text = paper.FINDINGS.read_text(encoding="utf-8")
    assert paper.with_claims(text, claims) == text


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_stores_what_is_published_now(name: str) -> None:
    book = nbformat.read(paper.ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    stored = {
        match[1]: cell.outputs[0].data["text/html"]
        for cell in book.cells
        if (match := re.fullmatch(r'published\.tables\["(\w+)"\]', cell.source))
    }
    try:
        report = paper.published_report(name)
    except ValueError:
        assert not stored
    else:
        assert stored, "the section is published, and its notebook does not show it"
        now = {table: report.tables[table]._repr_html_() for table in stored}
        assert stored == now, (
            "The published tables are not those that the notebook holds. Look at the difference "
            "first: `make notebooks` would store an error just as well. If it is meant, run that."
        )


def test_the_desk_frontier_has_the_subset_that_was_selected() -> None:
    """What 04 took, not what somebody typed."""
    taken = published(published_folder("desk"))["04_selection"].facts["selected"]
    assert load_profile("desk").notebooks.all_layers.selected == taken


def test_the_desk_frontier_has_the_skip_whose_mean_was_best() -> None:
    folder = published_folder("desk")
    section = published(folder)["05_skip_training"]
    store = Store(folder)
    reached = {
        arm.label: statistics.fmean(
            record.result.val_accuracy
            for record in store.records(arm.run_ids).values()
            if record.result
        )
        for arm in section.arms
        if arm.method == "skip"
    }
    best = next(arm for arm in section.arms if arm.label == max(reached, key=reached.__getitem__))
    named = load_profile("desk").notebooks
    assert named.all_layers.best_skip == named.widths.skip
    assert named.widths.skip.model_dump().items() <= best.detail.items()


def test_only_what_is_published_can_be_shown(root: Path) -> None:
    report = paper.published_report("03_sensitivity")
    paper.build_published("desk")
    built = root / "paper" / "results" / "tables" / "sensitivity.md"
    assert built.read_text() == report.tables["sensitivity"].markdown()
    with pytest.raises(ValueError, match="'99_none' is not published yet. Published: 00_m"):
        paper.published_report("99_none")
    (root / "runs" / "desk" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"Published: none\."):
        paper.published_report("10_claims")


def test_the_findings_are_the_papers_numbers() -> None:
    text = paper.FINDINGS.read_text(encoding="utf-8").split("<!-- claims")[0]
    printed = re.findall(r"\d+\.\d+", text)
    files = sorted((paper.ROOT / "paper" / "results" / "numbers").glob("*.json"))
    written = set(re.findall(r"\d+\.\d+", " ".join(p.read_text("utf-8") for p in files)))
    assert printed and set(printed) - written == set()


def test_the_readmes_figures_are_those_of_the_sections_that_it_names() -> None:
    text = README.read_text(encoding="utf-8").split("## Is it for you?\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\|[^|]*\| (.+?) \|.*\(notebooks/(\w+)\.ipynb\) \|$", text, re.M)
    assert len(rows) == 7
    numbers = paper.ROOT / "paper" / "results" / "numbers"
    for answer, section in rows:
        saved = json.loads((numbers / f"{section}.json").read_text("utf-8"))
        # A value as it is, or cells of one row of a table.
        lines = [json.dumps(saved["values"], ensure_ascii=False), saved["headline"] or ""]
        lines += [" ".join(row) for table in saved["tables"].values() for row in table["rows"]]
        asked = re.findall(r"[−+]?\d[\d.,]*", answer)
        assert asked and any(
            answer in line or set(asked) <= set(re.findall(r"[−+]?\d[\d.,]*", line))
            for line in lines
        ), (answer, section)
    # And those of the advice under the table.
    advice = re.findall(r"\d+\.\d+", text.rsplit("|\n", 1)[1])
    written = " ".join(path.read_text("utf-8") for path in numbers.glob("*.json"))
    assert advice and set(advice) - set(re.findall(r"\d+\.\d+", written)) == set()


def test_the_speed_ups_in_the_guide_are_the_benchmarks() -> None:
    # The published ones: whoever runs `make bench` adds to the others.
    devices = published(published_folder("desk"))["06_timing"].facts["devices"]
    measured = []
    for kind, precision, batch, form in (
        ("AVX2", "float32", 64, "subset"), ("AVX512", "float32", 64, "subset"),
        ("AVX512", "bfloat16", 64, "subset"), ("H200", "bfloat16", 128, "subset"),
        ("H200", "bfloat16", 128, "full"),
    ):  # fmt: skip
        (bench,) = [kept for kept in devices if kept["device"]["device_kind"].endswith(kind)]
        quarter = [
            row for row in (*bench["layers"], *bench["networks"])
            if (row["arm"], row["ratio"], row["batch"]) == (form, 0.25, batch)
            and row["precision"] == precision
        ]  # fmt: skip
        layers = [
            row["both"]["speedup"] for row in quarter
            if "layer" in row and "1×1" not in row["layer"] and not row["layer"].startswith("3→")
        ]  # fmt: skip
        steps = {
            (row["network"], row["width"]): row["speedup"]
            for row in quarter if row.get("what") == "training step"
        }  # fmt: skip
        networks = [("resnet18", 64), ("resnet18", 16), ("vgg16_bn", 64), ("resnet50", 64)]
        measured += [min(layers), max(layers), *(steps[network] for network in networks)]
    text = (paper.ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    shown = text.split("<!-- speed-ups -->\n")[1].split("<!-- end")[0]
    assert re.findall(r"\d+\.\d+", shown) == [f"{speedup:.1f}" for speedup in measured]


def test_the_readmes_example_prints_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    text = README.read_text(encoding="utf-8")
    example, output = re.findall("```(?:python|text)\n(.*?)```", text, re.S)
    names: dict[str, Any] = {}
    exec(example, names)
    assert capsys.readouterr().out == output
    batch = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(names["dense"](batch), names["small"](batch), rtol=1e-3, atol=1e-4)
    assert names["optimizer"].param_groups


def test_findings_without_the_comments_are_an_error() -> None:
    with pytest.raises(ValueError, match="comments"):
        paper.with_claims("# x\n", build_claims({}, {}, "desk"))

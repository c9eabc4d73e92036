"""The driver over small notebooks of the test's own: every way to fail is a failure."""

from __future__ import annotations

import os
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from basisconv.study import paper, reproduce
from basisconv.study.profiles import NOTEBOOKS, load_profile
from basisconv.study.protocol import Study
from basisconv.study.reproduce import NotebookFailed, check_notebook, declared, fingerprint
from basisconv.study.store import Store

NAME = "01_baseline"
PARAMETERS = 'profile = ""\nsettings = []\nepochs = 0'
# What make_report does last: the outputs, and the list of them.
WRITES = (
    "from pathlib import Path\n"
    "from basisconv.study.files import write_json\n"
    "folder = Path({folder!r})\n"
    "(folder / 'table.csv').write_text(str(epochs))\n"
    "write_json(folder / 'outputs' / '01_baseline.json', "
    "{{'outputs': ['table.csv']}})"
)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    folder = tmp_path / "results"
    (folder / "outputs").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(reproduce, "SOURCES", tmp_path / "notebooks")
    monkeypatch.setattr(reproduce, "NOTEBOOKS", (NAME,))

    def build_paper(study: Study) -> Path:
        (study.folder / "paper.pdf").write_bytes(b"%PDF")
        return study.folder / "paper.pdf"

    monkeypatch.setattr(paper, "build_paper", build_paper)
    return Study(load_profile("smoke"), Store(folder / "runs"), folder)


def write_notebook(study: Study, *cells: str, parameters: str = PARAMETERS) -> None:
    first = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    sources = [cell.format(folder=str(study.folder)) for cell in cells]
    book = new_notebook(cells=[first, *map(new_code_cell, sources)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    book.metadata["language_info"] = {"name": "python"}
    nbformat.write(book, reproduce.SOURCES / f"{NAME}.ipynb")


def test_a_notebook_runs_with_the_profiles_parameters_once(study: Study) -> None:
    write_notebook(study, WRITES)
    paths = reproduce.reproduce(study, [])
    assert paths == [study.folder / "table.csv", study.folder / "paper.pdf"]
    assert (study.folder / "table.csv").read_text() == "2.0"  # smoke's epochs, not the cell's 0
    finished = study.folder / "notebooks" / f"{NAME}.ipynb"
    assert finished.exists() and not list(study.folder.rglob("*.running.ipynb"))
    before = finished.stat().st_mtime_ns
    reproduce.reproduce(study, [])
    assert finished.stat().st_mtime_ns == before
    # A missing output makes it run again.
    (study.folder / "table.csv").unlink()
    reproduce.reproduce(study, [])
    assert finished.stat().st_mtime_ns > before and (study.folder / "table.csv").exists()


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("raise KeyError('the reason')", "failed in cell 3: KeyError: 'the reason'"),
        ("import sys; sys.exit(0)", "ended without writing its outputs"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", f"{NAME} failed"),
        ("pass", "ended without writing its outputs"),
    ],
)
def test_every_failure_is_one(study: Study, cell: str, words: str) -> None:
    write_notebook(study, cell)
    with pytest.raises(NotebookFailed, match=words):
        reproduce.reproduce(study, [])
    assert not (study.folder / "notebooks" / f"{NAME}.ipynb").exists()
    assert not (study.folder / "paper.pdf").exists()
    with pytest.raises(NotebookFailed, match="lacks .*make reproduce PROFILE=smoke"):
        declared(study)


def test_a_failure_after_a_success_is_no_success(study: Study) -> None:
    """The outputs of the last time do not vouch for this time."""
    write_notebook(study, WRITES)
    reproduce.reproduce(study, [])
    write_notebook(study, "import sys; sys.exit(0)")
    with pytest.raises(NotebookFailed, match="ended without"):
        reproduce.reproduce(study, [])


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ('profile = ""\nsettings = []', r"lacks \['epochs'\]"),
        (PARAMETERS + "\nepoch = 1", r"has \['epoch'\]"),
    ],
)
def test_parameters_that_do_not_fit_stop_the_driver_before_it_starts(
    study: Study, parameters: str, words: str
) -> None:
    write_notebook(study, WRITES, parameters=parameters)
    with pytest.raises(ValueError, match=words):
        reproduce.reproduce(study, [])
    assert not (study.folder / "notebooks").exists()


def test_the_fingerprint_sees_cells_and_parameters(study: Study) -> None:
    write_notebook(study, WRITES)
    source = reproduce.SOURCES / f"{NAME}.ipynb"
    stamp = fingerprint(source, {"epochs": 2})
    os.utime(source, (time.time() + 9, time.time() + 9))
    assert fingerprint(source, {"epochs": 2}) == stamp
    assert fingerprint(source, {"epochs": 3}) != stamp
    write_notebook(study, WRITES + "\npass")
    assert fingerprint(source, {"epochs": 2}) != stamp


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_notebooks_take_every_profiles_parameters(name: str) -> None:
    for profile in ("smoke", "quick", "desk", "paper"):
        given = load_profile(profile).parameters(name)
        check_notebook(name, {"profile": profile, "settings": [], **given})

"""The driver over small notebooks of the test's own: every way to fail is a failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from basisconv.study import paper, reproduce
from basisconv.study.experiments.profiles import load_profile
from basisconv.study.experiments.registry import NOTEBOOKS
from basisconv.study.experiments.study import Study
from basisconv.study.records.store import Store
from basisconv.study.reproduce import NotebookFailed, check_notebook, check_outputs, fingerprint

NAME = "01_baseline"
PARAMETERS = (
    'profile = ""\nsettings = []\nparameters = {"epochs": 0, "recipe": None, "threads": None}'
)
# What make_report does last: the outputs, and the list of them.
WRITES = (
    "from pathlib import Path\n"
    "from basisconv.study.records.files import write_json\n"
    "folder = Path({folder!r})\n"
    "(folder / 'table.csv').write_text(str(parameters['epochs']))\n"
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


def test_a_notebook_gets_the_settings_and_runs_in_the_checkout(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cell = "import os; assert settings == ['width=8'], settings; assert os.getcwd() == {root!r}"
    write_notebook(study, cell.replace("{root!r}", repr(str(reproduce.ROOT))), WRITES)
    reproduce.reproduce(study, ["width=8"])
    (study.folder / "table.csv").write_text("")
    with pytest.raises(NotebookFailed, match="lacks table.csv"):
        check_outputs(study)


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
        check_outputs(study)


INTERRUPTED = """
import sys
from pathlib import Path

from basisconv.study.cli import main
from basisconv.study import reproduce
from basisconv.study.experiments.profiles import load_profile
from basisconv.study.experiments.study import Study
from basisconv.study.records.store import Store

folder = Path(sys.argv[1])
reproduce.SOURCES, reproduce.NOTEBOOKS = folder.parent / "notebooks", ("01_baseline",)
study = Study(load_profile("smoke"), Store(folder / "runs"), folder)
Study.open = lambda *args, **kwargs: study
sys.exit(main(["reproduce", "--profile", "smoke"]))
"""


@pytest.mark.parametrize(
    ("number", "rc", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_in_a_notebook_ends_with_one_sentence(
    study: Study, tmp_path: Path, number: int, rc: int, word: str
) -> None:
    """The cell's traceback, which asyncio prints when nobody has asked for it, is not one."""
    started = tmp_path / "started"
    write_notebook(study, f"import time; open({str(started)!r}, 'w').close(); time.sleep(60)")
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    process = subprocess.Popen(
        [sys.executable, str(script), str(study.folder)], stderr=subprocess.PIPE, text=True
    )
    while not started.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == rc
    assert printed.splitlines()[0] == f"{NAME}: running" and "Traceback" not in printed
    assert printed.splitlines()[-1].startswith(f"basisconv: {word};")
    assert not (study.folder / "notebooks" / f"{NAME}.ipynb").exists()


def test_a_failure_after_a_success_is_a_failure(study: Study) -> None:
    """The outputs of the last time do not vouch for this time."""
    write_notebook(study, WRITES)
    reproduce.reproduce(study, [])
    write_notebook(study, "import sys; sys.exit(0)")
    with pytest.raises(NotebookFailed, match="ended without"):
        reproduce.reproduce(study, [])
    with pytest.raises(NotebookFailed, match=f"lacks {NAME}"):
        check_outputs(study)
    # Nor does a list of outputs, where a later cell failed.
    write_notebook(study, WRITES, "1 / 0")
    with pytest.raises(NotebookFailed, match="ZeroDivisionError"):
        reproduce.reproduce(study, [])
    with pytest.raises(NotebookFailed, match=f"lacks {NAME}"):
        check_outputs(study)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ('profile = ""\nsettings = []\nparameters = {}', r"lacks \['epochs', "),
        (PARAMETERS + "\nepoch = 1", r"has \['epoch'\]"),
        (PARAMETERS.replace('"epochs"', "'epoch': 1, 'epochs'"), r"has \['epoch'\]"),
        ('profile = ""\nsettings = []\nhalf = len(profile)', "more than literals"),
    ],
)
def test_parameters_that_do_not_fit_stop_the_driver_before_it_starts(
    study: Study, parameters: str, words: str
) -> None:
    write_notebook(study, WRITES, parameters=parameters)
    with pytest.raises(ValueError, match=words):
        reproduce.reproduce(study, [])
    assert not (study.folder / "notebooks").exists()


def test_the_fingerprint_sees_all_that_decides_the_outputs(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_notebook(study, WRITES)
    source = reproduce.SOURCES / f"{NAME}.ipynb"
    stamp = fingerprint(study, source, {"epochs": 2})
    os.utime(source, (time.time() + 9, time.time() + 9))
    assert fingerprint(study, source, {"epochs": 2}) == stamp
    assert fingerprint(study, source, {"epochs": 3}) != stamp
    # A setting of the profile that is no parameter of the notebook; another notebook's.
    for change in ("training.learning_rate=0.3", "notebooks.03_sensitivity.epochs=2"):
        other = replace(study, profile=load_profile("smoke", (change,)))
        assert fingerprint(other, source, {"epochs": 2}) != stamp
    table = tmp_path / "costs.json"
    monkeypatch.setattr(reproduce, "cost_table", lambda name: table)
    measured = replace(study, profile=load_profile("smoke", ("costs=table",)))
    before = fingerprint(measured, source, {"epochs": 2})
    table.write_text("a table")
    assert fingerprint(measured, source, {"epochs": 2}) != before
    assert fingerprint(study, source, {"epochs": 2}) == stamp
    # Who trains decides no output.
    for change in ("executor=ray", "gpu_per_run=0.5"):
        other = replace(study, profile=load_profile("smoke", (change,)))
        assert fingerprint(other, source, {"epochs": 2, "settings": [change]}) == stamp
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    code = tmp_path / "basisconv" / "study" / "report" / "arms.py"
    code.parent.mkdir(parents=True)
    code.write_text("a = 1")
    before = fingerprint(study, source, {"epochs": 2})
    code.write_text("a = 2")
    stamp = fingerprint(study, source, {"epochs": 2})
    assert stamp != before
    write_notebook(study, WRITES + "\npass")
    assert fingerprint(study, source, {"epochs": 2}) != stamp


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_notebooks_take_every_profiles_parameters(name: str) -> None:
    for profile in ("smoke", "quick", "desk", "paper"):
        given = load_profile(profile).parameters(name)
        check_notebook(name, {"profile": profile, "settings": [], "parameters": given})

"""`make torture` on a small scale; `tests/torture-report.md` is the last full one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from torture import SHORT, Line, Scale
from torture.__main__ import REPORT, TRIALS, report

from basisconv.study.records.environment import environment

Trials = Callable[[Path, Scale], list[Line]]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11's fork server drops `sys.path`, and what it cannot import is not preloaded:
    every session would then begin with four seconds of imports."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


@pytest.mark.filterwarnings("ignore:a checkpoint was refused")
@pytest.mark.parametrize("trials", TRIALS, ids=lambda trials: trials.__name__)
def test_nothing_is_lost_or_believed(trials: Trials, tmp_path: Path) -> None:
    lines = trials(tmp_path / "trials", SHORT)
    assert lines and all(line.trials for line in lines)
    assert [line for line in lines if not line.passed] == []


def test_the_report_counts_what_failed() -> None:
    text = report([Line("a", 1, "fine", True), Line("b", 2, "lost", False)], 60)
    assert "1 of 2 lines are not as wanted" in text and "| b | 2 | lost | **NO** |" in text
    assert f"Commit {environment()['commit']}, " in text


def test_the_last_full_report_is_as_wanted() -> None:
    text = REPORT.read_text()
    assert "; 0 of " in text and "**NO**" not in text and "\nCommit " in text

"""What the tests of the study share."""

from __future__ import annotations

from pathlib import Path

import pytest

from basisconv.study.experiments.study import Study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """The smoke profile's, with an empty store of the test's own."""
    return Study.open("smoke", runs=tmp_path / "runs")

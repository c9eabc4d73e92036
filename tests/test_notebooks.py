"""The committed notebooks: executed, thin, at the smoke profile, and worth comparing."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest

from basisconv.study.experiments.profiles import load_profile
from basisconv.study.experiments.registry import NOTEBOOKS
from basisconv.study.reproduce import parameters_of

FOLDER = Path(__file__).parents[1] / "notebooks"


def code(name: str) -> list[Any]:
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    return [cell for cell in book.cells if cell.cell_type == "code"]


def tags(cell: Any) -> list[str]:
    return list(cell.metadata.get("tags", []))


def test_the_notebooks_are_those_of_the_profiles() -> None:
    assert sorted(p.stem for p in FOLDER.glob("*.ipynb")) == sorted(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_parameters_are_literals_and_those_of_the_smoke_profile(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    values = parameters_of(path)
    smoke = load_profile("smoke").parameters(name)
    assert values == {"profile": "smoke", "settings": [], "parameters": smoke}
    assert papermill.inspect_notebook(str(path)).keys() == values.keys()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_ran_in_order_and_one_at_least_is_compared(name: str) -> None:
    cells = code(name)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    compared = [c for c in cells if "nbval-ignore-output" not in tags(c) and c.outputs]
    assert compared, "nbval would compare nothing"
    for cell in compared:
        assert {o.output_type for o in cell.outputs} == {"stream"}
        assert {o.name for o in cell.outputs} == {"stdout"}
    assert not [o for c in cells for o in c.outputs if o.output_type == "error"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_define_nothing_and_name_no_place(name: str) -> None:
    for cell in code(name):
        assert "%" not in {line[:1] for line in cell.source.splitlines()}, "a magic"
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, (ast.FunctionDef, ast.ClassDef))
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    home = str(FOLDER.parent.parent)
    assert f'"{home}' not in text and f"{home}/" not in text

"""The driver: every notebook in order through papermill, then the paper.

papermill writes a notebook's output on errors as well, so it goes to a file with `.running` in its
name, which is renamed after a success. A notebook is up to date, and skipped, when sources,
profile, cost table, cells and parameters are those of its last success and its outputs exist.
"""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from basisconv.study.execution.stopping import Terminated
from basisconv.study.experiments.cost_table import ensure_costs
from basisconv.study.experiments.registry import NOTEBOOKS
from basisconv.study.experiments.study import Study, cost_table
from basisconv.study.records.environment import ROOT
from basisconv.study.records.files import canonical, read_json, write_json

SOURCES = ROOT / "notebooks"


class NotebookFailed(RuntimeError):
    """A cell raised an error, or a notebook ended without its outputs."""


def reproduce(study: Study, settings: list[str]) -> list[Path]:
    """Run the notebooks that are not up to date, in order, and build the paper.

    Args:
        study: the profile's study.
        settings: the changes of its profile, which the notebooks repeat.

    Returns:
        Every file that the notebooks declared, the PDF last.

    Raises:
        ValueError: if a notebook's parameters cell does not have the profile's parameters.
        NotebookFailed: at the first failure, with the cell's error.
    """
    parameters = {
        name: {
            "profile": study.profile.name,
            "settings": settings,
            "parameters": study.profile.parameters(name),
        }
        for name in NOTEBOOKS
    }
    for name, given in parameters.items():
        check_notebook(name, given)
    ensure_costs(study)
    for name, given in parameters.items():
        _run(study, name, given)
    from basisconv.study.paper import build_paper

    build_paper(study)
    return check_outputs(study)


def check_outputs(study: Study) -> list[Path]:
    """The files of a finished reproduction.

    Raises:
        NotebookFailed: naming what is missing.
    """
    paths = [study.folder / path for name in NOTEBOOKS for path in _outputs(study, name)]
    paths.append(study.folder / "paper.pdf")
    missing = [path for path in paths if not path.exists() or path.stat().st_size == 0]
    # A failed notebook may have the list of its outputs without a success.
    unfinished = [
        name
        for name in NOTEBOOKS
        if not (_done(study, name).exists() and outputs_file(study, name).exists())
    ]
    if missing or unfinished:
        lacking = [str(path.relative_to(study.folder)) for path in missing] + unfinished
        raise NotebookFailed(
            f"{study.folder} lacks {', '.join(lacking)}. "
            f"Make them: make reproduce PROFILE={study.profile.name}"
        )
    return paths


def check_notebook(name: str, given: dict[str, Any]) -> None:
    """Compare a notebook's parameters cell with what will be passed to it.

    papermill only warns of a name that the notebook does not have, and ignores a mapping's keys.

    Raises:
        ValueError: naming the parameters that are unknown or missing.
    """
    path = SOURCES / f"{name}.ipynb"
    if not path.exists():
        raise ValueError(f"{path} does not exist; the notebooks are {', '.join(NOTEBOOKS)}.")
    has, wants = _names(parameters_of(path)), _names(given)
    unknown, missing = sorted(wants - has), sorted(has - wants)
    if unknown or missing:
        raise ValueError(
            f"{path.name} does not fit the profile: its parameters cell lacks {unknown} and has "
            f"{missing}, which the profile does not give."
        )


def parameters_of(path: Path) -> dict[str, Any]:
    """The values of a notebook's parameters cell.

    Raises:
        ValueError: if it has no such cell, or one that holds more than literals.
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        if "parameters" in cell["metadata"].get("tags", []):
            values: dict[str, Any] = {}
            for statement in ast.parse("".join(cell["source"])).body:
                # A value derived from another would not follow when that is replaced.
                match statement:
                    case ast.Assign(targets=[ast.Name(id=name)], value=value):
                        with suppress(ValueError):
                            values[name] = ast.literal_eval(value)
                            continue
                raise ValueError(f"{path.name} has more than literals in its parameters cell.")
            return values
    raise ValueError(f"{path.name} has no parameters cell.")


def _names(values: dict[str, Any]) -> set[str]:
    return {*values, *values.get("parameters", {})}


def _run(study: Study, name: str, given: dict[str, Any]) -> None:
    import papermill

    source, folder = SOURCES / f"{name}.ipynb", study.folder / "notebooks"
    stamp = fingerprint(study, source, given)
    if _up_to_date(study, name, stamp):
        print(f"{name}: up to date", file=sys.stderr)
        return
    print(f"{name}: running", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    running, finished = folder / f"{name}.running.ipynb", folder / f"{name}.ipynb"
    for old in (outputs_file(study, name), _done(study, name)):
        old.unlink(missing_ok=True)  # they are of the last success
    try:
        papermill.execute_notebook(
            str(source), str(running), parameters=given, cwd=str(ROOT), progress_bar=False,
            kernel_name="python3", stderr_file=sys.stderr,
            # The kernel would warn of unencrypted local sockets, and report an interrupt as an
            # error. An error in a cell comes back as an exception.
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        raise NotebookFailed(
            f"{name} failed in cell {error.exec_count}: {error.ename}: {error.evalue}\n"
            f"The unfinished notebook: {running}"
        ) from None
    except (KeyboardInterrupt, Terminated):
        # Nothing awaits the cell any more, and asyncio would print its traceback at exit.
        logging.getLogger("asyncio").disabled = True
        raise
    except Exception as error:  # a kernel that died, a notebook that cannot be read
        raise NotebookFailed(f"{name} failed: {type(error).__name__}: {error}") from error
    # A cell that called sys.exit(0), or a kernel that was killed, passes papermill.
    if not outputs_file(study, name).exists():
        raise NotebookFailed(
            f"{name} ended without writing its outputs. The unfinished notebook: {running}"
        )
    os.replace(running, finished)
    write_json(_done(study, name), {"fingerprint": stamp})


def fingerprint(study: Study, source: Path, given: dict[str, Any]) -> str:
    """A digest of everything that decides a notebook's outputs, except machine and records.

    It covers the whole profile: the settings of the Runs and the seeds are every notebook's, and
    04 and 10 read what others made. It does not cover who trains.
    """
    profile = study.profile.model_dump(
        mode="json", by_alias=True, exclude={"executor", "gpu_per_run"}
    )
    given = {name: value for name, value in given.items() if name != "settings"}  # in the profile
    cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
    digest = hashlib.sha256(canonical([[c["cell_type"], c["source"]] for c in cells]))
    digest.update(canonical([profile, given]))
    table = cost_table(study.profile.name)
    if study.profile.costs == "table" and table.exists():
        digest.update(table.read_bytes())
    for path in sorted((ROOT / "basisconv").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def outputs_file(study: Study, name: str) -> Path:
    """Where a notebook's report lists what it saved."""
    return study.folder / "outputs" / f"{name}.json"


def _done(study: Study, name: str) -> Path:
    return study.folder / "notebooks" / f"{name}.done.json"


def _outputs(study: Study, name: str) -> list[str]:
    path = outputs_file(study, name)
    return list(read_json(path)["outputs"]) if path.exists() else []


def _up_to_date(study: Study, name: str, stamp: str) -> bool:
    if not _done(study, name).exists() or not outputs_file(study, name).exists():
        return False
    there = all((study.folder / path).exists() for path in _outputs(study, name))
    return there and read_json(_done(study, name))["fingerprint"] == stamp

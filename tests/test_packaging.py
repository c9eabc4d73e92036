"""What a stranger gets: the wheel, the declared dependencies, `make`, and the files beside them."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import basisconv
from basisconv.study.experiments.registry import EXPERIMENTS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def test_the_wheel_holds_the_package_with_its_sample_and_nothing_else(tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(
        ROOT / "basisconv", tree / "basisconv", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    (tree / "tests").mkdir()
    (tree / "tests" / "__init__.py").touch()
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    run = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=tree, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = {name: wheel.read(name) for name in wheel.namelist()}
    packed = {name: data for name, data in held.items() if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for path in (ROOT / "basisconv").rglob("*")
        if path.suffix == ".py" or path.parent.name == "sample"
    }
    assert any("/sample/" in name and name.endswith(".webp") for name in expected)
    assert packed == expected
    assert any(name.endswith("licenses/LICENSE") for name in held)


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 8_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links or page.name == "glossary.md"
    for link in links:
        if re.match(r"https?://", link):
            continue
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name} links to {link}"
        if heading:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {title.lower().replace(" ", "-") for title in headings}, link


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == basisconv.__version__ == citation["version"]
    assert PROJECT["license"] == citation["license"] == "MIT"


def test_conda_users_get_what_make_installs():
    """The same extras of the same pyproject.toml: no name or bound is written down twice."""
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in listed if isinstance(entry, dict)]
    conda = {Requirement(entry) for entry in listed if isinstance(entry, str)}
    (installed,) = re.findall(r"pip install .*-e '(.*)'", (ROOT / "Makefile").read_text())
    assert pip == [f"-e {installed}"]
    # The peers come with the tests; what cuts trained networks is asked for where it is missing.
    assert sorted([*re.findall(r"\w+", installed), "peers", "trained"]) == sorted(EXTRAS)
    assert conda == {
        Requirement(f"python{PROJECT['requires-python']}"),
        *map(Requirement, ("make", "pip")),
    }


def test_each_dependency_has_one_range_and_it_is_installed_here():
    ranges: dict[str, set[str]] = {}
    for line in sum(EXTRAS.values(), PROJECT["dependencies"]):
        requirement = Requirement(line)
        ranges.setdefault(requirement.name, set()).add(str(requirement.specifier))
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue  # whoever brings an environment of their own may do without JupyterLab
        assert requirement.specifier.contains(version), f"{line}, but {version} is installed"
    assert {name: len(found) for name, found in ranges.items()} == dict.fromkeys(ranges, 1)


def imported(path: Path, lazily: bool) -> set[str]:
    """Top-level names of what a file imports: as it is imported or, `lazily`, at any time."""
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in ast.walk(tree) if lazily else tree.body:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    ("files", "lazily", "extras"),
    [
        ("basisconv/*.py", False, []),
        ("basisconv/**/*.py", True, ["study", "ray", "peers", "trained"]),
        ("tests/**/*.py", True, ["study", "ray", "peers", "trained", "test"]),
    ],
)
def test_all_that_is_imported_is_declared(files, lazily, extras):
    lines = sum((EXTRAS[extra] for extra in extras), PROJECT["dependencies"])
    declared = {Requirement(line).name.lower() for line in lines}
    # What a declared package is made of, and so always comes with it: papermill and pytest.
    declared |= {"nbformat", "nbclient"} if "study" in extras else set()
    declared |= {"packaging"} if "test" in extras else set()
    local = {"basisconv", *(path.stem for path in (ROOT / "tests").iterdir())}
    distributions = metadata.packages_distributions()
    for path in sorted(ROOT.glob(files)):
        for name in sorted(imported(path, lazily) - set(sys.stdlib_module_names) - local):
            found = distributions.get(name, [name.replace("_", "-")])
            homes = {home.lower() for home in found}
            assert homes & declared, f"{path.relative_to(ROOT)} imports {name}: declare it"


# A Python that writes down how it was called, makes venvs of its own kind and fails on demand.
FAKE_PYTHON = """#!/bin/sh
if [ "$1" = -c ]; then exec "{python}" "$@"; fi
echo "$*" >> "{calls}"
case "$*" in
    "$FAIL") exit 3 ;;
    "-m venv --clear .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
esac
"""


class Checkout:
    """A folder with the Makefile and a fake Python, and what the fake was asked to do."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "calls"
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)
        self.python = folder / "fake-python"
        self.python.write_text(FAKE_PYTHON.format(python=sys.executable, calls=self.log))
        self.python.chmod(0o755)

    def make(self, *arguments: str, fail: str = "never") -> tuple[int, list[str], str]:
        """Exit status, what the fake Python was called with, and all that was printed."""
        self.log.write_text("")
        clean = {"PYTHON", "PROFILE", "EXECUTOR", "SET", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
        environment = {key: value for key, value in os.environ.items() if key not in clean}
        run = subprocess.run(
            ["make", f"BASE_PYTHON={self.python}", *arguments],
            cwd=self.folder,
            env={**environment, "FAIL": fail},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        return run.returncode, self.log.read_text().splitlines(), run.stdout + run.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


PIP = "-m pip --version"
INSTALL = "-m pip install --disable-pip-version-check --no-input -e .[study,ray,test]"
VENV = "-m venv --clear .venv"
COMMANDS = {
    "test": [
        "-m ruff check .",
        "-m ruff format --check .",
        "-m mypy",
        "-m pytest tests",
        "-m pytest --nbval --nbval-current-env --nbval-cell-timeout=300 notebooks",
    ],
    "torture": ["-m torture"],
    "reproduce": ["-m basisconv reproduce"],
    "paper": ["-m basisconv paper"],
    "lab": ["-m jupyterlab notebooks"],
    "bench": ["-m basisconv bench"],
}


@needs_make
def test_the_set_up_is_done_once(checkout):
    assert checkout.make("env")[:2] == (0, [VENV, INSTALL])
    assert checkout.make("env")[:2] == (0, [])
    assert checkout.make("reproduce")[:2] == (0, ["-m basisconv reproduce"])
    newer = (checkout.folder / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(checkout.folder / "pyproject.toml", (newer, newer))
    assert checkout.make("env")[:2] == (0, [PIP, INSTALL])


@needs_make
def test_a_moved_checkout_is_set_up_again(checkout, tmp_path_factory):
    checkout.make("env")
    moved = tmp_path_factory.mktemp("moved") / "copy"
    shutil.copytree(checkout.folder, moved)
    checkout.folder = moved
    assert checkout.make("env")[1] == [PIP, INSTALL]
    assert checkout.make("env")[1] == []


@needs_make
@pytest.mark.parametrize("step", [VENV, INSTALL])
def test_a_failed_set_up_is_done_again(checkout, step):
    status, calls, _ = checkout.make("reproduce", fail=step)
    assert status != 0 and calls[-1] == step
    assert checkout.make("reproduce")[1][-2:] == [INSTALL, "-m basisconv reproduce"]


@needs_make
@pytest.mark.parametrize("target", COMMANDS)
def test_every_target_fails_where_its_command_does_and_runs_again(checkout, target):
    python = f"PYTHON={checkout.python}"
    for count, command in enumerate(COMMANDS[target], start=1):
        status, calls, _ = checkout.make(target, python, fail=command)
        assert status != 0 and calls == COMMANDS[target][:count]
    for _ in range(2):  # and with a Python of the user's own, nothing else is run
        assert checkout.make(target, python)[:2] == (0, COMMANDS[target])
    assert not (checkout.folder / ".venv").exists()


@needs_make
def test_profile_executor_and_settings_reach_the_driver_unchanged(checkout):
    settings = "SET=budgets=[1,2] data.name=cifar10 note=$$HOME;*"
    named = ("PROFILE=desk", "EXECUTOR=ray", settings)
    _, calls, _ = checkout.make("reproduce", f"PYTHON={checkout.python}", *named)
    assert calls == [
        "-m basisconv reproduce --profile desk --executor ray "
        "--set budgets=[1,2] --set data.name=cifar10 --set note=$HOME;*"
    ]


@needs_make
@pytest.mark.parametrize("variable", ["PYTHON", "BASE_PYTHON"])
def test_an_old_or_missing_python_is_named(checkout, variable):
    old = checkout.folder / "python3.9"
    old.write_text(
        "#!/bin/sh\n"
        f'exec "{sys.executable}" -c '
        '"import sys; sys.version_info = (3, 9, 2); exec(sys.argv[1])" "$2"\n'
    )
    old.chmod(0o755)
    status, calls, said = checkout.make("reproduce", f"{variable}={old}")
    assert status != 0 and not calls
    assert f"basisconv needs Python 3.11 or later and {old} is 3.9" in said
    status, calls, said = checkout.make("reproduce", f"{variable}=no-such-python")
    assert status != 0 and not calls
    assert "No no-such-python found; name a Python of 3.11 or later" in said


@needs_make
def test_make_alone_lists_every_target(checkout):
    status, calls, said = checkout.make()
    assert status == 0 and not calls
    listed = set(re.findall(r"^make (\w+)  ", said, re.MULTILINE))
    assert listed == {"help", "env", "clean", "notebooks", *COMMANDS}


@needs_make
def test_clean_keeps_the_records(checkout):
    for name in ("build/quick/runs/a.json", "build/quick/paper.pdf", "build/quick/tables/t.csv"):
        path = checkout.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for folder in ("basisconv/__pycache__", "tests", "notebooks", ".mypy_cache"):
        (checkout.folder / folder).mkdir(parents=True)
    for _ in range(2):
        assert checkout.make("clean")[0] == 0
        left = {p.relative_to(checkout.folder).as_posix() for p in checkout.folder.rglob("*")}
        assert "build/quick/runs/a.json" in left
        assert not left & {"build/quick/paper.pdf", "build/quick/tables", ".mypy_cache"}
        assert "basisconv/__pycache__" not in left


def test_the_workflow_tests_every_python_from_the_oldest_supported():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    job = workflow["jobs"]["test"]
    pythons = job["strategy"]["matrix"]["python"]
    assert pythons == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={pythons[0]}"
    assert job["steps"][-1]["run"] == "make test BASE_PYTHON=python"


def test_the_commit_hooks_are_among_the_checks_of_make_test():
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    checks = re.findall(r"\$\(PY\) (-m (?:ruff|mypy).*)", (ROOT / "Makefile").read_text())
    hooks = [hook["entry"].removeprefix(".venv/bin/python ") for hook in local["hooks"]]
    assert local["repo"] == "local" and hooks == checks


def test_the_ci_script_is_a_runnable_bash_script():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_the_readme_lists_the_experiments_of_the_registry() -> None:
    rows = re.findall(
        r"^\| \[(\w+)\]\(notebooks/\1\.ipynb\) \| (.*?) \|$",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert rows == [(name, experiment.question) for name, experiment in EXPERIMENTS.items()]

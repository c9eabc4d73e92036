"""The order of the rooms: imports point up the design's table and never down it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each room with the floor it stands on; it may import rooms of lower floors alone.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("decompose",),
    ("layer",),
    ("surgery",),
    ("plan", "optim"),
    ("convert", "cost"),
    ("timing",),
    ("search",),
    # The study, with the library below it.
    (
        "study.files",
        "study.rng",
        "study.stopping",
        "study.stopwatch",
        "study.environment",
        "study.stats",
        "study.peers",
    ),
    (
        "study.benchmarks",
        "study.vision",
        "study.linear_models",
        "study.equal_accuracy",
        "study.image_bootstrap",
    ),
    (
        "study.run",
        "study.packs",
        "study.rankings",
        "study.families",
        "study.noninferiority",
        "study.reml",
    ),
    ("study.sources", "study.parameters", "study.mixed_models"),
    ("study.data", "study.store", "study.checkpoint"),
    ("study.augment", "study.models", "study.publish", "study.status"),
    ("study.phases", "study.optimization", "study.parallel", "study.precision"),
    ("study.compiling",),
    ("study.train", "study.pace"),
    ("study.attempt",),
    ("study.workers", "study.ray_cluster"),
    ("study.ray_team", "study.together"),
    ("study.sweep", "study.profiles"),
    ("study.costs",),
    ("study.protocol",),
    ("study.drafts",),
    ("study.layer_sweep",),
    ("study.named_arms", "study.pilot", "study.variants"),
    ("study.analysis_plan", "study.experiments", "study.bench", "study.method", "study.verify"),
    ("study.step_costs", "study.workload"),
    ("study.report",),
    ("study.sections", "study.paper"),
    ("study.reproduce",),
    ("cli",),
    ("__main__",),
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str | None:
    """The room that a module belongs to; None for the packages' own __init__."""
    name = module.removeprefix("basisconv").removeprefix(".")
    if name.startswith("study.report"):
        return "study.report"
    return None if name in ("", "study") else name


def imports(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            base = node.module or ""
            # `from basisconv.study import bench` names a room in its second half.
            if base in ("basisconv", "basisconv.study"):
                found += [f"{base}.{alias.name}" for alias in node.names]
            else:
                found.append(base)
    return [name for name in found if name.split(".")[0] == "basisconv"]


def modules() -> dict[str, Path]:
    files = sorted((ROOT / "basisconv").rglob("*.py"))
    names = {p: ".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def test_every_room_has_a_floor() -> None:
    rooms = {room for name in modules() if (room := room_of(name))}
    assert rooms == LEVEL.keys()


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_up(module: str) -> None:
    room = room_of(module)
    if room is None:
        return
    for name in imports(modules()[module]):
        other = room_of(name)
        if other is None or other not in LEVEL:  # a name that the package itself exports
            continue
        assert other == room or LEVEL[other] < LEVEL[room], f"{module} imports {name}"


def test_the_library_needs_nothing_of_the_study() -> None:
    for name, path in modules().items():
        if not name.startswith("basisconv.study") and name != "basisconv.cli":
            assert not [i for i in imports(path) if i.startswith("basisconv.study")], name


def test_importing_the_library_loads_torch_and_nothing_heavy() -> None:
    heavy = ("scipy", "statsmodels", "pandas", "matplotlib", "pydantic", "torchvision", "yaml")
    code = f"import sys, basisconv; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_training_needs_no_pandas_and_no_matplotlib() -> None:
    """A bare GPU machine makes records with torch, numpy and a few small packages."""
    code = (
        "import sys\n"
        "for name in ('pandas', 'statsmodels', 'matplotlib', 'seaborn', 'papermill', 'typst',\n"
        "    'IPython'):\n"
        "    sys.modules[name] = None\n"
        "import basisconv.cli, basisconv.study.sections, basisconv.study.bench\n"
        "from basisconv.study import sweep, train, status, store, experiments\n"
        "print('trains')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "trains", done.stderr

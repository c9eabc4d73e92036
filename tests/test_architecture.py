"""What importing costs and needs. Who may import whom is import-linter's, in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
        "import basisconv.study.cli, basisconv.study.progress, basisconv.study.timing.bench\n"
        "import basisconv.study.experiments.pipeline, basisconv.study.training.train\n"
        "print('trains')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "trains", done.stderr

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from fake_runs import make_run

from basisconv.study.data import vision
from basisconv.study.execution.one_run import train_to_record
from basisconv.study.records.checkpoint import Checkpoints
from basisconv.study.records.environment import UnsuitableMachine


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Makes `import torchvision` run the given source, and puts the real one back afterwards."""

    def install(source: str) -> None:
        folder = tmp_path / "torchvision"
        folder.mkdir()
        (folder / "part.py").write_text("whole = True\n")
        (folder / "__init__.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)

    vision.torchvision()  # the real operators first: what the guard declares would be in their way
    before = {n: m for n, m in sys.modules.items() if n.partition(".")[0] == "torchvision"}
    for name in before:
        del sys.modules[name]
    vision.torchvision.cache_clear()
    yield install
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    sys.modules.update(before)
    vision.torchvision.cache_clear()


def test_the_python_parts_work_here():
    torchvision = vision.torchvision()
    assert torchvision is vision.torchvision()
    model = torchvision.models.resnet18(num_classes=10)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    from torchvision.transforms import v2

    assert v2.Pad(4)(torch.zeros(3, 32, 32)).shape == (3, 40, 40)
    assert torchvision.datasets.CIFAR10.base_folder == "cifar-10-batches-py"


def test_the_import_that_fails_with_a_cpu_torch_is_repaired():
    plain = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True)
    if plain.returncode == 0:
        pytest.skip("import torchvision succeeds here, so there is nothing to mend")
    assert b"operator torchvision::nms does not exist" in plain.stderr
    # In a fresh process, and after a failed import, as a notebook's user may have tried.
    code = """
try:
    import torchvision
except RuntimeError:
    pass
from basisconv.study.data.vision import torchvision
import torch
torchvision().models.vgg11
import torchvision.ops, torchvision.transforms.v2, torchvision.datasets
try:
    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except RuntimeError:
    print("declared, not implemented")
"""
    mended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert mended.stdout == "declared, not implemented\n", mended.stderr


def test_nothing_is_done_where_the_import_succeeds(fake, monkeypatch):
    fake("from torchvision import part\n")
    monkeypatch.setattr(vision, "_declare", lambda: pytest.fail("declared operators needlessly"))
    assert vision.torchvision().part.whole


def test_other_errors_of_the_import_pass_through_and_leave_nothing_half_imported(fake):
    fake("from torchvision import part\nraise RuntimeError('no such thing')\n")
    with pytest.raises(RuntimeError, match="no such thing"):
        vision.torchvision()
    assert not [name for name in sys.modules if name.startswith("torchvision")]


def test_an_unknown_operator_says_what_to_install(fake):
    fake("raise RuntimeError('operator torchvision::brand_new does not exist')\n")
    with pytest.raises(
        ImportError, match=r"brand_new does not exist.*pip install 'basisconv\[study\]'"
    ):
        vision.torchvision()


def test_absent_torchvision_says_what_to_install(fake, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"pip install 'basisconv\[study\]'"):
        vision.torchvision()


def test_without_torchvision_no_run_fails(fake, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision", None)

    def needs_it(run, checkpoints):
        vision.torchvision()

    checkpoints = Checkpoints(tmp_path, make_run(0))
    with pytest.raises(UnsuitableMachine, match="No torchvision here"):
        train_to_record(make_run(0), checkpoints, needs_it)

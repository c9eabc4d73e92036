"""What a CUDA device alone can show; without one each of these says so."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_runs import make_run
from torch import Tensor, nn

import basisconv as bc
from basisconv.study.records.checkpoint import Checkpoints, Paused
from basisconv.study.records.run import Run
from basisconv.study.timing import steps
from basisconv.study.timing.machine import step_memory
from basisconv.study.timing.steps import (
    Prepared,
    as_cuda_graphs,
    inference,
    initialised_network,
    random_images,
    training_step,
)
from basisconv.study.training.compiling import compile_if_accurate
from basisconv.study.training.models import shared_network
from basisconv.study.training.optimization import sgd
from basisconv.study.training.precision import autocast, convolution_precision
from basisconv.study.training.train import train
from basisconv.timing import compare

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

OUTLINE = shared_network("resnet18", 64, 10)
PLANS = {
    "dense": bc.Plan(),
    "subset": bc.make_plan(OUTLINE, ratio=0.25),
    "full, coef_groups = 4": bc.make_plan(OUTLINE, ratio=0.25, form="full", coef_groups=4),
}
FORMS_TIMED: list[dict[str, Any]] = [
    {"form": form, "mode": mode, **smaller}
    for form in ("subset", "full")
    for mode in ("factored", "rebuilt")
    for smaller in ({}, {"coef_groups": 2}, {"coef_rank": 3})
]


@pytest.fixture(autouse=True)
def _compiles_many() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double().cpu(), expected.double().cpu()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("way", FORMS_TIMED, ids=lambda way: "-".join(map(str, way.values())))
@pytest.mark.parametrize(("precision", "most"), [("float32", 1e-5), ("tf32", 2e-3)])
def test_a_layer_and_its_gradients_are_those_of_float64_on_the_cpu(
    way: dict[str, Any], precision: Any, most: float
) -> None:
    torch.manual_seed(1)
    conv = nn.Conv2d(10, 24, (3, 5), stride=(2, 1), padding=(1, 2), groups=2, dtype=torch.float64)
    oracle = bc.BasisConv2d.from_conv2d(conv, 8, **way)
    layer = copy.deepcopy(oracle).float().cuda()
    x = torch.randn(7, 10, 13, 11, dtype=torch.float64, requires_grad=True)
    ours = x.detach().float().cuda().requires_grad_()
    kernel = oracle.weight
    expected = F.conv2d(x, kernel, oracle.bias, (2, 1), (1, 2), groups=2)
    gradient = torch.randn_like(expected)
    with convolution_precision(precision):
        found = layer(ours)
        found.backward(gradient.float().cuda())
    expected.backward(gradient)
    assert error(found, expected) < most
    assert ours.grad is not None and x.grad is not None
    assert error(ours.grad, x.grad) < most
    for name, parameter in oracle.named_parameters():
        mine = layer.get_parameter(name).grad
        assert parameter.grad is not None and mine is not None
        assert error(mine, parameter.grad) < most, name


def test_a_plan_is_applied_and_undone_where_the_network_is() -> None:
    model = initialised_network("resnet18", 64, bc.Plan()).eval()
    x = random_images(8)
    whole = bc.make_plan(model, ratio=1.0)  # every function of the dense network
    with torch.no_grad(), convolution_precision("float32"):
        small = bc.apply_plan(model, whole)
        assert all(p.is_cuda for p in small.parameters())
        assert error(small(x), model(x)) < 1e-4
        fewer = bc.apply_plan(model, bc.make_plan(model, ratio=0.25))
        assert error(bc.restore(fewer)(x), fewer(x)) < 1e-4
        assert error(fewer(x), model(x)) > 1e-2


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("precision", ["bfloat16", "tf32", "float32"])
def test_compiled_training_as_cuda_graphs_agrees_with_eager(plan: str, precision: Any) -> None:
    model = initialised_network("resnet18", 64, PLANS[plan]).train()
    x, y = random_images(64), torch.arange(64, device="cuda") % 10

    def loss(forward: Any, precision: Any) -> Tensor:
        with autocast(precision):
            logits = forward(x)
        return F.cross_entropy(logits.float(), y)

    with convolution_precision(precision):
        forward, reason = compile_if_accurate(model, loss, precision)
    assert reason is None and forward is not model


def test_a_replayed_step_trains_as_the_step_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def moving(model: nn.Module, **settings: Any) -> torch.optim.SGD:
        return sgd(model, **settings | {"learning_rate": 1e-3})

    monkeypatch.setattr(steps, "sgd", moving)
    x, (ours, theirs) = (
        random_images(32),
        (initialised_network("resnet18", 64, PLANS["subset"]) for _ in "ab"),
    )
    start = {name: value.clone() for name, value in ours.state_dict().items()}
    with convolution_precision("float32"):
        mine, plain = (training_step(model, x) for model in (ours, theirs))
        graph = as_cuda_graphs({"step": mine})["step"]
        made = int(ours.bn1.num_batches_tracked)
        graph()
        graph()
        for _ in range(made + 2):
            plain()
    assert int(ours.bn1.num_batches_tracked) == made + 2
    for name, expected in theirs.state_dict().items():
        if expected.is_floating_point() and not torch.equal(expected, start[name]):
            moved, wanted = ours.state_dict()[name] - start[name], expected - start[name]
            assert error(moved, wanted) < 0.05, name


def test_replayed_graphs_that_share_memory_do_not_disturb_each_other() -> None:
    """Each in any order, and after the other: they read nothing that the other wrote."""
    x = random_images(16)
    found: dict[str, Tensor] = {}

    def arm(name: str) -> Any:
        model = initialised_network("resnet18", 64, PLANS[name]).eval()
        found[name] = torch.empty(16, 10, device="cuda")
        return lambda: found[name].copy_(model(x))

    with torch.no_grad(), convolution_precision("float32"):
        graphs = as_cuda_graphs({name: arm(name) for name in PLANS})
        first = {}
        for name, graph in graphs.items():
            found[name].fill_(float("nan"))
            graph()
            first[name] = found[name].clone()
        for name in reversed(PLANS):
            found[name].fill_(float("nan"))
            graphs[name]()
            assert error(found[name], first[name]) < 1e-6
            alone = initialised_network("resnet18", 64, PLANS[name]).eval()
            assert error(found[name], alone(x)) < 1e-4


def test_a_replayed_call_keeps_the_tensors_that_it_reads() -> None:
    """Labels above all, which nobody else holds: in memory used anew they would be any number."""
    model = initialised_network("resnet18", 64, bc.Plan())
    arms = {"step": training_step(model, random_images(16))}
    graphs = as_cuda_graphs(arms)
    graphs["step"]()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    del arms
    torch.cuda.empty_cache()
    others = [torch.full((16,), 3, device="cuda") for _ in range(10_000)]
    graphs["step"]()
    after = [p.grad for p in model.parameters() if p.grad is not None]
    assert others and before
    assert all(error(a, b) < 0.1 for a, b in zip(after, before, strict=True) if b.norm() > 1e-3)


def test_times_are_of_the_work_and_not_of_its_launch() -> None:
    a, b = torch.randn(2, 4096, 4096, device="cuda")
    some, twice = lambda: a @ b, lambda: (a @ b) @ b  # noqa: E731
    timings = compare({"one": some, "two": twice}, repeats=9, device="cuda")
    assert timings["two"].median / timings["one"].median == pytest.approx(2, rel=0.15)
    # 137 GFLOP: no GPU there is does it in less than this, whatever the launch takes.
    assert timings["one"].median > 2 * 4096**3 / 1e15


def test_tuning_sets_the_faster_mode_of_each_layer() -> None:
    small = bc.apply_plan(initialised_network("resnet18", 64, bc.Plan()), PLANS["subset"])
    with autocast("bfloat16"):
        rows = bc.tune(small, random_images(64), repeats=3)
    assert len(rows) == 16
    for row in rows:
        assert row.mode == min(("factored", "rebuilt"), key=lambda mode: getattr(row, mode))
        assert small.get_submodule(row.name).mode == row.mode
        assert min(row.dense, row.factored, row.rebuilt) > 1e-6


def test_memory_is_what_a_step_holds() -> None:
    dense = step_memory("resnet18", 64, bc.Plan(), 64, "bfloat16", 1)
    twice = step_memory("resnet18", 64, bc.Plan(), 128, "bfloat16", 1)
    weights = sum(p.numel() for p in initialised_network("resnet18", 64, bc.Plan()).parameters())
    assert dense > 3 * 4 * weights  # with gradient and momentum
    assert 1.2 < twice / dense < 2


def test_inference_and_training_can_be_replayed_in_bfloat16() -> None:
    for plan in PLANS.values():
        model = Prepared(initialised_network("resnet18", 64, plan), "bfloat16", False)
        with convolution_precision("bfloat16"):
            for step in (
                inference(model, random_images(8)),
                training_step(model, random_images(8)),
            ):
                as_cuda_graphs({"arm": step})["arm"]()
    torch.cuda.synchronize()


RUN: dict[str, Any] = {"precision": "bfloat16", "compile": True, "width": 64, "test": True}


def test_a_run_is_trained_compiled_over_a_switch_and_says_so() -> None:
    record = train(make_run((6, PLANS["subset"]), (6, bc.Plan()), **RUN))
    assert record.status == "done" and record.result is not None
    assert not [note for note in record.measurement.notes if "eager" in note]
    assert record.measurement.environment["device_kind"] == torch.cuda.get_device_name()
    assert record.measurement.peak_memory_bytes > 0
    first, last = record.result.history[0], record.result.history[-1]
    assert last.train_loss < first.train_loss < 4


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_a_run_is_trained_as_cuda_graphs_over_a_switch_and_ends_as_an_eager_one(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = RUN | {"compile": False, "precision": "float32", "optimizer": optimizer}
    run = make_run((6, PLANS["subset"]), (6, bc.Plan()), **changes)
    record = train(run)
    assert record.result is not None
    assert not [note for note in record.measurement.notes if "graph" in note]
    monkeypatch.setattr(
        "basisconv.study.training.train.graph_if_accurate", lambda step, *_: (step, "not asked for")
    )
    eager = train(run)
    assert eager.result is not None
    assert any("without a CUDA graph" in note for note in eager.measurement.notes)
    assert record.result.val_loss == pytest.approx(eager.result.val_loss, rel=0.05)


def _interrupted(run: Run, folder: Path, after: int) -> None:
    asked = iter([False] * after + [True] * 1000)
    with pytest.raises(Paused):
        train(run, Checkpoints(folder, run, stop=lambda: next(asked)))


def test_a_resumed_run_ends_nearly_the_same(tmp_path: Path) -> None:
    """Nearly: on a GPU sums are added in the order in which threads arrive."""
    run = make_run((4, PLANS["subset"]), (4, bc.Plan()), **(RUN | {"precision": "float32"}))
    whole = train(run).result
    _interrupted(run, tmp_path, after=5)
    record = train(run, Checkpoints(tmp_path, run))
    assert any("went on from step" in note for note in record.measurement.notes)
    assert record.result is not None and whole is not None
    assert record.result.steps == whole.steps == 8
    assert record.result.train_loss == pytest.approx(whole.train_loss, rel=0.05)

"""What is timed: a whole step, in the precision asked for; and the machine's own pace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import basisconv as bc
from basisconv.study.records import environment
from basisconv.study.records.run import Optimizer
from basisconv.study.timing import machine, steps
from basisconv.study.timing.steps import (
    Prepared,
    as_cuda_graphs,
    inference,
    initialised_network,
    random_images,
    training_step,
)
from basisconv.timing import Timing


class Spy(nn.Flatten):
    """Keeps the types of what passes through, and whether gradients are on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.dtype, bool, bool]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append((x.dtype, torch.is_grad_enabled(), self.training))
        return super().forward(x)


def spied() -> tuple[nn.Module, Spy]:
    spy = Spy()
    return nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), spy), spy


X = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("muon", bc.Muon)])
def test_a_timed_step_is_a_complete_one(
    monkeypatch: pytest.MonkeyPatch, name: Optimizer, kind: type[torch.optim.Optimizer]
) -> None:
    stepped: list[int] = []
    real = kind.step

    def step(self: torch.optim.Optimizer, *args: object) -> object:
        stepped.append(1)
        return real(self, *args)

    monkeypatch.setattr(kind, "step", step)
    model, spy = spied()
    run = training_step(model.eval(), X, name)
    run(), run()
    assert len(stepped) == 2 and spy.seen == [(torch.float32, True, True)] * 2
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_runs_has_the_precision_asked_for(precision: str) -> None:
    model, spy = spied()
    running = Prepared(model, precision, compiled=False)  # type: ignore[arg-type]
    training_step(running, X)()
    inference(running, X)()
    dtype = getattr(torch, precision)
    assert spy.seen == [(dtype, True, True), (dtype, False, False)]
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_what_is_compiled_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(steps, "compile_network", lambda model: compiled.append(model) or model)
    model, spy = spied()
    step = training_step(Prepared(model, "float32", compiled=True), X)
    step(), step()
    assert compiled == [model] and len(spy.seen) == 2


def test_a_networks_batch_and_weights_are_channels_last() -> None:
    x = random_images(2)
    model = initialised_network("resnet18", 8, bc.Plan({"layer3.0.conv2": 8}))
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert model.layer3[0].conv2.n_basis == 8
    for layer in bc.layers(model).values():
        kernel = layer.basis if isinstance(layer, bc.BasisConv2d) else layer.weight
        if kernel.shape[1] > 1 and kernel.shape[2] > 1:
            assert kernel.is_contiguous(memory_format=torch.channels_last)
            assert not kernel.is_contiguous()


def test_a_machine_of_known_pace_has_the_roofline_that_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def seconds(arms: dict[str, Callable[[], None]], *_: object, **__: object) -> dict[str, Timing]:
        return dict.fromkeys(arms, Timing((1.0, 3.0), 0.0))

    monkeypatch.setattr(machine, "compare", seconds)
    assert machine.arithmetic_rate("float32") == 1536**3
    assert machine.memory_bandwidth(size=16) == 2 * 16 * 4


def test_the_roof_is_the_best_of_all_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    rates, bandwidths = iter([3.0, 9.0, 5.0]), iter([7.0, 2.0, 8.0])
    monkeypatch.setattr(machine, "arithmetic_rate", lambda precision: next(rates))
    monkeypatch.setattr(machine, "memory_bandwidth", lambda: next(bandwidths))
    roof = machine.Roof("float32")
    seen = []
    for _ in range(3):
        roof.measure()
        seen.append((roof.macs_per_second, roof.bytes_per_second))
    assert seen == [(3, 7), (9, 7), (9, 8)]


def test_a_step_that_keeps_more_peaks_higher() -> None:
    """Twice the images: at least their activations more, which are known to within a factor."""
    less, more = (
        machine.step_memory("resnet18", 8, bc.Plan(), batch, "float32", threads=1)
        for batch in (64, 192)
    )
    # Of each image the step keeps at least the 17 outputs of 3×3 convolutions before batch-norm:
    # five of 8 channels, 32×32; four each of 16, 32 and 64 channels and a quarter of the pixels.
    kept = 4 * 32**2 * 8 * (5 + 4 / 2 + 4 / 4 + 4 / 8)
    assert 128 * kept < more - less < 128 * kept * 12


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA they do not: see test_cuda")
def test_without_cuda_arms_run_as_they_are() -> None:
    arms = {"a": lambda: 1, "b": lambda: 2}
    assert as_cuda_graphs(arms) == arms


def test_memory_is_counted_where_the_system_reports_no_peak(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    status = tmp_path / "status"
    monkeypatch.setattr(environment, "_STATUS", status)
    monkeypatch.setattr(environment, "device", lambda: torch.device("cpu"))
    status.write_text("Name:\tpython\nVmHWM:\t  2048 kB\n")
    assert environment.peak_memory_bytes() == 2 * 2**20
    status.write_text("Name:\tpython\n")  # as in some sandboxes
    assert environment.peak_memory_bytes() > 2 * 2**20  # this process holds torch

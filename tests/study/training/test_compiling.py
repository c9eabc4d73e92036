"""torch.compile: used where it agrees with eager, with a warning where it does not."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basisconv.study.training.compiling import (
    compile_if_accurate,
    loss_and_gradients,
    relative_errors,
)

Forward = Callable[[Tensor], Tensor]

X = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    ).train()


def loss(forward: Forward, precision: str = "float32") -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        y = forward(X)
    return F.cross_entropy(y.float(), Y)


def error(model: nn.Module, forward: Forward) -> float:
    found, expected = (loss_and_gradients(model, f, loss) for f in (forward, model))
    return max(relative_errors(found, expected))


class ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is some times what it should be."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * gradient, None


def pretend(monkeypatch: pytest.MonkeyPatch, wrap: Callable[[nn.Module], Forward]) -> list[Any]:
    """torch.compile by another name; what it was asked for."""
    asked: list[Any] = []

    def compile_(model: nn.Module, **options: Any) -> Forward:
        asked.append(options)
        return wrap(model)

    monkeypatch.setattr(torch, "compile", compile_)
    return asked


def test_what_agrees_is_used_and_leaves_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fast: list[Forward] = []

    def wrap(m: nn.Module) -> Forward:
        fast.append(lambda x: m(x))
        return fast[0]

    asked = pretend(monkeypatch, wrap)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forward, reason = compile_if_accurate(model, loss, "float32")
    assert forward is fast[0] and reason is None
    assert asked == [{"mode": "default", "dynamic": False}]
    # Batch-norm's running statistics too: the check is no training.
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("wrong", "output"),
    [
        (lambda m: lambda x: m(x) * 1.1, "off"),
        (lambda m: lambda x: ScaledGradient.apply(m(x), 1.5), "off"),  # the loss is right
        (lambda m: lambda x: m(x) * float("nan"), "inf|nan"),
    ],
)
def test_what_disagrees_is_not_used_and_the_warning_says_why(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[[nn.Module], Forward], output: str
) -> None:
    model = network()
    pretend(monkeypatch, wrong)
    with pytest.warns(UserWarning, match=f"torch.compile is not used.*{output}"):
        forward, reason = compile_if_accurate(model, loss, "float32")
    assert forward is model and reason is not None


@pytest.mark.parametrize(
    ("factor", "used"), [(1.0, True), (1.3, False), (0.7, False), (-1.0, False)]
)
@pytest.mark.parametrize("late", [False, True])
def test_in_bfloat16_each_compiled_gradient_may_err_as_its_eager_one_does(
    monkeypatch: pytest.MonkeyPatch, factor: float, used: bool, late: bool
) -> None:
    """The first ones by half, by rounding alone; the last ones by little."""
    torch.manual_seed(0)
    blocks = [(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(12)]
    body = nn.Sequential(nn.Conv2d(3, 8, 3), *(layer for block in blocks for layer in block))
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(128, 4)).train()

    def fast(x: Tensor) -> Tensor:
        if late:
            return ScaledGradient.apply(model(x), factor)
        return model[1:](ScaledGradient.apply(body(x), factor))

    pretend(monkeypatch, lambda _: fast)
    low, exact = (
        loss_and_gradients(model, model, lambda f, p=precision: loss(f, p))
        for precision in ("bfloat16", "float32")
    )
    of_eager = relative_errors(low, exact)
    assert max(of_eager) > 0.3 and of_eager[-1] < 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forward, reason = compile_if_accurate(model, loss, "bfloat16")
    assert (reason is None) == (forward is not model) == used


def test_a_float32_check_out_of_memory_does_not_end_a_bfloat16_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def narrow(forward: Forward, precision: str) -> Tensor:
        if precision == "float32":
            raise torch.OutOfMemoryError("too large")
        return loss(forward, precision)

    model = network()
    pretend(monkeypatch, lambda m: lambda x: m(x))
    with pytest.warns(UserWarning, match="float32, failed with OutOfMemoryError: too large"):
        forward, _ = compile_if_accurate(model, narrow, "bfloat16")
    assert forward is model


def test_what_is_recorded_and_replayed_is_compared_and_not_its_first_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A CUDA graph's first call is eager, and its second the recording; a replay is the third."""
    calls: list[Tensor] = []

    def graph(model: nn.Module) -> Forward:
        def forward(x: Tensor) -> Tensor:
            calls.append(x)
            return model(x) * (1.0 if len(calls) < 3 else 1.1)

        return forward

    model = network()
    pretend(monkeypatch, graph)
    with pytest.warns(UserWarning, match="off"):
        forward, _ = compile_if_accurate(model, loss, "float32")
    assert forward is model


def test_what_fails_without_a_compiler_is_not_its_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    class TooLarge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("too large")

    pretend(monkeypatch, lambda model: model)
    with pytest.raises(torch.OutOfMemoryError, match="too large"):
        compile_if_accurate(TooLarge(), loss, "float32")


def test_a_compiler_that_fails_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: nn.Module) -> Forward:
        def forward(x: Tensor) -> Tensor:
            raise RuntimeError("No working C++ compiler\nand much more")

        return forward

    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pretend(monkeypatch, broken)
    with pytest.warns(UserWarning, match="RuntimeError: No working C"):
        forward, reason = compile_if_accurate(model, loss, "float32")
    assert forward is model and reason is not None and "\n" not in reason
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_error_is_relative_and_of_the_worst_parameter() -> None:
    model = network()

    class Scaled(nn.Module):
        """The same network, its last layer's bias gradient off by a tenth."""

        def forward(self, x: Tensor) -> Tensor:
            hidden = model[:4](x)
            bias = model[4].bias
            return F.linear(hidden, model[4].weight, bias.detach() + 1.1 * (bias - bias.detach()))

    assert error(model, model) == 0.0
    assert error(model, Scaled()) == pytest.approx(0.1, rel=1e-3)


def test_a_gradient_of_rounding_alone_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bias before batch-norm has no true gradient: two kernels round it differently."""
    model = network()
    assert model[0].bias is not None

    def noisy(x: Tensor) -> Tensor:
        y = model(x)
        return y + 0.0 * y.sum() + 1e-9 * model[0].bias.sum()

    assert error(model, noisy) < 1e-3


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")
def test_the_real_compiler_agrees_with_eager() -> None:
    model = network()
    forward, reason = compile_if_accurate(model, loss, "float32")
    assert reason is None and forward is not model
    assert error(model, forward) < 1e-4

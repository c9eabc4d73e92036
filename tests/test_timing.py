"""Timing with a clock that the test moves, and tune on real layers."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import basisconv as bc
from basisconv import timing


class Clock:
    """time.perf_counter that only moves when work says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_arms_take_turns_and_ratios_are_taken_within_a_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", clock)
    calls: list[str] = []

    def arm(name: str, seconds: float) -> None:
        calls.append(name)
        # The machine slows down tenfold over the measurement; the ratio must not see it.
        clock.now += seconds * (1 + len(calls))

    result = bc.compare(
        {"dense": lambda: arm("dense", 3.0), "basis": lambda: arm("basis", 1.0)},
        repeats=9,
        warmup=2,
    )
    assert calls[:4] == ["dense"] * 2 + ["basis"] * 2
    turns = [tuple(calls[i : i + 2]) for i in range(4, 22, 2)]
    assert set(turns) == {("dense", "basis"), ("basis", "dense")}
    median, low, high = result["basis"].speedup_over(result["dense"])
    assert low <= median <= high
    assert 2.5 < low and high < 3.6
    assert result["dense"].median == statistics.median(result["dense"].samples)
    first, third = result["dense"].quartiles
    quartiles = statistics.quantiles(result["dense"].samples, n=4, method="inclusive")
    assert (first, third) == pytest.approx((quartiles[0], quartiles[2]))


def test_a_gpu_is_timed_by_its_own_events(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[str] = ["cuda:0"]
    at: list[str] = []
    calls: list[int] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            at.append(current[-1])
            self.calls = len(calls)

        def elapsed_time(self, end: Event) -> float:
            return 2.0 * (end.calls - self.calls)

    @contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        current.append(str(wanted))
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: at.append(current[-1]))
    monkeypatch.setattr(torch.cuda, "device", device)
    # Of 2 ms each: three of them are a sample of 5 ms or more.
    result = bc.compare({"a": lambda: calls.append(0)}, repeats=4, warmup=2, device="cuda:1")
    assert set(at) == {"cuda:1"} and len(at) == (2 + 4) * 4
    assert len(calls) == 2 + 4 * 3
    assert result["a"].samples == pytest.approx((0.002,) * 4) and result["a"].warmup == 0.004


def test_a_setup_runs_before_each_sample_and_outside_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", clock)
    log: list[str] = []

    def setup(arm: str) -> None:
        clock.now += 100.0
        log.append(f"for {arm}")

    def act(arm: str) -> None:
        clock.now += 1.0
        log.append(arm)

    arms = {"a": lambda: act("a"), "b": lambda: act("b")}
    result = bc.compare(arms, repeats=3, warmup=2, setup=setup)
    assert log[0::2] == [f"for {arm}" for arm in log[1::2]] and len(log) == 2 * 2 * 5
    assert result["a"].samples == result["b"].samples == (1.0, 1.0, 1.0)
    assert result["b"].warmup == 2.0


def test_nothing_to_time_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 arms"):
        bc.compare({})
    with pytest.raises(ValueError, match="0 repeats"):
        bc.compare({"a": lambda: None}, repeats=0)


def test_tune_sets_the_faster_mode_and_touches_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 12, 3))
    model = bc.apply_plan(model, bc.make_plan(model, ratio=0.5)).train()
    fastest = iter(["rebuilt", "factored"])

    def fake(arms: dict[str, object], **_: object) -> dict[str, timing.Timing]:
        best = next(fastest)
        return {a: timing.Timing((0.5 if a == best else 1.0,), 0.0) for a in arms}

    monkeypatch.setattr(timing, "compare", fake)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rows = bc.tune(model, torch.randn(2, 3, 12, 12))
    assert [(r.name, r.mode, r.speedup) for r in rows] == [
        ("1", "rebuilt", 2.0),
        ("2", "factored", 2.0),
    ]
    assert [model[1].mode, model[2].mode] == ["rebuilt", "factored"]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert bc.plan_of(model).modes == {"1": "rebuilt"}


def test_tune_drops_the_layers_that_lose_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    shared = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), shared, nn.ReLU(), shared, nn.Conv2d(8, 12, 3))
    model = bc.apply_plan(model, bc.make_plan(model, ratio=0.5)).double().train()
    seconds = iter([{"dense": 1.0, "factored": 2.0, "rebuilt": 1.5},
                    {"dense": 1.0, "factored": 0.4, "rebuilt": 1.5}])  # fmt: skip

    def fake(arms: dict[str, object], **_: object) -> dict[str, timing.Timing]:
        return {arm: timing.Timing((value,), 0.0) for arm, value in next(seconds).items()}

    monkeypatch.setattr(timing, "compare", fake)
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    want = model(x)
    rows = bc.tune(model, x, drop=True)
    assert [(r.name, r.mode, r.speedup) for r in rows] == [
        ("1", "dense", 1 / 1.5), ("4", "factored", 2.5)
    ]  # fmt: skip
    assert type(model[1]) is nn.Conv2d and model[3] is model[1]
    assert list(bc.plan_of(model).layers) == ["4"]
    torch.testing.assert_close(model(x), want)
    with pytest.raises(ValueError, match="itself a BasisConv2d"):
        bc.tune(model[4], x, drop=True)


def test_tune_drops_no_layer_that_a_list_would_go_on_calling() -> None:
    model = bc.apply_plan(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3)), bc.Plan({"1": 2}))
    model.heads, was = [model[1]], list(model)
    with pytest.raises(ValueError, match="1 cannot be replaced: heads of a Sequential holds it"):
        bc.tune(model, torch.randn(1, 2, 9, 9), repeats=1, drop=True)
    assert list(model) == was


@pytest.mark.parametrize("drop", [True, False])
def test_tune_leaves_a_layer_that_is_not_reached_as_it_is(drop: bool) -> None:
    class WithHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = bc.BasisConv2d(2, 4, 3, 2), bc.BasisConv2d(4, 4, 3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return self.head(x) if self.training else x

    model = WithHead()
    head, model.head.mode = model.head, "rebuilt"
    assert [row.name for row in bc.tune(model, torch.randn(1, 2, 9, 9), 1, drop)] == ["conv"]
    assert model.head is head and head.mode == "rebuilt"


def test_forward_and_backward_takes_the_inputs_gradient_too() -> None:
    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return 2 * x

    seen: list[torch.Tensor] = []
    given = torch.ones(3)
    timing.forward_backward(Spy(), given)()
    assert seen[-1].grad is not None and seen[-1].grad.tolist() == [2.0] * 3
    assert not given.requires_grad and given.grad is None


def test_tune_times_each_mode_in_that_mode_and_no_gradient_of_the_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed: list[tuple[str, bool]] = []
    real = timing.forward_backward

    def spy(module: nn.Module, x: torch.Tensor, input_gradient: bool) -> object:
        timed.append((getattr(module, "mode", "dense"), input_gradient))
        return real(module, x, input_gradient)

    monkeypatch.setattr(timing, "forward_backward", spy)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3))
    model = bc.apply_plan(model, bc.make_plan(model, layers=["0", "1"], ratio=0.5))
    x = torch.randn(2, 3, 8, 8)
    bc.tune(model, x, repeats=1)
    arms = ["dense", "factored", "rebuilt"]
    assert timed == [(arm, False) for arm in arms] + [(arm, True) for arm in arms]
    timed.clear()
    bc.tune(model, x.requires_grad_(), repeats=1)  # an image that is optimised itself
    assert timed == [(arm, True) for arm in arms] * 2 and x.grad is None


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_tune_times_gradients_wherever_it_is_called(
    around: Callable[[], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    backward: list[bool] = []
    real = timing.forward_backward

    def spy(module: nn.Module, x: torch.Tensor, input_gradient: bool) -> object:
        step = real(module, x, input_gradient)
        step()
        backward.append(any(p.grad is not None for p in module.parameters()))
        return step

    monkeypatch.setattr(timing, "forward_backward", spy)
    with around():
        model = bc.apply_plan(nn.Sequential(nn.Conv2d(3, 8, 3)), bc.Plan({"0": 4}))
        bc.tune(model, torch.randn(2, 3, 9, 9), repeats=1)
    assert backward == [True] * 3


def test_a_frozen_layer_is_timed_by_what_training_runs_of_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3))
    model = bc.apply_plan(model, bc.Plan({"0": 2, "1": 4})).requires_grad_(False)
    rows = bc.tune(model, torch.randn(2, 3, 9, 9), repeats=1)
    assert [row.name for row in rows] == ["0", "1"] and all(row.speedup > 0 for row in rows)


class Casts(TorchDispatchMode):
    """Counts the casts to bfloat16, by their shape."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") == torch.bfloat16:
            self.seen.append(tuple(args[0].shape))
        return func(*args, **kwargs)


def test_each_step_under_autocast_casts_its_weights_again() -> None:
    """As training does, which enters autocast once a step: else dense layers cast for nothing."""
    conv, x = nn.Conv2d(4, 8, 3, bias=False), torch.randn(2, 4, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        step = timing.forward_backward(conv, x)
        for _ in range(3):
            with Casts() as casts:
                step()
            assert casts.seen.count((8, 4, 3, 3)) == 1


def test_what_cannot_be_waited_for_is_not_timed() -> None:
    with pytest.raises(ValueError, match="not on mps"):
        timing.compare({"nothing": lambda: None}, device="mps")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_progress_bar_on_a_terminal_only(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    class Stream:
        encoding = "utf-8"

        def isatty(self) -> bool:
            return terminal

        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

        def flush(self) -> None:
            pass

    model = bc.apply_plan(nn.Sequential(nn.Conv2d(3, 4, 3)), bc.Plan({"0": 2}))
    monkeypatch.setattr(sys, "stderr", Stream())
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    bc.tune(model, torch.randn(1, 3, 5, 5), repeats=1)
    assert ("tune" in "".join(written)) == terminal
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert len(bc.tune(model, torch.randn(1, 3, 5, 5), repeats=1)) == 1

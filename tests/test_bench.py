"""The benchmark's bookkeeping, at a size that takes seconds; speeds themselves are not tested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from basisconv.study import bench
from basisconv.study.files import read_json
from basisconv.timing import Timing


@pytest.fixture(scope="module")
def facts() -> dict[str, object]:
    before = torch.get_num_threads()
    try:
        return bench.measure("resnet18", [4, 8], [0.25], 4, repeats=2, threads=1)
    finally:
        torch.set_num_threads(before)


def test_every_distinct_layer_is_measured_in_every_way(facts: dict[str, object]) -> None:
    layers = facts["layers"]
    assert isinstance(layers, list)
    titles = list(dict.fromkeys(row["layer"] for row in layers))
    assert titles == [
        "3→8, 32×32", "8→8, 32×32", "8→16, 32×32, stride 2", "16→16, 16×16",
        "8→16, 32×32, 1×1, stride 2", "16→32, 16×16, stride 2", "32→32, 8×8",
        "16→32, 16×16, 1×1, stride 2", "32→64, 8×8, stride 2", "64→64, 4×4",
        "32→64, 8×8, 1×1, stride 2",
    ]  # fmt: skip
    assert len(layers) == len(titles) * len(bench.WAYS)


def test_executed_ratios_are_the_methods_and_shares_follow(facts: dict[str, object]) -> None:
    layers = facts["layers"]
    assert isinstance(layers, list)
    for row in layers:
        if row["layer"] in ("16→16, 16×16", "64→64, 4×4") and row["mode"] == "factored":
            assert row["macs_ratio"] == pytest.approx(3.6)
        if row["mode"] == "rebuilt":
            assert row["macs_ratio"] < 1  # the product costs a little on top of dense
        assert row["share"] == pytest.approx(row["both"]["speedup"] / row["macs_ratio"])
        assert row["both"]["speedup_low"] <= row["both"]["speedup"] <= row["both"]["speedup_high"]
    networks = facts["networks"]
    assert isinstance(networks, list)
    assert [(r["width"], r["ratio"]) for r in networks] == [(4, 0.25), (8, 0.25)]


def test_results_of_several_devices_stand_side_by_side(
    facts: dict[str, object], tmp_path: Path
) -> None:
    here = bench.save(facts, tmp_path)
    device = facts["device"]
    assert isinstance(device, dict)
    other = bench.save({**facts, "device": {**device, "device": "Another CPU"}}, tmp_path)
    assert bench.save(facts, tmp_path) == here != other
    assert len(list(tmp_path.iterdir())) == 2
    assert read_json(here)["layers"] == facts["layers"]
    table = bench.markdown(facts)
    assert table.count("\n|") == 2 + 33 + 2 and "training step, resnet18, width 8" in table


def test_a_timed_step_has_the_runs_precision_and_is_compiled_when_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[torch.dtype] = []
    compiled: list[nn.Module] = []

    class Spy(nn.Flatten):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.dtype)
            return super().forward(x)

    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    model = nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), Spy())
    x = torch.randn(2, 3, 8, 8)
    bench.step_times({"dense": model}, x, 1, "bfloat16", compiled=True)
    assert set(seen) == {torch.bfloat16} and compiled == [model]
    seen.clear()
    bench.step_times({"dense": model}, x, 1)
    assert set(seen) == {torch.float32} and len(compiled) == 1


def test_a_timed_step_is_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stepped: list[int] = []
    real = torch.optim.SGD.step

    def step(self: torch.optim.SGD, *args: object) -> object:
        stepped.append(1)
        return real(self)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    model = nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    bench.step_times({"dense": model}, torch.randn(2, 3, 8, 8), repeats=2)
    assert len(stepped) == 2 + 3  # its turns, and compare's turns of warm-up
    assert all(p.grad is not None for p in model.parameters())


def test_inference_builds_no_graph() -> None:
    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.is_grad_enabled())
            return x

    seen: list[bool] = []
    bench._inference(Spy(), torch.ones(1))()
    assert seen == [False]


def test_a_machine_of_known_pace_has_the_roofline_that_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed: list[set[str]] = []

    def one_second(
        arms: dict[str, Callable[[], None]], *_: object, **__: object
    ) -> dict[str, Timing]:
        timed.append({arm.__qualname__.partition(".")[0] for arm in arms.values()})
        return dict.fromkeys(arms, Timing((1.0, 3.0), 0.0))

    monkeypatch.setattr(bench, "compare", one_second)
    cpu = torch.device("cpu")
    assert bench.arithmetic_rate(cpu, size=8) == 8**3
    assert bench.memory_bandwidth(cpu, size=16) == 2 * 16 * 4
    # Where arithmetic is all that counts, the bound is the ratio of executed forward MACs.
    rows = list(bench._layers("resnet18", 8, [0.25], 2, 1, (1.0, 1e30)))
    assert timed[2:] == [{"_inference"}, {"forward_backward"}] * 11
    for row in rows:
        if row["layer"] == "64→64, 4×4" and row["mode"] == "factored":
            assert row["bound_speedup"] == pytest.approx(3.6)

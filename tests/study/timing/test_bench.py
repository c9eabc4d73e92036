"""The benchmark's bookkeeping, at a size that takes seconds; speeds themselves are not tested."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import basisconv as bc
from basisconv.cost import summary
from basisconv.study.records.files import read_json
from basisconv.study.timing import bench, bench_layers, bench_networks, conditions, machine
from basisconv.study.timing.conditions import Conditions
from basisconv.study.training.models import build_network
from basisconv.timing import Timing


@pytest.fixture(scope="module")
def facts() -> Iterator[dict[str, Any]]:
    before = torch.get_num_threads()
    patch = pytest.MonkeyPatch()
    # Its processes of their own take seconds each; test_steps measures it.
    patch.setattr(
        bench_networks, "step_memory", lambda name, width, plan, *_: 100 + 10 * len(plan.layers)
    )
    patch.setattr(bench, "is_native", lambda precision: precision == "float32")
    yield bench.measure(
        [("resnet18", 8), ("resnet18", 4)], [0.25, 0.5], [4], ["float32", "bfloat16"],
        repeats=2, threads=1,
    )  # fmt: skip
    patch.undo()
    torch.set_num_threads(before)


def test_every_distinct_layer_is_measured_in_every_way(facts: dict[str, Any]) -> None:
    layers = facts["layers"]
    assert list(dict.fromkeys(row["layer"] for row in layers)) == [
        "3→8, 32×32", "8→8, 32×32", "8→16, 32×32, stride 2", "16→16, 16×16",
        "8→16, 32×32, 1×1, stride 2", "16→32, 16×16, stride 2", "32→32, 8×8",
        "16→32, 16×16, 1×1, stride 2", "32→64, 8×8, stride 2", "64→64, 4×4",
        "32→64, 8×8, 1×1, stride 2",
    ]  # fmt: skip
    wide = {(r["arm"], r["ratio"]) for r in layers if r["layer"] == "64→64, 4×4"}
    arms = [*bench_layers.FORMS_TIMED, "conv, 1×1", "tensorly-torch Tucker", "tensorly-torch CP"]
    assert wide == {(arm, f) for arm in arms for f in (0.25, 0.5)}
    # Two basis filters do not fall into four groups, so that layer is without that arm.
    narrow = {r["arm"] for r in layers if r["layer"] == "8→8, 32×32" and r["ratio"] == 0.25}
    assert narrow == set(arms) - {"full, coef_groups = 4"}


def test_executed_ratios_are_the_methods_and_shares_follow(facts: dict[str, Any]) -> None:
    square = {"16→16, 16×16": 16, "64→64, 4×4": 64}
    for row in facts["layers"]:
        c, f = square.get(row["layer"]), row["ratio"]
        if c is not None:
            m = f * c
            want = {
                "subset": m * 9 * c + c * m, "full": m * 9 * c + c * m,
                "conv, 1×1": m * 9 * c + c * m,
                "full, coef_groups = 4": m * 9 * c + c * m / 4,
                "full, coef_rank = m/4": m * 9 * c + (m + c) * (m // 4),
                # Its 1×1 over the inputs comes on top, and products of its small factors.
                "tensorly-torch Tucker": c * c + m * 9 * c + c * m,
            }  # fmt: skip
            if row["arm"] in want:
                small = {"tensorly-torch Tucker": 0.1}.get(row["arm"], 1e-3)
                assert row["macs_ratio"] == pytest.approx(9 * c * c / want[row["arm"]], rel=small)
        if "rebuilt" in row["arm"]:
            assert row["macs_ratio"] < 1  # the product costs a little on top of dense
        assert row["share"] == pytest.approx(row["both"]["speedup"] / row["macs_ratio"])
        assert row["both"]["speedup_low"] <= row["both"]["speedup"] <= row["both"]["speedup_high"]
        assert (row["bound_speedup"] is None) == (row["arm"] not in bench_layers.FORMS_TIMED)


@pytest.mark.parametrize("way", [w for w in bench_layers.FORMS_TIMED if "groups" not in w])
def test_the_librarys_count_of_macs_is_torchs_own(way: str) -> None:
    """torch's count of a grouped convolution's backward pass is not that of what it executes."""
    conv = nn.Conv2d(12, 24, 3, padding=1, bias=False)
    x = torch.randn(2, 12, 7, 7)
    layer = dict(bench_layers._basis_forms(conv, 8, bench_layers.FORMS_TIMED))[way]
    # Wrapped, a layer is any module, whose operators torch counts.
    assert bench_layers.layer_macs(layer, x) == pytest.approx(
        bench_layers.layer_macs(nn.Sequential(layer), x)
    )


def test_networks_are_measured_forward_and_in_training(facts: dict[str, Any]) -> None:
    rows = facts["networks"]
    assert [(r["width"], r["what"], r["ratio"], r["arm"]) for r in rows] == [
        (width, what, f, form)
        for width in (8, 4)
        for what in ("forward", "training step")
        for f in (0.25, 0.5)
        for form in ("subset", "full")
    ]
    dense = build_network("resnet18", 8, 10)
    plan = bc.make_plan(dense, ratio=0.25)
    before, after = summary(dense, (4, 3, 32, 32)), summary(dense, (4, 3, 32, 32), plan)
    assert rows[0]["macs_ratio"] == pytest.approx(before.macs / after.macs)
    both = (before.macs + before.macs_backward) / (after.macs + after.macs_backward)
    assert rows[4]["macs_ratio"] == pytest.approx(both)
    assert all(r["share"] == pytest.approx(r["speedup"] / r["bound_speedup"]) for r in rows)
    assert [(m["width"], m["ratio"]) for m in facts["memory"]] == [
        (8, 0.25), (8, 0.5), (4, 0.25), (4, 0.5)
    ]  # fmt: skip
    assert {(m["dense_peak_mb"], m["peak_mb"]) for m in facts["memory"]} == {(1e-4, 2.6e-4)}


def test_minutes_are_kept_and_what_they_leave_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def took(seconds: float) -> Callable[..., list[dict[str, Any]]]:
        def part(*given: Any) -> list[dict[str, Any]]:
            now[0] += seconds
            return [{"ways": list(given[3])}] if seconds == 20 else []

        return part

    monkeypatch.setattr(bench.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(bench, "measure_layers", took(20))
    monkeypatch.setattr(bench, "measure_network", took(30))
    monkeypatch.setattr(bench, "measure_memory", took(0))
    monkeypatch.setattr(bench, "configure_cpu", lambda threads: None)
    monkeypatch.setattr(bench, "is_native", lambda precision: True)
    facts = bench.measure(
        [("resnet18", 4)], [0.25], [4, 8, 16], ["tf32", "float32"], 2, 1, minutes=3.5
    )
    assert facts["layers"] == [{"ways": ["subset", "full"]}] * 4
    # 150 s have passed after three, and a part of 30 s might take 60 in a slower format.
    assert facts["left_out"] == [
        f"{what}, float32, batch {batch} is left out: the minutes that were asked for are over"
        for batch in (4, 8, 16)
        for what in ("layers", "resnet18, width 4")
        if (what, batch) != ("layers", 4)
    ]


@pytest.mark.parametrize("minutes", [None, 9])
def test_a_card_is_measured_in_three_formats_and_batches(
    monkeypatch: pytest.MonkeyPatch, minutes: float | None
) -> None:
    monkeypatch.setattr(bench, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(bench, "measure", lambda **given: given)
    given = bench.benchmark_device(minutes=minutes)
    assert set(given["precisions"]) == {"float32", "tf32", "bfloat16"}
    assert given["batch_sizes"] == (128, 512, 1024) and given["minutes"] == minutes
    assert (given["networks"] == [("resnet18", 64)]) == (minutes == 9)
    monkeypatch.setattr(bench, "device", lambda: torch.device("cpu"))
    given = bench.benchmark_device(minutes=minutes)
    assert given["precisions"] == ("float32", "bfloat16") and given["batch_sizes"] == (64,)


def test_what_is_left_out_is_said(facts: dict[str, Any]) -> None:
    assert facts["left_out"] == ["bfloat16 is left out: this device only emulates it"]
    assert {row["precision"] for row in facts["layers"]} == {"float32"}


def test_amdahls_figure_is_what_is_left_when_layers_shrink(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Worked out by hand: of 10 s a network spends 4 and 2 in two layers like one another."""
    model = nn.Sequential(
        nn.Conv2d(3, 9, 3, padding=1), nn.Conv2d(9, 9, 3, padding=1), nn.Conv2d(9, 9, 3, padding=1)
    )
    plan = bc.make_plan(model, n_basis=3)
    before, after = summary(model, (1, 3, 8, 8)), summary(model, (1, 3, 8, 8), plan)
    timings = {"dense": Timing((10.0, 20.0), 0.0), "layer": Timing((3.0, 6.0), 0.0)}
    titles = dict.fromkeys(plan.layers, "layer")
    assert list(titles) == ["1", "2"]
    # Each executes 3·81 + 9·3 of dense's 9·81 MACs.
    kept = (3 * 81 + 9 * 3) / (9 * 81)
    want = 10 / (10 - 2 * 3 * (1 - kept))
    assert bench_networks._amdahl(timings, titles, before, after, backward=False) == pytest.approx(
        want
    )


def test_where_arithmetic_is_all_that_counts_the_forward_macs_ratio_is_expected() -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    layer = bc.BasisConv2d.from_conv2d(conv, 4)
    roof = machine.Roof("float32", macs_per_second=1.0, bytes_per_second=1e30)
    x = torch.zeros(2, 16, 8, 8)
    found = bench_layers._roofline(conv, layer, x, roof)
    assert found["bound_speedup"] == pytest.approx(3.6)
    # A number of half the bytes: as many multiplications meet half the traffic.
    halved = bench_layers._roofline(
        conv, layer, torch.zeros(2, 16, 8, 8, dtype=torch.bfloat16), roof
    )
    assert halved["intensity"] == pytest.approx(2 * found["intensity"])
    assert conv.weight.dtype == layer.basis.dtype == torch.float32
    none = {"intensity": None, "bound_speedup": None}
    assert bench_layers._roofline(conv, conv, x, roof) == none


def test_every_arm_of_a_turn_runs_as_the_setting_says(monkeypatch: pytest.MonkeyPatch) -> None:
    how: list[tuple[object, ...]] = []
    asked: list[int] = []

    class Spy(nn.Identity):
        def __init__(self, module: nn.Module, precision: str, compiled: bool) -> None:
            super().__init__()
            how.append((precision, compiled))

    def compare(
        arms: dict[str, Callable[[], object]], repeats: int, device: torch.device
    ) -> dict[str, Timing]:
        asked.append(repeats)
        return dict.fromkeys(arms, Timing((1.0, 1.0), 0.0))

    def replayed(arms: dict[str, Callable[[], object]]) -> dict[str, Callable[[], object]]:
        replays.append(len(arms))
        return arms

    replays: list[int] = []
    monkeypatch.setattr(conditions, "Prepared", Spy)
    monkeypatch.setattr(conditions, "as_cuda_graphs", replayed)
    monkeypatch.setattr(conditions, "compare", compare)
    setting = Conditions("bfloat16", 2, repeats=7)
    list(bench_networks.measure_network("resnet18", 8, [0.5], setting))
    monkeypatch.setattr(machine.Roof, "measure", lambda self: None)
    bench_layers.measure_layers(
        "resnet18", 8, [0.5], {}, {}, setting, machine.Roof("bfloat16", 1.0, 1.0)
    )
    assert set(how) == {("bfloat16", False)} and set(asked) == {7}
    assert len(replays) == len(asked)
    x = torch.randn(2, 3, 4, 4)
    assert setting.input(x).dtype == torch.bfloat16
    assert setting.input(x).is_contiguous(memory_format=torch.channels_last)
    assert setting._replace(precision="tf32").input(x).dtype == torch.float32


def test_a_network_that_memory_does_not_hold_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def too_large(*_: object) -> list[dict[str, Any]]:
        raise torch.OutOfMemoryError("too large")

    def timed(name: str, width: int, *_: object) -> Iterator[dict[str, Any]]:
        yield {"network": name, "width": width}
        if width == 8:
            raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(bench, "measure_network", timed)
    monkeypatch.setattr(bench, "measure_memory", lambda name, width, *_: [(name, width)])
    monkeypatch.setattr(bench, "measure_layers", too_large)
    networks = [("resnet18", 4), ("resnet18", 8), ("vgg16_bn", 4)]
    found = bench.measure(networks, [0.25], [2], ["float32"], repeats=2, threads=1)
    lacking = "float32, batch 2 is left out: this device's memory does not hold it"
    assert found["left_out"][-2:] == [f"layers, {lacking}", f"resnet18, width 8, {lacking}"]
    assert [(row["network"], row["width"]) for row in found["networks"]] == found["memory"]
    assert found["memory"] == [("resnet18", 4), ("vgg16_bn", 4)]


def test_results_of_several_devices_stand_side_by_side(
    facts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = bench.save_benchmark(facts, tmp_path)
    another = {**facts, "device": {**facts["device"], "device": "Another CPU"}}
    other = bench.save_benchmark(another, tmp_path)
    assert bench.save_benchmark(facts, tmp_path) == here != other
    assert len(list(tmp_path.iterdir())) == 2
    assert read_json(here)["layers"] == facts["layers"]
    assert {d["device"]["device"] for d in bench.saved_benchmarks(tmp_path)} == {
        "Another CPU", facts["device"]["device"]
    }  # fmt: skip
    table = bench.markdown(facts)
    assert table.count("\n|") == 2 + len(facts["layers"]) + 16 + 2 + 4
    assert "resnet18, width 8, training step" in table and "bfloat16 is left out" in table
    # Measurements exceed it, so that it is no bound.
    assert "| quartiles | expected | share |" in table and "bound" not in table

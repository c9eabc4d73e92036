"""The benchmark's bookkeeping, at a size that takes seconds; speeds themselves are not tested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from basisconv.plan import Plan
from basisconv.study import bench
from basisconv.study.files import read_json
from basisconv.study.protocol import Study
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


def test_the_cost_table_holds_every_plan_of_the_drafts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from basisconv.study import costs
    from basisconv.study.experiments import draft

    monkeypatch.setattr(bench, "cost_table", lambda name: tmp_path / name / "costs.json")
    study = Study.open("smoke", ["width=4", "training.batch_size=4"], runs=tmp_path / "runs")
    sweep = draft(study, "03_sensitivity")
    path = bench.measure_costs(study, [sweep], repeats=1)
    measured = costs.MeasuredCosts(read_json(path), path, study.profile)
    for run in sweep.runs.values():
        assert measured.step(run.phases[0].plan, 4) > 0
    assert measured.step(Plan(), 4) == 1.0
    assert all(measured.step(Plan(), width) > 0 for width in study.widths)
    # A second call measures what is new alone, and changes nothing.
    before = path.read_bytes()
    timed: list[object] = []
    monkeypatch.setattr(bench, "step_times", lambda *arguments: timed.append(arguments))
    bench.measure_costs(study, [sweep], repeats=1)
    assert not timed and path.read_bytes() == before


def test_a_profile_that_trains_otherwise_than_steps_are_timed_gets_no_table() -> None:
    study = Study.open("smoke", ["precision=bfloat16"])
    with pytest.raises(ValueError, match="precision='bfloat16'.*costs=macs"):
        bench.measure_costs(study, [])


def test_the_cost_tables_steps_are_the_profiles_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their batch and threads; and a ratio is ours over dense, with its quartiles in order."""
    seen: list[tuple[tuple[int, ...], int]] = []

    def times(models: dict[str, nn.Module], x: torch.Tensor, repeats: int) -> dict[str, Timing]:
        seen.append((tuple(x.shape), torch.get_num_threads()))
        return {"dense": Timing((1.0,) * 5, 0.0), "plan": Timing((0.2, 0.3, 0.4, 0.5, 0.6), 0.0)}

    monkeypatch.setattr(bench, "step_times", times)
    monkeypatch.setattr(bench, "cost_table", lambda name: tmp_path / "costs.json")
    study = Study.open("smoke", ["width=4", "threads=2"], runs=tmp_path / "runs")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = read_json(bench.measure_costs(study, []))["rows"]
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {((50, 3, 32, 32), 2)}
    low, high = rows[0]["quartiles"]
    assert low == pytest.approx(0.3) and high == pytest.approx(0.5)
    assert rows[0]["ratio"] == pytest.approx(0.4)


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

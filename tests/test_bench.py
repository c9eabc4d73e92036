"""The benchmark's bookkeeping, at a size that takes seconds; speeds themselves are not tested."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from basisconv.plan import Plan
from basisconv.study import bench
from basisconv.study.files import read_json
from basisconv.study.protocol import Study


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

    monkeypatch.setattr(bench, "published_folder", lambda name: tmp_path / name)
    study = Study.open("smoke", ["width=4", "training.batch_size=4"], runs=tmp_path / "runs")
    sweep = draft(study, "03_sensitivity")
    path = bench.measure_costs(study, [sweep], repeats=1)
    measured = costs.MeasuredCosts(read_json(path), path, 4)
    for run in sweep.runs.values():
        assert measured.step(run.phases[0].plan, 4) > 0
    assert measured.step(Plan(), 4) == 1.0
    assert all(measured.step(Plan(), width) > 0 for width in study.widths)

"""The measured cost table: every plan of a profile's experiments, timed as its Runs train."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fake_runs import make_record, make_run
from torch import nn

from basisconv.plan import Plan
from basisconv.study.data.packs import MissingData
from basisconv.study.experiments import cost_table, ranks, selection
from basisconv.study.experiments import study as study_module
from basisconv.study.experiments.cost_table import ensure_costs, measure_table
from basisconv.study.experiments.registry import TRAINED, draft
from basisconv.study.experiments.study import Study
from basisconv.study.records.environment import UnsuitableMachine
from basisconv.study.records.files import DamagedFile, read_json
from basisconv.study.timing import cost_measurement as measuring
from basisconv.study.timing import costs
from basisconv.study.timing import steps as timed_steps
from basisconv.study.timing.costs import Step
from basisconv.study.training import precision
from basisconv.study.training.precision import EmulatedPrecision
from basisconv.timing import Timing

SETTINGS = ["width=4", "training.batch_size=4", "budget_batch=4", "costs=table"]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The table's place for the test, empty; torch's threads are put back afterwards."""
    path = tmp_path / "published" / "costs.json"
    for module in (cost_table, study_module):
        monkeypatch.setattr(module, "cost_table", lambda name: path)
    monkeypatch.setattr(measuring, "configure_cpu", lambda threads: None)
    return path


def fake_compare(seen: list[set[str]]):  # type: ignore[no-untyped-def]
    """A dense step takes 1 s and any other network's 0.4; layers take 0.1 s, and 0.09 as basis."""

    def compare(arms: dict[str, object], repeats: int, device: torch.device) -> object:
        seen.append(set(arms))
        if set(arms) == {"dense", "step"}:
            return {
                "dense": Timing((1.0,) * 5, 0.0), "step": Timing((0.2, 0.3, 0.4, 0.5, 0.6), 0.0)
            }  # fmt: skip
        seconds = {"step": 1.0, "dense": 0.1, "basis": 0.09}
        return {arm: Timing((seconds[arm.split()[0]],) * 5, 0.0) for arm in arms}

    return compare


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The arms of every comparison, which `fake_compare` times."""
    found: list[set[str]] = []
    monkeypatch.setattr(measuring, "compare", fake_compare(found))
    return found


def test_every_plan_that_a_profile_trains_is_measured_once(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study.open("smoke", SETTINGS, runs=tmp_path / "runs")
    timed: list[set[str]] = []
    monkeypatch.setattr(measuring, "compare", fake_compare(timed))
    assert measure_table(study, repeats=1) == table
    measured = costs.MeasuredCosts(read_json(table), table, study.profile)

    def cost(plan: Plan, width: int = 4) -> float:
        return measured.of(Step(plan, width, 4))

    # The study sizes its Runs by the table from now on.
    for name in ("01_baseline", "02_all_layers", "03_sensitivity", "05_skip_training"):
        for run in draft(study, name).runs.values():
            assert all(cost(phase.plan, run.width) > 0 for phase in run.phases)
    assert cost(Plan()) == 1.0
    assert all(cost(Plan(), width) > 0 for width in study.narrow_widths(study.plan(0.25)))
    # Six of twenty layers that save as much each: so much of what all of them save together.
    assert cost(study.plan(0.25, study.layers)) == pytest.approx(0.4)
    assert cost(study.plan(0.25, study.layers[3:9])) == pytest.approx(1 - 0.6 * 6 / 20)
    # A second call measures what is new alone, and changes nothing.
    before = table.read_bytes()
    timed.clear()
    measure_table(study, repeats=1)
    assert not timed and table.read_bytes() == before


def test_steps_are_timed_as_the_profile_trains_them(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: list[set[str]]
) -> None:
    """Batch, precision and compilation; and a ratio is ours over dense, quartiles in order."""
    threads: list[int] = []
    monkeypatch.setattr(measuring, "configure_cpu", threads.append)
    running: list[tuple[object, ...]] = []
    images: list[int] = []

    class Spy(nn.Identity):
        def __init__(self, model: nn.Module, *how: object) -> None:
            super().__init__()
            running.append(how)

    monkeypatch.setattr(measuring, "Prepared", Spy)
    real = measuring.random_images
    monkeypatch.setattr(
        measuring, "random_images", lambda batch: (images.append(batch), real(batch))[1]
    )
    monkeypatch.setattr(measuring, "forward_backward", lambda module, x, input_gradient: None)
    monkeypatch.setattr(measuring, "training_step", lambda model, x, kind: lambda: None)
    monkeypatch.setattr(precision, "has_native_bfloat16", lambda: True)
    changes = ["width=4", "costs=table", "threads=2", "precision=bfloat16", "compile=true",
               "training.batch_size=25"]  # fmt: skip
    study = Study.open("smoke", changes, runs=tmp_path / "runs")
    rows = read_json(measure_table(study, repeats=7))["rows"]
    assert set(running) == {("bfloat16", True)} and threads == [2]
    # In every turn the reference at the budget batch, and the plans at the Runs' own.
    single = [len(row["plan"]["layers"]) == 1 for row in rows]
    assert single == sorted(single) and any(single)
    assert seen[: single.count(False)] == [{"dense", "step"}] * single.count(False)
    batches = [row["batch_size"] for row in rows]
    assert images[: 1 + single.count(False)] == [50, *batches[: single.count(False)]]
    assert set(batches) == {25, 50} and set(images) == {25, 50}
    assert rows[0]["ratio"] == pytest.approx(0.4)
    assert rows[0]["quartiles"] == pytest.approx([0.3, 0.5])


def test_real_steps_have_ratios_and_quartiles(tmp_path: Path) -> None:
    profile = Study.open("smoke", [*SETTINGS, "costs=macs"], runs=tmp_path / "runs").profile
    unit = measuring._training_step(profile, costs.reference_step(profile))
    row = measuring._network_row(profile, Step(Plan(), 2, 8), unit, repeats=3)
    assert (row["width"], row["batch_size"]) == (2, 8)
    low, high = row["quartiles"]
    assert 0 < low <= row["ratio"] <= high and "optimizer" not in row
    muon = measuring._network_row(profile, Step(Plan(), 2, 8, "muon"), unit, repeats=1)
    assert muon["optimizer"] == "muon"


def test_under_muon_a_layer_is_timed_with_its_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = measuring.with_muon_update

    def slower(call: Callable[[], None], module: nn.Module) -> Callable[[], None]:
        step, basis = slow(call, module), "basis" in dict(module.module.named_parameters())
        return lambda: (time.sleep(0.1 * basis), step())[1]

    monkeypatch.setattr(measuring, "with_muon_update", slower)
    profile = Study.open("smoke", [*SETTINGS, "costs=macs"], runs=tmp_path / "runs").profile
    steps = [Step(Plan({"layer4.1.conv2": 2}), 4, 8, "muon")]
    torch.set_num_threads(1)  # others may want the second core
    (row,) = measuring._layer_rows(profile, steps, 0.75, lambda: time.sleep(0.4), repeats=3)
    assert abs(row["ratio"] - 1.0) < 0.1 and row["optimizer"] == "muon"


def test_a_layers_row_is_its_networks_less_what_the_layer_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timed on what the layer is given, in the layout, and the stem without its input's gradient.

    The basis of layer4.1.conv2 made slower by a known time costs so much more than its dense form.
    """
    profile = Study.open("smoke", [*SETTINGS, "costs=macs"], runs=tmp_path / "runs").profile
    steps = [Step(Plan({name: 2}), 4, 8) for name in ("conv1", "layer4.1.conv2")]
    timed: list[tuple[tuple[int, ...], bool, bool]] = []
    real = measuring.forward_backward

    def spy(module: nn.Module, x: torch.Tensor, input_gradient: bool) -> Callable[[], None]:
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        timed.append((tuple(x.shape), channels_last, input_gradient))
        step, slow = real(module, x, input_gradient), len(timed) == 4
        return lambda: (time.sleep(0.2 * slow), step())[1]

    monkeypatch.setattr(measuring, "forward_backward", spy)
    torch.set_num_threads(1)  # others may want the second core
    stem, last = measuring._layer_rows(profile, steps, 0.75, lambda: time.sleep(0.4), repeats=5)
    assert timed[:2] == [((8, 3, 32, 32), True, False)] * 2
    assert [(shape, needed) for shape, _, needed in timed[2:]] == [((8, 32, 4, 4), True)] * 2
    assert abs(stem["ratio"] - 0.75) < 0.1
    assert abs(last["ratio"] - 1.25) < 0.1
    assert last["quartiles"][0] <= last["ratio"] <= last["quartiles"][1]
    assert [row["plan"]["layers"] for row in (stem, last)] == [s.plan.layers for s in steps]


def test_a_single_layers_row_is_less_than_the_dense_row_of_its_own_width_and_batch(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes its batch in seconds, a layer a tenth of one, and as basis a tenth less."""

    def compare(arms: dict[str, object], repeats: int, device: torch.device) -> object:
        layers = {"dense": 0.1, "basis": 0.09}
        seconds = {
            arm: float(step) if isinstance(step, int) else layers[arm.split()[0]]
            for arm, step in arms.items()
        }
        return {arm: Timing((took,) * 5, 0.0) for arm, took in seconds.items()}

    monkeypatch.setattr(measuring, "compare", compare)
    monkeypatch.setattr(measuring, "training_step", lambda model, x, kind: len(x))
    tuned = ", ".join(
        f"{kind}: {{1: {{learning_rate: 0.1, batch_size: {batch}}}}}"
        for kind, batch in (("dense", 5), ("narrow", 7), ("basis", 6), ("skip", 7))
    )
    changes = [*SETTINGS, f"tuned={{{tuned}}}", "notebooks.03_sensitivity.width=2"]
    measure_table(Study.open("smoke", changes, runs=tmp_path / "runs"))
    found: dict[tuple[int, int], set[float]] = {}
    for row in read_json(table)["rows"]:
        if len(row["plan"]["layers"]) == 1:
            found.setdefault((row["width"], row["batch_size"]), set()).add(round(row["ratio"], 9))
    # The pilot's at the profile's width and budget batch, 04's at basis arms' batch, and 03's;
    # all less what the layer saves of the step that costs 1, of four seconds.
    assert found == {(4, 4): {1 - 0.0025}, (4, 6): {1.5 - 0.0025}, (2, 5): {1.25 - 0.0025}}


def test_two_plans_of_one_layer_have_a_row_of_their_own_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = [1.0, 0.10, 0.02, 0.10, 0.07]  # the step, then dense and basis of each plan

    def compare(arms: dict[str, object], repeats: int, device: torch.device) -> object:
        times = zip(arms, seconds, strict=True)
        return {arm: Timing((time,) * repeats, 0.0) for arm, time in times}

    monkeypatch.setattr(measuring, "compare", compare)
    profile = Study.open("smoke", [*SETTINGS, "costs=macs"], runs=tmp_path / "runs").profile
    steps = [Step(Plan({"layer1.0.conv1": m}), 4, 8) for m in (1, 2)]
    rows = measuring._layer_rows(profile, steps, 0.75, lambda: None, repeats=5)
    assert [row["ratio"] for row in rows] == pytest.approx([0.67, 0.72])


def test_a_profile_that_wants_a_table_and_has_none_measures_it_first(
    table: Path, tmp_path: Path, seen: list[set[str]]
) -> None:
    ensure_costs(Study.open("smoke", runs=tmp_path / "runs"))  # sized by MACs: wants none
    assert not seen and not table.exists()
    ensure_costs(Study.open("smoke", SETTINGS, runs=tmp_path / "runs"))
    assert seen and table.exists()
    seen.clear()
    ensure_costs(Study.open("smoke", SETTINGS, runs=tmp_path / "runs"))
    assert not seen


@pytest.mark.parametrize(
    ("fault", "error"),
    [("emulated", EmulatedPrecision), ("no data", MissingData), ("no compiler", UnsuitableMachine)],
)
def test_what_the_runs_need_is_asked_for_before_an_hour_of_measuring(
    fault: str,
    error: type[Exception],
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seen: list[set[str]],
) -> None:
    settings = {
        "emulated": ["precision=bfloat16"], "no data": ["data=cifar10"], "no compiler": [
            "compile=true"],
    }  # fmt: skip
    monkeypatch.setattr(precision, "has_native_bfloat16", lambda: False)
    monkeypatch.setenv("BASISCONV_DATA", str(tmp_path / "nowhere"))

    def broken(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no g++")

        return forward

    monkeypatch.setattr(timed_steps, "compile_network", broken)
    study = Study.open("smoke", [*SETTINGS, *settings[fault]], runs=tmp_path / "runs")
    with pytest.raises(error, match=r"emulates|nowhere|no g\+\+.*compile=false"):
        ensure_costs(study)
    assert not seen and not table.exists()


def test_measuring_ends_with_its_time_and_can_be_continued(
    table: Path, tmp_path: Path, seen: list[set[str]]
) -> None:
    study = Study.open("smoke", SETTINGS, runs=tmp_path / "runs")
    assert not ensure_costs(study, stop=lambda: len(seen) >= 2)
    assert len(read_json(table)["rows"]) == len(seen) == 2
    assert ensure_costs(study) and len(seen) > 2


def test_without_the_table_that_sized_the_records_nothing_is_trained(
    table: Path, tmp_path: Path, seen: list[set[str]]
) -> None:
    study = Study.open("smoke", SETTINGS, runs=tmp_path / "runs")
    ensure_costs(study)
    study.store.put(make_record(make_run()))
    table.unlink()
    seen.clear()
    with pytest.raises(DamagedFile, match=f"{table} is gone.*Put it back"):
        ensure_costs(study)
    assert not seen and not table.exists()
    ensure_costs(Study.open("smoke", runs=tmp_path / "runs"))  # sized by MACs: wants none


def test_a_table_of_other_settings_is_refused_before_anything_is_timed(
    table: Path, tmp_path: Path, seen: list[set[str]]
) -> None:
    measure_table(Study.open("smoke", SETTINGS, runs=tmp_path / "runs"))
    before = table.read_bytes()
    seen.clear()
    other = Study.open("smoke", [*SETTINGS, "budget_batch=8"], runs=tmp_path / "runs")
    with pytest.raises(ValueError, match="budget_batch.*4"):
        measure_table(other)
    assert not seen and table.read_bytes() == before


def test_an_interrupted_table_is_finished_and_its_rows_stay(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: list[set[str]]
) -> None:
    def broken(*_: object, **__: object) -> object:
        if len(seen) == 2:
            raise KeyboardInterrupt
        return fake_compare(seen)(*_, **__)

    study = Study.open("smoke", SETTINGS, runs=tmp_path / "runs")
    monkeypatch.setattr(measuring, "compare", broken)
    with pytest.raises(KeyboardInterrupt):
        measure_table(study)
    begun = read_json(table)["rows"]
    assert len(begun) == 2
    monkeypatch.setattr(measuring, "compare", fake_compare(seen))
    ensure_costs(study)
    rows = read_json(table)["rows"]
    assert rows[: len(begun)] == begun and len(rows) > len(begun)
    keys = [costs._step(row) for row in rows]
    assert len(keys) == len(set(keys))
    # Each in one turn: two arms a network, and two a layer beside the dense step.
    layers = [arms for arms in seen if len(arms) > 2]
    assert sum(len(arms) // 2 for arms in layers) + len(seen) - len(layers) == len(rows)


def test_arms_with_tuned_batches_of_their_own_find_their_rows(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever width the measured costs make the narrow network, and whatever 04 selects."""
    monkeypatch.setattr(measuring, "compare", fake_compare([]))
    settings = ", ".join(
        f"{kind}: {{1: {{learning_rate: 0.1, batch_size: {batch}}}}}"
        for kind, batch in (("dense", 4), ("narrow", 5), ("basis", 6), ("skip", 7))
    )
    study = Study.open("smoke", [*SETTINGS, f"tuned={{{settings}}}"], runs=tmp_path / "runs")
    measure_table(study)
    for name in TRAINED:
        if name not in ("04_selection", "08_ranks"):
            assert draft(study, name).arms
    assert ranks.guess(study).arms
    scores = {name: 0.01 * i for i, name in enumerate(study.layers)}
    chosen = selection.draft(study, study.profile.notebooks.selection, scores)
    for arm in chosen.arms:
        batch = 4 if arm.method == "dense" else 6
        assert arm.detail["batch_size"] == batch
        assert arm.time == pytest.approx(arm.budget, abs=study.cost(Plan(), None, batch) / 75)


def test_selected_subsets_get_no_row_wherever_they_are_named(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row would price 04's own Runs of the subset anew, after they were trained."""
    monkeypatch.setattr(measuring, "compare", fake_compare([]))
    named = "notebooks.02_all_layers.selected=[layer1.0.conv1, layer4.1.conv2]"
    study = Study.open("smoke", [*SETTINGS, named], runs=tmp_path / "runs")
    measure_table(study)
    subset = study.plan(0.25, ["layer1.0.conv1", "layer4.1.conv2"])
    plans = [Plan.from_dict(row["plan"]) for row in read_json(table)["rows"]]
    assert subset not in plans
    assert all(subset.only([name]) in plans for name in subset.layers)
    arm = next(a for a in draft(study, "02_all_layers").arms if a.method == "selected")
    assert arm.time == pytest.approx(arm.budget, rel=0.1)

"""The pilot's report: the best settings and their lead, the spread, the candidate sweeps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import synthetic
from scipy import stats as oracle

from basisconv.study import report
from basisconv.study.records.run import Section
from basisconv.study.report import arms, pilot
from basisconv.study.report.statistics.rankings import reliability

SECTION, RECORDS = synthetic.pilot_section()
FOUND = arms.measure(SECTION, RECORDS)
GRID, SPREAD = pilot.grid_frame(FOUND), pilot.spread_frame(FOUND)


def losses(section: Section, label: str, records: Any = RECORDS) -> list[float]:
    arm = next(a for a in section.arms if a.label == label)
    return [records[i].result.val_loss for i in arm.run_ids]


def test_the_best_setting_is_found_for_each_kind_of_arm_and_budget() -> None:
    best = pilot.best_frame(GRID, SPREAD)
    chosen = {(r.method, r.budget): (r.learning_rate, r.batch_size) for r in best.itertuples()}
    assert chosen == {
        (method, budget): (0.4 if method == "skip" else 0.2, 64)
        for method in ("dense", "basis", "skip", "narrow")
        for budget in (1, 4)
    }
    assert set(best["settings"]) == {6}
    edges = dict(zip(best["method"], best["edge"], strict=True))
    assert edges == {"dense": "", "basis": "", "skip": "rate", "narrow": ""}


def test_a_lead_is_told_in_standard_errors_of_a_difference() -> None:
    row = pilot.best_frame(GRID, SPREAD).iloc[0]
    first = losses(SECTION, "dense at 1, batch 64, rate 0.2")
    second = losses(SECTION, "dense at 1, batch 128, rate 0.2")
    assert (row.next_learning_rate, row.next_batch_size) == (0.2, 128)
    lead = np.mean(second) - np.mean(first)
    assert row.lead == pytest.approx(lead)
    sd = np.std(losses(SECTION, "dense, spread"), ddof=1)
    assert row.lead_in_errors == pytest.approx(lead / (sd * math.sqrt(2 / 4)))


def test_a_setting_that_lost_a_run_is_none_to_choose() -> None:
    grid = GRID.copy()
    grid.loc[(grid["learning_rate"] == 0.2) & (grid["batch_size"] == 64), "lost"] = 1
    best = pilot.best_frame(grid, SPREAD)
    assert not ((best["learning_rate"] == 0.2) & (best["batch_size"] == 64)).any()
    grid["lost"] = 1
    assert pilot.best_frame(grid, SPREAD).empty


def test_the_spread_is_the_runs_own_standard_deviation() -> None:
    row = SPREAD.set_index("method").loc["basis"]
    values = losses(SECTION, "basis, spread")
    assert row.loss_sd == pytest.approx(np.std(values, ddof=1))
    tails = oracle.chi2.ppf([0.975, 0.025], 3)
    ends = np.sqrt(3 * np.var(values, ddof=1) / tails)
    assert (row.loss_low, row.loss_high) == pytest.approx(tuple(ends))
    assert row.needed >= 2


def test_each_sweep_is_judged_by_itself() -> None:
    sweeps = pilot.sweep_frame(SECTION, RECORDS)
    for number, row in enumerate(sweeps.itertuples()):
        own = [a for a in SECTION.arms if a.detail.get("sweep") == number]
        dense, *layers = ([RECORDS[i].result.val_loss for i in a.run_ids] for a in own)
        matrix = np.array([np.subtract(layer, dense) for layer in layers]).T
        assert row.reliability == pytest.approx(reliability(matrix).reliability)
        assert row.hours == pytest.approx(4.0 * 0.1)
        assert row.hours_needed == pytest.approx(row.needed / 4 * 0.4)
    assert sweeps.iloc[0].reliability > 0.9 > sweeps.iloc[1].reliability
    assert sweeps.iloc[0].needed < sweeps.iloc[1].needed


def test_the_report_says_what_it_found_and_nothing_of_hours_that_nobody_knows() -> None:
    made = report.build(SECTION, RECORDS)
    assert "8 choices" in made.numbers["headline"] and "out of 6" in made.numbers["headline"]
    facts = SECTION.facts | {"dense_epoch_hours": None}
    shown = report.build(SECTION.model_copy(update={"facts": facts}), RECORDS)
    assert set(shown.tables["pilot_sweeps"].shown["hours"]) == {"–"}
    assert shown.tables["pilot_sweeps"].frame["dense_epochs"].tolist() == [4.0, 4.0]


def test_the_figure_draws_what_its_csv_holds() -> None:
    plot = report.build(SECTION, RECORDS).figures["pilot_grid"]
    drawn = [
        round(float(loss), 9)
        for axes in plot.figure.axes
        for loss in axes.collections[0].get_array().ravel()  # type: ignore[union-attr]
    ]
    assert sorted(drawn) == sorted(round(y, 9) for y in plot.data["val_loss"])


def test_a_pilot_whose_runs_all_diverged_says_so() -> None:
    maker = synthetic.Maker("01b_pilot", test=False)
    for rate in (0.1, 9.0):
        maker.arm(f"dense {rate}", "dense", 10, diverged=4,
                  detail={"part": "grid", "batch_size": 64, "learning_rate": rate})  # fmt: skip
    maker.arm("dense, spread", "dense", 10, diverged=4, detail={"part": "spread"})
    facts = {"train_images": 100, "width": 8, "spread_budget": 1.0, "dense_epoch_hours": None}
    made = report.build(maker.section(sweeps=[], **facts), maker.records)
    assert made.numbers["headline"] == "No setting of the grid was trained to its end."
    assert "left out" in made.numbers["notes"][0]

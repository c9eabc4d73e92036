"""Reports of 02's extra arms, 02b and 05b: envelopes, differences from the defaults, settings."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import synthetic
from scipy import stats as oracle
from synthetic import near

from basisconv.study import report
from basisconv.study.report import arms, defaults, frontier, speedup, widths
from basisconv.study.report.statistics.stats import holm

WIDTHS = synthetic.widths_section()
DEFAULTS = synthetic.defaults_section()


def accuracies(made: tuple[object, dict], label: str, budget: float | None = None) -> list[float]:  # type: ignore[type-arg]
    section, records = made
    arm = next(
        a for a in section.arms if a.label == label and budget in (None, a.budget)  # type: ignore[attr-defined]
    )  # fmt: skip
    results = [records[i].result for i in arm.run_ids]
    return [100 * (r.val_accuracy if r.test_accuracy is None else r.test_accuracy) for r in results]


def test_networks_are_held_against_dense_of_their_own_width() -> None:
    table = widths.width_frame(arms.measure(*WIDTHS))
    row = table[(table["label"] == "basis, width 64") & (table["budget"] == 2)].iloc[0]
    ours, dense = (accuracies(WIDTHS, f"{m}, width 64", 2) for m in ("basis", "dense"))
    assert row.p == pytest.approx(oracle.ttest_ind(ours, dense, equal_var=False).pvalue)
    assert row.difference == pytest.approx(np.mean(ours) - np.mean(dense))
    tested = table["p"].notna()
    assert tested.sum() == 12 and set(table.loc[~tested, "method"]) == {"dense"}
    assert row.verdict == "above"
    assert set(table[table["label"] == "basis, width 16"]["verdict"]) == {"below"}


def test_the_envelope_sets_the_best_of_each_side_against_each_other() -> None:
    envelope = widths.envelope_frame(arms.measure(*WIDTHS))
    assert list(envelope["budget"]) == [1, 2]
    assert set(envelope["dense"]) == {"dense, width 16"}
    best = [str(label) for label in envelope["basis"]]
    for budget, label, p in zip((1, 2), best, envelope["p"], strict=True):
        ours = accuracies(WIDTHS, label, budget)
        dense = accuracies(WIDTHS, "dense, width 16", budget)
        assert p == pytest.approx(oracle.ttest_ind(ours, dense, equal_var=False).pvalue)
    assert list(envelope["p_holm"]) == pytest.approx(holm(list(envelope["p"])))


def test_the_envelope_is_picked_by_validation_and_not_by_what_is_compared() -> None:
    maker = synthetic.Maker("02b_widths", noise=0.0)
    for label, method, level in (("dense a", "dense", 80), ("dense b", "dense", 79),
                                 ("basis a", "basis", 78)):  # fmt: skip
        maker.arm(label, method, 0, values=near(level),
                  detail={"width": 8, "parameters": 1})  # fmt: skip
    # The network that validation prefers has the lower test accuracy.
    for run_id in maker.arms[1].run_ids:
        record = maker.records[run_id]
        better = record.result.model_copy(update={"val_accuracy": 0.9})  # type: ignore[union-attr]
        maker.records[run_id] = record.model_copy(update={"result": better})
    (row,) = widths.envelope_frame(
        arms.measure(maker.section(**synthetic.WIDTHS_FACTS), maker.records)
    ).itertuples()
    assert row.dense == "dense b" and row.difference == pytest.approx(-1.0)


def test_the_widths_headline_says_at_which_budgets_the_best_are_above_and_below() -> None:
    maker = synthetic.Maker("02b_widths", noise=0.1)
    for budget, basis in ((1, 85.0), (2, 75.0), (4, 70.0)):
        for method, level in (("dense", 80.0), ("basis", basis)):
            maker.arm(f"{method}, width 8", method, level, budget=budget,
                      detail={"width": 8, "parameters": 1})  # fmt: skip
    told = report.build(maker.section(**synthetic.WIDTHS_FACTS), maker.records).numbers["headline"]
    each = re.findall(r"at (\d) epochs? \(([a-z]+)\)", told)
    assert each == [("1", "better"), ("2", "worse"), ("4", "worse")]


def test_widths_without_basis_layers_have_no_envelope() -> None:
    maker = synthetic.Maker("02b_widths")
    maker.arm("dense, width 8", "dense", 80, detail={"width": 8, "parameters": 1})
    made = report.build(maker.section(**synthetic.WIDTHS_FACTS), maker.records)
    assert made.numbers["headline"].startswith("No network with basis layers")


def test_the_widths_figure_draws_what_its_csv_holds() -> None:
    plot = report.build(*WIDTHS).figures["widths"]
    drawn = sorted(
        round(float(y), 9)
        for axes in plot.figure.axes
        for container in axes.containers
        for y in container.lines[0].get_ydata()  # type: ignore[attr-defined]
    )
    assert drawn == sorted(round(y, 9) for y in plot.data["accuracy"])


@pytest.mark.parametrize("budgets", [[1.0], [1.0, 2.0]])
def test_a_widths_figure_of_one_budget_has_no_letter(budgets: list[float]) -> None:
    section, records = WIDTHS
    some = section.model_copy(
        update={"arms": tuple(arm for arm in section.arms if arm.budget in budgets)}
    )
    plot = report.build(some, records).figures["widths"]
    titles = [axes.get_title("left") for axes in plot.figure.axes]
    several = len(budgets) > 1
    assert [title.startswith("(") for title in titles] == [several] * len(budgets)
    assert ("a panel for each budget" in plot.caption) is several


@pytest.mark.parametrize(
    ("direction", "said"),
    [("basis→dense", "ends as a dense network"), ("dense→basis", "starts as a dense network")],
)
def test_a_widths_figure_tells_where_skip_training_is_dense(direction: str, said: str) -> None:
    section, records = WIDTHS
    skip = {**synthetic.WIDTHS_FACTS["skip"], "direction": direction}
    facts = {**section.facts, "skip": skip}
    made = report.build(section.model_copy(update={"facts": facts}), records)
    assert said in made.figures["widths"].caption


def test_variants_are_held_against_the_defaults() -> None:
    section, records = DEFAULTS
    table = defaults.variant_frame(arms.measure(section, records)).set_index("label")
    usual = accuracies(DEFAULTS, "our defaults")
    for label in ("full form", "full form, 4 groups", "decay of the product", "start from SVD"):
        test = oracle.ttest_ind(accuracies(DEFAULTS, label), usual, equal_var=False)
        ends = test.confidence_interval(0.95)
        row = table.loc[label]
        assert row.p == pytest.approx(test.pvalue)
        assert (row.difference_low, row.difference_high) == pytest.approx((ends.low, ends.high))
    assert math.isnan(table.loc["our defaults", "difference"])
    verdicts = table["verdict"].to_dict()
    assert verdicts["full form, 4 groups"] == "below" and verdicts["our defaults"] == ""
    assert verdicts["decay of the product"] == "above"


def test_the_headline_counts_what_beats_the_defaults() -> None:
    told = report.build(*DEFAULTS).numbers["headline"]
    assert "over 4 comparisons: 1 above, 1 below, 2 undecided (Holm)" in told


def test_without_the_defaults_there_is_nothing_to_hold_variants_against() -> None:
    maker = synthetic.Maker("05b_defaults")
    maker.arm("full form", "variant", 80, detail={"choice": "form"})
    with pytest.raises(ValueError, match="no arm with the defaults"):
        defaults.variant_frame(arms.measure(maker.section(), maker.records))


def test_the_network_of_equal_size_is_no_arm_of_ours() -> None:
    section, records = synthetic.frontier_section()
    table = frontier.frontier(section, records)
    found = arms.measure(section, records)
    assert "equal size" not in frontier.headline(table, found)
    size = frontier.same_size(found)["same size"]["text"]
    assert size.startswith("“all layers, f = 0.25” minus “dense, width 17, equal size” at 2: ")


def test_of_two_equal_speed_ups_the_more_accurate_is_named_first() -> None:
    maker = synthetic.Maker("02_all_layers", noise=0.0)
    for budget, level in ((1, 70), (1.31, 72)):
        maker.arm("dense", "dense", 0, budget=budget, values=near(level))
    # Whole steps make the less accurate one's time the shorter, as in the desk study.
    for label, level, time in (("better", 75, 1.0), ("worse", 74, 0.9996), ("third", 71, 0.99)):
        maker.arm(label, "basis", 0, budget=1, time=time, values=near(level))
    table = frontier.frontier(maker.section(), maker.records)
    told = speedup.values(table, arms.measure(maker.section(), maker.records))
    assert told["speed-up"]["text"] == "1.31"
    assert re.match(
        r"“better” at 1 \(\+3\.00 points \[.*\], p <0\.001\) and “worse” at 1 \(\+2\.00 ",
        told["fastest"]["text"],
    )


@pytest.mark.parametrize("tuned", [True, False])
def test_the_frontier_tells_what_its_arms_were_trained_with(tuned: bool) -> None:
    section, records = synthetic.frontier_section()
    section = section.model_copy(update={"facts": section.facts | {"tuned": tuned}})
    made = report.build(section, records)
    table = made.tables["frontier_settings"]
    assert made.numbers["tuned"] is tuned
    assert ("tuned" in table.caption) is tuned
    assert set(table.shown["batch"]) == {"128"} and set(table.shown["steps"]) == {"10"}

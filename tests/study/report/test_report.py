"""Tables, figures and numbers of the sections, from made-up records."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
from functools import cache
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic
from matplotlib.container import ErrorbarContainer
from matplotlib.patches import Rectangle
from scipy import stats as oracle
from synthetic import JITTER, near, switched

from basisconv.plan import Plan
from basisconv.study import report
from basisconv.study.records.run import Phase, Record, Section
from basisconv.study.report import arms, frontier, sensitivity, skip_training, speedup
from basisconv.study.report.output import Report
from basisconv.study.report.statistics.stats import NAN
from basisconv.study.report.tables import fixed, make_table, plain, words
from basisconv.study.report.text import NOTHING

SECTIONS, RECORDS = synthetic.all_sections()


@cache
def built(name: str) -> Report:
    return report.build(SECTIONS[name], RECORDS)


def saved(section: Section, folder: Path) -> dict[str, bytes]:
    paths = report.build(section, RECORDS).save(folder)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", SECTIONS)
def test_every_declared_file_is_written_in_every_format(name: str, tmp_path: Path) -> None:
    made = built(name)
    wanted = {f"numbers/{name}.json"}
    wanted |= {f"tables/{t}.{e}" for t in made.tables for e in ("csv", "md")}
    wanted |= {f"figures/{f}.{e}" for f in made.figures for e in ("pdf", "svg", "png", "csv")}
    written = {path.relative_to(tmp_path).as_posix() for path in made.save(tmp_path)}
    assert written == wanted
    starts = {".pdf": b"%PDF", ".png": b"\x89PNG", ".svg": b"<?xml"}
    for path in tmp_path.rglob("*"):
        if path.suffix in starts:
            assert path.read_bytes().startswith(starts[path.suffix])
    numbers = json.loads((tmp_path / "numbers" / f"{name}.json").read_text())
    assert numbers["profile"] == "desk" and numbers["headline"].endswith(".")


def test_same_records_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    here = saved(SECTIONS["02_all_layers"], tmp_path / "here")
    code = (
        "import sys, pathlib, synthetic\n"
        "from basisconv.study import report\n"
        "sections, records = synthetic.all_sections()\n"
        "report.build(sections['02_all_layers'], records).save(pathlib.Path(sys.argv[1]))\n"
    )
    env = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "TZ": "Asia/Tokyo",
        "SOURCE_DATE_EPOCH": "123456789",
    }
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], env=env, check=True)
    there = tmp_path / "there"
    assert {
        path.relative_to(there).as_posix(): path.read_bytes()
        for path in there.rglob("*")
        if path.is_file()
    } == here


def test_a_users_own_matplotlib_style_changes_nothing(tmp_path: Path) -> None:
    import matplotlib as mpl

    before = saved(SECTIONS["01_baseline"], tmp_path / "a")
    with mpl.rc_context({"font.size": 20, "lines.linewidth": 9, "axes.facecolor": "red"}):
        after = saved(SECTIONS["01_baseline"], tmp_path / "b")
    assert before == after


def sentences(made: Report) -> str:
    """A report's headline, what it prints by key, and its captions."""
    printed = [value["text"] for value in made.numbers["values"].values()]
    captions = [shown.caption for shown in (*made.tables.values(), *made.figures.values())]
    return " ".join([made.numbers["headline"], *printed, *captions])


def values(section: Section, label: str, budget: float | None = None) -> list[float]:
    """Accuracies in per cent, by seed, read past the code under test."""
    arm = next(a for a in section.arms if a.label == label and budget in (None, a.budget))
    return [100 * RECORDS[i].result.test_accuracy for i in arm.run_ids]  # type: ignore[union-attr,operator]


def test_frontier_stores_the_intervals_that_scipy_computes() -> None:
    section = SECTIONS["02_all_layers"]
    table = frontier.frontier(section, RECORDS)
    dense, basis = values(section, "dense", 2), values(section, "all layers, f = 0.25", 2)
    row = table[(table["label"] == "all layers, f = 0.25") & (table["budget"] == 2)].iloc[0]
    t = oracle.t.interval(0.95, 3, np.mean(basis), oracle.sem(basis))
    assert (row.low, row.high) == pytest.approx(t)
    welch = oracle.ttest_ind(basis, dense, equal_var=False)
    ends = welch.confidence_interval(0.95)
    assert (row.difference_low, row.difference_high) == pytest.approx((ends.low, ends.high))
    assert row.p == pytest.approx(welch.pvalue)
    tested = table["p"].notna()
    assert tested.sum() == 13  # four arms that are not dense at three budgets, one at one
    for dense_network in (True, False):
        family = table[table["method"].isin(frontier.DENSE) == dense_network]
        p, adjusted = (family[name].dropna() for name in ("p", "p_holm"))
        assert len(p) == len(adjusted) > 3
        # Holm's first step: the smallest by the number of comparisons in its family.
        assert adjusted[p.idxmin()] == pytest.approx(min(1, len(p) * p.min()))
    assert list(table.loc[~tested, "method"].unique()) == ["dense"]


def test_arms_of_equal_steps_are_held_against_dense_of_these_and_kept_from_the_frontier() -> None:
    section = SECTIONS["02_all_layers"]
    table = frontier.equal_steps(section, RECORDS)
    assert list(table["ratio"]) == [0.125, 0.25]
    assert list(table["time"]) == pytest.approx([0.3, 0.4])
    (few, quarter) = table.itertuples()
    ours = values(section, "all layers, f = 0.25, dense's steps")
    dense = values(section, "dense", 2)
    welch = oracle.ttest_ind(ours, dense, equal_var=False)
    assert quarter.p == pytest.approx(welch.pvalue)
    assert quarter.difference == pytest.approx(np.mean(ours) - np.mean(dense))
    assert few.p_holm >= few.p and min(few.p, quarter.p) * 2 == pytest.approx(
        min(few.p_holm, quarter.p_holm)
    )
    shown = frontier.frontier(section, RECORDS)
    assert not any("dense's steps" in label for label in shown["label"])
    made = built("02_all_layers")
    assert list(made.tables["equal_steps"].shown["time"]) == ["30 %", "40 %"]
    unequal = [
        arm.model_copy(update={"detail": arm.detail | {"steps": [11]}})
        if arm.method == "dense"
        else arm
        for arm in section.arms
    ]
    with pytest.raises(ValueError, match="needs arms that train for as many steps as dense"):
        frontier.equal_steps(section.model_copy(update={"arms": tuple(unequal)}), RECORDS)


def test_on_the_frontier_dense_stands_at_its_time_and_nothing_else_does() -> None:
    plot = built("02_all_layers").figures["frontier"]
    (axes, _), table = plot.figure.axes, plot.data
    drawn = {
        (round(float(y), 9), float(x))
        for container in axes.containers
        if isinstance(container, ErrorbarContainer)
        for x, y in zip(*container.lines[0].get_data(), strict=True)
    }
    time = {round(r.accuracy, 9): (r.time, r.method == "dense") for r in table.itertuples()}
    assert len(drawn) == len(time)
    for accuracy, x in drawn:
        true, dense = time[accuracy]
        assert (x == pytest.approx(true, rel=1e-9)) is dense


def test_by_size_every_arm_stands_at_its_own_and_equals_side_by_side() -> None:
    plot = built("02_all_layers").figures["frontier_size"]
    table = plot.data[plot.data["budget"] == 2].set_index("accuracy")
    for axes, what in zip(plot.figure.axes, ("parameters", "executed_macs"), strict=True):
        true, drawn = [], []
        for container in axes.containers:
            assert isinstance(container, ErrorbarContainer)
            (x,), (y,) = container.lines[0].get_data()
            (size,) = (row[what] / 1e6 for own, row in table.iterrows() if own == pytest.approx(y))
            true.append(size)
            drawn.append(float(x))
        equal = [true.count(size) > 1 for size in true]
        assert len(true) == 6 and sum(equal) == 2  # dense, and skip training that ends dense
        assert len(set(drawn)) == len(drawn)
        for size, x, moved in zip(true, drawn, equal, strict=True):
            assert x == pytest.approx(size, rel=0.04 if moved else 1e-9)
        order = sorted(range(6), key=lambda i: drawn[i])
        assert [true[i] for i in order] == sorted(true)


def test_bracket_needs_measured_dense_budgets_and_the_verdict_at_equal_time() -> None:
    maker = synthetic.Maker("02_all_layers", noise=0.0)
    for budget, level in ((1, 70), (2, 80), (4, 90)):
        maker.arm("dense", "dense", 0, budget=budget, values=near(level))
    maker.arm("basis", "basis", 0, budget=1, values=near(85))
    found = arms.measure(maker.section(), maker.records)

    def bracket(verdict: str) -> pd.Series:
        return speedup.brackets(found, ["", "", "", verdict]).iloc[-1]

    row = bracket("above")
    assert (row.speedup_at_least, row.speedup_below) == (2.0, 4.0)
    assert row.beaten_by == pytest.approx(5.0) and row.beaten_low < 5.0 < row.beaten_high
    # Without the corrected verdict at equal time no bound from that budget on is claimed.
    row = bracket("open")
    assert math.isnan(row.speedup_at_least) and row.speedup_below == 4.0
    assert math.isnan(row.beaten_by)
    dense = speedup.brackets(found, [""] * 4).iloc[:3]
    assert dense.isna().all(axis=None)


def test_a_speed_up_is_of_the_times_taken_and_not_of_the_budgets() -> None:
    maker = synthetic.Maker("02_all_layers", noise=0.0)
    for budget, time, level in ((1, 1.1, 70), (2, 1.9, 80), (4, 4.4, 90)):
        maker.arm("dense", "dense", 0, budget=budget, time=time, values=near(level))
    maker.arm("basis", "basis", 0, budget=1, time=0.8, values=near(85))
    row = frontier.frontier(maker.section(), maker.records).iloc[-1]
    assert row.speedup_at_least == pytest.approx(1.9 / 0.8)
    assert row.speedup_below == pytest.approx(4.4 / 0.8)


def test_an_arm_without_dense_of_its_budget_is_held_against_dense_of_others_alone() -> None:
    maker = synthetic.Maker("02_all_layers", noise=0.0)
    detail = {"parameters": 10, "macs": 10, "executed_macs": 10}
    for label, method, budget, level in (
        ("dense", "dense", 1, 70), ("basis", "basis", 1, 75), ("basis", "basis", 4, 90),
        ("equal", "equal_steps", 1, 60),
    ):  # fmt: skip
        maker.arm(label, method, 0, budget=budget, values=near(level),
                  detail=detail | {"ratio": 0.25})  # fmt: skip
    section = maker.section(ratio=0.25)
    table = report.build(section, maker.records).tables["frontier"]
    compared, alone = table.frame[table.frame["method"] == "basis"].itertuples()
    assert compared.difference == pytest.approx(5) and compared.verdict == "above"
    assert math.isnan(alone.difference) and math.isnan(alone.p_holm) and alone.verdict == ""
    assert alone.speedup_at_least == 0.25  # ahead of dense of a quarter of its time
    assert list(table.shown["minus dense"] == NOTHING) == [True, False, True]
    claims = report.build_claims({section.name: section}, maker.records, "desk").tables["claims"]
    told = claims.frame.set_index("claim").loc["effectiveness", "estimate"]
    assert told.startswith("dense of the same time is beaten at 1 of 1 budget (Holm)")


@pytest.mark.parametrize(
    ("p", "decides"), [(0.05 - 1e-9, True), (0.05, False), (0.05 + 1e-9, False)]
)
def test_a_p_next_to_five_per_cent_decides_by_its_side(p: float, decides: bool) -> None:
    assert arms.verdict(1.0, 1.0, p) == ("above" if decides else "open")
    assert arms.verdict(-1.0, 1.0, p) == ("below" if decides else "open")
    assert arms.verdict(0.1, p, 1.0) == ("equal" if decides else "open")
    row = arms.Comparison(1.0, NAN, NAN, p / 2, 1.0, NAN)._asdict()
    # Of two comparisons the smaller p is doubled.
    table = arms.decided(pd.DataFrame([row, row | {"p": 1.0}]))
    assert list(table["verdict"]) == ["above" if decides else "open", "open"]


def test_a_speed_up_among_many_arms_has_to_stand_their_correction() -> None:
    def made(others: int) -> pd.Series:
        maker = synthetic.Maker("02_all_layers", noise=0.0)
        for budget, level in ((1, 60.0), (1.31, 70.0)):
            maker.arm("dense", "dense", 0, budget=budget, values=[level - 1, level, level + 1])
        maker.arm("fast", "basis", 0, budget=1, values=[72.5, 73.5, 74.5])
        for i in range(others):
            maker.arm(f"other {i}", "basis", 0, budget=1, values=[69.0 + i / 9, 70.0, 71.0])
        # The rivals of another kind are a family of their own.
        maker.arm("narrow", "narrow", 0, budget=1, values=[69.0, 70.0, 71.2])
        section = maker.section()
        table = frontier.frontier(section, maker.records)
        found = arms.measure(section, maker.records)
        left_open.append(speedup.values(table, found).get("left open", {"text": ""})["text"])
        return table[table["label"] == "fast"].iloc[0]

    left_open: list[str] = []
    alone, among = made(0), made(5)
    assert alone.verdict == among.verdict == "above"
    assert alone.speedup_at_least == 1.31 and alone.beaten_low > 0
    # scipy.stats.ttest_ind(..., equal_var=False) of these has p = 0.0127.
    assert alone.beaten_p_holm == pytest.approx(0.0127, abs=1e-4)
    assert among.speedup_at_least == 1.0  # 6 × 0.0127 is above 0.05
    # What the correction takes away is told as undecided, and not passed over.
    test = oracle.ttest_ind([72.5, 73.5, 74.5], [69.0, 70.0, 71.0], equal_var=False)
    low, high = test.confidence_interval(0.95)
    assert left_open == ["", f"“fast” at 1 by +3.50 points [+{low:.2f}, +{high:.2f}] (1.31 times)"]


def test_the_best_at_each_budget_is_held_against_the_narrower_network_with_its_verdict() -> None:
    maker = synthetic.Maker("02_all_layers", noise=0.0)
    for budget, behind, scatter in ((1, 0.02, 1), (2, 5.0, 1), (4, 0.5, 90)):
        for label, method, level in (
            ("dense", "dense", 70.0), ("near", "basis", 80.0 - behind), ("far", "basis", 60.0),
            ("dense, width 9", "narrow", 80.0),
        ):  # fmt: skip
            maker.arm(label, method, 0, budget=budget, values=near(level, scatter))
    section = maker.section()
    table = frontier.frontier(section, maker.records)
    headline = frontier.headline(table, arms.measure(section, maker.records))
    _, narrow = headline.split("against the narrower network “dense, width 9”")
    each = re.findall(r"(−\d\.\d\d) points \[[^]]*\] at (\d) epochs? \(([a-z]+)\)", narrow)
    assert each == [("−0.02", "1", "equal"), ("−5.00", "2", "worse"), ("−0.50", "4", "undecided")]


def test_epochs_of_another_batch_have_a_time_of_their_own() -> None:
    section, records = synthetic.baseline_section()
    section = section.model_copy(update={"facts": section.facts | {"epochs": 3.9}})
    made = report.build(section, records).numbers
    assert "in 3.9 epochs" in made["headline"] and made["values"]["time"]["text"] == "4"


def test_the_paper_gets_the_frontiers_scale_and_what_was_our_choice() -> None:
    scale = built("02_all_layers").numbers
    names = ("network", "width", "train_images", "budgets", "threads")
    assert [scale[name] for name in names] == ["ResNet-18", 64, None, ["1", "2", "4"], 1]
    chosen = built("04_selection").numbers["values"]
    assert (chosen["loss share"]["text"], chosen["threshold"]["text"]) == ("25 %", "0")


def test_layers_that_keep_a_single_basis_filter_are_named() -> None:
    section, (stem, *_, last) = SECTIONS["03_sensitivity"], synthetic.LAYERS
    changed = dict(RECORDS)
    for name, count in ((stem, 1), (last, 8)):
        (run_id, *_) = next(arm.run_ids for arm in section.arms if arm.label == name)
        phases = (Phase(steps=10, plan=Plan({name: count})),)
        run = RECORDS[run_id].run.model_copy(update={"phases": phases})
        changed[run_id] = RECORDS[run_id].model_copy(update={"run": run})
    assert report.build(section, changed).numbers["single"] == ["conv1"]
    assert built("03_sensitivity").numbers["single"] == []


def test_one_seed_has_no_interval_and_is_called_untested() -> None:
    sections, records = synthetic.all_sections(seeds=(3,))
    table = frontier.frontier(sections["02_all_layers"], records)
    assert table[["low", "high", "p", "p_holm", "speedup_at_least"]].isna().all(axis=None)
    assert set(table["verdict"]) == {"", "untested"}
    for name, section in sections.items():
        made = report.build(section, records)
        assert "nan" not in sentences(made).lower(), name
        assert not any("nan" in cell for t in made.tables.values() for cell in t.markdown().split())
    assert (
        "single runs, without intervals"
        in report.build(sections["02_all_layers"], records).figures["frontier"].caption
    )


def test_runs_that_diverged_are_told_and_left_out() -> None:
    maker = synthetic.Maker("02_all_layers")
    detail = {"parameters": 10, "macs": 10, "executed_macs": 10}
    maker.arm("dense", "dense", 80, detail=detail)
    maker.arm("basis", "basis", 79, diverged=1, detail=detail)
    maker.arm("skip", "skip", 79, diverged=4, detail=detail)
    equal = detail | {"ratio": 0.25}
    maker.arm("equal", "equal_steps", 79, diverged=4, detail=equal)
    made = report.build(maker.section(), maker.records)
    assert "Runs that failed or diverged" in made.numbers["notes"][0]
    assert "1 of 4 of basis" in made.numbers["notes"][0]
    shown = made.tables["frontier"].shown.set_index("arm")
    assert shown.loc["basis", "n"] == "3 (1 lost)" and shown.loc["skip", "n"] == "0 (4 lost)"
    assert made.tables["frontier"].frame.set_index("label").loc["skip", "accuracy"] is not None


def test_a_run_without_a_record_is_named() -> None:
    section = SECTIONS["04_selection"]
    gone = section.arms[1].run_ids[0]
    with pytest.raises(ValueError, match=f"'all' that have no record, the first {gone}"):
        report.build(section, {k: v for k, v in RECORDS.items() if k != gone})


def test_test_accuracy_is_shown_only_where_every_run_read_it() -> None:
    assert arms.outcome(SECTIONS["02_all_layers"], RECORDS) == "test"
    assert arms.outcome(SECTIONS["03_sensitivity"], RECORDS) == "validation"
    tested, blind = synthetic.Maker("a"), synthetic.Maker("b", test=False)
    tested.arm("dense", "dense", 80)
    blind.arm("basis", "basis", 80)
    mixed = Section(name="m", profile="desk", arms=(*tested.arms, *blind.arms), facts={})
    assert arms.outcome(mixed, tested.records | blind.records) == "validation"


def test_sensitivity_is_paired_by_seed() -> None:
    section = SECTIONS["03_sensitivity"]
    table = sensitivity.layer_frame(section, RECORDS)
    assert list(table["layer"]) == synthetic.LAYERS

    def losses(label: str) -> list[float]:
        arm = next(a for a in section.arms if a.label == label)
        return [RECORDS[i].result.val_loss for i in arm.run_ids]  # type: ignore[union-attr]

    test = oracle.ttest_rel(losses("layer3.0.conv1"), losses("dense"))
    row = table.set_index("layer").loc["layer3.0.conv1"]
    assert row.p == pytest.approx(test.pvalue)
    ends = test.confidence_interval(0.95)
    assert (row.loss_low, row.loss_high) == pytest.approx((ends.low, ends.high))
    matrix = sensitivity.score_matrix(section, RECORDS)
    assert matrix.shape == (4, 20)
    assert matrix.mean(axis=0) == pytest.approx(table["loss_rise"].to_numpy())


def test_random_subsets_are_one_rival_of_a_run_each() -> None:
    section = SECTIONS["04_selection"]
    made = report.build(section, RECORDS)
    tests = made.tables["selection_tests"].frame.set_index("rival")
    draws = [values(section, f"random {i}")[0] for i in range(1, 7)]
    selected = values(section, "selected")
    row = tests.loc["random subsets of equal time"]
    assert row.p == pytest.approx(oracle.ttest_ind(selected, draws, equal_var=False).pvalue)
    assert (row.n_selected, row.n_rival) == (4, 6)
    table = made.tables["selection"].frame.set_index("label")
    random = table.loc["random, 6 draws"]
    assert (random.n, random.layer_count, random.accuracy) == (6, 10, pytest.approx(84.1))
    assert list(made.tables["selection_draws"].frame["accuracy"]) == pytest.approx(draws)


def test_a_random_subset_whose_run_was_lost_is_told() -> None:
    section = SECTIONS["04_selection"]
    (lost,) = next(arm.run_ids for arm in section.arms if arm.label == "random 3")
    record = RECORDS[lost].model_copy(update={"status": "diverged", "result": None, "error": "x"})
    made = report.build(section, RECORDS | {lost: record})
    assert any("1 of 1 of random 3" in note for note in made.numbers["notes"])
    shown = made.tables["selection_draws"].shown
    assert list(shown["test accuracy (%)"] == NOTHING) == [False, False, True] + [False] * 3


def test_selection_without_controls_says_why() -> None:
    maker = synthetic.Maker("04_selection")
    detail = {"predicted_time": 1.0, "parameters": 1, "macs": 1, "executed_macs": 1}
    maker.arm("none (dense)", "dense", 84, detail={"layers": [], **detail})
    maker.arm("selected", "selected", 84, detail={"layers": [], **detail})
    made = report.build(
        maker.section(budget=1.0, controls=False, loss_share=0.25, threshold=0.0), maker.records
    )
    assert made.tables["selection_draws"].shown.empty


def test_a_sweep_whose_dense_runs_all_diverged_says_so() -> None:
    section, records = synthetic.sensitivity_section()
    lost = {"status": "diverged", "result": None, "error": "nan"}
    gone = {i: records[i].model_copy(update=lost) for i in section.arms[0].run_ids}
    with pytest.raises(ValueError, match="no run of dense was finished .4 failed or diverged"):
        report.build(section, records | gone)


def test_choices_at_the_switch_are_averaged_over_switch_points_by_seed() -> None:
    section = SECTIONS["05_skip_training"]
    pairs = skip_training.pair_frame(arms.measure(section, RECORDS))
    row = pairs[(pairs["switch"] == "carry") & (pairs["direction"] == "basis→dense")].iloc[0]
    by_point = [
        np.subtract(
            values(section, f"basis→dense at {p:g}, exact"),
            values(section, f"basis→dense at {p:g}, reinit"),
        )
        for p in (0.25, 0.5, 0.75)
    ]
    by_seed = np.mean(by_point, axis=0)
    assert row.difference == pytest.approx(by_seed.mean())
    assert row.p == pytest.approx(oracle.ttest_1samp(by_seed, 0).pvalue)
    assert (row.n, row.pairs) == (4, 3)
    momentum = pairs[pairs["switch"] == "momentum_carry"]
    assert list(momentum["pairs"]) == [1, 1]


def test_skip_arms_without_a_direction_or_dense_still_build() -> None:
    maker = synthetic.Maker("05_skip_training", seeds=(1,))
    maker.arm("basis→dense at 0.5", "skip", 80, detail=switched(0.5))
    facts = {"ratio": 0.25, "budget": 1.0, "train_images": 100}
    made = skip_training.build(maker.section(**facts), maker.records)
    assert made.numbers["headline"] == "No run of skip training can be compared with dense."


def test_skip_training_tells_its_images_its_lost_arms_and_the_rival_that_never_switches() -> None:
    maker = synthetic.Maker("05_skip_training", test=False)
    for label, method, level, switch in (("dense", "dense", 70, None), ("basis", "basis", 80, None),
                                         ("late", "skip", 76, 0.75), ("early", "skip", 99, 0.25),
                                         ("middle", "skip", 60, 0.5)):  # fmt: skip
        detail = {} if switch is None else switched(switch)
        # The best on paper has one run left, which no test can hold against dense.
        maker.arm(label, method, 0, values=near(level, 2), detail=detail,
                  diverged=3 if label == "early" else 0)  # fmt: skip
    section = maker.section(ratio=0.25, budget=1.0, train_images=15000)
    made = skip_training.build(section, maker.records)
    headline = made.numbers["headline"]
    assert "over 3 comparisons: 1 above, 1 below, 1 untested (Holm); the best is" in headline
    assert "the best is basis→dense at 75 % of the time" in headline
    assert made.numbers["values"]["best minus basis"]["text"].startswith("−4.00 points [")


@pytest.mark.parametrize(
    ("all_read", "outcome", "from_dense", "from_basis"),
    [(True, "test", 2.0, "+1.00"), (False, "validation", -1.0, "−2.00")],
)
def test_skip_training_is_held_against_dense_by_one_outcome(
    all_read: bool, outcome: str, from_dense: float, from_basis: str
) -> None:
    """By test accuracy where all have read it, else by validation: dense's is no rival then."""
    maker = synthetic.Maker("05_skip_training")
    skip = switched(0.5)
    for method, tested, validated in (("dense", 70, 74), ("basis", 71, 75), ("skip", 72, 73)):
        arm = maker.arm(method, method, 0, values=near(tested),
                        detail=skip if method == "skip" else {})  # fmt: skip
        for run_id, j in zip(arm.run_ids, JITTER, strict=True):
            read = {} if all_read or method == "dense" else {"test_accuracy": None}
            record = maker.records[run_id]
            result = record.result.model_copy(  # type: ignore[union-attr]
                update={"val_accuracy": (validated + j) / 100} | read
            )
            maker.records[run_id] = record.model_copy(update={"result": result})
    facts = {"ratio": 0.25, "budget": 1.0, "train_images": 100}
    made = skip_training.build(maker.section(**facts), maker.records)
    row = made.tables["skip"].frame.set_index("label").loc["skip"]
    assert row.difference == pytest.approx(from_dense)
    assert f"{outcome} accuracy" in made.tables["skip"].caption
    assert made.numbers["values"]["best minus basis"]["text"].startswith(f"{from_basis} points")


def test_both_references_of_skip_training_have_their_intervals_as_bands() -> None:
    plot = built("05_skip_training").figures["skip"]
    table = plot.data.set_index("method")
    for axes in plot.figure.axes:
        bands = {
            (patch.get_y(), patch.get_y() + patch.get_height()): patch.get_hatch()
            for patch in axes.patches
            if isinstance(patch, Rectangle)
        }
        ends = {method: tuple(table.loc[method, ["low", "high"]]) for method in ("dense", "basis")}
        assert len(bands) == 2
        (dense,) = (h for own, h in bands.items() if own == pytest.approx(ends["dense"]))
        (basis,) = (h for own, h in bands.items() if own == pytest.approx(ends["basis"]))
        assert dense is None and basis  # in grey the pattern alone tells them apart
    assert "basis throughout (dotted, hatched)" in plot.caption


@pytest.mark.parametrize(
    ("level", "said"),
    [(85.25, "6.0 points below the lowest"), (91.15, "0.1 points below the lowest"),
     (93.0, "within them"), (97.5, "1.5 points above the highest")],
)  # fmt: skip
def test_the_gap_to_published_figures_has_its_sign(level: float, said: str) -> None:
    maker = synthetic.Maker("01_baseline")
    maker.arm("dense", "dense", 0, budget=4, values=[level - 0.5, level + 0.5, level, level])
    section = maker.section(parameters=1, macs=1, epochs=4.0, train_images=100)
    printed = report.build(section, maker.records).numbers["values"]
    names = ("lowest published", "highest published", "gap")
    assert [printed[name]["text"] for name in names] == ["91.25 %", "96.00 %", said]


def test_learning_curves_are_drawn_in_per_cent() -> None:
    maker = synthetic.Maker("01_baseline", seeds=(5,))
    maker.arm("dense", "dense", 0, budget=4, values=[85.0])
    section = maker.section(parameters=1, macs=1, epochs=4.0, train_images=100)
    plot = report.build(section, maker.records).figures["baseline_learning_curves"]
    # As the made-up history rises: by 30 points over the epoch, to what is reached at the end.
    risen = pytest.approx([62.5, 77.5, 82.5, 85.0])
    assert list(plot.data["val_accuracy"]) == risen
    (line,) = plot.figure.axes[1].lines
    assert list(line.get_ydata()) == risen  # type: ignore[arg-type]
    assert "(%)" in plot.figure.axes[1].get_title("left")


def test_method_costs_end_with_the_network() -> None:
    made = built("00_method")
    table = made.tables["method_costs"].frame
    rows, total = table.iloc[:-1], table.iloc[-1]
    assert total.layer == "network" and len(rows) == 20
    assert rows["parameters_dense"].sum() == total.parameters_dense
    assert made.numbers["values"]["parameters_ratio"]["value"] == pytest.approx(
        total.parameters_dense / total.parameters_subset
    )


@pytest.mark.parametrize("profile", ["smoke", "quick"])
def test_trial_profiles_mark_what_they_measured(profile: str) -> None:
    for section, name, marked in (
        (synthetic.baseline_section(profile=profile, seeds=(0,)), "baseline_learning_curves", True),
        ((synthetic.method_section(profile), {}), "method", False),
    ):
        by_name = report.build(*section).figures[name]._repr_html_()
        never = report.build(*section, preliminary=False).figures[name]._repr_html_()
        assert (by_name != never) is marked


def test_an_unknown_section_is_refused() -> None:
    with pytest.raises(ValueError, match="no report for section '99_other'.*02_all_layers"):
        report.build(Section(name="99_other", profile="desk", arms=(), facts={}), {})


def test_tables_escape_what_their_readers_would_read() -> None:
    frame = pd.DataFrame({"name": ["50 % | more <b>"], "x": [0.2]})
    table = make_table(frame, [words("a|b", "name"), fixed("x", "x", 1, "×")], "Less & more.")
    lines = table.markdown().splitlines()
    assert lines == [r"| a\|b | x |", "| --- | ---: |", r"| 50 % \| more <b> | 0.2× |"]
    html = table._repr_html_()
    assert "<caption" in html and "Less &amp; more." in html
    assert '<td style="text-align: left">50 % | more &lt;b&gt;</td>' in html
    assert '<td style="text-align: right">0.2×</td>' in html


def test_a_table_shows_gaps_for_what_does_not_exist_and_repeated_cells_once() -> None:
    frame = pd.DataFrame({"who": ["a", "a", "b"], "what": [None, "x", "x"], "n": [1.5, 2, NAN]})
    table = make_table(
        frame, [words("who", "who", once=True), words("what", "what"), plain("n", "n")], ""
    )
    assert table.shown.to_numpy().tolist() == [
        ["a", NOTHING, "1.5"], ["", "x", "2"], ["b", "x", NOTHING],
    ]  # fmt: skip


@pytest.mark.parametrize("name", SECTIONS)
def test_a_report_shows_its_headline_figures_and_tables_in_a_notebook(name: str) -> None:
    made = built(name)
    html = made._repr_html_()
    assert escape(made.numbers["headline"]) in html
    assert html.count('<img src="data:image/png;base64,') == len(made.figures)
    for plot in made.figures.values():
        assert f'alt="{escape(plot.caption)}"' in html
    for table in made.tables.values():
        assert table._repr_html_() in html


def test_rows_of_one_device_name_it_once() -> None:
    section = synthetic.timing_section()
    both = report.build(section, {}).tables
    one = section.model_copy(update={"facts": {"devices": section.facts["devices"][:1]}})
    alone = report.build(one, {}).tables
    for name in ("timing_steps", "timing_layers", "timing_networks", "timing_memory"):
        assert list(both[name].shown["on"]) == ["a", "b"] * len(alone[name].shown)
        assert both[name].caption.endswith(
            " (a) Some CPU, 2 cores (AVX2), float32, batch 64; "
            "(b) Some CPU, 2 cores (AVX512), float32, batch 64."
        )
        # What a row of the first device says of its layer or network stands there alone.
        first = both[name].shown.columns[0]
        assert list(both[name].shown[first][1::2]) == [""] * len(alone[name].shown)
        assert list(both[name].shown[first][::2]) == list(alone[name].shown[first])
        assert "on" not in alone[name].shown.columns
        assert alone[name].caption.endswith(
            "All rows: Some CPU, 2 cores (AVX2), float32, batch 64."
        )


def test_the_steps_headline_is_the_first_networks_and_not_the_best_ones() -> None:
    section = synthetic.timing_section()
    device = section.facts["devices"][0]
    # The benchmark's smallest f comes first.
    other = {"ratio": 0.125, "macs_ratio": 5.0, "speedup": 1.1}
    smaller = [{**row, **other} for row in device["networks"]]
    memory = [{**row, "ratio": 0.125} for row in device["memory"]]
    device = {
        **device, "networks": smaller + device["networks"], "memory": memory + device["memory"]
    }  # fmt: skip
    one = section.model_copy(update={"facts": {"devices": [device]}})
    made = report.build(one, {}).numbers
    headline, largest = made["headline"], made["values"]["largest gain"]["text"]
    assert made["values"]["full form"]["text"] == (
        "1.40× [1.36, 1.46] on Some CPU, 2 cores (AVX2), float32, batch 64"
    )
    assert "of ResNet-18 at width 16 and f = 1/4, where" in headline
    assert "promise 3.30×, has a speed-up of 1.40× [1.36, 1.46] on Some CPU, 2" in headline
    assert largest.startswith("ResNet-18 at width 64 and f = 1/4 on Some CPU, 2 cores (AVX2), ")
    assert ": 2.40× [2.33, 2.50] in the subset form" in largest


def test_numbers_of_several_devices_are_told_apart() -> None:
    section = synthetic.timing_section()
    first, second = section.facts["devices"]
    slow = {"speedup": 0.5, "speedup_low": 0.4, "speedup_high": 0.6}
    slower = [{**r, **slow} for r in second["networks"]]
    layers = [
        {**r, "share": r["share"] / 2, "both": {**r["both"], **slow}} for r in second["layers"]
    ]
    facts = {"devices": [first, {**second, "networks": slower, "layers": layers}]}
    made = report.build(section.model_copy(update={"facts": facts}), {}).numbers
    headline, realised = made["headline"], made["values"]["realised"]["text"]
    assert "has a speed-up of 1.40× [1.36, 1.46] on Some CPU, 2 cores (AVX2)" in headline
    assert "and 0.50× [0.40, 0.60] on Some CPU, 2 cores (AVX512)" in headline
    assert headline.endswith(
        "; shrinking each convolution's time by its multiplications would give 2.97× and 2.97×."
    )
    assert realised == (
        "40 to 91 % on Some CPU, 2 cores (AVX2), float32, batch 64, where 4 of 28 timings are "
        "slower than dense; 20 to 45 % on Some CPU, 2 cores (AVX512), float32, batch 64, where 28 "
        "of 28 timings are slower than dense"
    )


def test_a_section_says_which_devices_trained_its_runs() -> None:
    section = SECTIONS["03_sensitivity"]
    first, second, third, *rest = section.run_ids

    def on(run_id: str, device: str, kind: str) -> Record:
        record = RECORDS[run_id]
        environment = {"device": device, "device_kind": kind}
        measurement = record.measurement.model_copy(update={"environment": environment})
        return record.model_copy(update={"measurement": measurement})

    moved = "cpu x86_64 AVX2 then cpu x86_64 AVX512"
    some = {
        first: on(first, "Intel(R) Xeon(R) Processor", "cpu x86_64 AVX512"),
        second: on(second, "Intel(R) Xeon(R) Processor", moved),
        third: on(third, "NVIDIA H100", "NVIDIA H100"),
    }
    notes = report.build(section, {**RECORDS, **some}).numbers["notes"]
    assert notes[-1] == (
        "Trained: 1 run on Intel Xeon (AVX2 then AVX512), 1 run on Intel Xeon (AVX512), 1 run on "
        f"NVIDIA H100 and {len(rest)} runs on Some CPU (AVX2)."
    )
    assert "Trained" not in " ".join(built("06_timing").numbers["notes"])


@pytest.mark.parametrize("places", [1, 2, 4])
def test_a_timing_figure_has_a_panel_for_each_place(places: int) -> None:
    section = synthetic.timing_section()
    device = section.facts["devices"][0]
    several = [
        {**device, "device": {**device["device"], "device_kind": f"cpu x86_64 KIND{i}"}}
        for i in range(places)
    ]
    made = report.build(section.model_copy(update={"facts": {"devices": several}}), {})
    for plot in made.figures.values():
        titles = [axes.get_title("left") for axes in plot.figure.axes if axes.axison]
        letters = ["(a) ", "(b) ", "(c) ", "(d) "][:places] if places > 1 else [""]
        want = [f"{letter}Some CPU, 2 cores (KIND{i})\nfloat32, batch 64"
                for i, letter in enumerate(letters)]  # fmt: skip
        assert titles == want


def test_every_panel_of_a_timing_figure_shows_its_numbers_and_machines_their_own_rates() -> None:
    section = synthetic.timing_section()
    device = section.facts["devices"][0]
    places = []
    for i in range(4):
        factor = 1000 if i == 3 else 1
        machine = {
            name: {what: factor * value for what, value in rates.items()}
            for name, rates in device["machine"].items()
        }
        layers = [{**row, "gmac_s": factor * row["gmac_s"]} for row in device["layers"]]
        of = {**device["device"], "device_kind": f"cpu x86_64 KIND{i}"}
        places.append({**device, "device": of, "machine": machine, "layers": layers})
    made = report.build(section.model_copy(update={"facts": {"devices": places}}), {})
    for name, plot in made.figures.items():
        plot.figure.draw_without_rendering()
        for axes in plot.figure.axes:
            shown = [label for label in axes.get_xticklabels() if label.get_visible()]
            assert any(label.get_text() for label in shown), name
    assert {axes.get_xlabel() for axes in made.figures["timing_share"].figure.axes} == {
        "times as fast as dense"
    }
    slow, *_, fast = (axes.get_ylim() for axes in made.figures["timing_roofline"].figure.axes)
    assert slow[1] < 1000 and fast == pytest.approx([1000 * end for end in slow])
    for axes in made.figures["timing_roofline"].figure.axes:
        assert any(label.get_text() and label.get_visible() for label in axes.get_yticklabels())


def test_a_table_of_steps_says_whose_milliseconds_and_how_many_threads() -> None:
    section = synthetic.timing_section()
    first, second = section.facts["devices"]
    alone = report.build(section, {}).tables["timing_steps"]
    # A hundred times f of a millisecond is what the basis step was made to take.
    assert set(alone.shown["basis, ms"]) == {"25.0"} and "ms" not in alone.shown.columns
    more = {**second, "settings": {**second["settings"], "threads": 8}}
    # A GPU's threads are its host's.
    gpu = {
        **second, "device": {**second["device"], "device": "Some GPU", "device_kind": "Some GPU"},
        "settings": {**second["settings"], "threads": 5}, "left_out": ["batch 7 is left out"],
    }  # fmt: skip
    facts = {"devices": [more, first, gpu]}
    built = report.build(section.model_copy(update={"facts": facts}), {})
    more, _, gpu = built.numbers["notes"]
    assert "8 threads" in more
    assert "5 threads" not in gpu and gpu.endswith("; batch 7 is left out.")


def test_rebuilding_is_held_against_dense_and_against_the_factored_form() -> None:
    section = synthetic.timing_section()
    first, second = section.facts["devices"]

    def ahead(**changes: float) -> tuple[str, str, str]:
        layers = [dict(row) for row in first["layers"]]
        place = next(i for i, row in enumerate(layers) if row["arm"] == "subset, rebuilt")
        layers[place]["both"] = {**layers[place]["both"], **changes}
        devices = {"devices": [{**first, "layers": layers}, second]}
        made = report.build(section.model_copy(update={"facts": devices}), {}).numbers["values"]
        names = ("rebuilt", "rebuilt ahead of dense", "rebuilt ahead of factored")
        of, dense, factored = (made[name]["text"] for name in names)
        return of, dense, factored

    # Made to take more than three times as long as the factored form, and longer than dense.
    assert ahead() == ("28", "none", "none")
    assert ahead(median_ms=0.1) == ("28", "none", "1")
    fast = {"speedup": 1.2, "speedup_low": 1.1, "speedup_high": 1.3}
    assert ahead(median_ms=0.1, **fast) == ("28", "1", "1")
    assert ahead(**{**fast, "speedup_low": 0.9}) == ("28", "none", "none")


def test_a_peer_is_held_against_what_the_form_took_and_what_the_roofline_expects_of_it() -> None:
    section = synthetic.timing_section()
    told = report.build(section, {}).numbers["values"]["peers"]["text"]
    # Made to take five times as long; in the middle layer 0.6 of what 0.75 would be is realised.
    assert "tensorly-torch Tucker 5.0 (5.0 to 5.0; 6.2) on Some CPU, 2 cores (AVX2)" in told


def test_the_layers_that_differ_are_counted_in_words_and_dark_in_the_figure() -> None:
    section = SECTIONS["03_sensitivity"]
    # Made to raise the loss by 0.03, and not at all.
    kept = {"dense", synthetic.LAYERS[0], synthetic.LAYERS[12]}
    two = section.model_copy(update={"arms": tuple(a for a in section.arms if a.label in kept)})
    made = report.build(two, RECORDS)
    told = (
        "each of 2 layers alone in basis form, the loss rises for 1 and falls for none at the 5 %"
    )
    assert told in made.numbers["headline"]
    loss, accuracy, *_ = made.figures["sensitivity"].figure.axes
    assert [bar.get_alpha() for bar in loss.patches] == [0.75, 0.45]
    assert [bar.get_alpha() for bar in accuracy.patches] == [0.45, 0.45]


def test_the_ranking_is_told_without_the_layers_that_a_test_tells_too() -> None:
    """One layer far above seven that hardly differ: most of the reliability is that layer's."""
    matrix = np.random.default_rng(3).normal(0, 0.01, (6, 8)) + np.arange(8) * 0.002
    matrix[:, 7] += 3
    table = pd.DataFrame({"layer": [f"l{i}" for i in range(8)], "p_holm": [0.9] * 7 + [0.001]})
    others = {key: value["text"] for key, value in sensitivity._others(table, matrix).items()}
    rest = matrix[:, :7]
    halves = [
        oracle.spearmanr(rest[list(a)].mean(0), rest[list(set(range(6)) - set(a))].mean(0))
        for a in itertools.combinations(range(6), 3)
    ]
    rho = np.mean([half.statistic for half in halves])
    trust = max(0.0, 2 * rho / (1 + rho))
    assert (others["found"], others["others"]) == ("l7", "7")
    assert others["reliability of others"].startswith(f"{trust:.2f} [")
    mean = rest.mean(axis=1)
    error = oracle.t.ppf(0.975, 5) * mean.std(ddof=1) / np.sqrt(6)
    ends = f"[{mean.mean() - error:+.4f}, {mean.mean() + error:+.4f}]".replace("-", "−")
    assert others["rise of others"].endswith(f" nats {ends}")
    assert sensitivity._others(table.assign(p_holm=0.9), matrix) == {}
    assert sensitivity._others(table.assign(p_holm=0.001), matrix) == {}

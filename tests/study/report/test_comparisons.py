"""02 by named arms: differences by seed, dense shortened, and the plan's contrasts."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
import synthetic

from basisconv.study import report
from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, comparisons, contrasts, lengths, named_arms


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Section, dict[str, Record]]:
    return synthetic.named_arms(tmp_path_factory.mktemp("runs"))


def accuracies(
    section: Section, records: dict[str, Record], label: str
) -> dict[int, float]:  # fmt: skip
    arm = next(a for a in section.arms if a.label == label)
    found = {records[i].run.seed: records[i].result for i in arm.run_ids}
    return {seed: 100 * (r.test_accuracy or 0.0) for seed, r in found.items() if r is not None}


def test_differences_are_taken_within_seeds(made: tuple[Section, dict[str, Record]]) -> None:
    table = comparisons.epoch_frame(arms.measure(*made))
    row = table[(table["recipe"] == "sgd") & (table["arm"] == "S½")].iloc[0]
    ours = accuracies(*made, "S½, sgd, equal epochs, 12")
    dense = accuracies(*made, "D, sgd, equal epochs, 12")
    pairs = [ours[seed] - dense[seed] for seed in ours]
    assert len(pairs) == 3 and row.difference == pytest.approx(np.mean(pairs))
    # Between seeds the arms scatter by half a point, and within them by far less.
    assert row.difference_high - row.difference_low < 0.5
    assert row.high - row.low > 1.0
    assert row.share == pytest.approx(7.75 / 12, abs=0.01)
    assert row.smallest_margin == pytest.approx(-row.difference, abs=0.25)


def test_dense_shortened_lies_on_its_own_curve(made: tuple[Section, dict[str, Record]]) -> None:
    table = comparisons.epoch_frame(arms.measure(*made))
    row = table[(table["recipe"] == "muon") & (table["arm"] == "S¼")].iloc[0]
    seeds = np.mean([0.5 * np.random.default_rng(s).normal() for s in (110, 111, 112)])
    assert row.shortened == pytest.approx(92 - 14 / row.time + seeds, abs=0.4)
    # Nothing is read off beyond the measured lengths; S½'s time lies between SGD's 6 and 12.
    short = table[(table["recipe"] == "sgd") & (table["arm"] == "S½")].iloc[0]
    assert 83 < short.shortened < 86


def test_equal_time_is_held_against_dense_and_against_half_the_width(
    made: tuple[Section, dict[str, Record]],
) -> None:
    table = comparisons.time_frame(arms.measure(*made))
    at = table[(table["recipe"] == "muon") & (table["length"] == 2)].set_index("arm")
    assert at.loc["B¼", "from_half"] == pytest.approx(-1.0, abs=0.2)
    assert at.loc["B¼", "difference"] == pytest.approx(-4.0, abs=0.2)
    assert np.isnan(at.loc["D½", "from_half"]) and np.isnan(at.loc["D", "difference"])


def test_the_plans_contrasts_are_those_of_its_own_arms_and_lengths(
    made: tuple[Section, dict[str, Record]],
) -> None:
    table = contrasts.contrast_frame(arms.measure(*made), contrasts.right_images(*made)).set_index(
        "contrast"
    )
    # CIFAR-100 and the selected layers are not trained here.
    assert "basis-narrow-100" not in table.index and "selected-muon" not in table.index
    assert table.loc["skip-muon", "answer"] == "yes"
    assert table.loc["basis-muon", "answer"] == "no"
    # The narrow rival of the longest equal time, not that of the equal epochs.
    found = accuracies(*made, "B¼, muon, equal epochs, 16")
    rival = accuracies(*made, "D½, muon, equal time, 7.65")
    expected = np.mean([found[s] - rival[s] for s in rival])
    assert table.loc["basis-narrow", "difference"] == pytest.approx(expected, abs=1e-6)


def test_a_run_that_diverged_leaves_its_contrasts_out(tmp_path: Path) -> None:
    found = arms.measure(*synthetic.named_arms(tmp_path, lost="S¼, muon, equal epochs, 16"))
    table = contrasts.contrast_frame(found, {}).set_index("contrast")
    assert "skip-muon" not in table.index and "early-muon" not in table.index
    assert "skip-sgd" in table.index
    assert any(
        "diverged" in note
        for note in report.build(*synthetic.named_arms(tmp_path, "D, sgd, equal time, 6")).numbers[
            "notes"
        ]
    )


def test_the_figure_joins_an_arms_lengths_under_each_recipe(
    made: tuple[Section, dict[str, Record]],
) -> None:
    built = report.build(*made)
    panels = built.figures["comparisons"].figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == ["(a) SGD", "(b) Muon"]
    dense = built.figures["comparisons"].data
    dense = dense[(dense["arm"] == "D") & (dense["recipe"] == "muon")].sort_values("time")
    assert list(dense["time"]) == pytest.approx([2, 4, 8, 16])
    lines = [line.get_xydata() for line in panels[1].get_lines()]
    wanted = dense[["time", "accuracy"]].to_numpy()
    assert any(xy.shape == wanted.shape and np.allclose(xy, wanted) for xy in lines)
    assert "18 % of dense's time" in built.numbers["headline"]


def test_the_speed_up_is_the_time_of_dense_at_the_arms_accuracy(
    made: tuple[Section, dict[str, Record]],
) -> None:
    found = arms.measure(*made)
    table = lengths.speedup_frame(found, named_arms.answers(found))
    at = table[(table["recipe"] == "muon") & (table["part"] == "equal epochs")].set_index("arm")
    row, dense = at.loc["S¼"], lengths.dense_curve(found, "muon")
    # The curve through D's means, by numpy, read where it first reaches the arm's mean.
    log = np.log(dense.times)
    share = np.array(dense.accuracies)
    curve = np.polyfit(log, np.log(share / (1 - share)), 2)
    grid = np.linspace(log[0], log[-1], 200_001)
    wanted = np.log(row.accuracy / (100 - row.accuracy))
    first = np.exp(grid[np.argmax(np.polyval(curve, grid) >= wanted)])
    assert row.speedup == pytest.approx(first / row.time, rel=1e-3)
    assert row.speedup_low < row.speedup < row.speedup_high
    # The bracket has measured lengths of D at its ends, and the curve's answer inside.
    assert row.speedup_at_least * row.time in [pytest.approx(t) for t in (2, 4, 8)]
    assert row.speedup_at_least < row.speedup
    assert np.isnan(row.speedup_below) or row.speedup < row.speedup_below
    # Below all of D's lengths there is a bound alone.
    short = table[(table["recipe"] == "muon") & (table["length"] == 2)].set_index("arm")
    assert np.isnan(short.loc["B¼", "speedup"]) and short.loc["B¼", "curve_at_most"] <= 1.01


def test_unequal_step_times_widen_the_speed_up(made: tuple[Section, dict[str, Record]]) -> None:
    section, records = made
    wider = [
        arm.model_copy(
            update={"detail": arm.detail | {"time_quartiles": [0.8 * arm.time, 1.25 * arm.time]}}
        )
        for arm in section.arms
        if arm.time is not None
    ]
    spread = []
    for of in (section, section.model_copy(update={"arms": tuple(wider)})):
        found = arms.measure(of, records)
        table = lengths.speedup_frame(found, named_arms.answers(found))
        row = table[(table["arm"] == "D½") & (table["length"] > 7) & (table["length"] < 8)].iloc[0]
        spread.append(np.log(row.speedup_high / row.speedup_low))
    assert spread[1] > 1.5 * spread[0]


def test_a_gap_that_shrinks_has_a_trend(made: tuple[Section, dict[str, Record]]) -> None:
    found = arms.measure(*made)
    (trend,) = lengths.trends(found).values()
    gaps = {}
    for length in (2, 4):
        among = named_arms.groups(found)["muon", "equal time", length]
        logits = {}
        for name in ("B¼", "D"):
            shares = np.array(among[name].accuracy) / 100
            logits[name] = np.log(shares / (1 - shares)).mean()
        gaps[length] = logits["B¼"] - logits["D"]
    assert trend.estimate == pytest.approx(gaps[4] - gaps[2], abs=1e-9)


def test_images_widen_the_interval_of_a_contrast(made: tuple[Section, dict[str, Record]]) -> None:
    section, records = made
    noise = np.random.default_rng(0)
    marked = {}
    for run_id, record in records.items():
        assert record.result is not None and record.result.test_accuracy is not None
        right = noise.random(10_000) < record.result.test_accuracy
        bits = base64.b64encode(np.packbits(right).tobytes()).decode()
        result = record.result.model_copy(update={"test_correct": bits})
        marked[run_id] = record.model_copy(update={"result": result})
    found = arms.measure(section, marked)
    table = contrasts.contrast_frame(found, contrasts.right_images(section, marked))
    table = table.set_index("contrast")
    row = table.loc["basis-muon"]
    assert row.crossed == pytest.approx(row.difference, abs=1.0)
    assert row.crossed_high - row.crossed_low > 1.0 > row.high - row.low
    without = contrasts.contrast_frame(found, {}).set_index("contrast")
    assert np.isnan(without.loc["basis-muon", "crossed"])

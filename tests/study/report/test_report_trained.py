"""08b's report: differences over networks and images, and what is missing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import synthetic

from basisconv.study import report
from basisconv.study.records.run import Section
from basisconv.study.report import trained
from basisconv.study.report.statistics.image_bootstrap import crossed_difference, decode
from basisconv.study.report.statistics.stats import holm

SECTION, RECORDS = synthetic.trained_section()
FRAME = trained.cut_frame(SECTION, RECORDS)


def right(way: str, share: float, after: bool) -> dict[int, np.ndarray]:
    return {
        row["seed"]: decode(row["correct"], row["images"])
        for row in SECTION.facts["rows"]
        if (row["way"], row["share"], row["trained"]) == (way, share, after) and "correct" in row
    }


def line(way: str, share: float, after: bool = False):  # type: ignore[no-untyped-def]
    rows = FRAME[(FRAME["way"] == way) & (FRAME["share"] == share) & (FRAME["trained"] == after)]
    return rows.iloc[0]


def test_peers_are_compared_with_the_search_at_their_own_share() -> None:
    for share, after in ((0.6, False), (0.35, True)):
        for way in ("svd", "balf"):
            want = crossed_difference(right("search", share, after), right(way, share, after))
            row = line(way, share, after)
            assert (row.difference, row.difference_low, row.difference_high) == pytest.approx(
                (want.estimate, want.low, want.high)
            )
    family = FRAME[(FRAME["share"] == 0.6) & ~FRAME["trained"]]
    assert list(family["p_holm"]) == pytest.approx(holm(list(family["p"])), nan_ok=True)
    # A tensor train is of another size.
    assert family["p"].notna().sum() == 5 and math.isnan(line("search", 0.6).p)
    assert line("pruning", 0.6).verdict == "above"  # far behind the search
    accuracy = 100 * np.mean([v.mean() for v in right("pruning", 0.6, False).values()])
    assert line("pruning", 0.6).accuracy == pytest.approx(accuracy)


def test_sizes_are_relative_to_dense_and_narrower_networks_stand_beside() -> None:
    assert line("svd", 0.6).parameters == pytest.approx(0.5)
    assert line("svd", 0.6).time_1 == pytest.approx(0.7)
    (narrow,) = FRAME[FRAME["way"] == "D½"].itertuples()
    assert (narrow.time, narrow.parameters) == pytest.approx((0.3, 0.25))
    results = [RECORDS[i].result for i in SECTION.arms[1].run_ids]
    hits = [r.test_accuracy for r in results if r and r.test_accuracy is not None]
    assert narrow.accuracy == pytest.approx(100 * np.mean(hits)) and narrow.n == len(hits)


def test_what_was_left_out_is_named_and_has_no_row() -> None:
    made = report.build(SECTION, RECORDS)
    assert not ((FRAME["way"] == "tucker") & (FRAME["share"] == 0.35)).any()
    (left,) = (note for note in made.numbers["notes"] if note.startswith("Left out"))
    assert left == "Left out: Tucker-2 at 0.35. The nearest that can be had is 0.5."
    values = made.numbers["values"]
    assert values["untrained, peers"]["value"] == 5 + 4
    assert values["after one epoch, peers"]["value"] == 2 * 3
    assert "search minus one ratio, SVD at 0.35, after one epoch" in values


def test_one_network_has_no_test() -> None:
    section, records = synthetic.trained_section(seeds=(0,))
    made = report.build(section, records)
    assert made.numbers["headline"] == "With one network a way nothing is tested."
    assert set(trained.cut_frame(section, records)["verdict"]) == {"", "untested"}


def test_a_section_without_rows_says_that_nothing_was_measured() -> None:
    section = Section(**{**SECTION.model_dump(), "facts": {**SECTION.facts, "rows": []}})
    made = report.build(section, RECORDS)
    assert made.numbers["headline"].startswith("Nothing has been measured")
    assert made.tables["trained"].frame.empty

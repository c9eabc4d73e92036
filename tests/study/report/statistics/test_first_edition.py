"""The second edition's models on the first edition's published records: what they must find again.

Three seeds an arm, by test accuracy in `02_all_layers` and by validation accuracy in the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest

from basisconv.study.experiments.study import published_folder
from basisconv.study.records.publish import published
from basisconv.study.records.store import Store
from basisconv.study.report.statistics.families import versus
from basisconv.study.report.statistics.linear_models import Blocks, fit_blocks
from basisconv.study.report.statistics.mixed_models import Lengths, fit_lengths, points

FOLDER = published_folder("desk")
BASIS = "all layers, f = 0.25"
SKIP = "basis→dense at 0.75, f = 0.25"

pytestmark = pytest.mark.skipif(
    "02_all_layers" not in published(FOLDER), reason="its records are not published here"
)


class Row(NamedTuple):
    accuracy: float
    arm: str
    budget: float
    seed: int


def rows(section: str) -> list[Row]:
    arms = published(FOLDER)[section].arms
    found = []
    for arm in arms:
        assert arm.budget is not None
        for record in Store(FOLDER).records(arm.run_ids).values():
            assert record.result is not None
            read = record.result.test_accuracy
            accuracy = record.result.val_accuracy if read is None else read
            found.append(Row(accuracy, arm.label, arm.budget, record.run.seed))
    return found


def lengths(runs: Sequence[Row]) -> Lengths:
    return fit_lengths(
        [r.accuracy for r in runs],
        [r.arm for r in runs],
        [r.budget for r in runs],
        [r.seed for r in runs],
    )


def one_length(runs: Sequence[Row], equal_variances: bool | None = None) -> Blocks:
    """In points; dense of a longer budget is an arm of its own."""
    return fit_blocks(
        [100 * r.accuracy for r in runs],
        [r.arm if r.budget == 1 else f"{r.arm} at {r.budget}" for r in runs],
        [r.seed for r in runs],
        equal_variances,
    )


@pytest.mark.parametrize(("arm", "gap"), [(BASIS, 4.18), (SKIP, 2.89)])
def test_basis_arms_are_clearly_ahead_of_dense_trained_1_31_times_as_long(arm, gap):
    runs = rows("02_all_layers")
    together = lengths(runs)
    got = points(together.difference((arm, 1.0), ("dense", 1.31)), 0.6605)
    assert got.estimate == pytest.approx(gap, abs=0.02)
    assert got.low > 1.4 and got.p < 2e-4
    # The pair alone, with two degrees of freedom, finds the same with less.
    alone = one_length([r for r in runs if (r.arm, r.budget) in ((arm, 1.0), ("dense", 1.31))])
    pair = alone.contrast(arm, "dense at 1.31")
    assert pair.estimate == pytest.approx(gap, abs=0.01)
    assert (pair.df, pair.n) == (2, 3) and pair.low > 0.9 and 1e-3 < pair.p < 0.03
    turned = together.difference(("dense", 1.31), (arm, 1.0))
    assert turned.high < 0


def test_skip_arms_that_keep_their_weights_are_ahead_of_dense():
    family = {g.arm: g for g in versus(one_length(rows("05_skip_training")), "dense")}
    ahead = {arm for arm, g in family.items() if "basis→dense" in arm and g.p < 0.05 and g.low > 0}
    assert ahead == {
        "basis→dense at 0.5, exact",
        "basis→dense at 0.75, exact",
        "basis→dense at 0.5, exact, carried",
    }
    best = family["basis→dense at 0.75, exact"]
    assert best.contrast.estimate == pytest.approx(8.23, abs=0.01) and best.p < 1e-3
    # New weights for half or more of the time are behind.
    for switch in ("0.5", "0.75"):
        assert family[f"basis→dense at {switch}, reinit"].high < 0


def test_the_full_form_with_rank_8_is_worse_than_our_defaults_and_nothing_else_is():
    fit = one_length(rows("05b_defaults"))
    assert fit.equal_variances
    family = {g.arm: g for g in versus(fit, "our defaults")}
    worst = family.pop("full form, rank 8")
    assert worst.contrast.estimate == pytest.approx(-6.23, abs=0.01)
    assert worst.p < 0.01 and worst.high < 0
    assert all(g.p > 0.1 for g in family.values())


def test_the_gap_of_basis_and_dense_has_no_trend_over_budgets():
    runs = rows("02_all_layers")
    pair = [r for r in runs if r.arm in (BASIS, "dense") and r.budget in (1, 2, 4)]
    for fit in (lengths(runs), lengths(pair)):
        got = fit.trend(BASIS, "dense")
        assert got.estimate == pytest.approx(-0.0199, abs=1e-4)
        assert got.p > 0.15 and got.low < 0 < got.high and got.n == 9
        assert fit.gap(BASIS, "dense").p < 0.005

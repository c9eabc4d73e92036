"""Verdicts: reproduced, partly, not, or undecided, and never more than intervals allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import synthetic
from synthetic import near, switched

from basisconv.study.records.run import Record, Section
from basisconv.study.report import build_claims
from basisconv.study.report.claims import CLAIMS
from basisconv.study.report.verdicts import VERDICTS

SECTIONS, RECORDS = synthetic.all_sections()


def verdicts(
    sections: dict[str, Section], records: dict[str, Record], profile: str = "desk", **kwargs: Any
) -> dict[str, str]:
    table = build_claims(sections, records, profile, **kwargs).tables["claims"].frame
    return dict(zip(table["claim"], table["verdict"], strict=True))


@pytest.mark.parametrize("profile", ["smoke", "quick"])
def test_trial_profiles_settle_nothing(profile: str) -> None:
    found = verdicts(SECTIONS, RECORDS, profile)
    assert len(found) == len(CLAIMS) and set(found.values()) == {"not yet measured"}


def test_the_profiles_that_settle_nothing_are_a_parameter() -> None:
    assert set(verdicts(SECTIONS, RECORDS, "quick", preliminary=False).values()) > {"reproduced"}
    found = verdicts(SECTIONS, RECORDS, "desk", preliminary=True)
    assert set(found.values()) == {"not yet measured"}


def test_a_missing_section_leaves_its_claims_unmeasured() -> None:
    report = build_claims({"00_method": SECTIONS["00_method"]}, {}, "desk")
    table = report.tables["claims"].frame.set_index("claim")
    assert table.loc["compression", "verdict"] == "reproduced"
    assert set(table.drop(["compression", "larger"])["verdict"]) == {"not yet measured"}
    assert table.loc["skip", "estimate"] == "needs 05_skip_training"


def test_one_seed_measures_nothing_but_counts_and_timings() -> None:
    sections, records = synthetic.all_sections(seeds=(0,))
    found = verdicts(sections, records)
    trained = ("speedup", "identified", "effectiveness", "performance", "selection", "too few",
               "misjudged", "skip", "early switch")  # fmt: skip
    assert {found[claim] for claim in trained} == {"not yet measured"}


def test_networks_and_layers_are_told_with_their_own_turns() -> None:
    table = build_claims(SECTIONS, RECORDS, "desk").tables["claims"].frame.set_index("claim")
    assert table["n"][["computation", "uncompressed", "bottleneck"]].tolist() == [20, 5, 20]


def frontier(
    basis: Sequence[Sequence[float]], few: float = 76, many: float = 78
) -> tuple[dict[str, Section], dict[str, Record]]:
    """Dense at 70, 80 and 90 for budgets 1, 2 and 4, and basis arms with the given values.

    With dense's steps of budget 2, few and many basis filters reach what is given.
    """
    maker = synthetic.Maker("02_all_layers")
    detail = {"parameters": 1, "macs": 1, "executed_macs": 1, "ratio": 0.25}
    for budget, level, ours in zip((1, 2, 4), (70, 80, 90), basis, strict=True):
        maker.arm("dense", "dense", 0, budget=budget, values=near(level), detail=detail)
        maker.arm("basis", "basis", 0, budget=budget, values=ours, detail=detail)
    for ratio, level in ((0.125, few), (0.5, many)):
        equal = detail | {"ratio": ratio}
        maker.arm(f"f = {ratio}", "equal_steps", 0, budget=2, values=near(level), detail=equal)
    return {"02_all_layers": maker.section(ratio=0.25)}, maker.records


@pytest.mark.parametrize(
    ("basis", "speedup", "effectiveness", "performance"),
    [
        # Beats dense trained twice as long at budget 1, and dense everywhere.
        ([near(85), near(86), near(92)], "reproduced", "reproduced", "reproduced"),
        # Ahead at equal time alone, and at one budget alone.
        ([near(71), near(79), near(89)], "partly", "partly", "partly"),
        # Behind everywhere.
        ([near(69), near(79), near(89)], "not reproduced", "not reproduced", "not reproduced"),
        # Equal within the margin: nothing gained, nothing lost.
        ([near(70), near(80), near(90)], "not reproduced", "not reproduced", "reproduced"),
        # So noisy that both answers stay possible.
        ([near(70, 600), near(80, 600), near(90, 600)], *["undecided"] * 3),
    ],
)
def test_verdicts_of_the_frontier(
    basis: list[list[float]], speedup: str, effectiveness: str, performance: str
) -> None:
    found = verdicts(*frontier(basis))
    assert (found["speedup"], found["effectiveness"], found["performance"]) == (
        speedup, effectiveness, performance,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("few", "many", "verdict"),
    [(76, 78, "reproduced"), (78, 76, "not reproduced"), (76, 76.001, "not reproduced")],
)
def test_too_few_basis_filters_are_judged_at_equal_steps(
    few: float, many: float, verdict: str
) -> None:
    # At equal time nothing is told of it: the fewer train for longer.
    assert verdicts(*frontier([near(85), near(86), near(92)], few, many))["too few"] == verdict


def test_a_speed_up_tells_what_it_rests_on_and_at_how_many_budgets() -> None:
    table = build_claims(*frontier([near(85), near(79), near(89)]), "desk").tables["claims"]
    told = table.frame.set_index("claim").loc["speedup", "estimate"]
    assert "“basis” at 1: ≥ 2.00×, < 4.00× at equal accuracy (ahead of dense trained" in told
    assert "trained that long by +5.00 points [+" in told
    assert told.endswith("≥ 1.15× at 1 of 2 budgets that could show it")  # none at 4


def losing(records: dict[str, Record], section: Section, place: int) -> dict[str, Record]:
    """The same records, but that all runs of the arm at that place diverged."""
    lost = {
        i: records[i].model_copy(update={"status": "diverged", "result": None, "error": "nan"})
        for i in section.arms[place].run_ids
    }
    return records | lost


def test_an_arm_that_diverged_at_a_budget_does_not_hold_at_every_budget() -> None:
    sections, records = frontier([near(85), near(86), near(92)])
    records = losing(records, sections["02_all_layers"], 3)  # basis at budget 2
    table = build_claims(sections, records, "desk").tables["claims"].frame.set_index("claim")
    assert table.loc["effectiveness", "verdict"] == table.loc["performance", "verdict"] == "partly"
    assert "beaten at 2 of 3 budgets" in table.loc["effectiveness", "estimate"]
    assert "over 3 comparisons: 2 above, 1 untested" in table.loc["performance", "estimate"]
    # Behind dense at the others: that the third would be behind, too, is not known.
    sections, records = frontier([near(69), near(79), near(89)])
    found = verdicts(sections, losing(records, sections["02_all_layers"], 3))
    assert {found[c] for c in ("speedup", "effectiveness", "performance")} == {"undecided"}


def skips(levels: Sequence[float]) -> tuple[Section, dict[str, Record]]:
    """Dense at 70, basis at 75, and both carries from basis to dense at given levels."""
    maker = synthetic.Maker("05_skip_training")
    maker.arm("dense", "dense", 0, budget=1, values=near(70))
    maker.arm("basis", "basis", 0, budget=1, values=near(75))
    for carry in ("exact", "reinit"):
        for switch, level in zip((0.25, 0.5, 0.75), levels, strict=True):
            maker.arm(f"{carry} {switch}", "skip", 0, budget=1, values=near(level),
                      detail=switched(switch, carry))  # fmt: skip
    return maker.section(ratio=0.25, budget=1.0, train_images=100), maker.records


@pytest.mark.parametrize(
    ("levels", "skip", "early"),
    [
        ((76, 76, 76), "reproduced", "reproduced"),
        ((71, 60, 60), "partly", "not reproduced"),
        ((60, 60, 60), "not reproduced", "not reproduced"),
    ],
)
def test_skip_claims_are_judged_at_every_switch_point(
    levels: Sequence[float], skip: str, early: str
) -> None:
    section, records = skips(levels)
    found = verdicts({"05_skip_training": section}, records)
    assert (found["skip"], found["early switch"]) == (skip, early)


@pytest.mark.parametrize("levels", [(76, 76, 76), (60, 60, 60)])
def test_a_switch_that_diverged_is_told_and_settles_nothing(levels: Sequence[float]) -> None:
    section, records = skips(levels)
    earliest, first_reinit = 2, 5
    gone = losing(losing(records, section, earliest), section, first_reinit)
    report = build_claims({"05_skip_training": section}, gone, "desk")
    table = report.tables["claims"].frame.set_index("claim")
    assert table.loc["early switch", "verdict"] == "not yet measured"
    assert table.loc["skip", "verdict"] == ("partly" if levels[0] > 70 else "undecided")
    assert "best of 3 switch points" in table.loc["skip", "estimate"]
    assert "1 untested" in table.loc["skip", "estimate"]


def test_selection_without_a_gain_over_random_is_partly() -> None:
    def section(random: float, selected: float) -> tuple[dict[str, Section], dict[str, Record]]:
        maker = synthetic.Maker("04_selection")
        detail = {"layers": ["a"], "predicted_time": 0.5, "parameters": 1, "macs": 1}
        for label, method, level in (("none", "dense", 80), ("selected", "selected", selected),
                                     ("inverted", "inverted", 79)):  # fmt: skip
            maker.arm(label, method, 0, values=near(level), detail=detail)
        for i, value in enumerate(near(random)):
            maker.arm(f"random {i + 1}", "random", 0, values=[value], detail=detail)
        return {"04_selection": maker.section(budget=1.0)}, maker.records

    assert verdicts(*section(random=80, selected=81))["selection"] == "reproduced"
    assert verdicts(*section(random=81.5, selected=81))["selection"] == "partly"
    assert verdicts(*section(random=78, selected=78.5))["selection"] == "not reproduced"
    assert verdicts(*section(random=80, selected=81))["misjudged"] == "reproduced"


FASTER, SLOWER, UNDECIDED = (1.8, 2.2), (0.4, 0.6), (0.9, 1.1)


@pytest.mark.parametrize(
    ("ends", "computation", "uncompressed", "bottleneck"),
    [
        ([FASTER], "reproduced", "not reproduced", "not reproduced"),
        ([SLOWER], "not reproduced", "reproduced", "reproduced"),
        ([FASTER, SLOWER], "partly", "partly", "partly"),
        # What is not told from dense supports no side.
        ([FASTER, UNDECIDED], "partly", "not reproduced", "not reproduced"),
        ([SLOWER, UNDECIDED], "not reproduced", "reproduced", "partly"),
        ([UNDECIDED], *["undecided"] * 3),
    ],
)
def test_timing_claims_follow_the_quartiles(
    ends: Sequence[tuple[float, float]], computation: str, uncompressed: str, bottleneck: str
) -> None:
    section = synthetic.timing_section()
    facts: Any = section.model_dump(mode="json")["facts"]
    for device in facts["devices"]:
        # By form, so that half of all timings have each of two ends.
        for row in (*device["layers"], *device["networks"]):
            low, high = ends[-1 if row["arm"] == "full" else 0]
            told = {"speedup": (low + high) / 2, "speedup_low": low, "speedup_high": high}
            for timed in (row["both"], row["forward"]) if "both" in row else (row,):
                timed |= told
    sections = {"06_timing": section.model_copy(update={"facts": facts})}
    table = build_claims(sections, {}, "desk").tables["claims"].frame.set_index("claim")
    claims = ["computation", "uncompressed", "bottleneck"]
    assert table.loc[claims, "verdict"].tolist() == [computation, uncompressed, bottleneck]
    # Of two devices: 8 training steps each, 7 layers at two shares in two forms.
    steps, layers = ([n // len(ends) * (kind in ends) for kind in (FASTER, SLOWER, UNDECIDED)]
                     for n in (16, 56))  # fmt: skip
    for claim, what, n, (faster, slower, undecided) in (
        ("computation", "timings of single layers", 56, layers),
        ("uncompressed", "training steps", 16, steps),
        ("bottleneck", "timings of single layers", 56, layers),
    ):
        half = f"{faster // 2} of {n // 2} on Some CPU, 2 cores"
        each = f"({half} (AVX2) and {half} (AVX512))"
        counts = f"{faster} of {n} {what} faster {each}, {slower} slower, {undecided} undecided"
        assert f"{counts} (quartiles clear of 1)" in table.loc[claim, "estimate"]


def test_every_claim_has_a_verdict_of_the_five_and_a_quote() -> None:
    table = build_claims(SECTIONS, RECORDS, "desk").tables["claims"]
    assert set(table.frame["verdict"]) <= set(VERDICTS)
    assert table.frame["quote"].str.len().min() > 20
    assert table.frame["rule"].str.startswith(("Reproduced", "With all layers")).all()
    assert not table.frame["claim"].duplicated().any()
    assert list(table.shown.columns) == [
        "the paper's claim, as described", "kind", "our estimate", "n", "verdict"
    ]  # fmt: skip

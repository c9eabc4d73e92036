"""The analysis plan of the second edition, and what it makes of runs: answers and verdicts.

The plan (`paper/plan/edition2.yaml`) names arms, lengths, seeds, contrasts, families of tests and
the claims that rest on them, and was committed before any confirming seed was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, Self

import yaml
from pydantic import Field, model_validator

from basisconv.study.records.environment import ROOT
from basisconv.study.records.run import Count, DataName, Fraction, Model, Optimizer
from basisconv.study.report.statistics.linear_models import Contrast, contrast_of, fit_blocks
from basisconv.study.report.statistics.noninferiority import margin_test, smallest_margins
from basisconv.study.report.statistics.stats import NAN, holm

PLAN = ROOT / "paper" / "plan" / "edition2.yaml"
Answer = Literal["yes", "no", "undecided"]
Verdict = Literal["reproduced", "partly", "not reproduced", "undecided"]


class TimeOf(Model):
    """The time that an arm of another comparison takes."""

    of: str
    in_: str = Field(alias="in")


class PlannedComparison(Model):
    """Arms of one data set, recipe and length, each with its number of seeds."""

    data: DataName
    recipe: Optimizer
    equal: Literal["epochs", "time"]
    length: Annotated[float, Field(gt=0)] | TimeOf
    arms: dict[str, Count]


class PlannedContrast(Model):
    """The accuracy of `arm` less that of `rival`, which is of `rival_in` where that is given."""

    in_: str = Field(alias="in")
    arm: str
    rival: str
    rival_in: str | None = None
    test: Literal["noninferior", "different"]


class Regime(Model):
    """What dense has to reach in a comparison, or all its arms are trained for `longer` epochs."""

    comparison: str
    validation_accuracy: Fraction
    longer: Count


class AnalysisPlan(Model):
    """The whole plan; `families`' first is the primary one."""

    outcome: Literal["test_accuracy"]
    seeds: tuple[int, ...]
    alpha: Annotated[float, Field(gt=0, lt=1)]
    margins: tuple[float, ...]
    regime: Regime
    comparisons: dict[str, PlannedComparison]
    contrasts: dict[str, PlannedContrast]
    families: dict[str, tuple[str, ...]]
    claims: dict[str, tuple[str, ...]]

    @model_validator(mode="after")
    def _all_is_named(self) -> Self:
        for name, contrast in self.contrasts.items():
            for where, arm in (
                (contrast.in_, contrast.arm),
                (contrast.rival_in or contrast.in_, contrast.rival),
            ):
                if where not in self.comparisons or arm not in self.comparisons[where].arms:
                    raise ValueError(f"Contrast {name}: there is no arm {arm} in {where}.")
        listed = [name for family in self.families.values() for name in family]
        if sorted(listed) != sorted(self.contrasts):
            raise ValueError("Every contrast belongs to one family, and to one alone.")
        unknown = {c for of_claim in self.claims.values() for c in of_claim} - set(self.contrasts)
        if unknown:
            raise ValueError(f"Claims rest on contrasts that there are not: {sorted(unknown)}.")
        return self


class Outcome(NamedTuple):
    """The test accuracy of one run of an arm of the plan, in per cent; NaN if it diverged."""

    comparison: str
    arm: str
    seed: int
    accuracy: float


class Tested(NamedTuple):
    """What became of a contrast, in points.

    Its p is one-sided for non-inferiority, and `p_holm` corrected over its family. `margins` are
    those of the plan at which the arm is not inferior, `smallest` is the smallest of all.
    """

    contrast: Contrast
    p: float
    p_holm: float
    answer: Answer
    margins: tuple[float, ...]
    smallest: float


def load_plan() -> AnalysisPlan:
    """The committed plan.

    Raises:
        ValueError: if it is not one.
    """
    return AnalysisPlan.model_validate(yaml.safe_load(PLAN.read_text(encoding="utf-8")))


def evaluated(plan: AnalysisPlan, outcomes: Sequence[Outcome]) -> dict[str, Tested]:
    """Every contrast of the plan by its name, corrected within its family.

    A contrast whose runs are missing has no interval and counts as undecided; Holm's method counts
    it in its family all the same, for the family was fixed beforehand.
    """
    contrasts = {name: _contrast(plan, name, outcomes) for name in plan.contrasts}
    results: dict[str, Tested] = {}
    for family in plan.families.values():
        p_values = [_p(plan, name, contrasts[name]) for name in family]
        corrected = holm([1.0 if p != p else p for p in p_values])
        for name, p, p_holm in zip(family, p_values, corrected, strict=True):
            results[name] = _tested(plan, name, contrasts[name], p, p_holm, len(family))
    return {name: results[name] for name in plan.contrasts}


def verdicts(plan: AnalysisPlan, results: Mapping[str, Tested]) -> dict[str, Verdict]:
    """Every claim's verdict: see the plan's last section."""
    return {
        claim: _verdict([results[name].answer for name in contrasts])
        for claim, contrasts in plan.claims.items()
    }


def _verdict(answers: Sequence[Answer]) -> Verdict:
    found = set(answers)
    if found == {"yes"}:
        return "reproduced"
    if found == {"no"}:
        return "not reproduced"
    return "partly" if "yes" in found else "undecided"


def _contrast(plan: AnalysisPlan, name: str, outcomes: Sequence[Outcome]) -> Contrast:
    planned = plan.contrasts[name]
    rival = planned.rival
    rows = [(o.arm, o.seed, o.accuracy) for o in outcomes if o.comparison == planned.in_]
    if planned.rival_in is not None:
        rival = f"{planned.rival} of {planned.rival_in}"
        rows += [
            (rival, o.seed, o.accuracy)
            for o in outcomes
            if (o.comparison, o.arm) == (planned.rival_in, planned.rival)
        ]
    lost = {arm for arm, _, accuracy in rows if accuracy != accuracy}
    rows = [row for row in rows if row[0] not in lost]
    arms = [arm for arm, _, _ in rows]
    if not {planned.arm, rival} <= set(arms):
        return contrast_of(NAN, NAN, NAN, 0)
    fit = fit_blocks([value for _, _, value in rows], arms, [seed for _, seed, _ in rows])
    return fit.contrast(planned.arm, rival)


def _p(plan: AnalysisPlan, name: str, contrast: Contrast) -> float:
    if plan.contrasts[name].test == "different":
        return contrast.p
    return margin_test(contrast, plan.margins[0])


def _tested(
    plan: AnalysisPlan, name: str, contrast: Contrast, p: float, p_holm: float, family: int
) -> Tested:
    passed = p_holm <= plan.alpha
    answer: Answer = "undecided"
    margins: list[float] = []
    if plan.contrasts[name].test == "different":
        if passed:
            answer = "yes" if contrast.estimate > 0 else "no"
    elif passed:
        answer = "yes"
        margins.append(plan.margins[0])
        for margin in plan.margins[1:]:
            # The narrower ones at Bonferroni's level, which no order of the family can lower.
            if not margin_test(contrast, margin) <= plan.alpha / family:
                break
            margins.append(margin)
    elif contrast.high < -plan.margins[0]:
        answer = "no"
    smallest = smallest_margins(contrast, plan.alpha).noninferior
    return Tested(contrast, p, p_holm, answer, tuple(margins), smallest)

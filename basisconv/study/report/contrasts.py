"""The contrasts that the analysis plan names, as its own runs answer them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from basisconv.study.data.sets import EVALUATED_IMAGES
from basisconv.study.experiments.defaults import NAMES
from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, tables, text
from basisconv.study.report.arms import Measured
from basisconv.study.report.named_arms import groups
from basisconv.study.report.statistics import image_bootstrap
from basisconv.study.report.statistics.analysis_plan import (
    AnalysisPlan,
    Outcome,
    PlannedContrast,
    evaluated,
    load_plan,
)
from basisconv.study.report.statistics.stats import NAN
from basisconv.study.report.tables import Table, cell, fixed, interval, make_table, words


def contrast_table(frame: pd.DataFrame, outcome: str) -> Table:
    """What `contrast_frame` made, to be read."""
    return make_table(
        frame,
        [words("family", "family", once=True), words("contrast", "words"),
         interval("difference (points)", "difference low high", 2, True),
         interval("over images, too", "crossed", 2, True),
         cell("n", "n", text.whole), tables.p_value(), words("answer", "answer"),
         fixed("not inferior by", "smallest_margin", 2)],
        f"The contrasts that the analysis plan named beforehand: difference of {outcome} "
        "accuracy over seeds, and over seeds and test images, p by Holm within the family, the "
        "plan's answer, and the smallest margin at which the arm is not inferior.",
    )  # fmt: skip


def contrast_frame(
    found: Sequence[Measured],
    right: Mapping[str, Mapping[int, ArrayLike]],
    data: str = "cifar10",
) -> pd.DataFrame:
    """The plan's contrasts on a data set whose two arms are both here, as the plan tests them.

    `crossed` is the same difference by resampling seeds and test images; see `right_images`.
    """
    plan = load_plan()
    placed = planned_arms(plan, found, data)
    results = evaluated(plan, plan_outcomes(placed))
    rows = []
    for family, name in ((f, name) for f, names in plan.families.items() for name in names):
        result, planned = results[name], plan.contrasts[name]
        d = result.contrast
        if math.isnan(d.estimate):
            continue
        ours = placed[planned.in_, planned.arm].arm.label
        rival = placed[planned.rival_in or planned.in_, planned.rival].arm.label
        crossed = _crossed(right.get(ours, {}), right.get(rival, {}))
        rows.append(
            {
                "family": family, "contrast": name,
                "words": f"{planned.arm} − {planned.rival}, {_where(plan, planned)}",
                "difference": d.estimate, "low": d.low, "high": d.high, "n": d.n,
                **crossed,
                "p": result.p, "p_holm": result.p_holm, "answer": result.answer,
                "smallest_margin": result.smallest,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _crossed(a: Mapping[int, ArrayLike], b: Mapping[int, ArrayLike]) -> dict[str, float]:
    if not a.keys() & b.keys():
        return {"crossed": NAN, "crossed_low": NAN, "crossed_high": NAN}
    found = image_bootstrap.crossed_difference(a, b)
    return {"crossed": found.estimate, "crossed_low": found.low, "crossed_high": found.high}


def right_images(
    section: Section, records: Mapping[str, Record]
) -> dict[str, dict[int, NDArray[np.bool_]]]:
    """By label and seed, which test images a run got right; of runs that kept it."""
    kept: dict[str, dict[int, NDArray[np.bool_]]] = {}
    for arm in section.arms:
        for record in arms.done(section, records, arm):
            if record.result is not None and record.result.test_correct is not None:
                bits = image_bootstrap.decode(
                    record.result.test_correct, EVALUATED_IMAGES[record.run.data.name][1]
                )
                kept.setdefault(arm.label, {})[record.run.seed] = bits
    return kept


def planned_arms(
    plan: AnalysisPlan, found: Sequence[Measured], data: str = "cifar10"
) -> dict[tuple[str, str], Measured]:
    """The plan's arms on a data set, by comparison and name, by the comparisons' own lengths.

    A length that the plan leaves to be measured is that of the equal time at which D½ stands alone.
    """
    return {
        (name, arm): m
        for name, planned in plan.comparisons.items()
        for (recipe, part, length), among in groups(found).items()
        if (data, recipe, part) == (planned.data, planned.recipe, f"equal {planned.equal}")
        if (length == planned.length if isinstance(planned.length, float)
            else among.keys() == planned.arms.keys())
        for arm, m in among.items()
    }  # fmt: skip


def plan_outcomes(placed: Mapping[tuple[str, str], Measured]) -> list[Outcome]:
    """What the runs of the plan's arms reached."""
    return [
        Outcome(comparison, arm, seed, accuracy)
        for (comparison, arm), m in placed.items()
        for seed, accuracy in [*zip(m.seeds, m.accuracy, strict=True), *[(-1, NAN)] * m.lost]
    ]


def _where(plan: AnalysisPlan, planned: PlannedContrast) -> str:
    """Recipe and length of a contrast: as in "SGD, 12 epochs" or "Muon, time 2"."""
    comparison = plan.comparisons[planned.in_]
    if planned.rival_in is not None:
        length = "equal time, the longest"
    elif comparison.equal == "epochs":
        length = f"{comparison.length:g} epochs"
    else:
        length = f"time {comparison.length:g}"
    return f"{NAMES[comparison.recipe]}, {length}"

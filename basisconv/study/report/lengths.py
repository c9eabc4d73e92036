"""02 over several lengths: D's learning curve, an arm's speed-up to equal accuracy, and trends.

Standard errors of cell means are those of one pooled variance of the logits under a recipe, for a
cell of two or three seeds says little of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from basisconv.study.report import speedup
from basisconv.study.report.arms import Measured
from basisconv.study.report.statistics import equal_accuracy
from basisconv.study.report.statistics.equal_accuracy import Time
from basisconv.study.report.statistics.linear_models import Contrast
from basisconv.study.report.statistics.mixed_models import fit_lengths
from basisconv.study.report.statistics.stats import NAN


class Curve(NamedTuple):
    """D's mean accuracies under a recipe at rising times, as fractions, with standard errors."""

    times: list[float]
    accuracies: list[float]
    errors: list[float]

    def at(self, time: float) -> equal_accuracy.Reached:
        """What D reaches when it is shortened to a time; NaN with fewer than two lengths."""
        if len(self.times) < 2:
            return equal_accuracy.Reached(NAN, NAN, NAN)
        return equal_accuracy.reached(self.times, self.accuracies, self.errors, time)


def under(found: Sequence[Measured], recipe: str) -> list[Measured]:
    """The arms under a recipe that have runs."""
    return [m for m in found if m.detail["recipe"] == recipe and m.n]


def dense_curve(found: Sequence[Measured], recipe: str) -> Curve:
    """Of all lengths at which D was trained under the recipe."""
    own = under(found, recipe)
    spread = _pooled(own)
    by_time = {m.time: m for m in own if m.detail["arm"] == "D" and not math.isnan(spread)}
    dense = [by_time[time] for time in sorted(by_time)]
    return Curve(
        [m.time for m in dense], [_mean(m) for m in dense], [_error(m, spread) for m in dense]
    )


def speedup_frame(found: Sequence[Measured], answers: Mapping[str, str]) -> pd.DataFrame:
    """One row an arm: how many times as fast as D to the same accuracy, by D's curve and without.

    `speedup` with its interval is by inversion of the curve. The bracket assumes none: at least
    `speedup_at_least` times and less than `speedup_below` times as fast, by comparisons with D of
    measured lengths (Welch, Holm over a recipe's comparisons).

    Args:
        found: all arms.
        answers: by label, how an arm compares with D of its own length: "above", "below" or "open".
    """
    rows = []
    for recipe in dict.fromkeys(m.detail["recipe"] for m in found):
        own = under(found, recipe)
        curve, spread = dense_curve(found, recipe), _pooled(own)
        bounds = speedup.brackets(own, [answers[m.arm.label] for m in own])
        for m, bound in zip(own, bounds.itertuples(), strict=True):
            if m.detail["arm"] == "D" or len(curve.times) < 2:
                continue
            low, high = m.detail["time_quartiles"]
            by_curve = equal_accuracy.speed_up(
                *curve, _mean(m), _error(m, spread), Time(m.time, low, high)
            )
            rows.append(
                (recipe, m.detail["part"], m.arm.budget, m.detail["arm"], m.time, m.n, m.lost,
                 *m.interval[:3], *by_curve, bound.speedup_at_least, bound.speedup_below)
            )  # fmt: skip
    columns = ["recipe", "part", "length", "arm", "time", "n", "lost", "accuracy", "low", "high",
               "speedup", "curve_at_least", "curve_at_most", "speedup_low", "speedup_high",
               "speedup_at_least", "speedup_below"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def trends(found: Sequence[Measured], rival: str = "D") -> dict[tuple[str, str], Contrast]:
    """By recipe and arm, how the logit gap to the rival at equal time changes per doubling of it.

    Only for arms that share two lengths or more with the rival.
    """
    made: dict[tuple[str, str], Contrast] = {}
    for recipe in dict.fromkeys(m.detail["recipe"] for m in found):
        own = [m for m in under(found, recipe) if m.detail["part"] == "equal time"]
        lengths: dict[str, set[float]] = {}
        for m in own:
            lengths.setdefault(m.detail["arm"], set()).add(m.arm.budget or NAN)
        shared = {
            arm: of_arm & lengths.get(rival, set())
            for arm, of_arm in lengths.items() if arm != rival
        }  # fmt: skip
        compared = [arm for arm, at in shared.items() if len(at) > 1]
        runs = [
            (value / 100, m.detail["arm"], m.arm.budget, seed)
            for m in own for seed, value in zip(m.seeds, m.accuracy, strict=True)
        ]  # fmt: skip
        if compared:
            values, arms, budgets, seeds = (list(column) for column in zip(*runs, strict=True))
            fit = fit_lengths(values, arms, budgets, seeds)
            made |= {(recipe, arm): fit.trend(arm, rival) for arm in compared}
    return made


def _mean(m: Measured) -> float:
    return m.interval.mean / 100


def _error(m: Measured, spread: float) -> float:
    """The standard error of a mean accuracy, by the delta method, from a spread of logits."""
    return spread * _mean(m) * (1 - _mean(m)) / math.sqrt(m.n)


def _pooled(found: Sequence[Measured]) -> float:
    """The standard deviation of logits within cells; NaN where no cell has two runs."""
    cells = [special.logit(np.array(m.accuracy) / 100) for m in found]
    freedom = sum(len(cell) - 1 for cell in cells)
    squares = sum(float(((cell - cell.mean()) ** 2).sum()) for cell in cells)
    return math.sqrt(squares / freedom) if freedom else NAN

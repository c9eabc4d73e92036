"""Named arms by comparison: the same recipe and length, at equal epochs or at equal time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from basisconv.study.report.arms import Measured
from basisconv.study.report.statistics.linear_models import Contrast, contrast_of, fit_blocks
from basisconv.study.report.statistics.stats import NAN

Key = tuple[str, str, float]  # recipe, part, length


def groups(found: Sequence[Measured]) -> dict[Key, dict[str, Measured]]:
    """The arms of each comparison by their short names, by recipe, part and length."""
    held: dict[Key, dict[str, Measured]] = {}
    for m in found:
        key = (m.detail["recipe"], m.detail["part"], m.arm.budget or NAN)
        held.setdefault(key, {})[m.detail["arm"]] = m
    return held


def difference(a: str, b: str, among: Mapping[str, Measured]) -> Contrast:
    """The accuracy of a less that of b in points, by the model of all arms among which they are."""
    if a == b or not all(name in among and among[name].n for name in (a, b)):
        return contrast_of(NAN, NAN, NAN, 0)
    runs = [
        (value, name, seed)
        for name, m in among.items()
        for seed, value in zip(m.seeds, m.accuracy, strict=True)
    ]
    values, arms_of, seeds = (list(column) for column in zip(*runs, strict=True))
    return fit_blocks(values, arms_of, seeds).contrast(a, b)


def answers(found: Sequence[Measured]) -> dict[str, str]:
    """By label, whether an arm is above or below D of its own length, or the answer open."""
    made = {}
    for among in groups(found).values():
        for name, m in among.items():
            d = difference(name, "D", among)
            made[m.arm.label] = "above" if d.low > 0 else "below" if d.high < 0 else "open"
    return made

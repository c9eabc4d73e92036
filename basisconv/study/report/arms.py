"""From a section's arms and their records to accuracies with intervals and their comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from basisconv.study.records.run import Arm, Record, Section
from basisconv.study.report import text
from basisconv.study.report.statistics import stats
from basisconv.study.report.statistics.stats import NAN, Interval

MARGIN = 0.2
"""Percentage points within which a drop of accuracy counts as negligible."""
ALPHA = 0.05
TRUSTED = 0.7
"""Reliability from which a ranking of layers counts as identified."""
DENSE = ("dense", "narrow", "same_size")
"""Methods whose networks are dense: the rivals of the basis arms."""


@dataclass(frozen=True)
class Measured:
    """An arm with what its runs reached.

    Attributes:
        arm: the arm.
        seeds: of the runs that are done, ascending.
        accuracy: last-step accuracy in per cent, by seed: test or validation, see `outcome`.
        val_accuracy: last-step validation accuracy in per cent, by seed.
        val_loss: last-step validation cross-entropy, by seed.
        lost: runs that failed or diverged; they have no accuracy but must be reported.
    """

    arm: Arm
    seeds: tuple[int, ...]
    accuracy: tuple[float, ...]
    val_accuracy: tuple[float, ...]
    val_loss: tuple[float, ...]
    lost: int

    @property
    def n(self) -> int:
        """Runs that are done."""
        return len(self.seeds)

    @property
    def detail(self) -> dict[str, Any]:
        """What the draft keeps of the arm, of types that its experiment alone knows."""
        return self.arm.detail

    @property
    def interval(self) -> Interval:
        """Mean accuracy in per cent with its 95 % t-interval."""
        return stats.mean_interval(self.accuracy) if self.n else Interval(NAN, NAN, NAN, 0, NAN)

    @property
    def time(self) -> float:
        """Training time in dense epochs: by the cost source, else the budget; NaN without."""
        known = self.arm.budget if self.arm.time is None else self.arm.time
        return NAN if known is None else known


class Comparison(NamedTuple):
    """An arm against another in percentage points, by Welch's test; the fields name columns.

    `equivalence_p` is the p of a difference below MARGIN, and `smallest_margin` the least margin
    within which the two are equivalent.
    """

    difference: float
    difference_low: float
    difference_high: float
    p: float
    equivalence_p: float
    smallest_margin: float


def done(section: Section, records: Mapping[str, Record], arm: Arm) -> list[Record]:
    """The finished records of an arm, by seed.

    Raises:
        ValueError: if a run of the arm has no record at all.
    """
    missing = [run_id for run_id in arm.run_ids if run_id not in records]
    if missing:
        raise ValueError(
            f"{section.name} needs {len(missing)} runs of {arm.label!r} that have no record, "
            f"the first {missing[0]}. Make them with `python -m basisconv run --profile "
            f"{section.profile}`."
        )
    found = [records[run_id] for run_id in arm.run_ids]
    return sorted((r for r in found if r.status == "done"), key=lambda r: r.run.seed)


def outcome(section: Section, records: Mapping[str, Record]) -> str:
    """Say "test" if every finished run of the section read the test set, else "validation".

    One outcome for the whole section, so that no arm's test accuracy is compared with another's
    validation accuracy.
    """
    results = [r.result for arm in section.arms for r in done(section, records, arm)]
    read = [r is not None and r.test_accuracy is not None for r in results]
    return "test" if read and all(read) else "validation"


def measure(section: Section, records: Mapping[str, Record]) -> list[Measured]:
    """Every arm of a section with its accuracies, in the section's order."""
    test = outcome(section, records) == "test"
    found = []
    for arm in section.arms:
        runs = done(section, records, arm)
        results = [record.result for record in runs if record.result is not None]
        validation = tuple(100 * r.val_accuracy for r in results)
        tested = tuple(100 * (r.test_accuracy or 0.0) for r in results)
        found.append(
            Measured(
                arm, tuple(record.run.seed for record in runs), tested if test else validation,
                validation, tuple(r.val_loss for r in results), len(arm.run_ids) - len(runs),
            )
        )  # fmt: skip
    return found


def compare(a: Measured, b: Measured) -> Comparison:
    """The accuracy of a less that of b."""
    return compare_values(a.accuracy, b.accuracy)


def compare_values(a: Sequence[float], b: Sequence[float]) -> Comparison:
    """As `compare`, of plain values; NaN where there are too few of them."""
    if not (a and b):
        return Comparison(*[NAN] * 6)
    d = stats.welch(a, b)
    margin = stats.smallest_margin(a, b, ALPHA)
    return Comparison(d.estimate, d.low, d.high, d.p, stats.tost(a, b, MARGIN), margin)


def verdict(difference: float, equivalence: float, p: float) -> str:
    """One of "above", "below", "equal" (within MARGIN), "open" (neither test decides), "untested".

    Args:
        difference: of the arm from its rival.
        equivalence: p of the equivalence test.
        p: of the difference, adjusted where it is one of several.
    """
    if math.isnan(p):
        return "untested"
    if equivalence < ALPHA:  # a difference may be significant and negligible
        return "equal"
    if p < ALPHA:
        return "above" if difference > 0 else "below"
    return "open"


def decided(table: pd.DataFrame, families: Iterable[object] | None = None) -> pd.DataFrame:
    """A table of comparisons with p by Holm and each row's verdict, "" where nothing was compared.

    It has the fields of `Comparison` as columns. Holm's correction is over the rows of one family,
    or over all.
    """
    of_row = [None] * len(table) if families is None else list(families)
    adjusted = np.full(len(table), NAN)
    for family in dict.fromkeys(of_row):
        rows = [i for i, own in enumerate(of_row) if own == family]
        adjusted[rows] = stats.holm(list(table["p"].iloc[rows]))
    verdicts = [
        "" if math.isnan(r.difference) else verdict(r.difference, r.equivalence_p, p)
        for r, p in zip(table.itertuples(), adjusted, strict=True)
    ]
    return table.assign(p_holm=adjusted, verdict=verdicts)


def compare_table(
    found: Sequence[Measured],
    rival: Callable[[Measured], Measured | None],
    before: Callable[[Measured], Mapping[str, Any]],
    after: Callable[[Measured], Mapping[str, Any]] = lambda _: {},
    family: Callable[[Measured], object] = lambda _: None,
) -> pd.DataFrame:
    """One row an arm: what it reached, and how it compares with its rival, if another than itself.

    Its columns stand `before` those of its accuracy and `after` those of the comparison. Holm's
    correction is over the arms of one family; by default over all.
    """
    rows = []
    for m in found:
        other, mean = rival(m), m.interval
        compared = compare_values(m.accuracy, other.accuracy if other and other is not m else [])
        rows.append(
            {
                "label": m.arm.label, **before(m), "n": m.n, "lost": m.lost,
                "accuracy": mean.mean, "low": mean.low, "high": mean.high, "sd": mean.sd,
                **compared._asdict(), **after(m),
            }
        )  # fmt: skip
    return decided(pd.DataFrame(rows), [family(m) for m in found])


def tested(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table from `decided` that could be tested."""
    return table[table["verdict"].isin(("above", "below", "equal", "open"))]


def tally(verdicts: Iterable[str]) -> str:
    """As in "over 3 comparisons: 1 above, 2 undecided"."""
    found = list(verdicts)
    words = {"above": "above", "equal": "equal", "below": "below", "open": "undecided"}
    counts = [f"{found.count(v)} {word}" for v, word in words.items() if v in found]
    lacking = sum(v not in words for v in found)
    counts += [f"{lacking} untested"] if lacking else []
    return f"over {text.plural(len(found), 'comparison')}: {', '.join(counts)}"


def first(found: Sequence[Measured], method: str) -> Measured | None:
    """The first arm of a method."""
    return next((m for m in found if m.arm.method == method), None)


def shown_as(found: Sequence[Measured]) -> str:
    """What a point of a figure is, for its caption: "means with 95 % intervals (n = 4)"."""
    counts = sorted({m.n for m in found if m.n})
    if not counts:
        return "no runs"
    if counts[-1] == 1:
        return "single runs, without intervals"
    each = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    return f"means with 95 % intervals ({each})"


def lost_note(found: Sequence[Measured]) -> list[str]:
    """A sentence on runs that failed or diverged, if there are any."""
    lost = ", ".join(f"{m.lost} of {len(m.arm.run_ids)} of {m.arm.label}" for m in found if m.lost)
    return [f"Runs that failed or diverged are left out of the means: {lost}."] if lost else []


def scale(found: Sequence[Measured], records: Mapping[str, Record]) -> dict[str, Any]:
    """How large the trainings are, for the paper's protocol."""
    run = records[found[0].arm.run_ids[0]].run
    budgets = sorted({m.arm.budget for m in found if m.arm.method != "dense" and m.arm.budget})
    return {
        "train_images": run.data.train_images, "network": text.network(run.network),
        "width": run.width, "budgets": [f"{b:g}" for b in budgets], "threads": run.threads,
    }  # fmt: skip

"""07's ways to score layers: what each predicts of subsets that it has not seen, and chooses.

A subset's predicted loss is the sum of its layers' scores. It is held against the logarithm of the
validation loss of 04's random subsets, in the model

    log loss = seed + a · (number of layers) + b · (sum of scores) + noise

each subset predicted from all the others. Without the last term all layers count alike: what a
score adds to that one common slope is the R² here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from basisconv.effects import Effects
from basisconv.study.experiments.search import REFERENCE
from basisconv.study.records.run import Arm, Record, Section
from basisconv.study.report import arms, style, text
from basisconv.study.report.arms import Measured
from basisconv.study.report.output import Plot
from basisconv.study.report.statistics import rankings, stats
from basisconv.study.report.statistics.rankings import Bootstrap
from basisconv.study.report.statistics.stats import NAN
from basisconv.study.report.tables import Table, interval, make_table, plain, words

Floats = NDArray[np.float64]
NOTHING = Bootstrap(NAN, NAN, NAN)
RANDOM = "random subsets"


@dataclass(frozen=True)
class Subsets:
    """04's random subsets whose runs are done: their layers, log losses and what all share."""

    layers: list[list[str]]
    losses: Floats  # (n,)
    shared: Floats  # (n, p): a column for each seed, and the number of layers

    def left_out(self, scores: Floats | None = None) -> Floats | None:
        """Each subset's error, predicted from the others; None where these are too few."""
        x = self.shared if scores is None else np.column_stack([self.shared, _scaled(scores)])
        hat = x @ np.linalg.pinv(x)
        free = 1 - np.diag(hat)
        if len(x) <= np.linalg.matrix_rank(x) + 1 or free.min() < 1e-9:
            return None
        return np.asarray((self.losses - hat @ self.losses) / free)

    def beyond(self, values: Floats) -> Floats:
        """What is left of some values once seeds and the number of layers are taken out."""
        return np.asarray(values - self.shared @ np.linalg.pinv(self.shared) @ values)


def _scaled(scores: Floats) -> Floats:
    """Scores about zero and of size one, whatever their unit; the fit is the same."""
    centred = scores - scores.mean()
    size = float(np.abs(centred).max())
    return np.asarray(centred / size if size > 0 else centred)


def subsets(section: Section, records: Mapping[str, Record]) -> Subsets:
    """The random subsets among the evidence."""
    runs = [
        (arm.detail["layers"], record)
        for arm in _part(section, "evidence")
        if arm.method == "random"
        for record in arms.done(section, records, arm)
    ]
    seeds = sorted({record.run.seed for _, record in runs})
    shared = [[*(r.run.seed == s for s in seeds), len(layers)] for layers, r in runs]
    losses = [math.log(r.result.val_loss) for _, r in runs if r.result is not None]
    return Subsets([layers for layers, _ in runs], np.array(losses), np.array(shared, dtype=float))


def ceiling(section: Section, records: Mapping[str, Record], found: Subsets) -> float:
    """The R² that a perfect prediction is expected to reach, for the rest is a run's noise.

    The noise is what the arms of 04 with several seeds leave of arm + seed; NaN without such.
    """
    rows = [
        (arm.label, record.run.seed, math.log(record.result.val_loss))
        for arm in _part(section, "evidence")
        if arm.method != "random" and len(arm.run_ids) > 1
        for record in arms.done(section, records, arm)
        if record.result is not None
    ]
    labels, seeds = sorted({r[0] for r in rows}), sorted({r[1] for r in rows})
    x = np.array([[*(r[0] == a for a in labels), *(r[1] == s for s in seeds)] for r in rows], float)
    free = len(rows) - (np.linalg.matrix_rank(x) if len(rows) else 0)
    left = len(found.losses) - (np.linalg.matrix_rank(found.shared) if len(found.losses) else 0)
    if free < 1 or left < 1:
        return NAN
    y = np.array([r[2] for r in rows])
    noise = float(((y - x @ np.linalg.pinv(x) @ y) ** 2).sum()) / free
    total = float((found.beyond(found.losses) ** 2).sum()) / left
    return max(0.0, 1 - noise / total) if total > 0 else NAN


def method_frame(
    section: Section, records: Mapping[str, Record], effects: Effects
) -> pd.DataFrame:  # fmt: skip
    """One row a way to score layers, and one of the random subsets."""
    facts = section.facts
    found = subsets(section, records)
    common = found.left_out() if len(found.losses) else None
    regrets = _regrets(section, records)
    rows = []
    for way, own in facts["scores"].items():
        r2, ranks = _predicted(found, common, own)
        names = [name for name in effects.layers if name in own]
        layers = NOTHING
        if way != "screening" and len(names) > 2:
            pairs = np.array([[own[n], effects.layers[n].value] for n in names])
            layers = rankings.bootstrap(lambda t: rankings.spearman(t[:, 0], t[:, 1]), pairs)
        rows.append(
            {"way": way, "trainings": facts["trainings"][way], **_columns("r2", r2),
             **_columns("ranks", ranks), **_columns("layers", layers),
             **_columns("regret", regrets.get(way, NOTHING))}
        )  # fmt: skip
    random = {"way": RANDOM, "trainings": 0.0}
    for name in ("r2", "ranks", "layers"):
        random |= _columns(name, NOTHING)
    rows.append(random | _columns("regret", regrets.get(RANDOM, NOTHING)))
    return pd.DataFrame(rows)


def _predicted(
    found: Subsets, common: Floats | None, scores: Mapping[str, float]
) -> tuple[Bootstrap, Bootstrap]:
    """R² beyond the common slope and rank correlation, intervals over resampled subsets."""
    known = all(name in scores for layers in found.layers for name in layers)
    if common is None or not known:
        return NOTHING, NOTHING
    sums = np.array([sum(scores[name] for name in layers) for layers in found.layers])
    errors, ranks = found.left_out(sums), NOTHING
    if np.ptp(found.beyond(sums)) > 1e-9 * max(1.0, float(np.abs(sums).max())):
        pairs = np.column_stack([found.beyond(sums), found.beyond(found.losses)])
        ranks = rankings.bootstrap(lambda t: rankings.spearman(t[:, 0], t[:, 1]), pairs)
    if errors is None:
        return NOTHING, ranks
    squares = np.column_stack([common**2, errors**2])
    r2 = rankings.bootstrap(
        lambda t: float(1 - t[:, 1].sum() / t[:, 0].sum()) if t[:, 0].sum() > 0 else NAN, squares
    )
    return r2, ranks


def _regrets(section: Section, records: Mapping[str, Record]) -> dict[str, Bootstrap]:
    """The reference's accuracy less that of each choice, by seed, in points; 95 % t-intervals."""
    chosen = section.model_copy(update={"arms": tuple(_part(section, "choice", "evidence"))})
    by_way: dict[str, list[Measured]] = {}
    for m in arms.measure(chosen, records):
        if m.detail["part"] == "choice":
            by_way.setdefault(m.detail["way"], []).append(m)
        elif m.arm.method == "random":
            by_way.setdefault(RANDOM, []).append(m)
    reference = {
        seed: value
        for m in by_way.get(REFERENCE, [])
        for seed, value in zip(m.seeds, m.accuracy, strict=True)
    }
    regrets = {}
    for way, runs in by_way.items():
        lost = [
            reference[seed] - value
            for m in runs
            for seed, value in zip(m.seeds, m.accuracy, strict=True)
            if seed in reference
        ]
        if lost and way != REFERENCE:
            mean = stats.mean_interval(lost)
            regrets[way] = Bootstrap(mean.mean, mean.low, mean.high)
    return regrets


def _part(section: Section, *names: str) -> list[Arm]:
    return [arm for arm in section.arms if arm.detail.get("part") in names]


def _columns(name: str, value: Bootstrap) -> dict[str, float]:
    return {name: value.estimate, f"{name}_low": value.low, f"{name}_high": value.high}


def enough(table: pd.DataFrame) -> list[str]:
    """The ways whose regret is by its interval below half of the random subsets'."""
    half = float(table.loc[table["way"] == RANDOM, "regret"].iloc[0]) / 2
    return [r.way for r in table.itertuples() if r.way != RANDOM and r.regret_high < half]


def method_table(section: Section, table: pd.DataFrame, limit: float) -> Table:
    """What each way costs, predicts and loses."""
    facts = section.facts
    draws = sum(arm.method == "random" for arm in _part(section, "evidence"))
    most = f" A perfect prediction would have {limit:.2f}." if not math.isnan(limit) else ""
    return make_table(
        table,
        [words("layers scored by", "way"), plain("trainings", "trainings"),
         interval("R² beyond the slope", "r2", 2, True),
         interval("rank correlation", "ranks", 2, True),
         interval("with the screening", "layers", 2, True),
         interval("regret (points)", "regret", 2, True)],
        f"Ways to score layers. R²: what the score adds to the number of layers in predicting the "
        f"log loss of {draws} random subsets, each from the others; rank correlation of both "
        "beyond seed and number of layers (intervals over resampled subsets), and of the layers' "
        f"scores with what the screening found.{most} Regret: accuracy of the last layers, as "
        f"many as take {100 * facts['target_time']:g} % of dense's time, less that of the subset "
        "of that time that the score chooses, on the same seeds (95 % t-interval).",
    )  # fmt: skip


def method_plot(table: pd.DataFrame, limit: float) -> Plot:
    """R² beyond the common slope, and regret."""
    drawn = style.figure(6.9, 2.9)
    left, right = drawn.subplots(1, 2, sharey=True)
    _panel(left, table, "r2", "a", "what scores predict", "R² beyond the common slope")
    _panel(right, table, "regret", "b", "what their choices lose", "regret (points)")
    random = float(table.loc[table["way"] == RANDOM, "regret"].iloc[0])
    for axes, line in ((left, limit), (right, random / 2)):
        if not math.isnan(line):
            axes.axvline(line, color=style.look("inverted").colour, linewidth=0.9)
    left.set_yticks(range(len(table)), table["way"])
    left.invert_yaxis()
    return Plot(
        drawn, table,
        "(a) What each way to score layers adds to the number of layers in predicting random "
        "subsets, and what a perfect prediction would (line). (b) What its choice loses against "
        "the last layers, and half of what random subsets do (line). 95 % intervals.",
    )  # fmt: skip


def _panel(
    axes: Axes, table: pd.DataFrame, column: str, letter: str, title: str, label: str
) -> None:
    axes.axvline(0, color=style.INK, linewidth=0.6)
    style.across(axes, table, column, "selected")
    style.panel(axes, letter, title)
    axes.set_xlabel(label)


def method_values(table: pd.DataFrame, limit: float, draws: int) -> dict[str, Any]:
    """What the paper prints of them."""
    values: dict[str, Any] = {
        "draws": text.count(draws),
        "enough": text.said(text.listed(enough(table)) or "none"),
    }
    if not math.isnan(limit):
        values["ceiling"] = text.number(limit, n=draws, digits=2)
    for r in table.itertuples():
        if not math.isnan(r.r2):
            ends = (r.r2, r.r2_low, r.r2_high)
            values[f"R² of {r.way}"] = text.number(*ends, n=draws, digits=2, signed=True)
        if not math.isnan(r.regret):
            values[f"regret of {r.way}"] = text.points(r.regret, r.regret_low, r.regret_high)
    return values

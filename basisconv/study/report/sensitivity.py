"""03_sensitivity: which single layers hurt, and how far the sweep can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, style, tables, text
from basisconv.study.report.arms import Measured
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.statistics import rankings, stats
from basisconv.study.report.statistics.stats import NAN
from basisconv.study.report.tables import cell, count, interval, make_table, percent, words

# What a layer's sensitivity may follow: column -> words.
_EXPLANATIONS = {
    "index": "depth", "parameters_saved": "parameters saved", "time_saved": "time saved",
}  # fmt: skip
_LOSS = ["loss_rise", "loss_low", "loss_high"]
_ACCURACY = ["accuracy_fall", "accuracy_low", "accuracy_high"]


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """Each layer's rise in validation cross-entropy, and what its basis form saves."""
    facts = section.facts
    table, matrix = layer_frame(section, records), score_matrix(section, records)
    unit, found = facts["unit"], arms.measure(section, records)
    where = (
        f"Each layer alone in basis form at f = {text.share(facts['ratio'])}, against dense of the "
        f"same seeds and steps (width {facts['width']}, {facts['train_images']:,} training images, "
        f"{text.epochs(facts['epochs'])})"
    )
    return Report(
        section.name,
        section.profile,
        tables={
            "sensitivity": make_table(
                table,
                [words("layer", "layer"), tables.seeds(),
                 interval("rise of loss", " ".join(_LOSS), 4, True), tables.p_value(),
                 interval("fall of accuracy (points)", " ".join(_ACCURACY), 2, True),
                 count("parameters saved", "parameters_saved"),
                 cell("MACs saved", "macs_saved", text.millions),
                 percent("time saved", "time_saved", 1)],
                f"{where}: rise of the validation cross-entropy and fall of the validation "
                "accuracy (paired by seed, p by Holm over the layers), and what the form saves "
                f"(time by {unit}).",
            )
        },
        figures={
            "sensitivity": Plot(
                _figure(table), table,
                f"{where}, {arms.shown_as(found)}: (a) rise of validation loss, dark where a test "
                "finds one (Holm); (b) fall of validation accuracy; (c) parameters and (d) time of "
                f"a training step saved (by {unit}).",
            )
        },
        numbers={
            "values": _values(table, matrix), "headline": _headline(table),
            "single": [
                name for m in found
                for name, n in records[m.arm.run_ids[0]].run.phases[0].plan.layers.items() if n == 1
            ],
        },
    )  # fmt: skip


def layer_frame(section: Section, records: Mapping[str, Record]) -> pd.DataFrame:
    """One row a layer, in forward order, over the seeds that it shares with dense."""
    dense, layers = _arms(section, records)
    rows = []
    for m in layers:
        loss = _paired(m, dense, "val_loss")
        accuracy = _paired(dense, m, "val_accuracy")
        names = ("index", "parameters_saved", "macs_saved", "time_saved")
        rows.append(
            {
                "layer": m.arm.label, **{name: m.detail[name] for name in names},
                "n": loss.n_a, "lost": m.lost, **dict(zip(_LOSS, loss, strict=False)), "p": loss.p,
                **dict(zip(_ACCURACY, accuracy, strict=False)),
            }
        )  # fmt: skip
    table = pd.DataFrame(rows).sort_values("index", kind="stable", ignore_index=True)
    return table.assign(p_holm=stats.holm(list(table["p"])))


def score_matrix(section: Section, records: Mapping[str, Record]) -> np.ndarray:
    """Scores of shape (seeds, layers) over the seeds that every layer and dense finished."""
    dense, layers = _arms(section, records)
    layers = sorted(layers, key=lambda m: m.detail["index"])
    common = sorted(set(dense.seeds).intersection(*(m.seeds for m in layers)))
    losses = [dict(zip(m.seeds, m.val_loss, strict=True)) for m in (dense, *layers)]
    return np.array([[own[seed] - losses[0][seed] for own in losses[1:]] for seed in common])


def _arms(section: Section, records: Mapping[str, Record]) -> tuple[Measured, list[Measured]]:
    found = arms.measure(section, records)
    dense = arms.first(found, "dense")
    layers = [m for m in found if m.arm.method == "layer"]
    if dense is None or not layers:
        raise ValueError(
            f"{section.name} needs an arm 'dense' and one of method 'layer' for each layer; it "
            f"has {', '.join(arm.label for arm in section.arms) or 'none'}."
        )
    if not dense.n:
        raise ValueError(
            f"{section.name}: no run of dense was finished ({dense.lost} failed or diverged), so "
            "there is nothing to compare a layer with."
        )
    return dense, layers


def _paired(a: Measured, b: Measured, what: str) -> stats.Difference:
    """The difference over the seeds that both have."""
    of_a, of_b = (dict(zip(m.seeds, getattr(m, what), strict=True)) for m in (a, b))
    common = [seed for seed in of_a if seed in of_b]
    if not common:
        return stats.Difference(NAN, NAN, NAN, NAN, 0, 0)
    return stats.paired([of_a[s] for s in common], [of_b[s] for s in common])


def _figure(table: pd.DataFrame) -> Figure:
    places = range(len(table))
    made = style.figure(style.TWO_COLUMNS, 0.75 + 0.14 * len(table))
    panels = made.subplots(1, 4, sharey=True, width_ratios=[1.5, 1.3, 1, 1])
    found = table["p_holm"] < arms.ALPHA
    for axes, names, dark in ((panels[0], _LOSS, found), (panels[1], _ACCURACY, found & False)):
        mean, low, high = (table[name] for name in names)
        bars = axes.barh(places, mean, height=0.7, color=style.look("layer").colour, linewidth=0)
        for bar, is_dark in zip(bars, dark, strict=True):
            bar.set_alpha(0.75 if is_dark else 0.45)
        axes.errorbar(
            mean, places, xerr=np.array([mean - low, high - mean], dtype=float), fmt="none",
            ecolor=style.INK, elinewidth=0.8, capthick=0.6,
        )  # fmt: skip
    panels[2].barh(places, table["parameters_saved"] / 1e6, height=0.7, color=style.FAINT)
    panels[3].barh(places, 100 * table["time_saved"], height=0.7, color=style.FAINT)
    titles = ("rise of loss", "fall of accuracy", "parameters", "time saved")
    units = ("cross-entropy (nats)", "points", "millions saved", "% of a dense step")
    for letter, axes, name, unit in zip("abcd", panels, titles, units, strict=True):
        style.panel(axes, letter, name)
        axes.set_xlabel(unit)
        axes.grid(axis="y", visible=False)
        axes.axvline(0, color=style.ZERO, linewidth=0.7)
        axes.margins(y=0.015)
    panels[0].set_yticks(places, list(table["layer"]))
    panels[0].invert_yaxis()
    return made


def _headline(table: pd.DataFrame) -> str:
    found = table["p_holm"] < arms.ALPHA
    hurt, gain = (int((found & (sign * table["loss_rise"] > 0)).sum()) for sign in (1, -1))
    most = table.loc[table["loss_rise"].idxmax()]
    rise = text.with_interval(most.loss_rise, most.loss_low, most.loss_high, 4, True)
    counted = (
        f"the loss rises for {text.amount(hurt)} and falls for {text.amount(gain)} at the 5 % "
        "level (Holm)"
    )
    if table["p_holm"].isna().all():
        counted = "one seed separates no effect from noise"
    return (
        f"With each of {len(table)} layers alone in basis form, {counted}; the largest rise is "
        f"that of {most.layer} ({rise})."
    )


def _values(table: pd.DataFrame, matrix: np.ndarray) -> dict[str, Any]:
    hurt = (table["p_holm"] < arms.ALPHA) & (table["loss_rise"] > 0)
    trust, bounds = rankings.Reliability(*[NAN] * 3), rankings.Bootstrap(*[NAN] * 3)
    if matrix.size:
        trust, bounds = rankings.reliability(matrix), rankings.reliability_interval(matrix)
    n = len(matrix)
    values = {
        "reliability": text.number(*bounds, n=n, digits=2),
        "ceiling": text.number(trust.ceiling, n=n, digits=2),
        "layers_that_hurt": text.count(int(hurt.sum())),
        "seeds": text.said(text.plural(n, "seed")),
        "trusted": text.said(f"{arms.TRUSTED:g}"),
    }
    if not np.isnan(trust.reliability):
        needed = rankings.seeds_for(trust.reliability, n, arms.TRUSTED)
        no_number = np.isinf(needed)
        values["seeds needed"] = text.said(
            "no number of seeds" if no_number else text.plural(int(needed), "seed")
        )
    return values | _others(table, matrix) | _agreements(table, matrix)


def _others(table: pd.DataFrame, matrix: np.ndarray) -> dict[str, Any]:
    """What is left without the layers that a test finds: a ranking may rest on those alone."""
    found = (table["p_holm"] < arms.ALPHA).to_numpy()
    if not matrix.size or not found.any() or (~found).sum() < 3:
        return {}
    rest = matrix[:, ~found]
    trust, rise = rankings.reliability_interval(rest), stats.mean_interval(rest.mean(axis=1))
    return {
        "found": text.said(text.listed(list(table["layer"][found]))),
        "others": text.count(rest.shape[1]),
        "reliability of others": text.number(*trust, n=len(rest), digits=2),
        "rise of others": text.number(*rise[:4], digits=4, signed=True, unit=" nats"),
    }


def _agreements(table: pd.DataFrame, matrix: np.ndarray) -> dict[str, Any]:
    """Whether the ranking follows depth, size or time: Spearman, bootstrap over seeds."""
    if len(matrix) < 2 or len(table) < 3:
        return {}

    def correlation(column: str) -> rankings.Bootstrap:
        known = list(table[column])
        return rankings.bootstrap(lambda s: rankings.spearman(s.mean(axis=0), known), matrix)

    return {
        f"correlation with {cause}": text.number(
            *correlation(column), n=len(matrix), digits=2, signed=True
        )
        for column, cause in _EXPLANATIONS.items()
    }

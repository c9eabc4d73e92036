"""03_sensitivity: which single layers hurt, and how far the sweep can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, style, tables, text
from basisconv.study.report.arms import Measured
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.statistics import rankings, stats
from basisconv.study.report.tables import cell, count, interval, make_table, percent, words

# What a layer's sensitivity may follow: column -> words.
_EXPLANATIONS = {
    "index": "depth",
    "parameters_saved": "parameters saved",
    "time_saved": "time saved",
}


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """Each layer's rise in validation cross-entropy, and what its basis form saves."""
    table = layer_frame(section, records)
    matrix = score_matrix(section, records)
    trust, bounds = rankings.Reliability(*[stats.NAN] * 3), rankings.Bootstrap(*[stats.NAN] * 3)
    if matrix.size:
        trust, bounds = rankings.reliability(matrix), rankings.reliability_interval(matrix)
    share = text.share(float(section.facts["ratio"]))  # type: ignore[arg-type]
    unit = str(section.facts.get("unit", "the cost source"))
    found = arms.measure(section, records)
    where = (
        f"(width {section.facts['width']}, {section.facts['train_images']:,} training images, "
        f"{text.epochs(float(section.facts['epochs']))})"  # type: ignore[arg-type]
    )
    return Report(
        section.name,
        section.profile,
        tables={
            "sensitivity": make_table(
                table,
                [words("layer", "layer"), tables.seeds(),
                 interval("rise of loss", "loss_rise loss_low loss_high", 4, True),
                 tables.p_value(),
                 interval("fall of accuracy (points)",
                          "accuracy_fall accuracy_low accuracy_high", 2, True),
                 count("parameters saved", "parameters_saved"),
                 cell("MACs saved", "macs_saved", text.millions),
                 percent("time saved", "time_saved", 1)],
                f"Each layer alone in basis form at f = {share}, against dense of the same seeds "
                f"and steps {where}: rise of the last-step validation cross-entropy and fall of "
                "the validation accuracy (paired by seed, 95 % intervals, p by Holm over the "
                f"layers), and what the form saves (time by {unit}).",
            )
        },
        figures={
            "sensitivity": Plot(
                _figure(table), table,
                f"Layers in forward order, each alone in basis form at f = {share}, against dense "
                f"of the same seeds {where}, {arms.shown_as(found)}: (a) rise of validation loss, "
                "dark where it differs from none by its test (Holm); (b) fall of validation "
                "accuracy; (c) parameters and (d) time of a training step saved "
                f"(by {unit}).",
            )
        },
        numbers=_numbers(table, matrix, bounds, trust)
        | {"notes": [*_fewest(section, records, found), *arms.lost_note(found)]},
    )  # fmt: skip


def layer_frame(section: Section, records: Mapping[str, Record]) -> pd.DataFrame:
    """One row a layer, in forward order, over the seeds that it shares with dense."""
    dense, layers = _arms(section, records)
    rows = []
    for m in layers:
        loss, n = _paired(m, dense, lambda x: x.val_loss)
        accuracy, _ = _paired(dense, m, lambda x: x.val_accuracy)
        rows.append(
            {
                "layer": m.arm.label, **_detail(m), "n": n, "lost": m.lost,
                "loss_rise": loss.estimate, "loss_low": loss.low, "loss_high": loss.high,
                "p": loss.p, "accuracy_fall": accuracy.estimate, "accuracy_low": accuracy.low,
                "accuracy_high": accuracy.high,
            }
        )  # fmt: skip
    table = pd.DataFrame(rows).sort_values("index", kind="stable", ignore_index=True)
    table["p_holm"] = stats.holm(list(table["p"]))
    return table


def score_matrix(section: Section, records: Mapping[str, Record]) -> np.ndarray:
    """Scores of shape (seeds, layers) over the seeds that every layer and dense finished."""
    dense, layers = _arms(section, records)
    layers = sorted(layers, key=lambda m: _detail(m)["index"])
    common = sorted(set(dense.seeds).intersection(*(m.seeds for m in layers)))
    return np.array(
        [
            [_by_seed(m)[seed] - _by_seed(dense)[seed] for m in layers]
            for seed in common
        ]
    )  # fmt: skip


def _arms(
    section: Section, records: Mapping[str, Record]
) -> tuple[Measured, list[Measured]]:  # fmt: skip
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
            "there is nothing to hold a layer against."
        )
    return dense, layers


def _by_seed(m: Measured) -> dict[int, float]:
    return dict(zip(m.seeds, m.val_loss, strict=True))


def _detail(m: Measured) -> dict[str, Any]:
    names = ("index", "parameters_saved", "macs_saved", "time_saved")
    return {name: m.arm.detail[name] for name in names}


def _paired(
    a: Measured, b: Measured, value: Callable[[Measured], Sequence[float]]
) -> tuple[stats.Difference, int]:
    of_a = dict(zip(a.seeds, value(a), strict=True))
    of_b = dict(zip(b.seeds, value(b), strict=True))
    common = [seed for seed in of_a if seed in of_b]
    if not common:
        return stats.Difference(stats.NAN, stats.NAN, stats.NAN, stats.NAN, 0, 0), 0
    pairs = [of_a[s] for s in common], [of_b[s] for s in common]
    return stats.paired(*pairs), len(common)


def _figure(table: pd.DataFrame) -> Figure:
    colour, places = style.look("layer").colour, range(len(table))
    with style.drawing():
        made = style.figure(style.TWO_COLUMNS, 0.75 + 0.14 * len(table))
        panels = made.subplots(1, 4, sharey=True, width_ratios=[1.5, 1.3, 1, 1])
        _whisker_bars(panels[0], table["loss_rise"], table["loss_low"], table["loss_high"])
        _whisker_bars(
            panels[1], table["accuracy_fall"], table["accuracy_low"], table["accuracy_high"]
        )
        panels[2].barh(places, table["parameters_saved"] / 1e6, height=0.7, color=style.FAINT)
        panels[3].barh(places, 100 * table["time_saved"], height=0.7, color=style.FAINT)
        names = ("rise of loss", "fall of accuracy", "parameters", "time saved")
        units = ("cross-entropy (nats)", "points", "millions saved", "% of a dense step")
        for letter, axes, name, unit in zip("abcd", panels, names, units, strict=True):
            style.panel(axes, letter, name)
            axes.set_xlabel(unit)
            axes.grid(axis="y", visible=False)
            axes.axvline(0, color=style.ZERO, linewidth=0.7)
            axes.margins(y=0.015)
        panels[0].set_yticks(places, list(table["layer"]))
        panels[0].invert_yaxis()
        for bar in panels[0].patches + panels[1].patches:
            bar.set_color(colour)
            bar.set_alpha(0.45)
        for bar, p in zip(panels[0].patches, table["p_holm"], strict=True):
            if p < arms.ALPHA:
                bar.set_alpha(0.75)
    return made


def _whisker_bars(axes: Axes, mean: pd.Series, low: pd.Series, high: pd.Series) -> None:
    places = range(len(mean))
    axes.barh(places, mean, height=0.7)
    ends = np.array([mean - low, high - mean], dtype=float)
    axes.errorbar(
        mean, places, xerr=ends, fmt="none", ecolor=style.INK, elinewidth=0.8, capthick=0.6
    )


def _needed(trust: rankings.Reliability, seeds: int) -> str:
    """How many seeds a sweep would need to be trusted."""
    number = rankings.seeds_for(trust.reliability, seeds, arms.TRUSTED)
    return "no number of seeds" if np.isinf(number) else text.plural(int(number), "seed")


def _numbers(
    table: pd.DataFrame, matrix: np.ndarray, bounds: rankings.Bootstrap, trust: rankings.Reliability
) -> dict[str, Any]:  # fmt: skip
    hurt = table[(table["p_holm"] < arms.ALPHA) & (table["loss_rise"] > 0)]
    gain = table[(table["p_holm"] < arms.ALPHA) & (table["loss_rise"] < 0)]
    most = table.loc[table["loss_rise"].idxmax()]
    rise = text.with_interval(most.loss_rise, most.loss_low, most.loss_high, 4, True)
    if table["p_holm"].isna().all():
        headline = (
            "With one seed no layer's effect can be separated from noise; the largest rise of "
            f"loss is that of {most.layer} ({rise})."
        )
    else:
        headline = (
            f"With each of {len(table)} layers alone in basis form, the loss rises for "
            f"{text.amount(len(hurt))} and falls for {text.amount(len(gain))} at the 5 % level "
            f"(Holm); the largest rise is that of {most.layer} ({rise})."
        )
    values = {
        "reliability": text.number(*bounds, n=len(matrix), digits=2),
        "ceiling": text.number(trust.ceiling, n=len(matrix), digits=2),
        "layers_that_hurt": text.count(len(hurt)),
        "seeds": text.said(text.plural(len(matrix), "seed")),
        "trusted": text.said(f"{arms.TRUSTED:g}"),
    }
    if not np.isnan(trust.reliability):
        values["seeds needed"] = text.said(_needed(trust, len(matrix)))
    values |= {**_others(table, matrix), **_agreements(table, matrix)}
    return {"values": values, "outcome": "validation", "headline": headline}


def _fewest(
    section: Section, records: Mapping[str, Record], found: Sequence[Measured]
) -> list[str]:
    """A sentence on the layers that keep a single basis filter, if there are any."""
    plans = [records[m.arm.run_ids[0]].run.phases[0].plan for m in found]
    single = [name for plan in plans for name, count in plan.layers.items() if count == 1]
    if not single:
        return []
    facts: dict[str, Any] = section.facts
    return [
        f"At width {facts['width']}, f = {text.share(facts['ratio'])} leaves a single basis filter "
        f"in {text.listed(single)}."
    ]


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
        "rise of others": text.number(
            rise.mean, rise.low, rise.high, rise.n, digits=4, signed=True, unit=" nats"
        ),
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

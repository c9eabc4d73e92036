"""The pilot's recipes: optimizers and their learning rates, batch sizes and label smoothing."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from basisconv.study.experiments.defaults import NAMES
from basisconv.study.records.run import Optimizer
from basisconv.study.report import style, tables, text
from basisconv.study.report.arms import Measured
from basisconv.study.report.output import Plot
from basisconv.study.report.tables import Table, fixed, make_table, plain, words

_CELL = ["method", "width", "epochs", "optimizer", "factor_lr_ratio", "batch_size",
         "label_smoothing"]  # fmt: skip
"""What is the same for all rates that are tried against each other."""
_PANEL = ["method", "width", "epochs", "batch_size", "label_smoothing"]


def recipe_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row a recipe and kind of arm, in per cent of validation accuracy.

    `best` marks the highest accuracy of the rates that differ in nothing else, and `edge` one that
    is the lowest or highest rate of three or more. A recipe that lost a run is none to choose.
    """
    columns = [*_CELL[:4], "learning_rate", *_CELL[4:], "n", "lost", "accuracy"]
    rows = [
        {
            **m.detail, "method": m.arm.method, "epochs": m.arm.budget, "n": m.n, "lost": m.lost,
            "accuracy": m.interval.mean,
        }
        for m in found
        if m.detail["part"] == "recipes"
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns)
    sound = table["accuracy"].where(table["lost"] == 0)
    table["best"] = sound == sound.groupby([table[c] for c in _CELL]).transform("max")
    rate, rates = table["learning_rate"], table.groupby(_CELL)["learning_rate"]
    end = (rate == rates.transform("min")) | (rate == rates.transform("max"))
    table["edge"] = table["best"] & end & (rates.transform("nunique") > 2)
    return table


def recipe_table(table: pd.DataFrame) -> Table:
    """The best learning rate of each kind of arm under each recipe."""
    best = table[table["best"]].sort_values(_PANEL + ["optimizer"], kind="stable")
    tried = table.groupby(_CELL)["learning_rate"].agg(
        lambda rates: text.listed([f"{rate:g}" for rate in sorted(set(rates))])
    )
    return make_table(
        table,
        [words("arm", lambda r: style.look(r.method).name), plain("width", "width"),
         plain("epochs", "epochs"), plain("batch", "batch_size"),
         plain("smoothing", "label_smoothing"),
         words("optimizer", lambda r: _name(r.optimizer, r.factor_lr_ratio)),
         words("rates tried", lambda r: tried[tuple(getattr(r, c) for c in _CELL)]),
         plain("best", "learning_rate"), fixed("accuracy (%)", "accuracy", 1), tables.seeds(),
         words("at an edge", lambda r: "yes" if r.edge else "no")],
        "The best learning rate of each kind of arm, by the validation accuracy after the same "
        "epochs. At an edge: the lowest or highest of three rates or more.",
        rows=best,
    )  # fmt: skip


def recipe_plot(table: pd.DataFrame) -> Plot:
    """Accuracy over the learning rate, where three rates or more were tried."""
    swept = table[table.groupby(_CELL)["learning_rate"].transform("nunique") > 2]
    panels = list(swept.groupby(_PANEL, sort=False))
    made = style.figure(style.TWO_COLUMNS, 2.1)
    places = made.subplots(1, max(1, len(panels)), sharey=True, squeeze=False)[0]
    for axes, ((method, width, epochs, *_), panel) in zip(places, panels, strict=False):
        for (optimizer, ratio), line in panel.groupby(["optimizer", "factor_lr_ratio"]):
            axes.plot(
                line["learning_rate"], line["accuracy"],
                label=_name(optimizer, ratio),
                marker="o" if optimizer == "muon" else "s",
                linestyle="-" if optimizer == "muon" and ratio == 1 else "--",
                color=style.INK if optimizer == "sgd" else style.look("basis").colour,
            )  # fmt: skip
        style.plain_log(axes, swept["learning_rate"].min() / 1.3,
                        swept["learning_rate"].max() * 1.3)  # fmt: skip
        style.panel(axes, "", f"{style.look(str(method)).name},\n"
                    f"width {width}, {text.epochs(float(epochs))}")  # fmt: skip
        axes.set_xlabel("learning rate")
    places[0].set_ylabel("validation accuracy (%)")
    entries = {str(x.get_label()): x for axes in made.axes for x in axes.get_lines()}
    if entries:
        style.legend_below(made, list(entries.values()))
    return Plot(
        made, table,
        "Validation accuracy over the learning rate of each optimizer, for each kind of arm at "
        "equal epochs; factors ½: those of basis layers learn at half the rate.",
    )  # fmt: skip


def recipe_headline(table: pd.DataFrame) -> str:
    """What Muon gains on SGD, each at its best rate, where both were tried."""
    best = table[table["best"] & (table["factor_lr_ratio"] == 1)]
    both = best.pivot(index=_PANEL, columns="optimizer", values="accuracy").reindex(
        columns=["muon", "sgd"]
    )
    gains = (both["muon"] - both["sgd"]).dropna()
    if gains.empty:
        return "No recipe was tried under both optimizers."
    return (
        f"At equal epochs, each at its best learning rate, Muon is ahead of SGD by "
        f"{text.fixed(gains.min(), 1)} to {text.fixed(gains.max(), 1)} points of validation "
        f"accuracy over {text.plural(len(gains), 'comparison')}; "
        f"{text.plural(int(best['edge'].sum()), 'best rate')} of {len(best)} at an edge."
    )


def _name(optimizer: Optimizer, factor_lr_ratio: float) -> str:
    factors = "" if factor_lr_ratio == 1 else f", factors {text.share(factor_lr_ratio)}"
    return NAMES[optimizer] + factors

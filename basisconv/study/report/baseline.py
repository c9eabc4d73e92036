"""01_baseline: whether the dense network is as good as the field's, and how it learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, style, text
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.statistics.stats import NAN
from basisconv.study.report.tables import cell, interval, make_table, plain, words

LITERATURE: tuple[tuple[str, float, str], ...] = (
    ("ResNet-20", 91.25, "He et al., 2016"),
    ("ResNet-56", 93.03, "He et al., 2016"),
    ("ResNet-18, 350 epochs", 93.02, "README of kuangliu/pytorch-cifar"),
    ("ResNet-18, standard training", 96.0, "README of KellerJordan/cifar10-airbench"),
    ("airbench94", 94.01, "Jordan, 2024"),
)
"""What others report on CIFAR-10's test set, in per cent, trained on all 50,000 images."""


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """The baseline next to published figures, and its learning curves."""
    facts = section.facts
    outcome, found = arms.outcome(section, records), arms.measure(section, records)
    dense = [m for m in found if m.arm.method == "dense"]
    if not dense:
        raise ValueError("01_baseline has no arm of method 'dense'; it is about nothing else.")
    curves, tuned = _curves(section, records, dense), bool(facts.get("tuned"))
    return Report(
        section.name,
        section.profile,
        tables={
            "baseline": make_table(
                _table(facts, dense),
                [words("network", "network"), interval("accuracy (%)", "accuracy low high", 2),
                 cell("n", lambda r: NAN if pd.isna(r.n) else text.seeds(int(r.n), int(r.lost)),
                      str),
                 plain("epochs", "epochs"), words("source", "source")],
                f"The dense network ({outcome} accuracy) and what others report for CIFAR-10 on "
                "its test set.",
            ),
            "recipe": make_table(
                _recipe(facts, [records[i] for m in dense for i in m.arm.run_ids]),
                [words("setting", "setting"), words("value", "value")],
                "The settings of the dense runs here. The other experiments share them but for "
                "their length, their seeds and what is under test"
                + (", and for the tuned learning rate and batch size." if tuned else "."),
            ),
        },
        figures={
            "baseline_learning_curves": Plot(
                _figure(curves), curves,
                "The dense network while it trains, a line a seed: (a) cross-entropy on the "
                "training batches (dashed) and on the validation images, (b) validation accuracy.",
            )
        },
        numbers=_numbers(facts, dense[0], outcome) | {"tuned": tuned},
    )  # fmt: skip


def _table(facts: Mapping[str, Any], dense: Sequence[arms.Measured]) -> pd.DataFrame:
    ours = [
        (f"ours: {m.arm.label}", i.mean, i.low, i.high, i.sd, m.n, m.lost, facts["epochs"],
         facts["parameters"], "this study")
        for m, i in ((m, m.interval) for m in dense)
    ]  # fmt: skip
    columns = ["network", "accuracy", "low", "high", "sd", "n", "lost", "epochs", "parameters",
               "source"]  # fmt: skip
    others = pd.DataFrame(LITERATURE, columns=["network", "accuracy", "source"])
    return pd.concat([pd.DataFrame(ours, columns=columns), others], ignore_index=True)


def _recipe(facts: Mapping[str, Any], records: Sequence[Record]) -> pd.DataFrame:
    """What a reader needs to train the same, a row a setting, from the runs themselves."""
    run = records[0].run
    seeds = sorted({record.run.seed for record in records})
    rows = {
        "network": f"{text.network(run.network)}, width {run.width}",
        "parameters": f"{facts['parameters']:,}",
        "data set": f"{run.data.name}, {facts['train_images']:,} training images",
        "batch size": f"{run.batch_size}",
        "learning rate at its highest": f"{run.learning_rate:g}",
        "warm-up": f"{100 * run.warmup:g} % of the steps",
        "Nesterov momentum": f"{run.momentum:g}",
        "weight decay": f"{run.weight_decay:g}",
        "label smoothing": f"{run.label_smoothing:g}",
        "length": f"{text.epochs(facts['epochs'])}, {run.steps:,} steps",
        "seeds": text.listed([str(seed) for seed in seeds]),
        "number format": f"{run.precision}, torch.compile {'on' if run.compile else 'off'}",
    }
    return pd.DataFrame({"setting": list(rows), "value": list(rows.values())})


def _curves(
    section: Section, records: Mapping[str, Record], dense: Sequence[arms.Measured]
) -> pd.DataFrame:
    rows = [
        (m.arm.label, record.run.seed, line.epoch, line.train_loss, line.val_loss,
         100 * line.val_accuracy)
        for m in dense
        for record in arms.done(section, records, m.arm)
        if record.result is not None
        for line in record.result.history
    ]  # fmt: skip
    columns = ["label", "seed", "epoch", "train_loss", "val_loss", "val_accuracy"]
    return pd.DataFrame(rows, columns=columns)


def _figure(curves: pd.DataFrame) -> Figure:
    colour = style.look("dense").colour
    made = style.figure(style.TWO_COLUMNS, 2.4)
    loss, accuracy = made.subplots(1, 2)
    for _, run in curves.groupby(["label", "seed"], sort=False):
        # A run of one epoch is a single point, which a line alone would not show.
        marker = "." if len(run) < 3 else ""
        kwargs: dict[str, Any] = {"color": colour, "linewidth": 0.8, "marker": marker}
        loss.plot(run["epoch"], run["train_loss"], linestyle="--", alpha=0.55, **kwargs)
        loss.plot(run["epoch"], run["val_loss"], **kwargs)
        accuracy.plot(run["epoch"], run["val_accuracy"], **kwargs)
    style.panel(loss, "a", "cross-entropy")
    style.panel(accuracy, "b", "validation accuracy (%)")
    for axes in (loss, accuracy):
        axes.set_xlabel("epoch")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    lines = [
        Line2D([], [], color=colour, linestyle="--", alpha=0.55, label="training batches"),
        Line2D([], [], color=colour, label="validation images"),
    ]
    style.legend_below(made, lines)
    return made


def _numbers(facts: Mapping[str, Any], dense: arms.Measured, outcome: str) -> dict[str, Any]:
    i, epochs = dense.interval, facts["epochs"]
    published = [accuracy for _, accuracy, _ in LITERATURE]
    least, most = min(published), max(published)
    gap = "within them"
    if i.mean < least:
        gap = f"{text.fixed(least - i.mean, 1)} points below the lowest"
    elif i.mean > most:
        gap = f"{text.fixed(i.mean - most, 1)} points above the highest"
    values = {
        "accuracy": text.number(i.mean, i.low, i.high, i.n, digits=1, unit=" %"),
        "parameters": text.count(facts["parameters"]),
        "macs": text.count(facts["macs"]),
        "epochs": {"value": epochs, "text": f"{epochs:g}"},
        "time": text.said(f"{round(dense.time, 1):g}"),
        "lowest published": text.number(least, digits=2, unit=" %"),
        "highest published": text.number(most, digits=2, unit=" %"),
        "gap": text.said(gap),
    }
    headline = (
        f"The dense network reaches {values['accuracy']['text']} {outcome} accuracy in "
        f"{text.epochs(epochs)} (n = {text.seeds(i.n, dense.lost)})."
    )
    return {"values": values, "headline": headline}

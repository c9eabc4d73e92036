"""09_generalisation: other data and other networks, in one table and one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from basisconv.study.experiments.generalisation import RATIO, SCREENING
from basisconv.study.experiments.named_arms import EPOCHS, TIME
from basisconv.study.records.run import Record, Section
from basisconv.study.report import (
    arms,
    comparisons,
    contrasts,
    named_arms,
    places,
    style,
    tables,
    text,
)
from basisconv.study.report.arms import Measured
from basisconv.study.report.generalisation_layers import (
    agreements,
    effect_frame,
    layer_frame,
    nearest_promise,
    step_frame,
)
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.statistics.stats import NAN
from basisconv.study.report.tables import (
    Column,
    cell,
    count,
    fixed,
    interval,
    make_table,
    percent,
    plain,
    words,
)

DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "cifar10-sample": "CIFAR-10, a sample"}
"""What tables call the data sets."""

# What basis filters in all layers are held against: column, part, rival, and the rival's method.
_RIVALS = (
    ("epochs", EPOCHS, "D", "dense"),
    ("time", TIME, "D", "dense"),
    ("narrow", TIME, "D½", "narrow"),
)
_OURS = "B¼"


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """What basis filters cost and gain, a row for each network and data set."""
    compared = tuple(arm for arm in section.arms if arm.detail["part"] != SCREENING)
    own = section.model_copy(update={"arms": compared})
    outcome, found = arms.outcome(own, records), arms.measure(own, records)
    facts = section.facts
    unit, devices = facts["unit"], facts["devices"]
    steps, layers = step_frame(devices), layer_frame(devices)
    screened = effect_frame(section, records)
    table, detail = row_frame(found, steps), arm_frame(found)
    elsewhere = [m for m in found if m.detail["data"] == facts["data"]]
    tested = contrasts.contrast_frame(
        elsewhere, contrasts.right_images(own, records), facts["data"]
    )
    return Report(
        section.name,
        section.profile,
        tables={
            "generalisation": make_table(
                table,
                [words("network", lambda r: f"{text.network(r.network)}, width {r.width}"),
                 words("data", "data", DATA),
                 Column("a step gains", places.speedup), fixed("MACs", "macs_ratio", 2, "×"),
                 percent("time here", "step"),
                 *(interval(title, column, 2, signed=True) for column, title in _TITLES.items()),
                 plain("seeds", "n")],
                f"{_OURS}, a quarter of the filters in all eligible layers, in other networks and "
                f"on other data. What its training step gains on {_first(steps)}, median with "
                "quartiles over turns, and what the executed multiplications promise, both of "
                f"width 64; the time of the step that is trained, of dense's, by {unit}; {outcome} "
                "accuracy less that of dense of as many epochs, of dense of the same time, and of "
                "dense of half the width and the same time, in points with 95 % intervals "
                "(accuracy by arm and seed, not corrected). Empty where nothing is measured.",
            ),
            "generalisation_arms": make_table(
                detail,
                [words("network", lambda r: text.network(r.network), once=True),
                 words("data", "data", DATA, once=True), words("compared at", "part", once=True),
                 cell("length", "length", "{:.3g}".format), words("arm", "arm"), tables.seeds(),
                 tables.accuracy(outcome), tables.difference("minus D"),
                 tables.difference("minus D½", "from_half")],
                "The arms behind it, at equal epochs and at equal time (length: epochs, and time "
                f"in dense epochs of the profile's network by {unit}): {outcome} accuracy with its "
                "95 % interval, and its differences from D and from D½ in points.",
            ),
            "generalisation_contrasts": contrasts.contrast_table(tested, outcome),
            "generalisation_screening": make_table(
                screened,
                [words("layer", "layer"), count("outputs", "out_channels"),
                 count("basis filters", "n_basis"),
                 interval("rise of log loss", "effect low high", 3, True)],
                "What each eligible layer of another network costs in basis form: its rise of "
                "log validation loss, estimated from all networks of a screening design, with 95 % "
                "intervals.",
            ),
            "generalisation_steps": make_table(
                steps,
                [*_PLACE, words("layers", "layers"), count("converted", "converted"), *_GAIN],
                "What a training step gains, subset form: median with quartiles over turns, and "
                "the share of what the executed multiplications promise. Layers: k×k are those "
                "that a plan has by itself, all are those too whose multiplications fall. A "
                "network without such layers has nothing to gain.",
            ),
            "generalisation_layers": make_table(
                layers, [*_PLACE, words("layer", "layer"), *_GAIN],
                "What each distinct layer gains whose multiplications fall, forward and "
                "backward, timed alone.",
            ),
        },
        figures={
            "generalisation": Plot(
                _figure(table, outcome), table,
                f"{_OURS}, a row for each network and data set. (a) What a training step gains "
                f"on {_first(steps)}, median and quartiles; bars: what its executed "
                f"multiplications promise. (b, c) {outcome.capitalize()} accuracy less dense's at "
                "equal epochs, and at equal time less that of dense and of dense of half the "
                "width, with 95 % intervals. Where nothing is measured there is no mark.",
            )
        },
        numbers={
            "values": _values(table, tested) | agreements(screened)
            | nearest_promise("layer", layers) | nearest_promise("network", steps),
            "headline": _headline(table),
        },
    )  # fmt: skip


_PLACE = [
    words("on", "device", once=True),
    words("network", lambda r: f"{text.network(r.network)}, width {r.width}", once=True),
    words("images", lambda r: f"{r.size}×{r.size}", once=True),
]
_GAIN = [words("f", lambda r: text.share(r.ratio)), fixed("MACs", "macs_ratio", 2, "×"),
         Column("gain", places.speedup), percent("of MACs", "share")]  # fmt: skip
_TITLES = {
    "epochs": "equal epochs: minus D",
    "time": "equal time: minus D",
    "narrow": "equal time: minus D½",
}


def row_frame(found: Sequence[Measured], steps: pd.DataFrame) -> pd.DataFrame:
    """One row a network and data set: what its basis filters cost and gain, NaN where unknown.

    Args:
        found: the arms; networks without any follow those that are trained.
        steps: as `step_frame` has them; of the first device the usual layers at 1/4.
    """
    rows = []
    for (network, data), own in _pairs(found).items():
        row: dict[str, Any] = {"network": network, "data": data}
        parts = {part: among for (_, part, _), among in named_arms.groups(own).items()}
        epochs = parts.get(EPOCHS, {})
        ours, dense = epochs.get(_OURS), epochs.get("D")
        row["width"] = max(m.detail["width"] for m in own)
        row["step"] = ours.time / dense.time if ours and dense else NAN
        row["n"] = ours.n if ours else 0
        for column, part, rival, _ in _RIVALS:
            c = named_arms.difference(_OURS, rival, parts.get(part, {}))
            row |= {column: c.estimate, f"{column}_low": c.low, f"{column}_high": c.high}
        rows.append(row)
    timed = steps[(steps["device"] == _first(steps)) & (steps["layers"] == "k×k")]
    timed = timed[(timed["ratio"] == RATIO) & (timed["size"] == 32)]
    gains = timed.set_index("network")[["width", *_TIMED]].to_dict("index")
    rows += [{"network": name} for name in gains if name not in {row["network"] for row in rows}]
    rows = [gains.get(row["network"], {}) | row for row in rows]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _first(steps: pd.DataFrame) -> str:
    """The device that the one table shows."""
    return str(steps["device"].iloc[0]) if len(steps) else "no device yet"


_TIMED = ["speedup", "speedup_low", "speedup_high", "macs_ratio"]
_COLUMNS = ["network", "data", "width", *_TIMED, "step", "n"] + [
    f"{column}{end}" for column, *_ in _RIVALS for end in ("", "_low", "_high")
]


def arm_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row an arm of each network and data set, with its differences from D and D½."""
    frames = [
        frame(own).assign(network=network, data=data)
        for (network, data), own in _pairs(found).items()
        for frame in (comparisons.time_frame, comparisons.epoch_frame)
    ]
    empty = comparisons.time_frame([]).assign(network=[], data=[])
    some = pd.concat([f for f in frames if len(f)] or [empty], ignore_index=True)
    return some.reindex(columns=empty.columns)


def _pairs(found: Sequence[Measured]) -> dict[tuple[str, str], list[Measured]]:
    """The arms of each network on each data set, in the order of the section."""
    pairs: dict[tuple[str, str], list[Measured]] = {}
    for m in found:
        pairs.setdefault((m.detail["network"], m.detail["data"]), []).append(m)
    return pairs


def _figure(table: pd.DataFrame, outcome: str) -> Figure:
    names = [
        ", ".join([text.network(r.network), *([DATA[r.data]] if r.data in DATA else [])])
        for r in table.itertuples()
    ]
    rows = np.arange(len(table))
    made = style.figure(style.TWO_COLUMNS, 1.2 + 0.25 * max(3, len(table)))
    gains, left, right = made.subplots(1, 3, sharey=True)
    for column, _, _, method in _RIVALS:
        axes = left if column == "epochs" else right
        shift = {"time": -0.12, "narrow": 0.12}.get(column, 0.0)
        style.across(axes, table, column, method, shift)
    style.across(gains, table, "speedup", "basis")
    promised = table["macs_ratio"].fillna(0).to_numpy(float)
    gains.barh(rows, promised, 0.5, color=style.BAND, zorder=0)
    for axes, level in ((gains, 1), (left, 0), (right, 0)):
        axes.axvline(level, color=style.ZERO, linewidth=0.9, zorder=1)
        axes.grid(axis="y", visible=False)
        axes.set_yticks(rows, names)
        axes.set_ylim(max(len(table), 1) - 0.5, -0.5)
        axes.set_xlabel(f"{outcome} accuracy less the rival's (points)")
    gains.set_xlabel("times as fast as dense")
    style.panel(gains, "a", "what a step gains")
    style.panel(left, "b", "at equal epochs")
    style.panel(right, "c", "at equal time")
    handles = [style.handle(m, f"minus {r}", line=False) for _, _, r, m in _RIVALS[1:]]
    style.legend_below(made, handles)
    return made


def _values(table: pd.DataFrame, tested: pd.DataFrame) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for r in table.itertuples():
        for column, title in _TITLES.items():
            value, low, high = (getattr(r, f"{column}{end}") for end in ("", "_low", "_high"))
            if value == value:
                values[f"{r.network}, {r.data}, {title}"] = text.points(value, low, high, int(r.n))
    for r in tested.itertuples():
        gain = text.points(r.difference, r.low, r.high)["text"]
        values[r.contrast] = text.said(f"{gain}, {r.answer}")
    return values


def _headline(table: pd.DataFrame) -> str:
    """How often basis filters are ahead of each rival, by the intervals."""
    parts = []
    for column, part, rival, _ in _RIVALS:
        known = table[table[f"{column}_low"].notna()]
        if len(known):
            ahead, behind = (known[f"{column}_low"] > 0).sum(), (known[f"{column}_high"] < 0).sum()
            parts.append(
                f"at {part} ahead of {rival} in {text.amount(ahead)} and behind it in "
                f"{text.amount(behind)} of {len(known)}"
            )
    if not parts:
        return "Other data and networks: not yet measured at this profile."
    return (
        f"{_OURS} in other networks and on other data, by 95 % intervals that are not corrected: "
        f"{'; '.join(parts)}."
    )

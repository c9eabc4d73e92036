"""08b_trained: what trained networks keep when they are cut to a share of what they take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats as distributions

from basisconv.study.records.run import Record, Section
from basisconv.study.report import style, tables, text
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.statistics.image_bootstrap import crossed_difference, decode
from basisconv.study.report.statistics.stats import NAN, holm, mean_interval
from basisconv.study.report.tables import cell, interval, make_table, percent, words

OURS = "search"
MARGIN = 0.5  # points

# Each way's name, and the method whose colour it has.
WAYS: dict[str, tuple[str, str]] = {
    "search": ("search, fitted", "selected"),
    "responses": ("one ratio, fitted", "basis"),
    "svd": ("one ratio, SVD", "first_five"),
    "balf": ("BALF's rule", "skip"),
    "tucker": ("Tucker-2", "inverted"),
    "pruning": ("pruned channels", "threshold"),
    "tensor_train": ("tensor train", "random"),
}
_OTHER_SIZE = "tensor_train"  # it has the search's parameters, not its time: no peer in a test
_VERDICTS = {"above": "better", "below": "worse", "near": f"not worse by {MARGIN:g}",
             "open": "undecided", "untested": "one network", "": text.NOTHING}  # fmt: skip
_WHEN = {False: "untrained", True: "after one epoch"}
_SHARES = {"time": "time", "macs": "multiplications"}
_RUNTIMES = {"eager": "torch, eager,", "onnxruntime": "onnxruntime"}


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """Every way at every share, before and after an epoch."""
    facts: Any = section.facts
    frame = cut_frame(section, records)
    batch, *others = facts["batch_sizes"]
    share = _SHARES[facts["budget"]]
    times = f"a forward pass in {_RUNTIMES[facts['runtime']]} at batch {batch}"
    hits = _accuracies(section, records, "D")
    dense = mean_interval([100 * hit for hit in hits]) if hits else None
    reached = (
        f" The dense networks reach {text.fixed(dense.mean, 1)} % (n = {dense.n})." if dense else ""
    )
    columns = [
        words("", lambda row: _WHEN[row.trained], once=True),
        percent(f"{share} asked for", "share"),
        words("network", "label"),
        interval("time of dense", "time time_low time_high", 2),
        *(cell(f"at batch {n}", f"time_{n}", lambda v: text.fixed(v, 2)) for n in others),
        percent("parameters", "parameters"),
        percent("MACs", "macs"),
        tables.count("n", "n"),
        interval("accuracy (%)", "accuracy low high", 1),
        interval("search minus this (points)", "difference", 2, signed=True),
        tables.p_value(),
        words("the search is", "verdict", _VERDICTS),
    ]
    return Report(
        section.name,
        section.profile,
        tables={
            "trained": make_table(
                frame,
                columns,
                f"Trained dense networks cut to shares of their {share}. Time of {times}: median "
                "over networks of the medians, with their range. Parameters and multiplications "
                "relative to dense. Test accuracy with its 95 % interval over networks, and the "
                "search's less theirs with its 95 % interval over networks and test images "
                "(crossed bootstrap; p by Holm over the peers at one share). A tensor train has "
                f"the search's parameters instead.{reached}",
            )
        },
        figures={
            "trained": Plot(
                _figure(frame, dense.mean if dense else NAN),
                frame,
                f"Test accuracy of trained networks against the time of {times}, relative to "
                "dense (means over networks): (a) as they are cut, (b) after one epoch of "
                "training. The line is the dense networks' own, the grey squares are narrower "
                "dense networks, trained as long as they were.",
            )
        },
        numbers=_numbers(frame, facts),
    )


def cut_frame(section: Section, records: Mapping[str, Record]) -> pd.DataFrame:
    """One row for each way, share and training, compared with the search's networks.

    Narrower dense networks come first; they have no share.
    """
    facts: Any = section.facts
    sizes: dict[str, Any] = {str(arm.detail["arm"]): arm.detail for arm in section.arms}
    measured = [row for row in facts["rows"] if "times" in row]
    lines: list[dict[str, Any]] = []
    for arm, size in sizes.items():
        own = [
            {**row, "parameters": size["parameters"], "macs": size["executed_macs"]}
            for row in measured if row["way"] == arm
        ]  # fmt: skip
        if own:
            lines.append(
                {"way": arm, "label": f"dense, width {size['width']}", "trained": False,
                 "share": NAN} | _line(own, _accuracies(section, records, arm), facts, sizes["D"])
            )  # fmt: skip
    for trained in _WHEN:
        for share in sorted({row["share"] for row in measured if row["share"]}, reverse=True):
            alike = [r for r in measured if r["share"] == share and r["trained"] == trained]
            own_lines = _compared(alike, facts, sizes["D"])
            lines += [{**line, "trained": trained, "share": share} for line in own_lines]
    if not lines:
        columns = ["way", "label", "trained", "share", *_line([], [], facts, {})]
        return pd.DataFrame(columns=columns)
    return pd.DataFrame(lines)


def _accuracies(section: Section, records: Mapping[str, Record], arm: str) -> list[float]:
    """Test accuracies of a dense arm, as fractions."""
    ids = [i for a in section.arms if a.detail["arm"] == arm for i in a.run_ids]
    found = [records[i].result for i in ids if i in records]
    return [r.test_accuracy for r in found if r is not None and r.test_accuracy is not None]


def _line(
    rows: Sequence[Mapping[str, Any]],
    hits: Sequence[float],
    facts: Mapping[str, Any],
    dense: Mapping[str, Any],
) -> dict[str, Any]:
    """What the networks of one line have in common; not yet compared."""
    first, *others = facts["batch_sizes"]
    times = [row["times"][f"{first}"][0] for row in rows]
    accuracy = mean_interval([100 * hit for hit in hits]) if hits else None

    def relative(what: str, whole: str) -> float:
        return float(np.mean([row[what] for row in rows])) / dense[whole] if rows else NAN

    return {
        "n": len(hits), "time": _median(times),
        "time_low": min(times, default=NAN), "time_high": max(times, default=NAN),
        **{f"time_{n}": _median([r["times"][f"{n}"][0] for r in rows]) for n in others},
        "parameters": relative("parameters", "parameters"),
        "macs": relative("macs", "executed_macs"),
        "accuracy": accuracy.mean if accuracy else NAN, "low": accuracy.low if accuracy else NAN,
        "high": accuracy.high if accuracy else NAN, "difference": NAN, "difference_low": NAN,
        "difference_high": NAN, "p": NAN, "p_holm": NAN, "verdict": "",
    }  # fmt: skip


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else NAN


def _compared(
    rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], dense: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The ways at one share, each peer with its difference from the search's networks."""
    ours = _correct([row for row in rows if row["way"] == OURS])
    lines = []
    for way, (label, _) in WAYS.items():
        own = [row for row in rows if row["way"] == way]
        if not own:
            continue
        hits = [row["accuracy"] for row in own]
        line = {"way": way, "label": label} | _line(own, hits, facts, dense)
        theirs = _correct(own)
        if way not in (OURS, _OTHER_SIZE) and ours.keys() & theirs.keys():
            d = crossed_difference(ours, theirs)
            t = abs(d.estimate / d.error) if d.error > 0 else NAN
            p = 2 * float(distributions.t.sf(t, d.seeds - 1)) if not math.isnan(t) else NAN
            line |= {"difference": d.estimate, "difference_low": d.low, "difference_high": d.high,
                     "p": p}  # fmt: skip
        lines.append(line)
    for line, p in zip(lines, holm([line["p"] for line in lines]), strict=True):
        line["p_holm"] = p
        if not math.isnan(line["difference"]):
            line["verdict"] = _verdict(line)
    return lines


def _verdict(line: Mapping[str, Any]) -> str:
    """Of the search's networks less a peer's, as `_VERDICTS` has them."""
    if math.isnan(line["p_holm"]):
        return "untested"
    if line["p_holm"] < 0.05:
        return "above" if line["difference"] > 0 else "below"
    return "near" if line["difference_low"] > -MARGIN else "open"


def _correct(rows: Sequence[Mapping[str, Any]]) -> dict[int, Any]:
    return {row["seed"]: decode(row["correct"], row["images"]) for row in rows}


def _figure(frame: pd.DataFrame, dense: float) -> Figure:
    with style.drawing():
        made = style.figure(style.TWO_COLUMNS, 2.6)
        panels = made.subplots(1, 2, sharey=True)
        for axes, trained, letter in zip(panels, (False, True), "ab", strict=True):
            axes.axhline(dense, color=style.ZERO, linewidth=0.9, zorder=1)
            for way, (_, method) in WAYS.items():
                own = frame[(frame["way"] == way) & (frame["trained"] == trained)]
                style.intervals(axes, own["time"], own["accuracy"], own["low"], own["high"], method)
            rivals = frame[~frame["way"].isin(list(WAYS))]
            style.intervals(
                axes, rivals["time"], rivals["accuracy"], rivals["low"], rivals["high"], "narrow",
                line=False,
            )  # fmt: skip
            style.panel(axes, letter, _WHEN[trained])
            axes.set_xlabel("time of a forward pass, relative to dense")
        panels[0].set_ylabel("test accuracy (%)")
        handles = [style.handle(method, name) for name, method in WAYS.values()]
        style.legend_below(made, [*handles, style.handle("narrow", "narrower dense", line=False)])
    return made


def _numbers(frame: pd.DataFrame, facts: Mapping[str, Any]) -> dict[str, Any]:
    values = {}
    for row in frame.itertuples():
        at = f"{row.label} at {row.share:g}{', after one epoch' if row.trained else ''}"
        if not math.isnan(row.share):
            values[at] = text.number(row.accuracy, row.low, row.high, row.n, digits=1, unit=" %")
        if not math.isnan(row.difference):
            values[f"search minus {at}"] = text.number(
                row.difference, row.difference_low, row.difference_high, row.n,
                digits=2, unit=" points", signed=True,
            )  # fmt: skip
    for trained, when in _WHEN.items():
        compared = frame[(frame["trained"] == trained) & frame["difference"].notna()]
        values |= {
            f"{when}, peers": text.count(len(compared)),
            f"{when}, ahead": text.count(int((compared["verdict"] == "above").sum())),
            f"{when}, behind": text.count(int((compared["verdict"] == "below").sum())),
        }
    return {"values": values, "notes": _notes(facts), "headline": _headline(values, frame)}


def _notes(facts: Mapping[str, Any]) -> list[str]:
    rows = facts["rows"]
    notes = [f"Times were measured on {name}." for name in sorted({row["device"] for row in rows})]
    left: dict[str, list[str]] = {}
    for row in rows:
        if "left_out" in row and not row["trained"]:
            where = f"{WAYS[row['way']][0]} at {row['share']:g}"
            left.setdefault(row["left_out"], []).append(where)
    for why, places in left.items():
        notes.append(f"Left out: {text.listed(list(dict.fromkeys(places)))}. {why}")
    if len(rows) < facts["wanted"]:
        notes.append(f"Of {facts['wanted']} measurements {len(rows)} are there.")
    return notes


def _headline(values: Mapping[str, Any], frame: pd.DataFrame) -> str:
    if frame.empty:
        return "Nothing has been measured of cut networks yet."
    if frame["p_holm"].isna().all():
        return "With one network a way nothing is tested."
    parts = [
        f"{when}, the search's networks are ahead of {values[f'{when}, ahead']['text']} of "
        f"{values[f'{when}, peers']['text']} peers, and behind {values[f'{when}, behind']['text']}"
        for when in _WHEN.values()
        if values[f"{when}, peers"]["value"]
    ]
    return f"{'; '.join(parts).capitalize()} (Holm)."

"""Where things were measured, and what a timing is: a speed-up with its quartiles, at a place.

A timing's place is a device, a precision and a batch size. Tables and figures of several name a
row's place by its letter, which captions explain.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from basisconv.study.records.run import Record
from basisconv.study.report import tables, text
from basisconv.study.report.tables import Column, Table, words

KEYS = ["device", "precision", "batch"]
"""The columns of a frame that are a place."""
FORMS = ("subset", "full")
"""The arms that are the method as it is meant: its two forms, run factored."""
speedup = tables.interval("", "speedup", 2, unit="×").cell
"""A row's speed-up as in "2.82× [2.67, 3.12]": median and quartiles."""
_TIMING = ("median_ms", "iqr_ms", "speedup", "speedup_low", "speedup_high")
_NOISE = re.compile(r"\((R|TM)\)| Processor\b")


def device_name(environment: Mapping[str, Any]) -> str:
    """As in "AMD EPYC (AVX2)", less what makers add to every name; a GPU's name says it all."""
    device, kind = environment["device"], environment["device_kind"]
    if kind == device:
        return str(device)
    # A run that went on elsewhere names the kinds one after the other.
    kinds = " then ".join(part.split()[-1] for part in kind.split(" then "))
    return f"{_NOISE.sub('', device)} ({kinds})"


def trained_on(records: Iterable[Record]) -> list[str]:
    """A sentence that says which devices trained some runs, if there are any."""
    found = Counter(device_name(record.measurement.environment) for record in records)
    runs = [f"{text.plural(n, 'run')} on {name}" for name, n in sorted(found.items())]
    return [f"Trained: {text.listed(runs)}."] if runs else []


def name_of(row: Any) -> str:
    """As in "AMD EPYC (AVX2), float32, batch 64"."""
    return f"{row.device}, {row.precision}, batch {row.batch}"


class Place(NamedTuple):
    """A place, as in "AMD EPYC (AVX2), float32, batch 64", and the rows made there."""

    letter: str
    name: str
    rows: pd.DataFrame


def of(frame: pd.DataFrame) -> list[Place]:
    """The places of a frame's rows, in its order."""
    groups = zip("abcdefghijkl", frame.groupby(KEYS, sort=False), strict=False)
    return [Place(letter, name_of(rows.iloc[0]), rows) for letter, (_, rows) in groups]


def place_table(
    frame: pd.DataFrame, columns: Sequence[Column], by: Sequence[str], caption: str,
    rows: pd.DataFrame,
) -> Table:  # fmt: skip
    """A table that names the place of each row by its letter, or once for all of them.

    The letter stands behind the columns that are shown once; rows that agree `by` some columns
    stand together.
    """
    found = of(rows)
    ordered = pd.concat([place.rows.assign(on=place.letter) for place in found])
    ordered = pd.concat([group for _, group in ordered.groupby(list(by), sort=False)])
    if len(found) == 1:
        return tables.make_table(frame, columns, f"{caption} All rows: {found[0].name}.", ordered)
    once = sum(column.once for column in columns)
    shown = [*columns[:once], words("on", "on"), *columns[once:]]
    legend = "; ".join(f"({place.letter}) {place.name}" for place in found)
    return tables.make_table(frame, shown, f"{caption} {legend}.", ordered)


class Outcomes(NamedTuple):
    """How many timings are faster than dense, slower, and neither: by quartiles clear of 1."""

    faster: int
    slower: int
    undecided: int


def outcomes(timings: pd.DataFrame, prefix: str = "") -> Outcomes:
    """Count the rows of a frame of speed-ups, or of those whose columns have a prefix."""
    faster = int((timings[f"{prefix}speedup_low"] > 1).sum())
    slower = int((timings[f"{prefix}speedup_high"] < 1).sum())
    return Outcomes(faster, slower, len(timings) - faster - slower)


def counted(timings: pd.DataFrame, noun: str, of: str = "", prefix: str = "") -> str:
    """As in "84 of 90 training steps faster, 0 slower, 6 undecided (quartiles clear of 1)".

    What is faster on each of several devices follows it.
    """
    found = outcomes(timings, prefix)
    devices = {name: outcomes(rows, prefix) for name, rows in timings.groupby("device", sort=False)}
    each = [f"{part.faster} of {sum(part)} on {name}" for name, part in devices.items()]
    return (
        f"{found.faster} of {text.plural(sum(found), noun)}{of} faster"
        f"{f' ({text.listed(each)})' if len(each) > 1 else ''}, {found.slower} slower, "
        f"{found.undecided} undecided (quartiles clear of 1)"
    )


def benchmark_frame(
    devices: Sequence[Mapping[str, Any]], part: str, names: Sequence[str],
    timings: Mapping[str, str],
) -> pd.DataFrame:  # fmt: skip
    """One row for each row of one part of the devices' benchmarks.

    Its `names` are kept as they are; `timings` are its timings -> how their columns' names begin.
    """
    return pd.DataFrame(
        [
            {
                "device": device_name(device["device"]), **{name: row[name] for name in names},
                # Stored benchmarks call it a bound, which it is not: measurements exceed it.
                "expected_speedup": row["bound_speedup"],
                **{
                    f"{prefix}{what}": (row[timing] if timing else row)[what]
                    for timing, prefix in timings.items()
                    for what in _TIMING
                },
            }
            for device in devices
            for row in device[part]
        ]
    )  # fmt: skip

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
    if not found:
        return []
    runs = [f"{text.plural(n, 'run')} on {name}" for name, n in sorted(found.items())]
    return [f"Trained: {text.listed(runs)}."]


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
    groups = [rows for _, rows in frame.groupby(KEYS, sort=False)]
    return [
        Place(chr(ord("a") + i), name_of(next(rows.itertuples())), rows)
        for i, rows in enumerate(groups)
    ]


def legend(frame: pd.DataFrame) -> str:
    """As in "(a) AMD EPYC (AVX2), float32, batch 64; (b) …", or the one place of all rows."""
    found = of(frame)
    if len(found) == 1:
        return f"All rows: {found[0].name}."
    return f"{'; '.join(f'({place.letter}) {place.name}' for place in found)}."


def place_table(
    frame: pd.DataFrame, columns: Sequence[Column], by: Sequence[str], caption: str,
    rows: pd.DataFrame,
) -> Table:  # fmt: skip
    """A table that names the place of each row by its letter, or once for all of them.

    Args:
        frame: the numbers that are saved.
        columns: what is shown; the letter stands behind those that are shown once.
        by: rows that agree in these columns stand together.
        caption: what the table shows.
        rows: the rows that are shown.
    """
    found = of(rows)
    ordered = pd.concat([place.rows.assign(on=place.letter) for place in found])
    ordered = pd.concat([group for _, group in ordered.groupby(list(by), sort=False)])
    once = sum(column.once for column in columns)
    on = [words("on", "on")] if len(found) > 1 else []
    shown = [*columns[:once], *on, *columns[once:]]
    return tables.make_table(frame, shown, f"{caption} {legend(frame)}", ordered)


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


def benchmark_frame(
    devices: Sequence[Mapping[str, Any]], part: str, names: Sequence[str],
    timings: Mapping[str, str],
) -> pd.DataFrame:  # fmt: skip
    """One row for each row of one part of the devices' benchmarks.

    Args:
        devices: the benchmarks, one a device.
        part: which list of rows.
        names: what is kept of a row as it is.
        timings: the timings of a row -> what their columns' names begin with.
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

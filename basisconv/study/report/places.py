"""Where things were measured: the devices of trainings, and the places of timings.

A timing's place is a device, a precision and a batch size. Tables and figures of several name a
row's place by its letter; captions tell the letters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd

from basisconv.study.records.run import Record
from basisconv.study.report import text

KEYS = ["device", "precision", "batch"]
"""The columns of a frame that are a place."""
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


def told(row: Any) -> str:
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
        Place(chr(ord("a") + i), told(next(rows.itertuples())), rows)
        for i, rows in enumerate(groups)
    ]


def legend(frame: pd.DataFrame) -> str:
    """As in "(a) AMD EPYC (AVX2), float32, batch 64; (b) …", or the one place of all rows."""
    found = of(frame)
    if len(found) == 1:
        return f"All rows: {found[0].name}."
    return f"{'; '.join(f'({place.letter}) {place.name}' for place in found)}."

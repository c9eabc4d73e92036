"""Where a timing was made: a device, a precision and a batch size, and a letter for each.

Tables and figures of several devices name a row's place by its letter; captions tell the letters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

KEYS = ["device", "precision", "batch"]
_NOISE = re.compile(r"\((R|TM)\)| Processor\b")


def device_name(facts: Mapping[str, Any]) -> str:
    """As in "AMD EPYC (AVX2)", less what makers add to every name; a GPU's name says it all."""
    device, kind = facts["device"]["device"], facts["device"]["device_kind"]
    if kind == device:
        return str(device)
    return f"{_NOISE.sub('', device)} ({kind.split()[-1]})"


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

"""The tables of 06_timing as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from basisconv.study.report import places, text
from basisconv.study.report.output import Table
from basisconv.study.report.timing_frames import FORMS, STEP

_PLACE = "on"


def speedup(row: Any) -> str:
    """As in "2.82× [2.67, 3.12]": median and quartiles."""
    return text.with_interval(row.speedup, row.speedup_low, row.speedup_high, 2, unit="×")


def table(frame: pd.DataFrame, shown: pd.DataFrame, group: Sequence[str], caption: str) -> Table:
    """A table that tells the places of its rows by letter, or once for all of them.

    Of rows that differ in their place alone, the first shows the columns of `group`.
    """
    if shown[_PLACE].nunique() == 1:
        shown = shown.drop(columns=_PLACE)
    else:
        again = (shown[group] == shown[group].shift()).all(axis=1)
        shown = shown.assign(**{name: shown[name].mask(again, "") for name in group})
    return Table(frame, shown, f"{caption} {places.legend(frame)}")


def _with_letters(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The frame with its places' letters, rows that differ in their place alone together."""
    letters = [place.rows.assign(**{_PLACE: place.letter}) for place in places.of(frame)]
    rows = pd.concat(letters)
    # Places stay in their order within each group: those of a frame come one after the other.
    return pd.concat([group for _, group in rows.groupby(list(by), sort=False)])


def shown_layers(layers: pd.DataFrame, ratio: float) -> pd.DataFrame:
    """Layers of one share of basis filters, a column for each arm."""
    here = _with_letters(layers[layers["ratio"] == ratio], ["layer"])
    others = [arm for arm in dict.fromkeys(here["arm"]) if arm != "subset"]
    rows = []
    for (layer, letter), group in here.groupby(["layer", _PLACE], sort=False):
        arms = {r.arm: r for r in group.itertuples()}
        subset = arms["subset"]
        rows.append(
            {
                "layer": layer,
                "MACs": f"{subset.macs_ratio:.2f}×",
                _PLACE: letter,
                "subset": speedup(subset),
                "of MACs": _percent(subset.share),
                "expected": f"{subset.expected_speedup:.2f}×",
                **{a: f"{arms[a].speedup:.2f}×" if a in arms else text.NOTHING for a in others},
            }
        )
    return pd.DataFrame(rows)


def shown_steps(steps: pd.DataFrame) -> pd.DataFrame:
    """Training steps beside what is expected of them, and their memory."""
    return pd.DataFrame(
        [
            {
                "network": _network(r),
                "MACs": f"{r.macs_ratio:.2f}×",
                **_shown_step(r),
                "full": f"{text.fixed(r.full_speedup, 2)}×",
                "memory": text.fixed(r.peak_mb / r.dense_peak_mb, 2),
            }
            for r in _with_letters(steps, ["network", "width"]).itertuples()
        ]
    )


def shown_networks(networks: pd.DataFrame) -> pd.DataFrame:
    """Training step and forward pass in the subset form at every share of basis filters."""
    subset = networks[networks["arm"] == FORMS[0]]
    keys = ["network", "width", "ratio"]
    rows = []
    for _, group in _with_letters(subset, keys).groupby([*keys, _PLACE], sort=False):
        forward, step = (
            next(group[group["what"] == what].itertuples()) for what in ("forward", STEP)
        )
        rows.append(
            {
                "network": _network(step),
                "f": text.share(step.ratio),
                "MACs": f"{step.macs_ratio:.2f}×",
                **_shown_step(step),
                "forward": speedup(forward),
            }
        )
    return pd.DataFrame(rows)


def _shown_step(row: Any) -> dict[str, str]:
    return {
        _PLACE: getattr(row, _PLACE),
        "training step": speedup(row),
        "basis, ms": text.significant(row.median_ms, 3),
        "expected": f"{row.expected_speedup:.2f}×",
        "of expected": _percent(row.share),
    }


def shown_memory(memory: pd.DataFrame) -> pd.DataFrame:
    """What a training step holds, at every share of basis filters."""
    rows = [
        {
            "network": _network(r),
            "f": text.share(r.ratio),
            _PLACE: getattr(r, _PLACE),
            "dense, MB": f"{r.dense_peak_mb:.0f}",
            "basis, MB": f"{r.peak_mb:.0f}",
            "ratio": f"{r.peak_mb / r.dense_peak_mb:.2f}",
        }
        for r in _with_letters(memory, ["network", "width", "ratio"]).itertuples()
    ]
    return pd.DataFrame(rows)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _network(row: Any) -> str:
    return f"{text.network(row.network)}, width {row.width}"

"""The one style of every figure: a colour, a marker and a line for each method.

Colours are those of Okabe & Ito (2008), which readers with any common colour-vision deficiency
distinguish, with black and grey for the two dense networks. Where two methods come close in
greyscale their markers and line styles differ, so that a printed copy reads as well.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

TWO_COLUMNS = 6.95  # inches: the width of the paper's text

INK = "#222222"  # text and axes
FAINT = "#BBBBBB"  # reference lines and grids
ZERO = "#777777"  # secondary text, and the line that an effect is read against
BAND = "#EFEFEF"  # a region of equivalence, or an interval behind points


class Look(NamedTuple):
    """How a method is drawn wherever it appears."""

    colour: str
    marker: str
    line: str
    name: str
    hollow: bool = False


LOOKS: dict[str, Look] = {
    "dense": Look("#000000", "o", "-", "dense"),
    "narrow": Look("#646464", "s", "--", "narrower dense"),
    "basis": Look("#0072B2", "^", "-", "basis in all layers"),
    "first_five": Look("#56B4E9", "v", "-.", "basis in the first five"),
    "selected": Look("#D55E00", "D", "-", "basis in selected layers"),
    "threshold": Look("#E69F00", "P", "--", "selected by threshold"),
    "random": Look("#F0E442", "X", ":", "random layers"),
    "inverted": Look("#CC79A7", "<", "-.", "inverted selection"),
    "skip": Look("#009E73", "h", (0, (5, 1, 1, 1)), "skip training"),  # type: ignore[arg-type]
    "layer": Look("#3B4A6B", ">", ":", "basis in one layer"),
    "same_size": Look("#383838", "p", ":", "narrower dense, equal size", hollow=True),
    "equal_steps": Look("#9900EE", "*", "--", "basis, dense's steps"),
    "variant": Look("#783000", "d", "-", "one default changed"),
}

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same bytes on every machine
    "svg.hashsalt": "basisconv",  # ids inside an SVG are random without it
    "svg.fonttype": "path", "pdf.fonttype": 42, "savefig.dpi": 200,
    "figure.constrained_layout.use": True, "figure.facecolor": "white",
    "font.size": 7, "axes.titlesize": 7.5, "axes.labelsize": 7, "legend.fontsize": 6.5,
    "axes.linewidth": 0.6, "axes.edgecolor": INK, "axes.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#E8E8E8", "grid.linewidth": 0.5,
    **{
        f"{axis}tick.{name}": value
        for axis in "xy"
        for name, value in (("color", INK), ("labelsize", 6.5), ("major.width", 0.6),
                            ("major.size", 2.5))
    },
    "legend.frameon": False, "legend.handlelength": 2.4, "lines.linewidth": 1.2,
    "lines.markersize": 4.2, "errorbar.capsize": 1.8, "hatch.linewidth": 0.6,
}  # fmt: skip

_NO_DATES: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "ModDate": None},
    "svg": {"Date": None},
    "png": {"Software": None},
}
FORMATS: tuple[str, ...] = tuple(_NO_DATES)


def look(method: str) -> Look:
    """The look of a method.

    Raises:
        ValueError: for a method without one, naming those that have.
    """
    if method not in LOOKS:
        raise ValueError(
            f"Method {method!r} has no colour. Methods: {', '.join(LOOKS)}. Add it to LOOKS in "
            "basisconv/study/report/style.py."
        )
    return LOOKS[method]


@contextmanager
def drawing() -> Iterator[None]:
    """Within it, figures are made and rendered in this style, whatever the user's own is."""
    # The font tools log a warning about the fonts' dates, which is nothing to a reader.
    logging.getLogger("fontTools").setLevel(logging.ERROR)
    with mpl.rc_context():
        mpl.rcdefaults()
        # matplotlib's stubs want each key as a literal; it checks the keys itself.
        mpl.rcParams.update(seaborn.axes_style("ticks") | _RC)  # type: ignore[arg-type]
        yield


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that belongs to no pyplot and so to no backend."""
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    # The stubs know neither that there is an engine nor which: it is the constrained one.
    made.get_layout_engine().set(w_pad=0.03, h_pad=0.03)  # type: ignore[union-attr, call-arg]
    return made


def render(drawn: Figure, kind: str, dpi: int | None = None) -> bytes:
    """A figure's file: the same bytes at every call. `kind` is "pdf", "svg" or "png"."""
    buffer = io.BytesIO()
    with drawing():
        drawn.savefig(
            buffer, format=kind, metadata=_NO_DATES[kind], dpi="figure" if dpi is None else dpi
        )
    return buffer.getvalue()


def watermark(drawn: Figure, text: str) -> None:
    """Write `text` large and pale across a figure, behind what the axes draw."""
    for axes in drawn.axes:
        axes.patch.set_alpha(0)  # or each axes' own background would cover it
    width, height = drawn.get_size_inches()
    drawn.text(
        0.5, 0.5, text, ha="center", va="center", zorder=-10,
        fontsize=min(60.0, 34 * width / max(len(text), 5) * 2.2, 40 * height),
        color="#C03030", alpha=0.13, rotation=18, weight="bold", in_layout=False,
    )  # fmt: skip


def panel(axes: Axes, letter: str, title: str) -> None:
    """Title a panel "(a) what it shows"; without its letter if that is empty, as for one alone."""
    axes.set_title(f"({letter}) {title}" if letter else title)


def time_axis(axes: Axes, ticks: Iterable[float], label: str) -> None:
    """A logarithmic axis whose ticks stand at the given values, written plainly.

    Between two values alone a third stands in the middle, which a log axis shows off its middle.
    """
    places = sorted(set(ticks))
    if len(places) == 2:
        places.insert(1, sum(places) / 2)
    axes.set_xscale("log", base=2)
    _plain_ticks(axes.xaxis, places)
    if places:
        axes.set_xlim(places[0] / 1.3, places[-1] * 1.3)
    axes.set_xlabel(label)


def spread(count: int) -> list[float]:
    """Factors near one that set `count` points at the same place of a log axis side by side."""
    return [float(2 ** (0.036 * (i - (count - 1) / 2))) for i in range(count)]


def intervals(
    axes: Axes, x: Iterable[float], mean: Iterable[float], low: Iterable[float],
    high: Iterable[float], method: str, place: int = 0, line: bool = True,
) -> None:  # fmt: skip
    """Draw an arm's means at x with their intervals; an end that is NaN is no interval.

    Its method gives colour, marker and line, its place among the arms of the method their variant
    (see `ranks`); `line` joins the points.
    """
    y = np.asarray(list(mean), dtype=float)
    ends = np.array([y - list(low), list(high) - y], dtype=float)
    axes.errorbar(
        list(x), y, yerr=ends, color=look(method).colour, elinewidth=0.9,
        ecolor=INK if method == "random" else look(method).colour, capthick=0.7, zorder=3,
        **_fill(method, place, line),
    )  # fmt: skip


def across(
    axes: Axes, table: pd.DataFrame, column: str, method: str, shift: float = 0.0
) -> None:  # fmt: skip
    """Draw a column of a table with its interval along x, a row below the other, `shift` lower.

    The ends of the interval are called `_low` and `_high`.
    """
    mean, low, high = (table[f"{column}{end}"].to_numpy(float) for end in ("", "_low", "_high"))
    axes.errorbar(
        mean, np.arange(len(table)) + shift, xerr=np.array([mean - low, high - mean]),
        color=look(method).colour, marker=look(method).marker, linestyle="none",
        elinewidth=0.9, capthick=0.7,
    )  # fmt: skip


def handle(method: str, label: str, place: int = 0, line: bool = True) -> Line2D:
    """A legend's entry for an arm drawn by `intervals`."""
    return Line2D([], [], color=look(method).colour, label=label, **_fill(method, place, line))


def _fill(method: str, place: int, line: bool) -> dict[str, Any]:
    """Arms of one method share its colour; the second is hollow, further ones have a new marker.

    A method that is hollow itself is larger and lets through what it lies on.
    """
    shape = look(method)
    marker = shape.marker if place < 2 else "d*pX<8"[(place - 2) % 6]
    face = "none" if shape.hollow else "white" if place == 1 else shape.colour
    return {
        "marker": marker, "linestyle": shape.line if line else "none",
        "markersize": 6.0 if shape.hollow else 4.2 if place < 2 else 5.5,
        "markerfacecolor": face, "markeredgewidth": 0.8,
        "markeredgecolor": INK if method == "random" else shape.colour,
    }  # fmt: skip


def plain_log(axes: Axes, low: float, high: float, which: Literal["x", "y"] = "x") -> None:
    """A logarithmic axis from `low` to `high` with ticks at 1, 2, 5 or more, written plainly."""
    for leading in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        every = [m * 10.0**e for e in range(-6, 10) for m in leading]
        places = [place for place in every if low <= place <= high]
        if len(places) > 3:
            break
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    _plain_ticks(axes.xaxis if which == "x" else axes.yaxis, places)


def _plain_ticks(axis: Axis, places: Sequence[float]) -> None:
    axis.set_major_locator(FixedLocator(places))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def apart(values: Sequence[float], near: float, step: float) -> list[float]:
    """The values, those within `near` of each other set `step` apart round their common place."""
    at = pd.Series(values, dtype=float)
    group = (at.sort_values().diff() > near).cumsum().sort_index()
    places = at.groupby(group)
    return list(at + step * (places.cumcount() - (places.transform("size") - 1) / 2))


def ranks(names: Iterable[str], methods: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Each name once: its method, and its place among the names of that method."""
    found = dict(zip(names, methods, strict=True))
    places = {m: count() for m in found.values()}
    return {name: (method, next(places[method])) for name, method in found.items()}


def legend_below(drawn: Figure, handles: Sequence[Any]) -> None:
    """One legend for the whole figure, under its panels, in as many columns as fit."""
    size = float(_RC["legend.fontsize"])
    longest = max(len(handle.get_label()) for handle in handles)
    # A handle, its gaps and letters of a little over half their height.
    column = size * (2.4 + 0.8 + 2.0 + 0.58 * longest)
    rows = -(-len(handles) // max(1, int(72 * drawn.get_size_inches()[0] / column)))
    drawn.legend(handles=list(handles), loc="outside lower center", ncols=-(-len(handles) // rows))

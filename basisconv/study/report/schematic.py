"""The picture of the method: a dense layer, its basis form, and the kernels as matrices."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.typing import ColorType as Colour

from basisconv.study.report import style

OUTPUTS, BASIS = 8, 2  # drawn channels: f = 1/4
_FIRST, _SECOND = style.LOOKS["basis"].colour, style.LOOKS["selected"].colour
_DENSE = "#8C8C8C"
_INPUT = "#D9D9D9"
_COUNTED = "multiplications\nper output pixel"


def schematic() -> Figure:
    """Dense convolution above, basis convolution below, W = A·B on the right."""
    made = style.figure(style.TWO_COLUMNS, 3.5)
    axes = made.add_subplot()
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set(xlim=(0, 139), ylim=(0, 70))
    _dense_row(axes, y=53)
    axes.plot([1, 97], [39.2, 39.2], color=style.FAINT, linewidth=0.6)
    _basis_row(axes, y=17)
    axes.plot([101, 101], [2, 68], color=style.FAINT, linewidth=0.6)
    _matrices(axes)
    return made


def _mixes() -> list[Colour]:
    """A colour for each output: the two basis filters, then mixtures of them."""
    first, second = np.array(to_rgb(_FIRST)), np.array(to_rgb(_SECOND))
    shares = (0.85, 0.7, 0.55, 0.42, 0.28, 0.15)
    mixed = [0.45 + 0.55 * (share * first + (1 - share) * second) for share in shares]
    return [tuple(colour) for colour in (first, second, *mixed)]


def _dense_row(axes: Axes, y: float) -> None:
    _heading(axes, 1, y + 14.2, "(a) dense convolution", "every output has a filter of its own")
    _planes(axes, 4, y, [_INPUT] * 3)
    _below(axes, 9, y - 7.5, "input $x$", r"$C_{in}\times H\times W$")
    _arrow(axes, 17, 28, y)
    _filters(axes, 30, y, [_DENSE] * OUTPUTS)
    _below(axes, 40, y - 7.5, r"$C_{out}$ filters $W$", r"each $C_{in}\times k\times k$")
    _arrow(axes, 52, 79, y)
    _planes(axes, 81, y, [_DENSE] * OUTPUTS)
    _below(axes, 90, y - 7.5, "output $y$", r"$C_{out}\times H'\times W'$")
    _text(axes, 65.5, y + 2, _COUNTED, 6, va="bottom", color=style.ZERO)
    _text(axes, 65.5, y - 2, r"$C_{out}\,C_{in}\,k^2$", 8, va="top")


def _basis_row(axes: Axes, y: float) -> None:
    colours = _mixes()
    _heading(
        axes, 1, y + 17.6, "(b) basis convolution", r"$m=f\,C_{out}$ filters are trained; "
        "the other outputs combine theirs",
    )  # fmt: skip
    _planes(axes, 4, y, [_INPUT] * 3)
    _below(axes, 9, y - 7.5, "input $x$", r"$C_{in}\times H\times W$")
    _arrow(axes, 17, 21, y)
    _filters(axes, 22.5, y, colours[:BASIS])
    _below(axes, 25.5, y - 7.5, "$m$ basis filters $B$", r"each $C_{in}\times k\times k$")
    _arrow(axes, 30, 38, y)
    _planes(axes, 40, y, colours[:BASIS])
    _below(axes, 45, y - 7.5, "maps $z$", r"$m\times H'\times W'$")
    _arrow(axes, 52, 58, y)
    _coefficients(axes, 61, y + 8, 2.0, colours)
    _below(axes, 63.5, y - 9.2, "coefficients $A$", r"$C_{out}\times m$, as a $1\times1$")
    _arrow(axes, 69, 79, y)
    _planes(axes, 81, y, colours)
    _below(axes, 90, y - 7.5, "output $y$", r"$C_{out}\times H'\times W'$")
    _text(axes, 1, y + 11.2, _COUNTED, 6, ha="left", color=style.ZERO)
    for x, counted in ((25.5, r"$m\,C_{in}\,k^2$"), (45, "+"), (63, r"$C_{out}\,m$")):
        _text(axes, x, y + 11.2, counted, 8)


def _matrices(axes: Axes) -> None:
    colours = _mixes()
    _heading(axes, 104, 67.2, "(c) the kernels as matrices", "subset form: $A=[I;\\,C]$")
    cell, top, wide = 2.1, 59.0, 4
    _grid(axes, 106, top, cell, [[c] * wide for c in colours])
    _below(axes, 106 + wide * cell / 2, top - 18.6, "$W$", r"$C_{out}\times C_{in}k^2$")
    _text(axes, 118, top - 8.4, "=", 10)
    _coefficients(axes, 121, top, cell, colours, labels=True)
    _below(axes, 122, top - 18.6, "$A$", r"$C_{out}\times m$")
    _text(axes, 127.3, top - 8.4, "·", 12)
    _grid(axes, 129, top - 6.3, cell, [[c] * wide for c in colours[:BASIS]])
    _below(axes, 133, top - 12.4, "$B$", r"$m\times C_{in}k^2$")
    formula = r"$\frac{m\,C_{in}k^2+C_{out}m}{C_{out}C_{in}k^2}=f\,(1+\frac{1}{k^2})$"
    for height, words, size in (
        (25.0, "multiplications against dense,", 6.3),
        (20.8, r"for $C_{out}=C_{in}$ and $f=m/C_{out}$:", 6.3),
        (16.6, formula, 9),
        (11.2, r"$k=3$, $f=\frac{1}{4}$:  3.6 times fewer,", 6.3),
        (7.0, "forward and backward alike", 6.3),
    ):
        _text(axes, 121, height, words, size, color=style.INK)


def _text(axes: Axes, x: float, y: float, words: str, size: float, **more: Any) -> None:
    axes.text(x, y, words, fontsize=size, **{"ha": "center", "va": "center"} | more)


def _heading(axes: Axes, x: float, y: float, title: str, rest: str) -> None:
    axes.text(x, y, title, fontsize=7.5, weight="bold", va="bottom")
    axes.text(x, y - 0.8, rest, fontsize=6.3, va="top", color=style.INK)


def _below(axes: Axes, x: float, y: float, name: str, shape: str) -> None:
    axes.text(x, y, name, ha="center", va="top", fontsize=6.8)
    axes.text(x, y - 2.6, shape, ha="center", va="top", fontsize=6, color=style.ZERO)


def _arrow(axes: Axes, start: float, end: float, y: float) -> None:
    look: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 7, "linewidth": 0.8}
    ends = (start, y), (end, y)
    axes.add_patch(FancyArrowPatch(*ends, color=style.INK, shrinkA=0, shrinkB=0, **look))


def _planes(axes: Axes, x: float, y: float, colours: Sequence[Colour]) -> None:
    """A stack of feature maps, the first in front."""
    side, shift = 9.0, 1.15
    low = y - side / 2 - shift * (len(colours) - 1) / 2 * 0.6
    for i, colour in reversed(list(enumerate(colours))):
        corner = (x + shift * i, low + shift * 0.6 * i)
        axes.add_patch(Rectangle(corner, side, side, fc=colour, ec="white", linewidth=0.7))


def _filters(axes: Axes, x: float, y: float, colours: Sequence[Colour]) -> None:
    """Small 3×3 kernels, four in a column at most, in columns side by side."""
    cell, gap = 1.25, 1.4
    across = 4 if len(colours) > BASIS else 1
    pitch = 3 * cell + gap
    top = y + (len(colours) // across * pitch - gap) / 2
    for i, colour in enumerate(colours):
        left, up = x + (i % across) * pitch, top - (i // across) * pitch
        _grid(axes, left, up, cell, [[colour] * 3] * 3, line=0.4)


def _coefficients(
    axes: Axes, x: float, top: float, cell: float, colours: Sequence[Colour], labels: bool = False
) -> None:
    """A = [I; C]: ones where a basis filter passes through, free entries below."""
    ones = [[colours[j] if i == j else "white" for j in range(BASIS)] for i in range(BASIS)]
    _grid(axes, x, top, cell, [*ones, *([colour] * BASIS for colour in colours[BASIS:])])
    for i, j in product(range(BASIS), repeat=2):
        at = x + (j + 0.5) * cell, top - (i + 0.5) * cell
        one = i == j
        _text(axes, *at, "1" if one else "0", 5, color="white" if one else style.INK)
    if labels:
        middle = top - cell * (BASIS + OUTPUTS) / 2
        _text(axes, x - 0.8, top - cell, "$I$", 6.5, ha="right")
        _text(axes, x - 0.8, middle - 3.4, "$C$", 6.5, ha="right")


def _grid(
    axes: Axes, x: float, top: float, cell: float, rows: Sequence[Sequence[Colour]],
    line: float = 0.5,
) -> None:  # fmt: skip
    for (i, row), j in product(enumerate(rows), range(len(rows[0]))):
        edge = "white" if row[j] != "white" else style.FAINT
        corner = (x + j * cell, top - (i + 1) * cell)
        axes.add_patch(Rectangle(corner, cell, cell, fc=row[j], ec=edge, linewidth=line))

"""The picture of the method: a dense layer, its basis form, and the kernels as matrices."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from basisconv.study.report import style

OUTPUTS, BASIS = 8, 2  # drawn channels: f = 1/4
_FIRST, _SECOND = style.LOOKS["basis"].colour, style.LOOKS["selected"].colour
_DENSE = "#8C8C8C"
_INPUT = "#D9D9D9"


def schematic() -> Figure:
    """Dense convolution above, basis convolution below, W = A·B on the right."""
    with style.drawing():
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


def _mixes() -> list[tuple[float, float, float]]:
    """A colour for each output: the two basis filters, then mixtures of them."""
    first, second = to_rgb(_FIRST), to_rgb(_SECOND)
    shares = (0.85, 0.7, 0.55, 0.42, 0.28, 0.15)
    mixed = [
        tuple(0.45 + 0.55 * (s * a + (1 - s) * b) for a, b in zip(first, second, strict=True))
        for s in shares
    ]
    return [first, second, *mixed]  # type: ignore[list-item]


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
    axes.text(
        65.5, y + 2, "multiplications\nper output pixel", ha="center", va="bottom", fontsize=6,
        color=style.ZERO,
    )  # fmt: skip
    axes.text(65.5, y - 2, r"$C_{out}\,C_{in}\,k^2$", ha="center", va="top", fontsize=8)


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
    axes.text(
        1, y + 11.2, "multiplications\nper output pixel", va="center", fontsize=6, color=style.ZERO
    )
    axes.text(25.5, y + 11.2, r"$m\,C_{in}\,k^2$", ha="center", va="center", fontsize=8)
    axes.text(45, y + 11.2, "+", ha="center", va="center", fontsize=8)
    axes.text(63, y + 11.2, r"$C_{out}\,m$", ha="center", va="center", fontsize=8)


def _matrices(axes: Axes) -> None:
    colours = _mixes()
    _heading(axes, 104, 67.2, "(c) the kernels as matrices", "subset form: $A=[I;\\,C]$")
    cell, top, wide = 2.1, 59.0, 4
    _grid(axes, 106, top, cell, [[c] * wide for c in colours])
    _below(axes, 106 + wide * cell / 2, top - 18.6, "$W$", r"$C_{out}\times C_{in}k^2$")
    axes.text(118, top - 8.4, "=", ha="center", va="center", fontsize=10)
    _coefficients(axes, 121, top, cell, colours, labels=True)
    _below(axes, 122, top - 18.6, "$A$", r"$C_{out}\times m$")
    axes.text(127.3, top - 8.4, "·", ha="center", va="center", fontsize=12)
    _grid(axes, 129, top - 6.3, cell, [[c] * wide for c in colours[:BASIS]])
    _below(axes, 133, top - 12.4, "$B$", r"$m\times C_{in}k^2$")
    lines = (
        ("multiplications against dense,", 6.3, style.INK),
        (r"for $C_{out}=C_{in}$ and $f=m/C_{out}$:", 6.3, style.INK),
        (r"$\frac{m\,C_{in}k^2+C_{out}m}{C_{out}C_{in}k^2}=f\,(1+\frac{1}{k^2})$", 9, style.INK),
        (r"$k=3$, $f=\frac{1}{4}$:  3.6 times fewer,", 6.3, style.INK),
        ("forward and backward alike", 6.3, style.INK),
    )
    height = 25.0
    for text, size, colour in lines:
        axes.text(121, height, text, ha="center", va="center", fontsize=size, color=colour)
        height -= 4.2 if size < 7 else 5.4


def _heading(axes: Axes, x: float, y: float, title: str, rest: str) -> None:
    axes.text(x, y, title, fontsize=7.5, weight="bold", va="bottom")
    axes.text(x, y - 0.8, rest, fontsize=6.3, va="top", color=style.INK)


def _below(axes: Axes, x: float, y: float, name: str, shape: str) -> None:
    axes.text(x, y, name, ha="center", va="top", fontsize=6.8)
    axes.text(x, y - 2.6, shape, ha="center", va="top", fontsize=6, color=style.ZERO)


def _arrow(axes: Axes, start: float, end: float, y: float) -> None:
    axes.add_patch(
        FancyArrowPatch(
            (start, y),
            (end, y),
            arrowstyle="-|>",
            mutation_scale=7,
            linewidth=0.8,
            color=style.INK,
            shrinkA=0,
            shrinkB=0,
        )  # fmt: skip
    )


def _planes(axes: Axes, x: float, y: float, colours: Sequence[object]) -> None:
    """A stack of feature maps, the first in front."""
    side, shift = 9.0, 1.15
    count = len(colours)
    low = y - side / 2 - shift * (count - 1) / 2 * 0.6
    for i in reversed(range(count)):
        axes.add_patch(
            Rectangle(
                (x + shift * i, low + shift * 0.6 * i),
                side,
                side,
                facecolor=colours[i],  # type: ignore[arg-type]
                edgecolor="white",
                linewidth=0.7,
            )  # fmt: skip
        )


def _filters(axes: Axes, x: float, y: float, colours: Sequence[object]) -> None:
    """Small 3×3 kernels, four in a column at most, in columns side by side."""
    cell, gap = 1.25, 1.4
    across = 4 if len(colours) > BASIS else 1
    down = len(colours) // across
    pitch = 3 * cell + gap
    top = y + (down * pitch - gap) / 2
    for i, colour in enumerate(colours):
        left, up = x + (i % across) * pitch, top - (i // across) * pitch
        _grid(axes, left, up, cell, [[colour] * 3] * 3, line=0.4)


def _coefficients(
    axes: Axes, x: float, top: float, cell: float, colours: Sequence[object], labels: bool = False
) -> None:
    """A = [I; C]: ones where a basis filter passes through, free entries below."""
    rows: list[list[object]] = [
        [colours[j] if i == j else "white" for j in range(BASIS)] for i in range(BASIS)
    ]
    rows += [[colours[i]] * BASIS for i in range(BASIS, OUTPUTS)]
    _grid(axes, x, top, cell, rows)
    for i in range(BASIS):
        for j in range(BASIS):
            axes.text(
                x + (j + 0.5) * cell, top - (i + 0.5) * cell, "1" if i == j else "0",
                ha="center", va="center", fontsize=5, color="white" if i == j else style.INK,
            )  # fmt: skip
    if labels:
        axes.text(x - 0.8, top - cell, "$I$", ha="right", va="center", fontsize=6.5)
        middle = top - cell * (BASIS + OUTPUTS) / 2
        axes.text(x - 0.8, middle - 3.4, "$C$", ha="right", va="center", fontsize=6.5)


def _grid(
    axes: Axes, x: float, top: float, cell: float, rows: Sequence[Sequence[object]],
    line: float = 0.5,
) -> None:  # fmt: skip
    for i, row in enumerate(rows):
        for j, colour in enumerate(row):
            axes.add_patch(
                Rectangle(
                    (x + j * cell, top - (i + 1) * cell),
                    cell,
                    cell,
                    facecolor=colour,  # type: ignore[arg-type]
                    edgecolor="white" if colour != "white" else style.FAINT,
                    linewidth=line,
                )  # fmt: skip
            )

"""Tables by declared columns: what each is called, of which kind it is, and what it reads.

    make_table(
        frame,
        [words("arm", "label"), interval("accuracy (%)", "accuracy low high", 1), p_value()],
        "What the table shows.",
    )

A kind turns a row of the frame into the text of a cell. Its source is a column's name, or a
function of the row. A value that does not exist (None, NaN) is shown as `text.NOTHING`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from basisconv.study.report import text

Source = str | Callable[[Any], Any]


@dataclass(frozen=True)
class Column:
    """A column of a table as read: its title, and a row of the frame -> the text shown.

    Words stand `left`, numbers right. A row shows a column to be shown `once` only where it differs
    from the row above, in this or another such column.
    """

    title: str
    cell: Callable[[Any], str]
    left: bool = False
    once: bool = False


@dataclass(frozen=True)
class Table:
    """A table as numbers and as read.

    Attributes:
        frame: the numbers with the ends of their intervals, one column each; saved as CSV.
        shown: the rows as text for people; saved as Markdown.
        caption: what it shows, in a sentence or two.
        left: which columns of `shown` stand left.
    """

    frame: pd.DataFrame
    shown: pd.DataFrame
    caption: str
    left: tuple[bool, ...]

    def csv(self) -> str:
        """The numbers, at full precision."""
        return self.frame.to_csv(index=False, lineterminator="\n")

    def markdown(self) -> str:
        """The text as a Markdown table."""
        head, *body = [[cell.replace("|", "\\|") for cell in row] for row in self._rows()]
        lines = [head, ["---" if left else "---:" for left in self.left], *body]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def to_dict(self) -> dict[str, Any]:
        """The text as JSON values: what the paper prints."""
        head, *body = self._rows()
        return {
            "caption": self.caption, "columns": head, "rows": body,
            "align": ["left" if left else "right" for left in self.left],
        }  # fmt: skip

    def _rows(self) -> list[list[str]]:
        return [list(self.shown.columns), *self.shown.to_numpy().tolist()]

    def _repr_html_(self) -> str:
        sides = ["left" if left else "right" for left in self.left]
        head, *body = (
            "".join(
                f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>'
                for side, cell in zip(sides, row, strict=True)
            )
            for tag, row in zip(["th"] + ["td"] * len(self.shown), self._rows(), strict=True)
        )
        lines = "".join(f"<tr>{line}</tr>\n" for line in body)
        return (
            f'<table>\n<caption style="text-align: left">{escape(self.caption)}</caption>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}</tbody>\n</table>"
        )

    def __repr__(self) -> str:
        return self.markdown()


def make_table(
    frame: pd.DataFrame, columns: Sequence[Column], caption: str, rows: pd.DataFrame | None = None
) -> Table:
    """A table that saves a frame, and shows its rows, or other `rows`, as the columns say."""
    source = frame if rows is None else rows
    cells = [[c.cell(row) for c in columns] for row in source.itertuples(index=False)]
    once = [i for i, column in enumerate(columns) if column.once]
    above: list[str] = []
    for line in cells:
        own = [line[i] for i in once]
        for i in once if own == above else ():
            line[i] = ""
        above = own
    shown = pd.DataFrame(cells, columns=[c.title for c in columns], dtype=object)
    return Table(frame, shown, caption, tuple(c.left for c in columns))


def cell(
    title: str, source: Source, form: Callable[[Any], str], left: bool = False, once: bool = False
) -> Column:
    """A column of no common kind: `form` turns a value that exists into its text."""

    def shown(row: Any) -> str:
        value = getattr(row, source) if isinstance(source, str) else source(row)
        return text.NOTHING if pd.isna(value) else form(value)

    return Column(title, shown, left, once)


def words(
    title: str, source: Source, names: Mapping[Any, str] | None = None, once: bool = False
) -> Column:
    """Text, or what a value is called by `names`."""
    return cell(title, source, (lambda value: names[value]) if names else str, True, once)


def plain(title: str, source: Source) -> Column:
    """A number with as many digits as it has, as in "2.5" or "4"."""
    return cell(title, source, lambda value: f"{value:g}")


def count(title: str, source: Source) -> Column:
    """A whole number, with thousands apart."""
    return cell(title, source, lambda value: f"{int(value):,}")


def fixed(title: str, source: Source, digits: int, unit: str = "", once: bool = False) -> Column:
    """A number with so many decimals and its unit."""
    return cell(title, source, lambda value: text.fixed(value, digits) + unit, once=once)


def percent(title: str, source: Source, digits: int = 0) -> Column:
    """A share as per cent, as in "40 %"."""
    return cell(title, source, lambda value: f"{text.fixed(100 * value, digits)} %")


def interval(title: str, source: str, digits: int, signed: bool = False, unit: str = "") -> Column:
    """A number with its interval, as in "84.0 [83.6, 84.4]".

    The source is three columns, "accuracy low high", or one whose ends are called `_low`, `_high`.
    """
    names = source.split() if " " in source else [source, f"{source}_low", f"{source}_high"]

    def shown(row: Any) -> str:
        value, low, high = (getattr(row, name) for name in names)
        return text.with_interval(value, low, high, digits, signed, unit)

    return Column(title, shown)


def accuracy(outcome: str) -> Column:
    """The accuracy of an arm in per cent with its interval."""
    return interval(f"{outcome} accuracy (%)", "accuracy low high", 1)


def difference(title: str = "minus dense", source: str = "difference") -> Column:
    """A difference in percentage points with its interval."""
    return interval(title, source, 2, signed=True)


def p_value() -> Column:
    """The p of a row's comparison by Holm."""
    return Column("p (Holm)", lambda row: text.p_value(row.p_holm))


def verdict(names: Mapping[str, str] = text.VERDICT_WORDS) -> Column:
    """What a row's comparison amounts to."""
    return words("verdict", "verdict", names)


def seeds() -> Column:
    """How many runs an arm has, and how many it lost."""
    return Column("n", lambda row: text.seeds(row.n, row.lost))


def against_dense(outcome: str) -> list[Column]:
    """An arm against dense: its runs, accuracy, difference and tests."""
    within = cell("equal within", "smallest_margin", lambda margin: f"±{margin:.2f}")
    return [seeds(), accuracy(outcome), difference(), p_value(), within]

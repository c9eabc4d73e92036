"""What a section of the study turns into: tables, figures and numbers, and their files.

Files are written whole or not at all, and hold the same bytes whenever they are made from the
same records.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from basisconv.study.records.files import write_atomic
from basisconv.study.report import style
from basisconv.study.report.tables import Table


@dataclass(frozen=True)
class Plot:
    """A figure, the numbers that it draws, and its caption."""

    figure: Figure
    data: pd.DataFrame
    caption: str

    def csv(self) -> str:
        """What the figure draws, at full precision."""
        return self.data.to_csv(index=False, lineterminator="\n")

    def __repr__(self) -> str:
        return self.caption

    def _repr_html_(self) -> str:
        image = b64encode(style.render(self.figure, "png", dpi=120)).decode()
        caption = escape(self.caption)
        return (
            f'<figure>\n<img src="data:image/png;base64,{image}" alt="{caption}">\n'
            f"<figcaption>{caption}</figcaption>\n</figure>"
        )


@dataclass(frozen=True)
class Report:
    """A section of the study, ready to be looked at, saved and cited.

    Attributes:
        name: the section's, e.g. "02_all_layers".
        profile: the profile that its runs belong to.
        tables: name -> `Table`.
        figures: name -> `Plot`.
        numbers: what the paper prints: "values" (name -> value, low, high, n, text), "headline"
            (a sentence made from intervals and tests), "notes".
    """

    name: str
    profile: str
    tables: dict[str, Table] = field(default_factory=dict)
    figures: dict[str, Plot] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        shown: list[Plot | Table] = [*self.figures.values(), *self.tables.values()]
        headline = escape(self.numbers.get("headline", ""))
        parts = [f"<p><strong>{headline}</strong></p>", *(part._repr_html_() for part in shown)]
        return "\n".join(parts)

    def save(self, folder: Path, figures: Path | None = None) -> list[Path]:
        """Write every table, figure and number.

        Args:
            folder: gets `tables/<name>.{csv,md}` and `numbers/<section>.json`.
            figures: gets `<name>.{pdf,svg,png,csv}`; None for `figures` in the same folder.

        Returns:
            The files written.
        """
        files: dict[Path, bytes] = {}
        for name, table in self.tables.items():
            stem = folder / "tables" / name
            files[stem.with_suffix(".csv")] = table.csv().encode()
            files[stem.with_suffix(".md")] = table.markdown().encode()
        for name, plot in self.figures.items():
            stem = (figures or folder / "figures") / name
            files[stem.with_suffix(".csv")] = plot.csv().encode()
            for kind in style.FORMATS:
                files[stem.with_suffix(f".{kind}")] = style.render(plot.figure, kind, dpi=200)
        payload = {
            **self.numbers, "section": self.name, "profile": self.profile,
            "tables": {name: table.to_dict() for name, table in self.tables.items()},
            "figures": {name: plot.caption for name, plot in self.figures.items()},
        }  # fmt: skip
        files[folder / "numbers" / f"{self.name}.json"] = _json(payload)
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)
        return list(files)


def _json(payload: Mapping[str, Any]) -> bytes:
    """Readable JSON; a number that does not exist (NaN) is null, for JSON has no other word."""
    text = json.dumps(_plain(payload), indent=1, sort_keys=True, ensure_ascii=False)
    return f"{text}\n".encode()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

"""A progress bar for calls that take a while."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from typing import TypeVar

_T = TypeVar("_T")


def progress(items: Collection[_T], what: str) -> Iterator[_T]:
    """The items, with a progress bar where there is tqdm and a terminal or a notebook.

    Args:
        items: layers, of which each takes a while.
        what: is done with them.
    """
    notebook = "ipykernel" in sys.modules
    if sys.stderr is not None and (notebook or sys.stderr.isatty()):
        try:
            from tqdm.auto import tqdm
        except ImportError:
            return iter(items)
        return iter(tqdm(items, desc=what, unit="layer", leave=False))
    return iter(items)

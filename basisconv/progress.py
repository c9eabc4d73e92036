"""A bar of progress, for who waits."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from typing import TypeVar

_T = TypeVar("_T")


def progress(items: Collection[_T], what: str) -> Iterator[_T]:
    """The same, with a bar where there is a terminal or a notebook, and tqdm.

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

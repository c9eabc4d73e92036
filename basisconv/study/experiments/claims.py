"""10: what of the paper holds? It has nothing to set, and nothing to train."""

from __future__ import annotations

from typing import Any

from basisconv.study.experiments.parameters import Strict
from basisconv.study.experiments.study import Study


class Parameters(Strict):
    """10_claims has nothing to set."""


def measure(study: Study, parameters: Parameters) -> dict[str, Any]:
    """No facts: its report reads the other sections."""
    return {}

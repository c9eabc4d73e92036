"""What must not lose or corrupt anything, ill-treated: `make torture`, and briefly in the tests.

Each module tries one kind of mishap and returns lines of the report, `tests/torture-report.md`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """How often things are tried.

    Attributes:
        kills: processes killed in mid-sweep.
        team_kills: processes killed of a sweep with workers.
        truncations: places at which each kind of file is cut.
        flips: bits flipped in each kind of file, one at a time.
        nodes: of a Ray cluster killed, one in each sweep.
    """

    kills: int
    team_kills: int
    truncations: int
    flips: int
    nodes: int


FULL = Scale(kills=100, team_kills=6, truncations=20, flips=200, nodes=10)
SHORT = Scale(kills=6, team_kills=0, truncations=1, flips=3, nodes=1)


@dataclass(frozen=True)
class Line:
    """One line of the report.

    Attributes:
        what: was tried.
        trials: how often.
        found: what came of it.
        passed: whether that is what was wanted.
    """

    what: str
    trials: int
    found: str
    passed: bool

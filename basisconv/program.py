"""0/1 programs solved exactly by `scipy.optimize.milp`, whose own tolerances are undone here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bound = tuple[Floats, float, float]  # values, and the least and the most that they add up to
Subset = tuple[bool, ...]
ROUNDING = 1e-9  # of the largest value: 0.1 + 0.1 + 0.1 is within a budget of 0.3


def solve(
    gain: Floats, bounds: Sequence[Bound], groups: Sequence[Sequence[int]] = (), gap: float = 0.0
) -> Subset | None:
    """The subset with the largest gain whose sums lie in their bounds, or None.

    Exactly one is chosen of each group, and `gap` is how far the gain may be from the largest,
    relative to it. Bounds hold up to `ROUNDING`. The solver's layers are whole numbers only up to
    1e-6, so that a subset of its own may break one by more: it is cut off and the program solved
    again.
    """
    optimize = scipy_optimize()
    count = len(gain)
    rows: list[Floats] = []
    lows: list[float] = []
    highs: list[float] = []
    for values, low, high in bounds:
        # The solver keeps rows to 1e-6, which this scale makes ROUNDING of the largest value.
        scale = (float(np.abs(values).max()) or 1.0) / 1e3
        rows.append(values / scale)
        lows.append(low / scale)
        highs.append(high / scale)
    for group in groups:
        rows.append(np.zeros(count))
        rows[-1][list(group)] = 1.0
        lows.append(1.0)
        highs.append(1.0)
    # Gains far above the solver's absolute gap of 1e-6, so that near ties are distinguished.
    # Those who allow a gap need that less, and above 1 the solver prints lines of its own. It
    # minimises.
    objective = -gain / (float(np.abs(gain).max()) or 1.0) * (1.0 if gap else 1e4)
    while True:
        found = optimize.milp(
            objective,
            integrality=np.ones(count),
            bounds=optimize.Bounds(0, 1),
            constraints=optimize.LinearConstraint(np.array(rows), lows, highs),
            # Presolve has lost the best subset where one that is better breaks a bound by little
            # more than the tolerance. Without it a network's few dozen layers take milliseconds.
            options={"mip_rel_gap": gap, "presolve": False},
        )
        if found.status == 2:  # infeasible
            return None
        if found.x is None:
            raise RuntimeError(f"scipy.optimize.milp found no subset: {found.message}")
        subset = tuple(bool(value > 0.5) for value in found.x)
        if all(fits(subset, bound) for bound in bounds):
            return subset
        # Σ over its layers (1 - x) + Σ over the others x >= 1: any subset but this one.
        rows.append(np.where(subset, -1.0, 1.0))
        lows.append(1.0 - sum(subset))
        highs.append(math.inf)


def fits(subset: Subset, bound: Bound) -> bool:
    """Whether a subset's sum lies in its bound, up to `ROUNDING`."""
    values, low, high = bound
    slack = ROUNDING * float(np.abs(values).max())
    return low - slack <= total_of(values, subset) <= high + slack


def total_of(values: Floats, subset: Subset) -> float:
    """The sum of the values of the chosen."""
    return math.fsum(value for value, chosen in zip(values, subset, strict=True) if chosen)


def scipy_optimize() -> Any:
    """`scipy.optimize`, or an ImportError that says what to do."""
    # Here and not at the top: applying a plan needs no scipy.
    try:
        from scipy import optimize
    except ImportError as error:
        raise ImportError("The search needs scipy: pip install scipy.") from error
    return optimize

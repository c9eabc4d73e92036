"""basisconv: convolution layers that train a few basis filters and combine them into the rest."""

from basisconv.allocation.search import search
from basisconv.convert import (
    apply_plan,
    dense_state_dict,
    load_dense_state_dict,
    plan_of,
    restore,
)
from basisconv.cost import LayerCost, Summary, summary
from basisconv.effects import Effects, Estimate, effects
from basisconv.knapsack import select, select_by_threshold
from basisconv.layer import BasisConv2d
from basisconv.optim import Muon, muon_groups
from basisconv.plan import Plan, layers
from basisconv.planning import make_plan
from basisconv.responses.fitting import FitReport, LayerFit
from basisconv.screening import Screening, screening
from basisconv.timing import Timing, TunedLayer, compare, tune

__version__ = "0.1.0"
__all__ = [
    "BasisConv2d",
    "Effects",
    "Estimate",
    "FitReport",
    "LayerCost",
    "LayerFit",
    "Muon",
    "Plan",
    "Screening",
    "Summary",
    "Timing",
    "TunedLayer",
    "apply_plan",
    "compare",
    "dense_state_dict",
    "effects",
    "layers",
    "load_dense_state_dict",
    "make_plan",
    "muon_groups",
    "plan_of",
    "restore",
    "screening",
    "search",
    "select",
    "select_by_threshold",
    "summary",
    "tune",
]


def __dir__() -> list[str]:
    """Public names first and alone: modules would crowd what tab completion offers."""
    return [*__all__, "__version__"]

"""01: is the dense network as good as the field's?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from basisconv.plan import Plan
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.parameters import Positive, Strict

if TYPE_CHECKING:
    from basisconv.study.experiments.study import Study


class Parameters(Strict):
    """Dense, trained for the longest budget."""

    epochs: Positive


def draft(study: Study, parameters: Parameters) -> Draft:
    """01: dense, for its longest budget."""
    cost = study.network_costs(Plan())
    result = Draft("01_baseline", study)
    result.add("dense", "dense", Plan(), parameters.epochs)
    run = next(iter(result.runs.values()))
    result.facts = {
        "parameters": cost.parameters,
        "macs": cost.macs,
        # Another batch than the budget's makes other epochs of the same time.
        "epochs": round(run.steps / (study.train_images // run.batch_size), 2),
        "train_images": study.train_images,
    }
    return result

"""01: is the dense network as good as the field's?"""

from __future__ import annotations

from basisconv.plan import Plan
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.named_arms import EPOCHS, Comparison, add_comparison
from basisconv.study.experiments.parameters import Positive, Strict
from basisconv.study.experiments.study import Study
from basisconv.study.records.run import Count, Optimizer


class Parameters(Strict):
    """Dense, trained for the longest budget.

    Under a recipe of the profile, as 02's D at so many equal epochs; null for the profile's own
    training. `threads` are those of a Run, null for the profile's.
    """

    epochs: Positive
    recipe: Optimizer | None
    threads: Count | None


def draft(study: Study, parameters: Parameters) -> Draft:
    """01: dense, for its longest budget."""
    cost = study.network_costs(Plan())
    result = Draft("01_baseline", study)
    threads = parameters.threads or study.profile.threads
    if parameters.recipe is None:
        changes = {"threads": threads}
        result.add("dense", "dense", Plan(), parameters.epochs, changes=changes)
    else:
        longest = Comparison(
            recipe=parameters.recipe, length=parameters.epochs, threads=threads,
            arms={"D": len(study.seeds(result.name))},
        )  # fmt: skip
        add_comparison(result, longest, EPOCHS)
    run = next(iter(result.runs.values()))
    result.facts = {
        "parameters": cost.parameters,
        "macs": cost.macs,
        # Another batch than the budget's makes other epochs of the same time.
        "epochs": round(run.steps / (study.train_images // run.batch_size), 2),
        "train_images": study.train_images,
    }
    return result

"""02b: and with the network's width free to choose?"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from basisconv.plan import Plan
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.parameters import Positive, Share, Skip, Strict
from basisconv.study.experiments.study import Study
from basisconv.study.records.run import Count


class Parameters(Strict):
    """Dense, all layers and one skip training at several widths.

    Budgets are in dense epochs at the profile's width, whatever an arm's own is.
    """

    widths: Annotated[list[Count], Field(min_length=1)]
    budgets: Annotated[list[Positive], Field(min_length=1)]
    ratio: Share
    skip: Skip


def draft(study: Study, parameters: Parameters) -> Draft:
    """02b: dense, all layers and skip training at several widths, at equal time.

    At the profile's own width these are the frontier's Runs, where the settings agree.
    """
    ratio, skip = parameters.ratio, parameters.skip
    facts = parameters.model_dump() | {"width": study.profile.width}
    result = Draft("02b_widths", study, facts)
    for budget in parameters.budgets:
        for width in parameters.widths:
            every = study.plan(ratio, width=width)
            narrower = width < study.profile.width
            dense = study.tuned("narrow" if narrower else "dense", budget)
            result.add(f"dense, width {width}", "dense", Plan(), budget, width, changes=dense)
            result.add(f"all layers, width {width}", "basis", every, budget, width)
            result.add_skip(f"{skip.label}, width {width}", skip, every, budget, width=width)
    return result

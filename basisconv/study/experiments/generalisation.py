"""09: does it hold on other data and in other networks?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.named_arms import Comparison, add_comparison
from basisconv.study.experiments.parameters import Strict
from basisconv.study.records.run import DataName

if TYPE_CHECKING:
    from basisconv.study.experiments.study import Study

NAME = "09_generalisation"


class Parameters(Strict):
    """Named arms on another data set, `data`, with the profile's network; see `named_arms`."""

    data: DataName
    equal_time: list[Comparison]
    equal_epochs: list[Comparison]


def draft(study: Study, parameters: Parameters) -> Draft:
    """09: the profile's network on other data."""
    result = Draft(NAME, study, parameters.model_dump())
    _other_data(result, parameters)
    return result


def _other_data(result: Draft, parameters: Parameters) -> None:
    """Equal time first: it has the primary contrast."""
    study = result.study.on(parameters.data)
    own = Draft(NAME, study)
    told = {"network": study.profile.network, "data": parameters.data}
    for part, settings in (
        ("equal time", parameters.equal_time),
        ("equal epochs", parameters.equal_epochs),
    ):
        for setting in settings:
            add_comparison(own, setting, part, detail=told)
    result.arms += own.arms
    result.runs |= own.runs

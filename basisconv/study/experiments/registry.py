"""The experiments: one module each, in the order of notebooks, paper and README.

A module has `Parameters`, and either `draft` (the Runs that answer its question) or `measure`
(facts that need no training). With both, `measure` is called once the Runs drafted first are
trained: it keeps in the store what it measures of them, for `draft` to read, which may add more.
Nothing else knows an experiment's name but its report, its notebook, its section of the paper and
the profiles' values.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, create_model

from basisconv.study.experiments import (
    all_layers,
    baseline,
    claims,
    defaults,
    generalisation,
    method,
    pilot,
    ranks,
    search,
    selection,
    sensitivity,
    skip_training,
    timing,
    trained,
    widths,
)
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.parameters import PILOT, Strict, mistakes
from basisconv.study.experiments.study import Study


class Experiment(NamedTuple):
    """An experiment's module, what the paper calls it, and the question that it answers."""

    module: ModuleType
    title: str
    question: str

    @property
    def report(self) -> str:
        """The name of its module, which that of its report in `basisconv.study.report` has too."""
        return self.module.__name__.rpartition(".")[2]


EXPERIMENTS: dict[str, Experiment] = {
    "00_method": Experiment(
        method, "the cost of the method",
        "What is the decomposition, is it exact, what should it cost?",
    ),
    "01_baseline": Experiment(
        baseline, "the dense baseline", "Is our dense ResNet-18 as good as the field's?"
    ),
    PILOT: Experiment(pilot, "the pilot", "Which learning rate and batch size suits each arm?"),
    "02_all_layers": Experiment(
        all_layers, "accuracy against training time",
        "Basis filters in all layers against dense of the same time?",
    ),
    "02b_widths": Experiment(
        widths, "the best width", "And with the network's width free to choose?"
    ),
    "03_sensitivity": Experiment(
        sensitivity, "the sensitivity of single layers",
        "Which single layers hurt, and how sure is the ranking?",
    ),
    "04_selection": Experiment(
        selection, "the selected subset", "Does choosing layers by sensitivity beat chance?"
    ),
    "05_skip_training": Experiment(
        skip_training, "skip training",
        "Basis first and dense later, or the reverse: when to switch?",
    ),
    "05b_defaults": Experiment(
        defaults, "our defaults", "What is each choice worth that the paper leaves open?"
    ),
    "06_timing": Experiment(timing, "timing", "How much of the saving does the clock see?"),
    "07_search": Experiment(
        search, "screening instead of a sweep", "Which layers hurt, from fewer trainings?"
    ),
    "08_ranks": Experiment(
        ranks, "a number for each layer", "One share of filters for all, or a number for each?"
    ),
    trained.NAME: Experiment(
        trained,
        "trained networks made faster",
        "How fast does a trained network get, against pruning and other decompositions?",
    ),
    generalisation.NAME: Experiment(
        generalisation,
        "other data and networks",
        "Does it hold on other data and in other networks?",
    ),
    "10_claims": Experiment(claims, "the claims", "What of the paper holds?"),
}  # fmt: skip
"""By name, in the order of notebooks, paper and README."""

NOTEBOOKS: tuple[str, ...] = tuple(EXPERIMENTS)

TRAINED: tuple[str, ...] = tuple(
    sorted(
        (name for name, e in EXPERIMENTS.items() if hasattr(e.module, "draft")),
        key=lambda name: name != PILOT,
    )
)
"""Those with Runs, in the order in which they are trained: the pilot first, for the others'
settings come from it."""

_fields: dict[str, Any] = {
    e.report: (e.module.Parameters, Field(alias=name)) for name, e in EXPERIMENTS.items()
}
Notebooks: Any = create_model("Notebooks", __base__=Strict, **_fields)
"""The parameters of all experiments: a field for each module, its alias the notebook's name."""


def draft(study: Study, name: str, parameters: Mapping[str, Any] | None = None) -> Draft:
    """A notebook's arms and Runs, nothing trained.

    Args:
        study: the profile's study.
        name: the notebook, one of `TRAINED`.
        parameters: the notebook's parameters; the profile's by default.

    Raises:
        ValueError: for an unknown notebook or parameters that do not fit.
        Waiting: if it builds on another's records and these are missing.
    """
    given = study.profile.parameters(name) if parameters is None else dict(parameters)
    made: Draft = EXPERIMENTS[name].module.draft(study, check_parameters(name, given))
    return made


def runs_with_kept_weights(study: Study) -> frozenset[str]:
    """Ids of the Runs whose final weights stay, by the profile's `keep_weights`.

    Raises:
        ValueError: for a label that no arm of its notebook has.
        Waiting: as `draft`.
    """
    kept = set[str]()
    for name, labels in study.profile.keep_weights.items():
        arms = draft(study, name).arms
        known = dict.fromkeys(arm.label for arm in arms)
        if unknown := [label for label in labels if label not in known]:
            raise ValueError(
                f"keep_weights of profile {study.profile.name!r} names {unknown}, and {name} has "
                f"no such arm: {'; '.join(known)}."
            )
        kept.update(run_id for arm in arms if arm.label in labels for run_id in arm.run_ids)
    return frozenset(kept)


def check_parameters(notebook: str, parameters: dict[str, Any]) -> BaseModel:
    """The validated parameters of one notebook.

    Raises:
        ValueError: naming each parameter that is unknown, missing or unfit.
    """
    check_known(notebook)
    kind: TypeAdapter[Any] = TypeAdapter(EXPERIMENTS[notebook].module.Parameters)
    try:
        checked: BaseModel = kind.validate_python(parameters)
        return checked
    except ValidationError as error:
        raise ValueError(f"Parameters of {notebook}: {mistakes(error, notebook)}.") from None


def check_known(notebook: str) -> None:
    """Raise ValueError unless there is such a notebook."""
    if notebook not in EXPERIMENTS:
        raise ValueError(f"There is no notebook {notebook!r}. Notebooks: {', '.join(NOTEBOOKS)}.")

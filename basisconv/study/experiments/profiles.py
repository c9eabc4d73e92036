"""Profiles: the YAML files that say how large a reproduction is, validated.

A profile has settings that all of its Runs share and, under `notebooks`, the parameters of each
notebook (`basisconv.study.experiments.parameters`).
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError, model_validator

from basisconv.study.execution.workers import Executor
from basisconv.study.experiments.parameters import PILOT, Positive, Share, Strict, mistakes
from basisconv.study.experiments.registry import NOTEBOOKS, Notebooks, check_known
from basisconv.study.records.environment import ROOT
from basisconv.study.records.run import Count, DataName, Kind, Optimizer, Precision

FOLDER = ROOT / "profiles"
BASE = "base"
"""The file of what profiles have unless they say otherwise."""


class Training(Strict):
    """What all Runs of a profile share; the names are those of `Run`."""

    batch_size: Count
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    optimizer: Optimizer = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    factor_lr_ratio: Positive = 1.0


class Recipe(Training):
    """How all arms are trained under one optimizer; `learning_rates` are those of kinds apart."""

    learning_rates: dict[Kind, Positive] = {}

    def of(self, kind: Kind) -> dict[str, Any]:
        """The settings of one kind of arm."""
        rate = self.learning_rates.get(kind, self.learning_rate)
        return self.model_dump(exclude={"learning_rates"}) | {"learning_rate": rate}


class Tuning(Strict):
    """What is tuned for one kind of arm at one time budget."""

    learning_rate: Positive
    batch_size: Count


class Seeds(Strict):
    """Three kinds of seeds, kept apart: of the pilot, of exploring and of confirming Runs.

    The first two see validation images alone; the last read the test set.
    """

    pilot: Annotated[list[int], Field(min_length=1)]
    explore: Annotated[list[int], Field(min_length=1)]
    confirm: Annotated[list[int], Field(min_length=1)]

    @model_validator(mode="after")
    def _train_without_store(self) -> Seeds:
        every = self.pilot + self.explore + self.confirm
        twice = sorted({seed for seed in every if every.count(seed) > 1})
        if twice:
            raise ValueError(
                f"seeds {twice} are listed twice; pilot, explore and confirm share none"
            )
        return self


class Profile(Strict):
    """One size of the reproduction.

    Attributes:
        name: as the file's.
        about: one sentence on where it runs and for how long.
        data: the data set.
        train_images: how many of its training images are used; null for all.
        network: see `basisconv.study.training.models.build`.
        width: channels of the first stage.
        precision: "float32", "tf32" or "bfloat16".
        compile: whether networks are compiled.
        threads: CPU threads of one Run.
        workers: Runs trained side by side by local processes.
        executor: "local" for those processes, "ray" for a cluster; no result depends on it.
        gpu_per_run: the share of a GPU that Ray gives to one Run, where there are GPUs.
        budget_batch: time budgets are counted in epochs of dense at this batch size.
        costs: what a training step costs: "table" for the measured one next to the published
            records, "macs" for executed MACs where nothing was measured.
        preliminary: results are marked as such and settle no claim.
        dense_step_ms: milliseconds of the step that costs 1, in one worker with the others
            running, from which hours are estimated; null where it was not measured.
        training: settings of all Runs.
        recipes: settings to train with instead, by the optimizer's name, where both are compared.
        tuned: learning rate and batch size of each kind of arm, by the budgets at which they were
            tuned; {} where all arms have those of `training`.
        seeds: those of the pilot, and which explore and which confirm.
        confirm: the notebooks whose Runs read the test set, on the confirming seeds.
        keep_weights: by notebook the labels of arms whose Runs' final weights stay in the working
            store, whichever notebook trains them.
        notebooks: each notebook's parameters.
    """

    name: str
    about: str
    data: DataName
    train_images: Count | None
    network: Literal["resnet18", "resnet50", "vgg16_bn"]
    width: Count
    precision: Precision
    compile: bool
    threads: Count
    workers: Count
    executor: Executor
    gpu_per_run: Share
    budget_batch: Count
    costs: Literal["macs", "table"]
    preliminary: bool
    dense_step_ms: Positive | None
    training: Training
    recipes: dict[Optimizer, Recipe] = {}
    tuned: dict[Kind, Annotated[dict[Positive, Tuning], Field(min_length=1)]]
    seeds: Seeds
    confirm: list[str]
    keep_weights: dict[str, list[str]]
    notebooks: Notebooks  # type: ignore[valid-type]  # made from the registry

    @model_validator(mode="after")
    def _known_notebooks(self) -> Profile:
        for key in ("confirm", "keep_weights"):
            if unknown := [n for n in getattr(self, key) if n not in NOTEBOOKS]:
                known = ", ".join(NOTEBOOKS)
                raise ValueError(f"{key} names {unknown}; the notebooks are {known}")
        if PILOT in self.confirm:
            raise ValueError(f"confirm names {PILOT}, which sees validation images alone")
        return self

    @model_validator(mode="after")
    def _tuned_as_hard(self) -> Profile:
        lacking = [kind for kind in get_args(Kind) if kind not in self.tuned]
        if self.tuned and lacking:
            raise ValueError(
                f"tuned has nothing for {', '.join(lacking)}: tune every kind of arm, or none, "
                "or those that were would be favoured"
            )
        if len({frozenset(budgets) for budgets in self.tuned.values()}) > 1:
            raise ValueError("tuned has other budgets for some kinds of arm than for others")
        return self

    def parameters(self, notebook: str) -> dict[str, Any]:
        """One notebook's parameters, by name.

        Raises:
            ValueError: for an unknown notebook.
        """
        check_known(notebook)
        every: dict[str, Any] = self.notebooks.model_dump(by_alias=True)
        return dict(every[notebook])


def names() -> list[str]:
    """The profiles that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != BASE)


@lru_cache
def load_profile(name: str, changes: tuple[str, ...] = ()) -> Profile:
    """Read and validate a profile.

    Args:
        name: a file in `profiles/` without its ending; what it does not say is base's.
        changes: "key=value" or "a.b=value" with the value in YAML, laid over the file.

    Raises:
        ValueError: for an unknown profile, an unknown, missing or unfit setting; the message
            names each.
    """
    base, path = FOLDER / f"{BASE}.yaml", FOLDER / f"{name}.yaml"
    if name not in names():
        raise ValueError(f"There is no profile {name!r}. Profiles: {', '.join(names())}.")
    shared, own = (_yaml(p.read_text(encoding="utf-8"), p.name) for p in (base, path))
    values = _over(shared, own)
    for change in changes:
        _lay_over(values, change)
    try:
        profile = Profile.model_validate(values)
    except ValidationError as error:
        laid = f" with {', '.join(changes)}" if changes else ""
        raise ValueError(
            f"{path.name}{laid} is not a profile: {mistakes(error, 'profile')}."
        ) from None
    if profile.name != name:
        raise ValueError(f"{path.name} calls itself {profile.name!r}; name it {name!r}.")
    return profile


def _over(shared: Any, own: Any) -> Any:
    """A profile's own values over those that all share; mappings are merged, key by key."""
    if not (isinstance(shared, dict) and isinstance(own, dict)):
        return own
    merged = {key: _over(value, own[key]) if key in own else value for key, value in shared.items()}
    return merged | {key: value for key, value in own.items() if key not in shared}


def _lay_over(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals:
        raise ValueError(f"{change!r} is not key=value.")
    *parents, last = key.split(".")
    here: Any = values
    for name in [*parents, last]:
        if not isinstance(here, dict) or name not in here:
            near = get_close_matches(key, _keys(values), n=1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"The profile has no setting {key!r}.{meant}")
        here, holder = here[name], here
    holder[last] = _yaml(text, change)


def _keys(values: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of all settings."""
    found = []
    for name, value in values.items():
        found.append(prefix + name)
        if isinstance(value, dict):
            found += _keys(value, f"{prefix}{name}.")
    return found


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not YAML: {error}") from None

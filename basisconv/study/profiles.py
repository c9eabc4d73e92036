"""Profiles: the YAML files that say how large a reproduction is, validated.

A profile has settings that all of its Runs share and, under `notebooks`, the parameters of each
notebook. What a notebook's parameters may be stands here once; the notebook's own `parameters`
cell repeats the smoke profile's values, and a test holds the two together.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from basisconv.study.environment import ROOT
from basisconv.study.workers import Executor

FOLDER = ROOT / "profiles"
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Method(_Strict):
    """00_method: the cost of each layer at one ratio."""

    ratio: Share


class Baseline(_Strict):
    """01_baseline: dense, trained for the longest budget."""

    epochs: Positive


class AllLayers(_Strict):
    """02_all_layers: the frontier, accuracy over training time.

    `ratios` are the shares of basis filters in all layers, `ratio` that of the arms with a
    single one (first five, skip, the narrower dense network of equal step time).
    """

    budgets: Annotated[list[Positive], Field(min_length=1)]
    ratios: Annotated[list[Share], Field(min_length=1)]
    ratio: Share
    skip_switch: Share


class Sensitivity(_Strict):
    """03_sensitivity: one layer at a time."""

    ratio: Share
    epochs: Positive


class Selection(_Strict):
    """04_selection: the selected subset and its controls.

    `loss_share` is the budget of predicted loss, as a share of what all layers together are
    predicted to cost; `threshold` is in nats of validation cross-entropy.
    """

    ratio: Share
    budget: Positive
    loss_share: Annotated[float, Field(ge=0, le=1)]
    threshold: float
    save: Literal["time", "macs", "parameters"]
    draws: Count


class SkipTraining(_Strict):
    """05_skip_training: `switches` are shares of the training time spent in the first form."""

    ratio: Share
    budget: Positive
    switches: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)]
    carries: Annotated[list[Literal["exact", "reinit"]], Field(min_length=1)]
    momentum: list[Literal["fresh", "carried"]]
    schedules: list[Literal["one", "restart"]]


class Timing(_Strict):
    """06_timing: `widths` are those of the networks, `repeats` the interleaved turns.

    `devices` is "this" to time the profile's network here, or "all" to show what `make bench`
    has kept of every machine (and to run it where there is nothing yet).
    """

    devices: Literal["this", "all"]
    ratios: Annotated[list[Share], Field(min_length=1)]
    widths: Annotated[list[Count], Field(min_length=1)]
    batch_size: Count
    repeats: Count


class Claims(_Strict):
    """10_claims has nothing to set."""


class Notebooks(_Strict):
    """The parameters of every notebook, in the order that they run in."""

    method: Method = Field(alias="00_method")
    baseline: Baseline = Field(alias="01_baseline")
    all_layers: AllLayers = Field(alias="02_all_layers")
    sensitivity: Sensitivity = Field(alias="03_sensitivity")
    selection: Selection = Field(alias="04_selection")
    skip_training: SkipTraining = Field(alias="05_skip_training")
    timing: Timing = Field(alias="06_timing")
    claims: Claims = Field(alias="10_claims")


NOTEBOOKS: tuple[str, ...] = tuple(
    cast("str", field.alias) for field in Notebooks.model_fields.values()
)


class Training(_Strict):
    """What all Runs of a profile share; the names are those of `basisconv.study.run.Run`."""

    batch_size: Count
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    warmup: Annotated[float, Field(ge=0, lt=1)]


class Seeds(_Strict):
    """Seeds that explore (validation only) and, kept apart, seeds that confirm (test set)."""

    explore: Annotated[list[int], Field(min_length=1)]
    confirm: Annotated[list[int], Field(min_length=1)]

    @model_validator(mode="after")
    def _apart(self) -> Seeds:
        both = set(self.explore) & set(self.confirm)
        if both:
            raise ValueError(f"seeds {sorted(both)} both explore and confirm")
        if len(set(self.explore)) < len(self.explore) or len(set(self.confirm)) < len(self.confirm):
            raise ValueError("a seed is listed twice")
        return self


class Profile(_Strict):
    """One size of the reproduction.

    Attributes:
        name: as the file's.
        about: one sentence on where it runs and for how long.
        data: the data set.
        train_images: how many of its training images are used; null for all.
        network: see `basisconv.study.models.build`.
        width: channels of the first stage.
        precision: "float32", "tf32" or "bfloat16".
        compile: whether networks are compiled.
        threads: CPU threads of one Run.
        workers: Runs trained side by side by local processes.
        executor: "local" for those processes, "ray" for a cluster; no result depends on it.
        gpu_per_run: the share of a GPU that Ray gives to one Run, where there are GPUs.
        budget_batch: time budgets are told in epochs of dense at this batch size, whatever an
            arm's own is.
        costs: what a training step costs: "table" for the measured one beside the published
            records, "macs" for executed MACs where nothing was measured.
        preliminary: results are marked as such and settle no claim.
        training: settings of all Runs.
        seeds: which explore and which confirm.
        confirm: the notebooks whose Runs read the test set, on the confirming seeds.
        notebooks: each notebook's parameters.
    """

    name: str
    about: str
    data: Literal["cifar10", "cifar10-sample", "cifar100"]
    train_images: Count | None
    network: Literal["resnet18", "resnet50", "vgg16_bn"]
    width: Count
    precision: Literal["float32", "tf32", "bfloat16"]
    compile: bool
    threads: Count
    workers: Count
    executor: Executor
    gpu_per_run: Share
    budget_batch: Count
    costs: Literal["macs", "table"]
    preliminary: bool
    training: Training
    seeds: Seeds
    confirm: list[str]
    notebooks: Notebooks

    @model_validator(mode="after")
    def _known_notebooks(self) -> Profile:
        unknown = [n for n in self.confirm if n not in NOTEBOOKS]
        if unknown:
            raise ValueError(f"confirm names {unknown}; the notebooks are {', '.join(NOTEBOOKS)}")
        return self

    def parameters(self, notebook: str) -> dict[str, Any]:
        """One notebook's parameters, by name.

        Raises:
            ValueError: for an unknown notebook.
        """
        _check_known(notebook)
        every: dict[str, Any] = self.notebooks.model_dump(by_alias=True)
        return dict(every[notebook])


def names() -> list[str]:
    """The profiles that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@lru_cache
def load_profile(name: str, changes: tuple[str, ...] = ()) -> Profile:
    """Read and validate a profile.

    Args:
        name: a file in `profiles/` without its ending.
        changes: "key=value" or "a.b=value" with the value in YAML, laid over the file.

    Raises:
        ValueError: for an unknown profile, an unknown, missing or unfit setting; the message
            names each.
    """
    path = FOLDER / f"{name}.yaml"
    if name not in names():
        raise ValueError(f"There is no profile {name!r}. Profiles: {', '.join(names())}.")
    values = _yaml(path.read_text(encoding="utf-8"), path.name)
    for change in changes:
        _lay_over(values, change)
    try:
        profile = Profile.model_validate(values)
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'profile'}: {e['msg']}" for e in error.errors()
        )
        laid = f" with {', '.join(changes)}" if changes else ""
        raise ValueError(f"{path.name}{laid} is not a profile: {told}.") from None
    if profile.name != name:
        raise ValueError(f"{path.name} calls itself {profile.name!r}; name it {name!r}.")
    return profile


def check_parameters(notebook: str, parameters: dict[str, Any]) -> BaseModel:
    """The validated parameters of one notebook.

    Raises:
        ValueError: naming each parameter that is unknown, missing or unfit.
    """
    _check_known(notebook)
    kinds = {f.alias: f.annotation for f in Notebooks.model_fields.values()}
    kind = cast("type[BaseModel]", kinds[notebook])
    try:
        return kind.model_validate(parameters)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"Parameters of {notebook}: {told}.") from None


def _check_known(notebook: str) -> None:
    if notebook not in NOTEBOOKS:
        raise ValueError(f"There is no notebook {notebook!r}. Notebooks: {', '.join(NOTEBOOKS)}.")


def _lay_over(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals:
        raise ValueError(f"{change!r} is not key=value.")
    *parents, last = key.split(".")
    here: Any = values
    for name in [*parents, last]:
        if not isinstance(here, dict) or name not in here:
            raise ValueError(f"The profile has no setting {key!r}.")
        here, holder = here[name], here
    holder[last] = _yaml(text, change)


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not YAML: {error}") from None

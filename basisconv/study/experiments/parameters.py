"""What each notebook's parameters may be.

Their values stand in the profiles; a notebook's own `parameters` cell repeats those of the smoke
profile, and a test holds the two together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from basisconv.study.records.run import Carry, Count, MomentumCarry, Optimizer, Schedule

Share = Annotated[float, Field(gt=0, le=1)]
Switch = Annotated[float, Field(gt=0, lt=1)]  # the share of the time in the first of two forms
Positive = Annotated[float, Field(gt=0)]
Direction = Literal["basis→dense", "dense→basis"]


class Strict(BaseModel):
    """Base of all settings: frozen, unknown ones refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Method(Strict):
    """00_method: the cost of each layer at one ratio."""

    ratio: Share


class Baseline(Strict):
    """01_baseline: dense, trained for the longest budget."""

    epochs: Positive


class Skip(Strict):
    """A way to train in two forms: `switch` is the share of the training time in the first."""

    direction: Direction
    switch: Switch
    carry: Carry
    momentum_carry: MomentumCarry
    schedule: Schedule

    @property
    def label(self) -> str:
        """What tables call it: as in "basis→dense at 0.75"."""
        return f"{self.direction} at {self.switch:g}"


class Comparison(Strict):
    """Arms of one length under one recipe, by their short names, each with its number of seeds.

    The length is in epochs where all take dense's steps, and in the time of so many dense epochs
    where all take the same time. `threads` are those of a Run: longer ones have more.
    """

    recipe: Optimizer
    length: Positive
    threads: Count
    arms: Annotated[dict[str, Count], Field(min_length=1)]


class Comparisons(Strict):
    """02_all_layers: arms compared at equal epochs and at equal time; see `named_arms`.

    `ratio` is the share of basis filters of skip training and of the selected layers.
    """

    ratio: Share
    selected: list[str]
    equal_epochs: list[Comparison]
    equal_time: list[Comparison]


class AllLayers(Strict):
    """02_all_layers: the frontier, accuracy over training time.

    `ratios` are the shares of basis filters in all layers at every budget, `ratio` that of the
    arms with a single one. At `extra_budget` stand the arms that have one budget alone:
    `extra_ratios`, and the narrower dense network of equal parameters. `narrow_width` is the
    narrower dense network's at every budget, null for that whose step costs what a basis step does.
    `equal_steps` are shares of basis filters in all layers that train for dense's steps of that
    budget instead, whatever time that is. `dense_budgets` are dense's alone, to bracket a speed-up
    more closely. `selected` (layers) and
    `best_skip` are what 04 and 05 have named, on exploring seeds; empty and null before.
    """

    budgets: Annotated[list[Positive], Field(min_length=1)]
    ratios: Annotated[list[Share], Field(min_length=1)]
    ratio: Share
    skip_switch: Switch
    extra_budget: Positive
    extra_ratios: list[Share]
    equal_steps: Annotated[list[Share], Field(min_length=1)]
    dense_budgets: list[Positive]
    narrow_width: Count | None
    selected: list[str]
    best_skip: Skip | None


class Widths(Strict):
    """02b_widths: dense, all layers and one skip training at several widths.

    Budgets are told in dense epochs at the profile's width, whatever an arm's own is.
    """

    widths: Annotated[list[Count], Field(min_length=1)]
    budgets: Annotated[list[Positive], Field(min_length=1)]
    ratio: Share
    skip: Skip


class Sensitivity(Strict):
    """03_sensitivity: one layer at a time, `epochs` passes over the training images.

    `train_images` and `width` are the profile's where they are null.
    """

    ratio: Share
    epochs: Positive
    train_images: Count | None
    width: Count | None


class CandidateSweep(Sensitivity):
    """A setting that 03 might take, tried on some of the layers (null for all)."""

    layers: Annotated[list[str], Field(min_length=2)] | None
    seeds: Annotated[int, Field(ge=2)]


class Grid(Strict):
    """Recipes tried at one length: every combination, for each kind of arm.

    `width` is the profile's where it is null. `learning_rates` are those tried of each optimizer;
    its other settings are those of the profile's recipe. `factor_lr_ratios` are Muon's of basis
    arms. All arms take `epochs` passes over the training images, whatever time that is.
    """

    width: Count | None
    epochs: Positive
    kinds: Annotated[list[Literal["dense", "basis", "narrow"]], Field(min_length=1)]
    learning_rates: dict[Optimizer, Annotated[list[Positive], Field(min_length=1)]]
    factor_lr_ratios: Annotated[list[Positive], Field(min_length=1)]
    batch_sizes: Annotated[list[Count], Field(min_length=1)]
    label_smoothings: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=1)]
    seeds: Count


class Pilot(Strict):
    """01b_pilot: what the other notebooks' settings are chosen by; validation alone.

    `train_images` are those of the grid and of the spread, and budgets are told in dense epochs
    of that part. The grid is `learning_rates` by `batch_sizes`, for each kind of arm at each of
    `budgets`; the spread over `spread_seeds` is that of the profile's own settings at
    `spread_budget`; `sweeps` are settings that 03 might take; `recipes` are grids at equal epochs.
    """

    train_images: Count | None
    ratio: Share
    skip_switch: Switch
    budgets: list[Positive]
    learning_rates: list[Positive]
    batch_sizes: list[Count]
    grid_seeds: Count
    spread_budget: Positive
    spread_seeds: Annotated[int, Field(ge=0)]
    sweeps: list[CandidateSweep]
    recipes: list[Grid] = []


class Selection(Strict):
    """04_selection: the selected subset and its controls, `draws` random ones of a run each.

    `loss_share` is the budget of predicted loss, as a share of what all layers together are
    predicted to cost; `threshold` is in nats of validation cross-entropy.
    """

    ratio: Share
    budget: Positive
    loss_share: Annotated[float, Field(ge=0, le=1)]
    threshold: float
    save: Literal["time", "macs", "parameters"]
    draws: Count


class SkipTraining(Strict):
    """05_skip_training: `switches` are shares of the training time spent in the first form.

    `train_images` are the profile's where they are null, and budgets are told in dense epochs
    of them; `seeds` is how many of the profile's are taken, null for all.
    """

    ratio: Share
    budget: Positive
    switches: Annotated[list[Switch], Field(min_length=1)]
    carries: Annotated[list[Carry], Field(min_length=1)]
    momentum: list[MomentumCarry]
    schedules: list[Schedule]
    train_images: Count | None
    seeds: Count | None


class Defaults(Strict):
    """05b_defaults: one choice changed at a time; `train_images` and `seeds` as in 05.

    Smaller coefficient matrices are tried in both forms: the subset form saves parameters by
    them, the full form time as well.
    """

    ratio: Share
    budget: Positive
    coef_groups: list[Annotated[int, Field(ge=2)]]
    coef_ranks: list[Count]
    inits: list[Literal["svd", "qr"]]
    train_images: Count | None
    seeds: Count | None


class Timing(Strict):
    """06_timing: `widths` are those of the networks, `repeats` the interleaved turns.

    `devices` is "this" to time the profile's network here, or "all" to show what `make bench`
    has kept of every machine (and to run it where there is nothing yet).
    """

    devices: Literal["this", "all"]
    ratios: Annotated[list[Share], Field(min_length=1)]
    widths: Annotated[list[Count], Field(min_length=1)]
    batch_size: Count
    repeats: Count


class Claims(Strict):
    """10_claims has nothing to set."""


# Until desk's second edition takes the first one's place.
_EDITIONS = ("first edition", "second edition")
EitherEdition = Annotated[
    Annotated[AllLayers, Tag(_EDITIONS[0])] | Annotated[Comparisons, Tag(_EDITIONS[1])],
    Discriminator(lambda v: _EDITIONS["equal_time" in (v if isinstance(v, dict) else dir(v))]),
]


class Notebooks(Strict):
    """The parameters of every notebook, in the order that they run in."""

    method: Method = Field(alias="00_method")
    baseline: Baseline = Field(alias="01_baseline")
    pilot: Pilot = Field(alias="01b_pilot")
    all_layers: EitherEdition = Field(alias="02_all_layers")
    widths: Widths = Field(alias="02b_widths")
    sensitivity: Sensitivity = Field(alias="03_sensitivity")
    selection: Selection = Field(alias="04_selection")
    skip_training: SkipTraining = Field(alias="05_skip_training")
    defaults: Defaults = Field(alias="05b_defaults")
    timing: Timing = Field(alias="06_timing")
    claims: Claims = Field(alias="10_claims")


NOTEBOOKS: tuple[str, ...] = tuple(
    cast("str", field.alias) for field in Notebooks.model_fields.values()
)
PILOT = "01b_pilot"


def check_parameters(notebook: str, parameters: dict[str, Any]) -> BaseModel:
    """The validated parameters of one notebook.

    Raises:
        ValueError: naming each parameter that is unknown, missing or unfit.
    """
    check_known(notebook)
    kinds: dict[str | None, Any] = {f.alias: f.annotation for f in Notebooks.model_fields.values()}
    try:
        kind: TypeAdapter[Any] = TypeAdapter(kinds[notebook])
        checked: BaseModel = kind.validate_python(parameters)
        return checked
    except ValidationError as error:
        raise ValueError(f"Parameters of {notebook}: {mistakes(error, notebook)}.") from None


def check_known(notebook: str) -> None:
    """Raise ValueError unless there is such a notebook."""
    if notebook not in NOTEBOOKS:
        raise ValueError(f"There is no notebook {notebook!r}. Notebooks: {', '.join(NOTEBOOKS)}.")


def mistakes(error: ValidationError, whole: str) -> str:
    """Every mistake of a validation with its place; `whole` is what the settings are of."""
    places = [".".join(str(p) for p in e["loc"] if p not in _EDITIONS) for e in error.errors()]
    return "; ".join(
        f"{place or whole}: {e['msg']}" for place, e in zip(places, error.errors(), strict=True)
    )

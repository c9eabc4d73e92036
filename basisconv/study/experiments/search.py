"""07: which layers hurt, from a screening design or cheaper, instead of a sweep?

It comes in two parts. The screening, and a short dense run, can be trained at once. What the ways
to score layers choose is trained once their records and those of 03 and 04 are there; what was
trained for 04 is what predictions are held against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from basisconv.cost import Summary
from basisconv.effects import Effects, effects
from basisconv.plan import Plan
from basisconv.screening import screening
from basisconv.study.experiments import layer_scores, proxies, selection, sensitivity
from basisconv.study.experiments.design import Draft, Waiting
from basisconv.study.experiments.parameters import Positive, Share, Strict
from basisconv.study.experiments.sensitivity import savings, swept_layers
from basisconv.study.records.run import Arm, Count, Method, Record, Run
from basisconv.study.timing.costs import Unmeasured

if TYPE_CHECKING:
    from basisconv.study.experiments.study import Study

NAME = "07_search"
WARM_UP = "warm-up"
"""The arm whose final weights stay: see `keep_weights` of the profiles."""
REFERENCE = "last layers"
"""The arm that choices are held against."""


class Parameters(Strict):
    """A screening of the layers that 03 sweeps: `runs` networks, each with a level in every layer.

    `levels` are shares of basis filters, the first one is 1, dense. `blocks` are the first so many
    exploring seeds, among which the runs are divided. All train for `epochs`. A dense network of
    the first seed trains for `warm_up` epochs, from whose weights cheap scores are computed, on so
    many `images`. Each way to score layers chooses the subset that is to take `target_time`, a
    share of dense's, at 04's share of basis filters; it is trained as the screening is, and on the
    confirming seeds.
    """

    levels: Annotated[list[Share], Field(min_length=2)]
    runs: Count
    blocks: Count
    epochs: Positive
    warm_up: Positive
    images: Count
    target_time: Share

    @field_validator("levels")
    @classmethod
    def _from_dense_down(cls, levels: list[float]) -> list[float]:
        if levels[0] != 1 or any(a <= b for a, b in pairwise(levels)):
            raise ValueError("begin with 1, the dense layer, and descend")
        return levels


def draft(study: Study, parameters: Parameters) -> Draft:
    """07: the runs of the screening design, and what each way to score layers chooses.

    All take as many steps, whatever these cost. The choices are there once all that they rest on
    is; until then `waits` says for what.
    """
    result = Draft(NAME, study, parameters.model_dump())
    _add_screening(result, parameters)
    result.facts["measured"] = _key(result, parameters)
    try:
        evidence = _evidence(study)
        screened = screening_scores(study, parameters, result)
        cheap = cheap_scores(study, parameters, result)
    except Waiting as waiting:
        result.waits = str(waiting)
        return result
    for arm in evidence.arms:
        detail = {**arm.detail, "part": "evidence"}
        result.arms.append(arm.model_copy(update={"detail": detail}))
    result.runs |= evidence.runs
    _add_choices(result, parameters, screened, cheap)
    return result


def measure(study: Study, parameters: Parameters, stop: Callable[[], bool]) -> bool:
    """Compute the scores that need the weights of the short dense run, unless they are kept.

    Returns:
        Whether they are there; none are begun once `stop` says so.
    """
    wanted = _measured_of(_screening_of(study, parameters), parameters)
    if study.store.measured(layer_scores.key_of(*wanted)) is None:
        if stop():
            return False
        layer_scores.measure(study, *wanted)
    return True


def screening_scores(
    study: Study, parameters: Parameters, made: Draft | None = None
) -> proxies.Scores:
    """The rise of log loss of each layer on each level, from the records of the screening.

    Raises:
        Waiting: if a Run of it is missing or failed.
    """
    made = made or _screening_of(study, parameters)
    own = [arm for arm in made.arms if arm.detail.get("part") == "screening"]
    return screened_effects(own, made.records(own)).scores()


def cheap_scores(
    study: Study, parameters: Parameters, made: Draft | None = None
) -> dict[str, proxies.Scores]:
    """The scores that `measure` has computed.

    Raises:
        Waiting: if it has not.
    """
    made = made or _screening_of(study, parameters)
    found = layer_scores.measured(study, _key(made, parameters))
    if found is None:
        raise Waiting(NAME)
    return found


def _screening_of(study: Study, parameters: Parameters) -> Draft:
    made = Draft(NAME, study)
    _add_screening(made, parameters)
    return made


def _measured_of(made: Draft, parameters: Parameters) -> tuple[Run, dict[str, list[int]], int]:
    """The run, the numbers of filters and the number of images that cheap scores are of."""
    (arm,) = (arm for arm in made.arms if arm.label == WARM_UP)
    numbers = layer_scores.numbers_of(outputs(made.study), parameters.levels)
    return made.runs[arm.run_ids[0]], numbers, parameters.images


def _key(made: Draft, parameters: Parameters) -> str:
    return layer_scores.key_of(*_measured_of(made, parameters))


def _evidence(study: Study) -> Draft:
    """04, all of whose runs are trained.

    Raises:
        Waiting: if they are not.
    """
    try:
        made = selection.draft(study, study.profile.notebooks.selection)
    except Unmeasured:  # then none of its Runs can have been sized
        raise Waiting("04_selection") from None
    made.records(made.arms)
    return made


def _add_choices(
    result: Draft,
    parameters: Parameters,
    screened: proxies.Scores,
    cheap: Mapping[str, proxies.Scores],
) -> None:
    """Add the subset that each way to score layers chooses, and the one to hold them against.

    The reference is named by a rule that asks for no training: the last layers, as many as the
    target time wants.
    """
    study, notebooks = result.study, result.study.profile.notebooks
    every = study.plan(notebooks.selection.ratio, list(outputs(study)))
    batch: int = study.settings("selected", parameters.epochs)["batch_size"]
    time = savings(study, every, "time", batch_size=batch)
    steps = max(1, round(parameters.epochs * (study.train_images // batch)))
    scores = {
        "screening": layer_scores.at(screened, every),
        "sweep": sensitivity.scores(study),
        **{way: layer_scores.at(own, every) for way, own in cheap.items()},
        **layer_scores.known(study, every, batch),
    }
    seeds = study.seeds("03_sensitivity", notebooks.sensitivity.seeds)
    passes = {  # over the training images
        "screening": parameters.runs * parameters.epochs,
        "sweep": (1 + len(every.layers)) * len(seeds) * notebooks.sensitivity.epochs,
        **dict.fromkeys(cheap, parameters.warm_up),
    }
    result.facts["scores"] = scores
    result.facts["trainings"] = {way: passes.get(way, 0.0) / parameters.epochs for way in scores}

    def add(way: str, plan: Plan) -> None:
        predicted = 1 - sum(time[name] for name in plan.layers)
        result.add(
            f"chosen by {way}" if way != REFERENCE else way, "selected", plan, parameters.epochs,
            steps=steps,
            detail={"part": "choice", "way": way, "layers": list(plan.layers),
                    "predicted_time": predicted},
        )  # fmt: skip

    last = list(every.layers)
    while len(last) > 1 and 1 - sum(time[n] for n in last[1:]) <= parameters.target_time:
        last = last[1:]
    add(REFERENCE, every.only(last))
    for way, own in scores.items():
        if way != "chance":  # 04's random subsets are its choices
            add(way, selection.least_loss(own, time, parameters.target_time, every))


def _add_screening(result: Draft, parameters: Parameters) -> None:
    """Add the runs of the design, an arm each, in the design's order, and the short dense one."""
    study, epochs = result.study, parameters.epochs
    seeds = study.profile.seeds.explore
    if parameters.blocks > len(seeds):
        raise ValueError(
            f"{NAME} wants {parameters.blocks} blocks, and profile {study.profile.name!r} has the "
            f"exploring seeds {seeds}: list more, or ask for fewer."
        )
    settings = study.settings("selected", epochs)

    def add(
        label: str, method: Method, plan: Plan, seed: int, length: float, detail: dict[str, Any]
    ) -> None:
        steps = max(1, round(length * (study.train_images // settings["batch_size"])))
        run = study.run([(steps, plan)], seed, **settings)
        result.runs[run.run_id] = run
        arm = Arm(label=label, method=method, run_ids=(run.run_id,), budget=length, detail=detail)
        result.arms.append(arm)

    plans, blocks = screening(outputs(study), parameters.levels, parameters.runs, parameters.blocks)
    for number, (plan, block) in enumerate(zip(plans, blocks, strict=True), start=1):
        detail = {"part": "screening", "block": block, "layers": dict(plan.layers)}
        add(f"run {number}", "selected", plan, seeds[block], epochs, detail)
    add(WARM_UP, "dense", Plan(), seeds[0], parameters.warm_up, {"part": WARM_UP})


def outputs(study: Study) -> dict[str, int]:
    """The layers that are screened, those that 03 sweeps, with their numbers of outputs."""
    dense: Summary = study.network_costs(Plan())
    swept = swept_layers(study, study.profile.notebooks.sensitivity)
    return {name: dense[name].output_shape[1] for name in swept}


def screened_effects(arms: list[Arm], records: Mapping[str, Record]) -> Effects:
    """What each layer costs, from the finished runs of a screening's arms.

    Raises:
        ValueError: if these are too few: see `basisconv.effects.effects`.
    """
    plans, losses, blocks = [], [], []
    for arm in arms:
        detail = arm.detail
        if detail.get("part") != "screening":
            continue
        result = records[arm.run_ids[0]].result
        if result is not None:
            plans.append(Plan(detail["layers"]))
            losses.append(result.val_loss)
            blocks.append(detail["block"])
    return effects(plans, losses, blocks)

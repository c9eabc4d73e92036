"""Measuring a profile's cost table: what a training step of each plan costs beside dense."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from basisconv.cost import observe
from basisconv.plan import Plan
from basisconv.study.compiling import many_networks
from basisconv.study.costs import (
    MeasuredCosts,
    Step,
    add_rows,
    check_head,
    reference,
    settings,
    unmeasured,
)
from basisconv.study.data import load
from basisconv.study.environment import Unfit, device, environment, prepare
from basisconv.study.experiments import DRAFTS, draft
from basisconv.study.files import read_json
from basisconv.study.pace import Running, network, random_images, training_step, updated
from basisconv.study.precision import check_native, convolutions_in
from basisconv.study.profiles import Profile
from basisconv.study.protocol import Study, cost_table
from basisconv.timing import compare, forward_backward

# Layers timed in the same turns as the dense step; and what a measurement that is interrupted
# loses.
_AT_A_TIME = 6


def ensure_costs(study: Study, stop: Callable[[], bool] = lambda: False) -> bool:
    """Measure what a profile that wants a cost table lacks of it.

    What the Runs need besides is asked for first, for measuring may take an hour.

    Args:
        study: the profile's.
        stop: whether the time for it is over.

    Returns:
        Whether the table is complete.

    Raises:
        ValueError: if rows are lacking in a table of another device.
        Unfit: if this device only emulates the profile's precision, or cannot compile.
        MissingData: if the data are not here and cannot be fetched.
        DamagedFile: if the table is gone by which the Runs of the store's records were sized.
    """
    study.check_table()
    if study.profile.costs != "table" or not _lacking(study):
        return True
    load(study.profile.data, study.profile.train_images)
    measure_costs(study, stop=stop)
    return not _lacking(study)


def measure_costs(
    study: Study, repeats: int = 10, stop: Callable[[], bool] = lambda: False
) -> Path:
    """Add the steps of a profile's experiments that have no row yet to its cost table.

    Every step is timed in this process, beside dense and turn by turn, as the profile trains it:
    threads, precision and compilation are the Runs' own. Let nothing else run.

    A plan of a single layer saves a few hundredths of a step, less than the pace of a shared
    machine drifts between two steps. There the layer itself is timed, forward and backward on
    what it is given in the network, and the row is the dense step's less what the layer saves.

    Args:
        study: the profile's.
        repeats: turns of each.
        stop: asked before each measurement; what has no row yet is then left for another time.

    Returns:
        The table's path.

    Raises:
        ValueError: if the table is of another device or other settings.
        Unfit: if this device only emulates the profile's precision, or is to compile and cannot.
    """
    profile, path = study.profile, cost_table(study.profile.name)
    here = environment()
    head = {"device": here["device"], "device_kind": here["device_kind"], **settings(profile)}
    check_head(path, head)
    check_native(profile.precision)
    prepare(profile.threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = _lacking(study)
    single = [step for step in steps if _is_single(step)]
    with (
        many_networks(),
        convolutions_in(profile.precision),
        tqdm(desc="step times", total=len(steps)) as bar,
    ):
        unit = _training_step(profile, reference(profile))
        if profile.compile:
            _try(unit)
        for step in steps:
            if stop():
                return path
            if not _is_single(step):
                add_rows(path, head, [_network_row(profile, step, unit, repeats)])
                bar.update()
        for dense in dict.fromkeys(step._replace(plan=Plan()) for step in single):
            alike = [step for step in single if step._replace(plan=Plan()) == dense]
            cost = MeasuredCosts(read_json(path), path, profile).of(dense)
            for first in range(0, len(alike), _AT_A_TIME):
                if stop():
                    return path
                some = alike[first : first + _AT_A_TIME]
                add_rows(path, head, _layer_rows(profile, some, cost, unit, repeats))
                bar.update(len(some))
    return path


def _try(compiled_step: Callable[[], None]) -> None:
    # Runs whose network does not compile train in eager mode, but the table is of compiled steps.
    try:
        compiled_step()
    except Exception as error:
        raise Unfit(
            f"Nothing can be compiled here ({type(error).__name__}: {error}). A C compiler may be "
            "missing; compile=false does without."
        ) from error


def _network_row(
    profile: Profile, step: Step, unit: Callable[[], None], repeats: int
) -> dict[str, Any]:
    """A row of a network's step; turns of two are short, so that both meet the same pace."""
    arms = {"dense": unit, "step": _training_step(profile, step)}
    timings = compare(arms, repeats, device=device())
    faster, low, high = timings["step"].speedup_over(timings["dense"])
    return _row(step, 1 / faster, (1 / high, 1 / low))


def _layer_rows(
    profile: Profile, steps: Sequence[Step], dense: float, unit: Callable[[], None], repeats: int
) -> list[dict[str, Any]]:
    """Rows of plans of one layer in networks of one width and batch.

    Args:
        profile: how they are trained.
        steps: the plans.
        dense: what the network's dense step costs.
        unit: the step that costs 1.
        repeats: turns.
    """
    width, batch_size = steps[0].width, steps[0].batch_size
    images = random_images(batch_size)
    given = observe(network(profile.network, width, Plan()), images, (nn.Conv2d,))
    arms = {"step": unit}
    for i, step in enumerate(steps):  # of which several may name one layer
        (name,) = step.plan.layers
        basis = network(profile.network, width, step.plan).get_submodule(name)
        x = given[name].input
        # The stem's input is the images, which get no gradient.
        inner = x is not images
        for arm, layer in (("dense", given[name].module), ("basis", basis)):
            running = Running(layer, profile.precision, profile.compile)
            call = forward_backward(running, x, input_gradient=inner)
            # SGD's update of a layer takes a thousandth of a step; Muon's, a hundredth.
            arms[f"{arm} {i}"] = updated(call, running) if step.optimizer == "muon" else call
    timings = compare(arms, repeats, device=device())
    rows = []
    for i, step in enumerate(steps):
        turns = zip(
            *(timings[arm].samples for arm in ("step", f"dense {i}", f"basis {i}")),
            strict=True,
        )
        ratios = [dense - (full - ours) / whole for whole, full, ours in turns]
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
        rows.append(_row(step, middle, (low, high)))
    return rows


def _is_single(step: Step) -> bool:
    return len(step.plan.layers) == 1


def _training_step(profile: Profile, step: Step) -> Callable[[], None]:
    model = network(profile.network, step.width, step.plan)
    running = Running(model, profile.precision, profile.compile)
    return training_step(running, random_images(step.batch_size), step.optimizer)


def _row(step: Step, ratio: float, quartiles: tuple[float, float]) -> dict[str, Any]:
    row = {"plan": step.plan.to_dict(), "width": step.width, "batch_size": step.batch_size}
    if step.optimizer != "sgd":
        row["optimizer"] = step.optimizer
    return {**row, "ratio": ratio, "quartiles": list(quartiles)}


def _lacking(study: Study) -> list[Step]:
    """The steps without a row; what all ratios are to is 1 by definition and needs none."""
    lacking = unmeasured(cost_table(study.profile.name), _steps(study))
    return [step for step in lacking if step != reference(study.profile)]


def _steps(study: Study) -> list[Step]:
    """The steps that the profile's experiments train, and those that size them.

    Which steps there are does not hang on the costs, but sizing their Runs does: executed MACs
    stand in. Selected subsets get no rows, in 04 and wherever they are named, and are priced by
    those of their single layers and of all of them, always: a row that came later would change
    Runs already made.
    """
    profile = study.profile.model_copy(update={"costs": "macs"})
    study = dataclasses.replace(study, profile=profile)
    found = [draft(study, name) for name in DRAFTS if name != "04_selection"]
    trained = [
        Step(phase.plan, run.width, run.batch_size, run.optimizer)
        for made in found
        for arm in made.arms
        if arm.method != "selected"
        for run in (made.runs[run_id] for run_id in arm.run_ids)
        for phase in run.phases
    ]
    # The narrower dense network is found by its cost, and trained at any arm's batch.
    batches = dict.fromkeys([profile.training.batch_size, *(step.batch_size for step in trained)])
    notebooks = profile.notebooks
    widths = dict.fromkeys(
        width
        for ratio in (notebooks.pilot.ratio, notebooks.all_layers.ratio)
        for width in study.narrow_widths(study.plan(ratio))
    )
    kind = profile.training.optimizer
    wanted = [Step(Plan(), width, batch, kind) for batch in batches for width in widths]
    selection = notebooks.selection
    batch = study.tuned("selected", selection.budget).get("batch_size", profile.training.batch_size)
    every = study.plan(selection.ratio, study.layers)
    wanted += [
        Step(plan, profile.width, batch, kind)
        for plan in (every, *(every.only([name]) for name in study.layers))
    ]
    wanted += trained
    # The row of a single layer is its dense network's, less what the layer saves.
    return wanted + [step._replace(plan=Plan()) for step in wanted if _is_single(step)]

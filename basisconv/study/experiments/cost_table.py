"""A profile's cost table: which steps its experiments take, and measuring those without a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from basisconv.plan import Plan
from basisconv.study.data.sets import load
from basisconv.study.experiments import ranks
from basisconv.study.experiments.parameters import PILOT
from basisconv.study.experiments.registry import TRAINED, draft
from basisconv.study.experiments.sensitivity import swept_layers
from basisconv.study.experiments.study import Study, cost_table
from basisconv.study.records.run import Run
from basisconv.study.timing.cost_measurement import measure_costs
from basisconv.study.timing.costs import Step, reference_step, unmeasured_steps

_OF_SUBSETS = ("04_selection", "07_search", ranks.NAME)


def ensure_costs(
    study: Study, names: Sequence[str] = TRAINED, stop: Callable[[], bool] = lambda: False
) -> bool:
    """Measure what a profile that wants a cost table lacks of it; whether it has all of it then.

    The data are asked for first, for measuring may take an hour.

    Raises:
        MissingData: if the data are not here and cannot be fetched.
        DamagedFile: if the table is gone by which the Runs of the store's records were sized.
        ValueError, UnsuitableMachine: as `measure_table`.
    """
    study.check_table()
    if study.profile.costs != "table" or not _lacking(study, names):
        return True
    load(study.profile.data, study.profile.train_images)
    measure_table(study, names, stop=stop)
    return not _lacking(study, names)


def measure_table(
    study: Study,
    names: Sequence[str] = TRAINED,
    repeats: int = 10,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Measure the steps of a profile's experiments that have no row yet.

    Args:
        study: the profile's.
        names: the experiments whose steps are wanted.
        repeats: turns of each.
        stop: whether the time for it is over.

    Returns:
        The table's path.

    Raises:
        ValueError: if the table is of another device or other settings.
        UnsuitableMachine: if this device only emulates the profile's precision, or cannot compile
            although it should.
    """
    path = cost_table(study.profile.name)
    measure_costs(path, study.profile, _lacking(study, names), repeats, stop)
    return path


def _lacking(study: Study, names: Sequence[str]) -> list[Step]:
    """The steps without a row; what all ratios are to is 1 by definition and needs none."""
    lacking = unmeasured_steps(cost_table(study.profile.name), _steps(study, names))
    return [step for step in lacking if step != reference_step(study.profile)]


def _steps(study: Study, names: Sequence[str]) -> list[Step]:
    """The steps that experiments train, and those that size them.

    The steps do not depend on the costs, but the sizes of their Runs do: executed MACs
    replace them. Selected subsets get no rows, in 04 and wherever they are named, and are priced by
    those of their single layers and of all of them, always: a row that came later would change
    Runs already made. 07 has no others, and needs the rows that 04 has; 08's plans are
    priced by those of single layers on each level.
    """
    if "04_selection" in names:  # it waits for the other's scores
        names = list(dict.fromkeys([*names, "03_sensitivity"]))
    profile = study.profile.model_copy(update={"costs": "macs"})
    study = dataclasses.replace(study, profile=profile)
    found = [draft(study, name) for name in names if name not in _OF_SUBSETS]
    trained = [
        _step(study, run, phase.plan)
        for made in found
        for arm in made.arms
        if arm.method != "selected"
        for run in (made.runs[run_id] for run_id in arm.run_ids)
        for phase in run.phases
    ]
    notebooks, kind = profile.notebooks, profile.training.optimizer
    # The narrower dense network is found by its cost, and trained at any arm's batch.
    ratios = [
        parameters.ratio
        for name, parameters in ((PILOT, notebooks.pilot), ("02_all_layers", notebooks.all_layers))
        if name in names and getattr(parameters, "budgets", [])
    ]
    widths = dict.fromkeys(w for ratio in ratios for w in study.narrow_widths(study.plan(ratio)))
    batches = dict.fromkeys([profile.training.batch_size, *(step.batch_size for step in trained)])
    wanted = [Step(Plan(), width, batch, kind) for batch in batches for width in widths]
    if "04_selection" in names:
        selection = notebooks.selection
        batch: int = study.settings("selected", selection.budget)["batch_size"]
        swept = swept_layers(study, notebooks.sensitivity)
        every = study.plan(selection.ratio, swept)
        plans = [every, *(every.only([name]) for name in swept)]
        wanted += [Step(plan, profile.width, batch, kind) for plan in plans]
    if ranks.NAME in names:
        wanted += ranks.priced_steps(study)
    wanted += trained
    # The row of a single layer is its dense network's, less what the layer saves.
    return wanted + [step._replace(plan=Plan()) for step in wanted if len(step.plan.layers) == 1]


def _step(study: Study, run: Run, plan: Plan) -> Step:
    network = study.of(run.network).other_network
    return Step(plan, run.width, run.batch_size, run.optimizer, network)

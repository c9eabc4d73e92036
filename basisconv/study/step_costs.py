"""Measuring a profile's cost table: what a training step of each plan costs beside dense."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from basisconv.plan import Plan
from basisconv.study.compiling import many_networks
from basisconv.study.costs import Step, add_rows, check_head, reference, settings, unmeasured
from basisconv.study.environment import device, environment, prepare
from basisconv.study.experiments import DRAFTS, draft
from basisconv.study.pace import Running, network, random_images, training_step
from basisconv.study.precision import convolutions_in
from basisconv.study.profiles import Profile
from basisconv.study.protocol import Study, cost_table
from basisconv.timing import compare

# Networks timed in the same turns as dense, which is then timed once for all of them; and what a
# measurement that is interrupted loses.
_AT_A_TIME = 6


def ensure_costs(study: Study) -> None:
    """Measure what a profile that wants a cost table lacks of it.

    Raises:
        ValueError: if rows are lacking in a table of another device.
    """
    if study.profile.costs == "table" and _lacking(study):
        measure_costs(study)


def measure_costs(study: Study, repeats: int = 10) -> Path:
    """Add the steps of a profile's experiments that have no row yet to its cost table.

    Every step is timed in this process, interleaved with dense, as the profile trains it:
    threads, precision and compilation are the Runs' own. Let nothing else run.

    Returns:
        The table's path.

    Raises:
        ValueError: if the table is of another device or other settings.
    """
    profile, path = study.profile, cost_table(study.profile.name)
    here = environment()
    head = {"device": here["device"], "device_kind": here["device_kind"], **settings(profile)}
    check_head(path, head)
    prepare(profile.threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = _lacking(study)
    for first in tqdm(range(0, len(steps), _AT_A_TIME), desc="step times"):
        add_rows(path, head, _measured(profile, steps[first : first + _AT_A_TIME], repeats))
    return path


def _measured(profile: Profile, steps: Sequence[Step], repeats: int) -> list[dict[str, Any]]:
    """Rows of some steps, each timed in the same turns as dense."""
    arms = {}
    for step in (reference(profile), *steps):
        model = network(profile.network, step.width, step.plan)
        running = Running(model, profile.precision, profile.compile)
        arms[step.key] = training_step(running, random_images(step.batch_size))
    with many_networks(), convolutions_in(profile.precision):
        timings = compare(arms, repeats, device=device())
    dense = timings[reference(profile).key]
    rows = []
    for step in steps:
        faster, low, high = timings[step.key].speedup_over(dense)
        row = {"plan": step.plan.to_dict(), "width": step.width, "batch_size": step.batch_size}
        rows.append({**row, "ratio": 1 / faster, "quartiles": [1 / high, 1 / low]})
    return rows


def _lacking(study: Study) -> list[Step]:
    """The steps without a row; what all ratios are to is 1 by definition and needs none."""
    lacking = unmeasured(cost_table(study.profile.name), _steps(study))
    return [step for step in lacking if step != reference(study.profile)]


def _steps(study: Study) -> list[Step]:
    """The steps that the profile's experiments train, and those that size them.

    Which steps there are does not hang on the costs, but sizing their Runs does: executed MACs
    stand in. Selected subsets get no rows, in 04 and wherever they are named, and are priced by
    their layers' single savings, always: a row that came later would change Runs already made.
    """
    profile = study.profile.model_copy(update={"costs": "macs"})
    study = dataclasses.replace(study, profile=profile)
    found = [draft(study, name) for name in DRAFTS if name != "04_selection"]
    trained = [
        Step(phase.plan, run.width, run.batch_size)
        for made in found
        for arm in made.arms
        if arm.method != "selected"
        for run in (made.runs[run_id] for run_id in arm.run_ids)
        for phase in run.phases
    ]
    # The narrower dense network is found among all widths, and trained at any arm's batch.
    batches = dict.fromkeys([profile.training.batch_size, *(step.batch_size for step in trained)])
    wanted = [Step(Plan(), width, batch) for batch in batches for width in study.widths]
    selection = profile.notebooks.selection
    batch = study.tuned("selected", selection.budget).get("batch_size", profile.training.batch_size)
    wanted += [
        Step(study.plan(selection.ratio, [name]), profile.width, batch) for name in study.layers
    ]
    return wanted + trained

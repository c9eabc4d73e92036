"""Measuring a profile's cost table: what a training step of each plan costs beside dense."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from tqdm import tqdm

from basisconv.convert import apply_plan
from basisconv.plan import Plan
from basisconv.study.bench import random_images, step_times
from basisconv.study.costs import add_rows, settings, unmeasured
from basisconv.study.environment import device, environment
from basisconv.study.experiments import DRAFTS, draft
from basisconv.study.models import build, initialise
from basisconv.study.protocol import Study, cost_table


def ensure_costs(study: Study) -> None:
    """Measure the cost table of a profile that wants one and has none."""
    if study.profile.costs == "table" and not cost_table(study.profile.name).exists():
        measure_costs(study)


def measure_costs(study: Study, repeats: int = 10) -> Path:
    """Add the plans of a profile's experiments that have no row yet to its cost table.

    Every plan is timed in this process, interleaved with dense, as the profile trains it:
    threads, batch, precision and compilation are the Runs' own. Let nothing else run.

    Returns:
        The table's path.

    Raises:
        ValueError: if the table is of another device or other settings.
    """
    profile, path = study.profile, cost_table(study.profile.name)
    here = environment()
    head = {"device": here["device"], "device_kind": here["device_kind"], **settings(profile)}
    # What all ratios are to is 1 by definition: measuring it would put its noise into the others.
    reference = (Plan(), profile.width)
    plans = [step for step in unmeasured(path, head, _steps(study)) if step != reference]
    torch.set_num_threads(profile.threads)
    x = random_images(profile.training.batch_size)
    dense = build(profile.network, profile.width, 10).to(device())
    initialise(dense, 0)
    rows = []
    for plan, width in tqdm(plans, desc="step times"):
        model = build(profile.network, width, 10).to(device())
        initialise(model, 0)
        arms = {"dense": dense, "plan": apply_plan(model, plan, init="qr")}
        timings = step_times(arms, x, repeats, profile.precision, profile.compile)
        faster, low, high = timings["plan"].speedup_over(timings["dense"])
        row = {"plan": plan.to_dict(), "width": width, "ratio": 1 / faster}
        rows.append({**row, "quartiles": [1 / high, 1 / low]})
    path.parent.mkdir(parents=True, exist_ok=True)
    add_rows(path, head, rows)
    return path


def _steps(study: Study) -> list[tuple[Plan, int]]:
    """Plans and widths that the profile's experiments train, and what sizes them.

    Which plans there are does not hang on the costs, but sizing their Runs does: without a
    table yet, executed MACs stand in. The subsets of 04 get no rows and are priced by their
    layers' single savings, always: a row that came later would change Runs already made.
    """
    profile = study.profile
    if not cost_table(profile.name).exists():
        study = dataclasses.replace(study, profile=profile.model_copy(update={"costs": "macs"}))
    wanted = [(Plan(), width) for width in study.widths]
    ratio = profile.notebooks.selection.ratio
    wanted += [(study.plan(ratio, [name]), profile.width) for name in study.layers]
    for name in [name for name in DRAFTS if name != "04_selection"]:
        runs = draft(study, name).runs.values()
        wanted += [(phase.plan, run.width) for run in runs for phase in run.phases]
    return wanted

"""From a notebook's name to its Section: train or measure what it needs, and keep it.

study   = Study.open("smoke")
section = make_section(study, "02_all_layers", {"budgets": [1, 2], …})
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from basisconv.study.data.sets import load
from basisconv.study.execution.many_runs import RunsReport, train_runs
from basisconv.study.execution.stopping import Stop
from basisconv.study.experiments.design import Draft, Waiting
from basisconv.study.experiments.registry import (
    EXPERIMENTS,
    NOTEBOOKS,
    TRAINED,
    check_parameters,
    draft,
    runs_with_kept_weights,
)
from basisconv.study.experiments.study import Study
from basisconv.study.records.checkpoint import CHECKPOINT_SECONDS
from basisconv.study.records.files import DamagedFile, read_json, write_json
from basisconv.study.records.run import Section


class Unfinished(RuntimeError):
    """Runs of a section have failed or are left; `failed` and `left` are their ids.

    Where both are empty, what is measured of trained networks is left.
    """

    def __init__(self, study: Study, name: str, report: RunsReport) -> None:
        self.failed, self.left = report.failed, tuple(run.run_id for run in report.left)
        failed = (
            f" and {len(self.failed)} failed ({', '.join(self.failed)}); their records in "
            f"{study.store.folder} hold the traceback, and --retry-failed trains them again"
        )
        runs = f"{len(self.left)} runs" if self.failed or self.left else "measurements"
        super().__init__(
            f"{name}: {runs} are left{failed if self.failed else ''}. "
            f"python -m basisconv run --profile {study.profile.name} goes on, with the same --set "
            "and --runs."
        )


def make_section(
    study: Study,
    name: str,
    parameters: Mapping[str, Any] | None = None,
    stop: Stop | None = None,
    retry_failed: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Section:
    """Train or measure what a notebook needs and is not there yet.

    Args:
        study: the profile's study.
        name: the notebook.
        parameters: its parameters; the profile's by default.
        stop: when it says so Runs at hand are put aside and no more are started.
        retry_failed: train Runs again whose record is a failure.
        checkpoint_seconds: between two checkpoints of a Run.

    Raises:
        ValueError: for an unknown notebook or parameters that do not fit, and damaged data.
        MissingData: if the data are not here and cannot be fetched.
        Unfinished: if Runs failed or the time was too short.
        LookupError: if networks are to be measured whose final weights were not kept.
    """
    given = study.profile.parameters(name) if parameters is None else dict(parameters)
    checked = check_parameters(name, given)
    module = EXPERIMENTS[name].module
    if name in TRAINED:
        try:
            arms = draft(study, name, given)
        except Waiting as waiting:
            make_section(study, waiting.needs, None, stop, retry_failed, checkpoint_seconds)
            arms = draft(study, name, given)
        _train(study, arms, stop, retry_failed, checkpoint_seconds)
        if hasattr(module, "measure"):
            if not module.measure(study, checked, stop or Stop()):
                raise Unfinished(study, name, RunsReport(0, (), ()))
            arms = draft(study, name, given)
            _train(study, arms, stop, retry_failed, checkpoint_seconds)
        section = arms.section()
    else:
        section = Section(
            name=name, profile=study.profile.name, arms=(), facts=module.measure(study, checked)
        )
    write_json(study.folder / "sections" / f"{name}.json", section.model_dump(mode="json"))
    return section


def _train(
    study: Study, arms: Draft, stop: Stop | None, retry_failed: bool, checkpoint_seconds: float
) -> None:
    """Train the Runs of a draft that have no record; the arguments are those of `make_section`.

    Raises:
        Unfinished: if Runs failed or the time was too short.
    """
    profile = study.profile
    untrained = study.store.untrained(arms.runs.values(), retry_failed)
    for data in {(run.data.name, run.data.train_images) for run in untrained}:
        # Fetched, or found missing, once and here rather than in each worker for each Run.
        load(*data)
    report = train_runs(
        list(arms.runs.values()), study.store, workers=profile.workers, threads=profile.threads,
        stop=stop, retry_failed=retry_failed, checkpoint_seconds=checkpoint_seconds,
        executor=profile.executor, gpu_per_run=profile.gpu_per_run,
        keep_weights=runs_with_kept_weights(study),
    )  # fmt: skip
    if report.failed or report.left:
        raise Unfinished(study, arms.name, report)


def sections(study: Study) -> dict[str, Section]:
    """The sections made so far, in the notebooks' order.

    Raises:
        DamagedFile: if a file is not what was written.
    """
    found: dict[str, Section] = {}
    for name in NOTEBOOKS:
        path = study.folder / "sections" / f"{name}.json"
        if path.exists():
            try:
                found[name] = Section.model_validate(read_json(path))
            except ValidationError as error:
                raise DamagedFile(f"{path} is not a section: {error}. Delete it.") from None
    return found

"""How far a profile is: arms × seeds × steps × milliseconds a step = hours, and what is done.

Hours are this machine's, with the profile's workers side by side, and a step has its share of the
evaluation in it. The time of a step comes from records of this kind of device where there are some,
else from the profile's dense step and the costs; else it is unknown.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from basisconv.study.data.sets import EVALUATED_IMAGES, TRAINING_IMAGES
from basisconv.study.experiments import selection
from basisconv.study.experiments.design import Draft, Waiting
from basisconv.study.experiments.layer_sweep import swept_layers
from basisconv.study.experiments.registry import TRAINED, draft
from basisconv.study.experiments.study import Study
from basisconv.study.records.checkpoint import checkpoint_files, step_of_file
from basisconv.study.records.environment import device_kind
from basisconv.study.records.run import Record, Run
from basisconv.study.records.store import Store
from basisconv.study.timing.costs import Unmeasured


@dataclass(frozen=True)
class Counts:
    """How many runs stand where.

    Attributes:
        done: those with a result, diverged ones included.
        failed: those whose record is a failure.
        running: those without a record that a living process trains.
        missing: the others.
    """

    done: int
    failed: int
    running: int
    missing: int


def count_runs(runs: Iterable[Run], store: Store) -> Counts:
    """Count the runs that are done, failed, running and missing.

    Args:
        runs: what was wanted; a run named twice counts once.
        store: where their records are.

    Raises:
        DamagedFile: if a record is not what was written.
    """
    records = {run_id: store.get(run_id) for run_id in {run.run_id for run in runs}}
    counts = Counter(record.status for record in records.values() if record)
    left = [run_id for run_id, record in records.items() if record is None]
    running = sum(map(store.is_training, left))
    return Counts(
        counts["done"] + counts["diverged"], counts["failed"], running, len(left) - running
    )


def steps_done(run: Run, store: Store) -> int:
    """The step that a run's latest checkpoint says it stands at; 0 without one."""
    return max(map(step_of_file, checkpoint_files(store.checkpoints(run.run_id))), default=0)


@dataclass(frozen=True)
class Progress:
    """What a section of the study takes, and how far it is.

    Attributes:
        section: the notebook's name.
        arms: how many.
        seeds: of its arms, each number once.
        runs: those that no section above has already.
        steps: of one of these, on average.
        step_ms: of such a step and its evaluation in one worker, on average; None where nobody
            knows.
        hours: all of these runs together.
        left: hours of what has no result yet, less the steps that a checkpoint holds.
        status: how many of these runs stand where.
        waits: for what, where its arms hang on records that are not there yet; others stand in
            for them.
    """

    section: str
    arms: int
    seeds: tuple[int, ...]
    runs: int
    steps: float
    step_ms: float | None
    hours: float | None
    left: float | None
    status: Counts
    waits: str = ""


def progress_by_section(study: Study) -> tuple[list[Progress], bool]:
    """What each section takes, in the order in which they are trained.

    Returns:
        A row a section; and whether executed MACs stand in for step times that the profile wants
        measured, and that are not, or not all of them.

    Raises:
        DamagedFile: if a record is not what was written.
    """
    every = [_drafted(study, name) for name in TRAINED]
    drafts = [(found, waits) for found, waits, _ in every]
    by_macs = any(estimated for *_, estimated in every)
    clock = RunTimes.of(study, [found for found, _ in drafts])
    workers, store = study.profile.workers, study.store
    rows: list[Progress] = []
    counted: set[str] = set()
    for found, waits in drafts:
        own = [run for run_id, run in found.runs.items() if run_id not in counted]
        counted |= found.runs.keys()
        hours = clock.hours(own)
        steps = sum(run.steps for run in own)
        rows.append(
            Progress(
                section=found.name,
                arms=len(found.arms),
                seeds=tuple(sorted({len(arm.run_ids) for arm in found.arms})),
                runs=len(own),
                steps=steps / max(1, len(own)),
                step_ms=None if hours is None else hours * workers * 3.6e6 / max(1, steps),
                hours=hours,
                left=clock.hours_left(own),
                status=count_runs(own, store),
                waits=waits,
            )
        )
    return rows, by_macs


def table(rows: Sequence[Progress]) -> str:
    """The rows as text, with their sums."""
    head = f"{'section':<18}{'arms':>5}{'seeds':>6}{'runs':>6}{'steps':>7}{'ms':>6}{'hours':>7}"
    lines = [f"{head}{'done':>7}{'failed':>8}{'running':>9}{'missing':>9}{'hours left':>12}"]
    for row in rows:
        seeds = "–".join(str(n) for n in sorted({row.seeds[0], row.seeds[-1]}))
        lines.append(
            f"{row.section:<18}{row.arms:>5}{seeds:>6}{row.runs:>6}{row.steps:>7.0f}"
            f"{_number(row.step_ms, 0):>6}{_state([row])}"
            + (f"  (its runs are a guess: it {row.waits})" if row.waits else "")
        )
    lines.append(f"{'all':<29}{sum(r.runs for r in rows):>6}{'':>13}{_state(rows)}")
    return "\n".join(lines)


def _state(rows: Sequence[Progress]) -> str:
    counts = [row.status for row in rows]
    done, failed = sum(c.done for c in counts), sum(c.failed for c in counts)
    running, missing = sum(c.running for c in counts), sum(c.missing for c in counts)
    hours, left = _sum(row.hours for row in rows), _sum(row.left for row in rows)
    return (
        f"{_number(hours, 1):>7}{done:>7}{failed:>8}{running:>9}{missing:>9}{_number(left, 1):>12}"
    )


def _sum(values: Iterable[float | None]) -> float | None:
    """Their sum; None where one is unknown."""
    total = 0.0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def _number(value: float | None, digits: int) -> str:
    return "?" if value is None else f"{value:.{digits}f}"


def _drafted(study: Study, name: str) -> tuple[Draft, str, bool]:
    """A notebook's draft, what it waits for, and whether executed MACs stand in for step times.

    Where it waits for scores, all layers count as equally sensitive.
    """
    try:
        return *_with_scores(study, name), False
    except Unmeasured:
        return *_with_scores(_by_macs(study), name), True


def _with_scores(study: Study, name: str) -> tuple[Draft, str]:
    try:
        return draft(study, name), ""
    except Waiting as waiting:
        swept = swept_layers(study, study.profile.notebooks.sensitivity)
        equal = dict.fromkeys(swept, 1.0)
        return selection.draft(study, study.profile.notebooks.selection, equal), str(waiting)


def _by_macs(study: Study) -> Study:
    return replace(study, profile=study.profile.model_copy(update={"costs": "macs"}))


@dataclass(frozen=True)
class RunTimes:
    """How long runs take on this machine; None where nobody knows.

    Attributes:
        study: whose runs.
        dense_seconds: what the cost of a dense step takes in one worker, by the width trained;
            under None for all other widths.
    """

    study: Study
    dense_seconds: dict[int | None, float]

    @classmethod
    def of(cls, study: Study, drafts: Iterable[Draft] | None = None) -> RunTimes:
        """By the records of this kind of device, or, where there are none, as the profile says.

        Args:
            study: the profile's study.
            drafts: whose records tell; by default those of all sections.
        """
        if drafts is None:
            drafts = [_drafted(study, name)[0] for name in TRAINED]
        runs = {run_id for found in drafts for run_id in found.runs}
        records = [study.store.get(run_id) for run_id in runs]
        return cls(study, _dense_seconds(study, [record for record in records if record]))

    def hours(self, runs: Iterable[Run]) -> float | None:
        """All of the runs together, from their first step to their last."""
        return _sum(self._hours(run) for run in runs)

    def hours_left(self, runs: Iterable[Run]) -> float | None:
        """Of those without a result, less the steps that a checkpoint holds."""
        store = self.study.store
        total = 0.0
        for run in runs:
            hours, record = self._hours(run), store.get(run.run_id)
            if hours is None:
                return None
            if record is None or record.status == "failed":
                total += hours * (1 - steps_done(run, store) / run.steps)
        return total

    def _hours(self, run: Run) -> float | None:
        each = self.dense_seconds.get(run.width, self.dense_seconds.get(None))
        if each is None:
            return None
        return _cost(self.study, run) * each / self.study.profile.workers / 3600


def _dense_seconds(study: Study, records: Iterable[Record]) -> dict[int | None, float]:
    """The lower quartile of what runs took.

    Other work on the machine, or a pause, makes a run take several times as long, and nothing
    makes one much shorter.
    """
    here, stated = device_kind(), study.profile.dense_step_ms
    paces: dict[int | None, list[float]] = defaultdict(list)
    for record in records:
        if record.status == "done" and record.measurement.environment.get("device_kind") == here:
            pace = record.measurement.seconds["total"] / _cost(study, record.run)
            for width in (record.run.width, None):
                paces[width].append(pace)
    if paces:
        return {
            width: float(np.quantile(found, 0.25, method="lower")) for width, found in paces.items()
        }
    return {} if stated is None else {None: stated / 1000}


def _cost(study: Study, run: Run) -> float:
    """A run's training and evaluation, in dense steps."""
    try:
        costs = [study.cost(p.plan, run.width, run.batch_size, run.optimizer) for p in run.phases]
    except Unmeasured:
        return _cost(_by_macs(study), run)
    training = sum(phase.steps * cost for phase, cost in zip(run.phases, costs, strict=True))
    images = run.data.train_images or TRAINING_IMAGES[run.data.name]
    validation, test = EVALUATED_IMAGES[run.data.name]
    epochs = -(-run.steps // (images // run.batch_size))
    evaluated = epochs * validation + (test if run.test else 0)
    # Forward alone is a third of forward and backward; the average step stands for all phases.
    return training * (1 + evaluated / run.batch_size / 3 / run.steps)

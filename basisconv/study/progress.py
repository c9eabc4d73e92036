"""How far a profile is: arms × seeds × steps × milliseconds a step = hours, and what is done.

Hours are of this machine with all of the profile's workers, and include evaluations. The time of
a step comes from records of this kind of device, else from the profile's dense step and the
costs; otherwise it is unknown.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from basisconv.study.data.sets import EVALUATED_IMAGES, TRAINING_IMAGES
from basisconv.study.experiments.design import Draft, Waiting
from basisconv.study.experiments.registry import EXPERIMENTS, TRAINED, draft
from basisconv.study.experiments.study import Study
from basisconv.study.records.checkpoint import checkpoint_files, step_of_file
from basisconv.study.records.environment import device_kind
from basisconv.study.records.run import Record, Run
from basisconv.study.records.store import Store
from basisconv.study.timing.costs import Unmeasured


@dataclass(frozen=True)
class Counts:
    """Numbers of runs: with a result (diverged ones too), failed, being trained, and the rest."""

    done: int
    failed: int
    running: int
    missing: int


def count_runs(runs: Iterable[Run], store: Store) -> Counts:
    """Count the runs that are done, failed, running and missing; duplicates count once.

    Raises:
        DamagedFile: if a record was changed after it was written.
    """
    records = {run_id: store.get(run_id) for run_id in {run.run_id for run in runs}}
    counts = Counter(record.status for record in records.values() if record)
    left = [run_id for run_id, record in records.items() if record is None]
    running = sum(map(store.is_training, left))
    return Counts(
        counts["done"] + counts["diverged"], counts["failed"], running, len(left) - running
    )


def steps_done(run: Run, store: Store) -> int:
    """The step of a run's latest checkpoint; 0 without one."""
    return max(map(step_of_file, checkpoint_files(store.checkpoints(run.run_id))), default=0)


@dataclass(frozen=True)
class Progress:
    """How much work a section is, and how far it is.

    Attributes:
        section: the notebook's name.
        arms: how many.
        seeds: the numbers of seeds of its arms, each once.
        runs: those that no section above has.
        steps: of one of these, on average.
        step_ms: of such a step and its evaluation in one worker, on average; None if unknown.
        hours: all of these runs together.
        left: hours of those without a result, less the steps before a checkpoint.
        status: how many of these runs are done, failed, running and missing.
        waits: what its arms wait for, if they depend on missing records; its runs are then a guess.
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
    """The progress of each section, in the order in which they are trained.

    Returns:
        A row for each section; and whether executed MACs replace step times that the profile
        wants measured and that are not, or not all of them.

    Raises:
        DamagedFile: if a record was changed after it was written.
    """
    drafts = [_drafted(study, name) for name in TRAINED]
    times = RunTimes.of(study, [found for found, *_ in drafts])
    rows: list[Progress] = []
    counted: set[str] = set()
    for found, waits, _ in drafts:
        own = [run for run_id, run in found.runs.items() if run_id not in counted]
        counted |= found.runs.keys()
        hours, steps = times.hours(own), sum(run.steps for run in own)
        rows.append(
            Progress(
                section=found.name,
                arms=len(found.arms),
                seeds=tuple(sorted({len(arm.run_ids) for arm in found.arms})),
                runs=len(own),
                steps=steps / max(1, len(own)),
                step_ms=hours and hours * study.profile.workers * 3.6e6 / max(1, steps),
                hours=hours,
                left=times.hours_left(own),
                status=count_runs(own, study.store),
                waits=waits,
            )
        )
    return rows, any(by_macs for *_, by_macs in drafts)


def table(rows: Sequence[Progress]) -> str:
    """The rows as text, with their sums."""
    head = f"{'section':<18}{'arms':>5}{'seeds':>6}{'runs':>6}{'steps':>7}{'ms':>6}{'hours':>7}"
    lines = [f"{head}{'done':>7}{'failed':>8}{'running':>9}{'missing':>9}{'hours left':>12}"]
    for row in rows:
        seeds = "–".join(str(n) for n in sorted({*row.seeds[:1], *row.seeds[-1:]}))
        lines.append(
            f"{row.section:<18}{row.arms:>5}{seeds:>6}{row.runs:>6}{row.steps:>7.0f}"
            f"{_number(row.step_ms, 0):>6}{_cells([row])}"
            + (f"  (its runs are a guess: it {row.waits})" if row.waits else "")
        )
    lines.append(f"{'all':<29}{sum(r.runs for r in rows):>6}{'':>13}{_cells(rows)}")
    return "\n".join(lines)


def _cells(rows: Sequence[Progress]) -> str:
    hours, left = _sum(row.hours for row in rows), _sum(row.left for row in rows)
    done, failed, running, missing = (
        sum(getattr(row.status, name) for row in rows)
        for name in ("done", "failed", "running", "missing")
    )
    return (
        f"{_number(hours, 1):>7}{done:>7}{failed:>8}{running:>9}{missing:>9}{_number(left, 1):>12}"
    )


def _sum(values: Iterable[float | None]) -> float | None:
    """Their sum; None if one is unknown."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def _number(value: float | None, digits: int) -> str:
    return "?" if value is None else f"{value:.{digits}f}"


def _drafted(study: Study, name: str) -> tuple[Draft, str, bool]:
    """A notebook's draft, what it waits for, and whether executed MACs replace step times.

    While it waits for scores, its experiment's module has a `guess`.
    """

    def draft_with_scores(study: Study) -> tuple[Draft, str]:
        try:
            found = draft(study, name)
            return found, found.waits
        except Waiting as waiting:
            return EXPERIMENTS[name].module.guess(study), str(waiting)

    try:
        return *draft_with_scores(study), False
    except Unmeasured:
        return *draft_with_scores(_by_macs(study)), True


def _by_macs(study: Study) -> Study:
    return replace(study, profile=study.profile.model_copy(update={"costs": "macs"}))


@dataclass(frozen=True)
class RunTimes:
    """How long runs take on this machine; None if unknown.

    Attributes:
        study: whose runs.
        dense_seconds: the time of one unit of cost in one worker, by the network and width
            trained; under None for all others.
    """

    study: Study
    dense_seconds: dict[tuple[str, int] | None, float]

    @classmethod
    def of(cls, study: Study, drafts: Iterable[Draft] | None = None) -> RunTimes:
        """From records of this kind of device, else from the profile's dense step.

        Of what runs took it is the lower quartile: other work on the machine, or a pause, makes a
        run take several times as long, and nothing makes one much shorter.

        Args:
            study: the profile's study.
            drafts: whose records count; by default those of all sections.
        """
        if drafts is None:
            drafts = [_drafted(study, name)[0] for name in TRAINED]
        records = [study.store.get(i) for i in {i for found in drafts for i in found.runs}]
        times: dict[tuple[str, int] | None, list[float]] = defaultdict(list)
        for record in records:
            if record and record.status == "done" and _made_here(record):
                time = record.measurement.seconds["total"] / _cost(study, record.run)
                for trained in ((record.run.network, record.run.width), None):
                    times[trained].append(time)
        if times:
            quartiles = {n: float(np.quantile(t, 0.25, method="lower")) for n, t in times.items()}
            return cls(study, quartiles)
        stated = study.profile.dense_step_ms
        return cls(study, {} if stated is None else {None: stated / 1000})

    def hours(self, runs: Iterable[Run]) -> float | None:
        """All of the runs together, from their first step to their last."""
        return _sum(self._hours(run) for run in runs)

    def hours_left(self, runs: Iterable[Run]) -> float | None:
        """Of those without a result, less the steps before a checkpoint; None if one is unknown."""
        store = self.study.store
        left = []
        for run in runs:
            hours, record = self._hours(run), store.get(run.run_id)
            if record is None or record.status == "failed":
                left.append(hours and hours * (1 - steps_done(run, store) / run.steps))
            else:
                left.append(hours and 0.0)
        return _sum(left)

    def _hours(self, run: Run) -> float | None:
        usual = self.dense_seconds.get(None)
        each = self.dense_seconds.get((run.network, run.width), usual)
        if each is None:
            return None
        return _cost(self.study, run) * each / self.study.profile.workers / 3600


def _made_here(record: Record) -> bool:
    return record.measurement.environment.get("device_kind") == device_kind()


def _cost(study: Study, run: Run) -> float:
    """A run's training and evaluation, in dense steps."""
    try:
        own = study.of(run.network)
        costs = [own.cost(p.plan, run.width, run.batch_size, run.optimizer) for p in run.phases]
    except Unmeasured:
        return _cost(_by_macs(study), run)
    training = sum(phase.steps * cost for phase, cost in zip(run.phases, costs, strict=True))
    images = run.data.train_images or TRAINING_IMAGES[run.data.name]
    validation, test = EVALUATED_IMAGES[run.data.name]
    epochs = -(-run.steps // (images // run.batch_size))
    evaluated = epochs * validation + (test if run.test else 0)
    # Forward is a third of forward and backward; the average step stands for all phases.
    return training * (1 + evaluated / run.batch_size / 3 / run.steps)

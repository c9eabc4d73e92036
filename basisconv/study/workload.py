"""A profile's plan as a table: arms × seeds × steps × milliseconds a step = hours.

Hours are this machine's, with the profile's workers side by side, and a step has its share of the
evaluation in it. The time of a step comes from records of this kind of device where there are some,
else from the profile's dense step and the costs; else it is unknown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from basisconv.study.data import EVALUATED_IMAGES, TRAINING_IMAGES
from basisconv.study.drafts import Draft
from basisconv.study.environment import device_kind
from basisconv.study.experiments import DRAFTS, Waiting, draft, selection
from basisconv.study.protocol import Study, cost_table
from basisconv.study.run import Record, Run


@dataclass(frozen=True)
class Work:
    """What a section of the study takes.

    Attributes:
        section: the notebook's name.
        arms: how many.
        seeds: of its arms, each number once.
        runs: those that no section above has already.
        steps: of one of these, on average.
        step_ms: of such a step and its evaluation in one worker, on average; None where nobody
            knows.
        hours: all of these runs together.
        done: hours of those that have a record.
        guessed: its arms hang on records that are not there yet; others stand in for them.
    """

    section: str
    arms: int
    seeds: tuple[int, ...]
    runs: int
    steps: float
    step_ms: float | None
    hours: float | None
    done: float | None
    guessed: bool = False


def workload(study: Study) -> list[Work]:
    """What each section takes, in the order in which they are trained.

    Where the profile wants measured step times and has none, executed MACs stand in for them.

    Raises:
        DamagedFile: if a record is not what was written.
    """
    profile = study.profile
    if profile.costs == "table" and not cost_table(profile.name).exists():
        study = replace(study, profile=profile.model_copy(update={"costs": "macs"}))
    drafts = [_drafted(study, name) for name in DRAFTS]
    runs = {run_id: run for found, _ in drafts for run_id, run in found.runs.items()}
    records = {run_id: study.store.get(run_id) for run_id in runs}
    seconds = _dense_seconds(study, [record for record in records.values() if record])
    rows: list[Work] = []
    counted: set[str] = set()
    for found, guessed in drafts:
        own = {run_id: run for run_id, run in found.runs.items() if run_id not in counted}
        counted |= own.keys()
        hours = {i: _hours(study, run, seconds) for i, run in own.items()}
        known = [value for value in hours.values() if value is not None]
        steps = sum(run.steps for run in own.values())
        complete = len(known) == len(own)
        rows.append(
            Work(
                section=found.name,
                arms=len(found.arms),
                seeds=tuple(sorted({len(arm.run_ids) for arm in found.arms})),
                runs=len(own),
                steps=steps / max(1, len(own)),
                step_ms=sum(known) * profile.workers * 3.6e6 / max(1, steps) if complete else None,
                hours=sum(known) if complete else None,
                done=sum(hours[i] or 0.0 for i in own if records[i]) if complete else None,
                guessed=guessed,
            )
        )
    return rows


def table(rows: Sequence[Work]) -> str:
    """The rows as text, with their sums."""
    head = f"{'section':<18}{'arms':>5}{'seeds':>7}{'runs':>6}{'steps':>7}{'ms':>7}"
    lines = [f"{head}{'hours':>8}{'done':>7}{'left':>7}"]
    for row in rows:
        seeds = "–".join(str(n) for n in sorted({row.seeds[0], row.seeds[-1]}))
        lines.append(
            f"{row.section:<18}{row.arms:>5}{seeds:>7}{row.runs:>6}{row.steps:>7.0f}"
            f"{_told(row.step_ms, 0):>7}{_times(row.hours, row.done)}"
            + (" (a guess: its layers are not selected yet)" if row.guessed else "")
        )
    whole = None if any(r.hours is None for r in rows) else sum(r.hours or 0.0 for r in rows)
    done = None if whole is None else sum(r.done or 0.0 for r in rows)
    lines.append(f"{'all':<25}{sum(r.runs for r in rows):>11}{'':>14}{_times(whole, done)}")
    return "\n".join(lines)


def _times(hours: float | None, done: float | None) -> str:
    left = None if hours is None or done is None else hours - done
    return f"{_told(hours, 1):>8}{_told(done, 1):>7}{_told(left, 1):>7}"


def _told(value: float | None, digits: int) -> str:
    return "?" if value is None else f"{value:.{digits}f}"


def _drafted(study: Study, name: str) -> tuple[Draft, bool]:
    """A notebook's draft; where it waits for scores, with all layers equally sensitive."""
    try:
        return draft(study, name), False
    except Waiting:
        equal = dict.fromkeys(study.layers, 1.0)
        return selection(study, study.profile.notebooks.selection, equal), True


def _cost(study: Study, run: Run) -> float:
    """A run's training and evaluation, in dense steps."""
    training = sum(
        phase.steps * study.cost(phase.plan, run.width, run.batch_size) for phase in run.phases
    )
    images = run.data.train_images or TRAINING_IMAGES[run.data.name]
    validation, test = EVALUATED_IMAGES[run.data.name]
    epochs = -(-run.steps // (images // run.batch_size))
    evaluated = epochs * validation + (test if run.test else 0)
    # Forward alone is a third of forward and backward; the average step stands for all phases.
    return training * (1 + evaluated / run.batch_size / 3 / run.steps)


def _hours(study: Study, run: Run, seconds: dict[int | None, float]) -> float | None:
    each = seconds.get(run.width, seconds.get(None))
    if each is None:
        return None
    return _cost(study, run) * each / study.profile.workers / 3600


def _dense_seconds(study: Study, records: Iterable[Record]) -> dict[int | None, float]:
    """Seconds that the cost of a dense step takes in one worker, by the width trained.

    From records of this kind of device; under None for other widths, from all of them or, where
    there are none, as the profile states it.
    """
    here, stated = device_kind(), study.profile.dense_step_ms
    spent: dict[int | None, float] = defaultdict(float)
    costs: dict[int | None, float] = defaultdict(float)
    for record in records:
        if record.status == "done" and record.measurement.environment.get("device_kind") == here:
            for width in (record.run.width, None):
                spent[width] += record.measurement.seconds["total"]
                costs[width] += _cost(study, record.run)
    if costs:
        return {width: spent[width] / costs[width] for width in costs}
    return {} if stated is None else {None: stated / 1000}

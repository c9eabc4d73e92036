"""Files cut short, with a bit flipped, emptied, deleted, and replaced by another of their kind."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from small_runs import make_run

from basisconv.plan import Plan
from basisconv.study import verify
from basisconv.study.data import sets
from basisconv.study.execution.many_runs import train_runs
from basisconv.study.experiments import study as study_module
from basisconv.study.experiments.study import Study
from basisconv.study.records import checkpoint
from basisconv.study.records.checkpoint import Checkpoints
from basisconv.study.records.run import Record
from basisconv.study.records.store import Store
from basisconv.study.training.train import train
from torture import Line, Scale
from torture.subjects import RUNS, cost_table, paused_at, published, random_pack


@dataclass(frozen=True)
class Subject:
    """A kind of file.

    Attributes:
        kind: its name in the report.
        path: a sound one.
        other: another one of its kind, sound in its own place.
        read: what the package does with it; raises a sentence when something is wrong.
    """

    kind: str
    path: Path
    other: Path
    read: Callable[[], object]


def damage_trials(folder: Path, scale: Scale) -> list[Line]:
    """Damage each kind of file, and see that it is noticed and what becomes of the sweep."""
    folder.mkdir(parents=True)
    store = Store(folder / "runs")
    for run in RUNS[:2]:
        store.put(train(run))
    with (
        mock.patch.object(study_module, "ROOT", folder),
        mock.patch.dict(sets.DIGESTS),
        mock.patch.object(sets, "read_set", lambda name, path: sets.read_pack(path)),
    ):
        lines = [_damage(subject, scale) for subject in _subjects(folder, store)]
    return [*lines, _records_recover(store), _checkpoints_recover(folder / "again")]


def _subjects(folder: Path, store: Store) -> Iterator[Subject]:
    one, two = (store.path(run.run_id) for run in RUNS[:2])
    yield Subject("record", one, two, lambda: store.records([one.stem]))
    (path, _), (other, _) = (paused_at(run, folder / run.run_id, 2) for run in RUNS[:2])
    yield Subject(
        "checkpoint", path, other, lambda: checkpoint.read_checkpoint(path, RUNS[0].run_id)
    )
    study = Study.open("desk", runs=store.folder)
    table = cost_table(study_module.cost_table("desk"), "desk")
    other = cost_table(folder / "other.json", "smoke")

    def costs() -> object:
        # Each look is a new process's: nothing is remembered.
        return Study(study.profile, study.store, study.folder).costs

    yield Subject("cost table", table, other, costs)
    beside = published(study_module.published_folder("desk").parent, "desk", store, RUNS[0])
    other = published(folder / "elsewhere", "smoke", store, RUNS[0]) / "manifest.json"
    yield Subject(
        "manifest of sections", beside / "manifest.json", other,
        lambda: verify._check_manifest(beside),
    )  # fmt: skip
    pack, another = random_pack(folder / "pack", 0), random_pack(folder / "another", 1)
    sets.DIGESTS["cifar10"] = sets.read_pack(pack).sha256
    for name in ("manifest.json", "train-0.webp", "train-labels.npy"):
        yield Subject(
            f"data pack: {name}", pack / name, another / name,
            lambda: sets._verified("cifar10", pack),
        )  # fmt: skip


def _damage(subject: Subject, scale: Scale) -> Line:
    draw = random.Random(subject.kind)
    sound = subject.path.read_bytes()
    subject.read()
    trials, noticed, named = 0, 0, 0
    other = subject.other.read_bytes()
    for damaged in _damaged(sound, other, scale.truncations, scale.flips, draw):
        if damaged is None:
            subject.path.unlink()
        else:
            subject.path.write_bytes(damaged)
        trials += 1
        try:
            subject.read()
        except (ValueError, OSError) as error:
            noticed += 1
            output = str(error)
            named += subject.path.stem in output or str(subject.path.parent) in output
        subject.path.write_bytes(sound)
    subject.read()
    found = f"{noticed} noticed, {named} in a sentence that names the file or its folder"
    return Line(f"{subject.kind} damaged", trials, found, noticed == named == trials)


def _damaged(
    sound: bytes, other: bytes, truncations: int, flips: int, draw: random.Random
) -> Iterator[bytes | None]:
    """What a file may hold instead; None for no file."""
    for length in draw.sample(range(1, len(sound)), truncations):
        yield sound[:length]
    for bit in draw.sample(range(8 * len(sound)), flips):
        flipped = bytearray(sound)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)
    yield b""
    yield None
    yield other


def _records_recover(store: Store) -> Line:
    """A damaged record stops the sweep; deleted, it is made again and is the same."""
    runs, wanted = RUNS[:2], store.all()
    path = store.path(runs[0].run_id)
    sound, other = path.read_bytes(), store.path(runs[1].run_id).read_bytes()
    good, cases = 0, [sound[:-9], sound.replace(b"0", b"1", 1), b"", other]
    for damaged in cases:
        path.write_bytes(damaged)
        try:
            train_runs(runs, store, workers=1, train=_untouched)
        except ValueError as error:
            stopped = path.name in str(error)
        path.unlink()
        train_runs(runs, store, workers=1)
        good += stopped and _results(store.all()) == _results(wanted)
    found = f"{good} times the sweep named it, trained nothing, and made it again once deleted"
    return Line("a sweep over a damaged record", len(cases), found, good == len(cases))


def _untouched(run: object, checkpoints: object) -> Record:
    raise AssertionError("trained")


def _results(records: dict[str, Record]) -> dict[str, object]:
    return {run_id: record.result for run_id, record in records.items()}


def _checkpoints_recover(folder: Path) -> Line:
    """A training goes on from the other checkpoint, or anew, with the same result."""
    run, other = RUNS[0], make_run((3, Plan()), seed=5)
    wanted = train(run).result
    (newer, older), foreign = paused_at(run, folder / "a", 2), paused_at(other, folder / "b", 1)[0]
    sound = {path: path.read_bytes() for path in (newer, older)}
    draw, good, trials = random.Random(0), 0, 0
    another = foreign.read_bytes()
    # Of the newer alone, then of both, each cut, flipped, emptied, deleted and replaced.
    cases = [
        *_damaged(sound[newer], another, 4, 4, draw),
        *_damaged(sound[newer], another, 1, 1, draw),
    ]
    for number, damaged in enumerate(cases):
        both = number >= len(cases) - 5
        shutil.rmtree(newer.parent, ignore_errors=True)
        newer.parent.mkdir()
        for path, whole in sound.items():
            keep = whole if path == older and not both else damaged
            if keep is not None:
                path.write_bytes(keep)
        with warnings.catch_warnings(record=True) as output:
            warnings.simplefilter("always")
            record = train(run, Checkpoints(newer.parent, run))
        refusals = 0 if damaged is None else 1 + both
        notes = record.measurement.notes
        trials += 1
        good += (
            record.result == wanted
            and sum("a checkpoint was refused" in str(w.message) for w in output) == refusals
            and sum("a checkpoint was refused" in note for note in notes) == refusals
            and any(note == "went on from step 1" for note in notes) != both
        )
    found = f"{good} times it went on from the other, or anew, said so, and had the same result"
    return Line("a training over damaged checkpoints", trials, found, good == trials)

"""Several processes over one store, one of which dies; and a sweep called again when done."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from unittest import mock

from basisconv.study.execution.many_runs import train_runs
from basisconv.study.experiments import pipeline
from basisconv.study.experiments import study as study_module
from basisconv.study.experiments.registry import draft
from basisconv.study.experiments.study import Study
from basisconv.study.records.run import Run
from basisconv.study.records.store import Store
from basisconv.study.training import train as training
from torture import Line, Scale
from torture.disks import quiet
from torture.kills import FORKS
from torture.subjects import RUNS, counted


def sharing_trials(folder: Path, scale: Scale) -> list[Line]:
    """Four processes train what there is, each run once, whether one of them dies or not."""
    folder.mkdir(parents=True)
    return [
        _four(folder / "all live", scale, killed=False),
        _four(folder / "one dies", scale, killed=True),
        _again(folder / "again"),
        _command_again(folder / "command"),
    ]


def _runs(count: int) -> list[Run]:
    return [RUNS[0].model_copy(update={"seed": seed}) for seed in range(count)]


def share(folder: Path, count: int, start: Barrier) -> None:
    """One process of the four."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    train = partial(counted, log=folder / "log", seconds=0.5)
    start.wait()
    train_runs(_runs(count), Store(folder / "runs"), workers=1, train=train)


def _four(folder: Path, scale: Scale, killed: bool) -> Line:
    folder.mkdir()
    arguments = (folder, scale.runs, FORKS.Barrier(4))
    processes = [FORKS.Process(target=share, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    log = folder / "log"
    if killed:
        os.kill(_one_that_just_began(log, after=scale.runs // 2), signal.SIGKILL)
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
    records = Store(folder / "runs").all()
    lines = [line.split() for line in log.read_text().splitlines()]
    times = Counter(run_id for run_id, *_ in lines)
    ended = Counter(run_id for run_id, _, what in lines if what == "end")
    began = Counter(run_id for run_id, _, what in lines if what == "begin")
    pids = {pid for _, pid, _ in lines}
    cut = began.total() - ended.total()
    found = (
        f"{len(records)} records, {sum(n > 1 for n in ended.values())} runs trained twice, "
        f"{len(pids)} processes took part"
    )
    if killed:
        found += f"; {cut} run cut short by the death, and trained by another"
    passed = (
        len(records) == len(times) == scale.runs
        and set(ended.values()) == {1}
        and cut == (1 if killed else 0)
        and Counter(codes) == Counter([-9 if killed else 0, 0, 0, 0])
        and len(pids) == 4
    )
    what = "four processes over one store" + (", one of them killed" if killed else "")
    return Line(what, scale.runs, found, passed)


def _one_that_just_began(log: Path, after: int) -> int:
    """The process of the last line, which has its 0.5 s of "training" before it."""
    lines: list[str] = []
    while len(lines) < after or not lines[-1].endswith(" begin"):
        time.sleep(0.005)
        lines = log.read_text().splitlines() if log.exists() else []
    return int(lines[-1].split()[1])


def _again(folder: Path) -> Line:
    """The real training's steps are counted."""
    store, steps = Store(folder / "runs"), []
    step = training._Training._one_step

    def spy(self: training._Training, *arguments: object) -> object:
        steps.append(1)
        return step(self, *arguments)  # type: ignore[arg-type]

    with mock.patch.object(training._Training, "_one_step", spy):
        train_runs(RUNS, store, workers=1, checkpoint_seconds=0)
        first, before = len(steps), _snapshot(folder)
        train_runs(RUNS, store, workers=2)
    after = _snapshot(folder)
    found = f"{len(steps) - first} training steps ({first} the first time), " + _changes(
        before, after
    )
    passed = first == sum(run.steps for run in RUNS) == len(steps) and before == after
    return Line("second call of a finished sweep", len(RUNS), found, passed)


def _command_again(folder: Path) -> Line:
    """`run` and `status` of a whole profile, with runs that cost nothing."""
    command = ["run", "--profile", "smoke", "--set", "workers=1"]
    log = folder / "log"
    folder.mkdir()

    def quick(runs: list[Run], store: Store, **options: object) -> object:
        train = partial(counted, log=log)
        return train_runs(runs, store, **options | {"train": train, "workers": 1})  # type: ignore[arg-type]

    with (
        mock.patch.object(study_module, "ROOT", folder),
        mock.patch.object(pipeline, "train_runs", quick),
    ):
        statuses = [quiet(command)[0]]
        before = _snapshot(folder)
        statuses += [quiet(command)[0], quiet(["status", *command[1:]])[0]]
        after = _snapshot(folder)
        study = Study.open("smoke", ["workers=1"])
        runs = {i for name in ("01_baseline", "05_skip_training") for i in draft(study, name).runs}
        count = len(study.store.all())
    passed = statuses == [0, 0, 0] and before == after and runs <= study.store.all().keys()
    return Line(
        "second `python -m basisconv run`", count, f"0 runs trained, {_changes(before, after)}",
        passed,
    )  # fmt: skip


def _snapshot(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *folder.rglob("*")]
    }


def _changes(before: dict[Path, tuple[int, bytes]], after: dict[Path, tuple[int, bytes]]) -> str:
    changed = sum(before.get(p) != after.get(p) for p in before.keys() | after.keys())
    return f"{changed} of {len(before)} files and folders changed"

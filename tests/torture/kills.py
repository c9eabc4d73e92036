"""Processes killed in mid-sweep: by the clock, and in the middle of their writes."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from basisconv.study.execution.many_runs import train_runs
from basisconv.study.records.run import Record, Result
from basisconv.study.records.store import Store
from basisconv.study.training import train as training
from torture import Line, Scale
from torture.subjects import RUNS
from torture.writes import POINTS, at_writes

# Forked from a process that has imported everything: a sweep of its own starts at once.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torture.kills", "torture.preloaded"])


@dataclass(frozen=True)
class Fault:
    """SIGKILL at a point of a session's n-th write of a kind of file, "pt" or "json"."""

    kind: str
    point: str
    n: int

    def killer(self) -> Callable[[str, str], None]:
        """What `at_writes` calls."""
        written = 0

        def act(name: str, point: str) -> None:
            nonlocal written
            if name.endswith(self.kind):
                written += point == "opened"
                if (written, point) == (self.n, self.point):
                    os.kill(os.getpid(), signal.SIGKILL)

        return act


def session(folder: Path, fault: Fault | None = None, workers: int = 1) -> None:
    """One call of a sweep, in a process of its own; its steps and its words go to files."""
    os.dup2(os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    with at_writes(fault.killer()) if fault else nullcontext():
        train_runs(
            RUNS, Store(folder / "runs"), workers=workers, checkpoint_seconds=0, train=logged
        )


def logged(run: Any, checkpoints: Any) -> Record:
    """The real training, each step noted: run, step, process."""
    step = training._Training._one_step
    log = checkpoints.folder.parents[2] / "steps"

    def noted(self: Any, forward: Any, number: int) -> Any:
        with log.open("a") as file:
            file.write(f"{run.run_id} {number} {os.getpid()}\n")
        return step(self, forward, number)

    with mock.patch.object(training._Training, "_one_step", noted):
        return training.train(run, checkpoints)


def kill_trials(folder: Path, scale: Scale) -> list[Line]:
    """Kill a sweep at random, let the next call go on, until all its runs are done; again."""
    wanted, duration = _uninterrupted(folder / "whole")
    draw = random.Random(0)
    modes = (["by the clock", "checkpoint write", "record write"] * scale.kills)[: scale.kills]
    hits: Counter[str] = Counter()
    tally = _Tally(wanted)
    while modes:
        tally.begin(folder / f"store {tally.stores}")
        while modes and not tally.done():
            mode = modes[0]
            fault = None
            if mode == "checkpoint write":
                fault = Fault("pt", draw.choice(POINTS), draw.randint(1, 5))
            elif mode == "record write":
                fault = Fault("json", draw.choice(POINTS), 1)
            process = FORKS.Process(target=session, args=(tally.folder, fault))
            process.start()
            # A session starts in some hundredths of a second; a faulty one kills itself.
            process.join(duration * draw.random() if fault is None else None)
            process.kill()
            process.join()
            tally.look()
            if process.exitcode == -signal.SIGKILL:
                modes.pop(0)
                hits[mode if fault is None else f"{mode}, {fault.point}"] += 1
        tally.finish()
    killed = hits.total()
    found = f"{tally.summary()}, {tally.repeated} steps taken twice. Killed: {_listed(hits)}"
    # A checkpoint stands before every step, so a kill costs the one at hand.
    passed = killed == scale.kills and tally.sound() and tally.repeated <= killed
    lines = [Line("kill -9 in mid-sweep, then the next call", killed, found, passed)]
    if scale.team_kills:
        lines.append(_team_trials(folder, scale.team_kills, wanted, draw))
    return lines


def _uninterrupted(folder: Path) -> tuple[dict[str, Result | None], float]:
    folder.mkdir(parents=True)
    for _ in range(2):  # the first starts the process that the others are forked from
        shutil.rmtree(folder / "runs", ignore_errors=True)
        start = time.monotonic()
        process = FORKS.Process(target=session, args=(folder,))
        process.start()
        process.join()
    records = Store(folder / "runs").all()
    assert len(records) == len(RUNS), (folder / "said").read_text()
    return {i: record.result for i, record in records.items()}, time.monotonic() - start


class _Tally:
    """What has become of the stores so far."""

    def __init__(self, wanted: dict[str, Result | None]) -> None:
        self.wanted, self.stores = wanted, 0
        self.runs = self.lost = self.changed = self.rewritten = self.repeated = 0

    def begin(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.store = folder, Store(folder / "runs")
        self.stores += 1
        self.seen: dict[str, bytes] = {}

    def done(self) -> bool:
        return len(self.seen) == len(RUNS)

    def look(self) -> None:
        """Every record is whole, and is the one that was there before."""
        for run_id in self.store.all():
            data = self.store.path(run_id).read_bytes()
            self.rewritten += self.seen.setdefault(run_id, data) != data

    def finish(self) -> None:
        process = FORKS.Process(target=session, args=(self.folder,))
        process.start()
        process.join()
        self.look()
        records = self.store.all()
        self.runs += len(RUNS)
        self.lost += len(self.wanted.keys() - records.keys())
        self.changed += sum(r.result != self.wanted[i] for i, r in records.items())
        lines = (self.folder / "steps").read_text().splitlines()
        steps = [tuple(line.split()[:2]) for line in lines]
        self.repeated += len(steps) - len(set(steps))
        left = [p for p in (self.folder / "runs").rglob("*") if p.suffix in (".tmp", ".pt")]
        self.lost += len(left)  # nothing of theirs is left behind

    def summary(self) -> str:
        return (
            f"{self.lost} runs lost of {self.runs}, {self.changed} results other than an "
            f"uninterrupted sweep's, {self.rewritten} records written twice"
        )

    def sound(self) -> bool:
        return not (self.lost or self.changed or self.rewritten)


def _team_trials(
    folder: Path, kills: int, wanted: dict[str, Result | None], draw: random.Random
) -> Line:
    """The same with two worker processes, of which one is killed, or the sweep's own."""
    tally, victims = _Tally(wanted), Counter[str]()
    while victims.total() < kills:
        tally.begin(folder / f"team {tally.stores}")
        process = FORKS.Process(target=session, args=(tally.folder, None, 2))
        process.start()
        steps = tally.folder / "steps"
        while process.is_alive() and not (steps.exists() and steps.stat().st_size):
            time.sleep(0.01)
        time.sleep(0.5 * draw.random())
        name = draw.choice(["sweep", "worker"])
        pid = process.pid if name == "sweep" else int(steps.read_text().split()[-1])
        if process.is_alive() and pid is not None:
            os.kill(pid, signal.SIGKILL)
            victims[name] += 1
        process.join()
        tally.finish()
    found = f"{tally.summary()}. Killed: {_listed(victims)}"
    return Line("the same with two workers, one or the sweep killed", kills, found, tally.sound())


def _listed(counts: Counter[str]) -> str:
    return "; ".join(f"{count} {key}" for key, count in sorted(counts.items()))

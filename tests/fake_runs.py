"""Runs, records and a trainer that cost nothing, for the tests of what handles them."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from basisconv.plan import Plan
from basisconv.study.execution.stopping import Stop
from basisconv.study.records import files
from basisconv.study.records.checkpoint import Checkpoints
from basisconv.study.records.environment import device_kind
from basisconv.study.records.run import Data, Epoch, Measurement, Phase, Record, Result, Run
from basisconv.study.records.store import Store

PLAN = Plan({"layer1.0.conv1": 4, "layer1.0.conv2": 3}, form="full")


def make_run(seed: int = 0, **changes: Any) -> Run:
    values: dict[str, Any] = {
        "width": 16,
        "data": Data(name="cifar10-sample", sha256="0" * 64),
        "phases": (Phase(steps=20, plan=PLAN), Phase(steps=10, plan=Plan())),
        "learning_rate": 0.1,
        "seed": seed,
    }
    return Run(**values | changes)


def make_record(
    run: Run,
    status: str = "done",
    loss: float = 1.5,
    kind: str | None = None,
    seconds: float = 1.0,
) -> Record:
    line = Epoch(
        epoch=1.0, step=30, learning_rate=0.0, train_loss=loss, val_loss=loss, val_accuracy=0.5
    )
    result = Result(
        steps=30, epochs=1.0, parameters=12345, train_loss=loss, val_loss=loss, val_accuracy=0.5,
        test_loss=None, test_accuracy=None, history=(line,),
    )  # fmt: skip
    return Record(
        run=run,
        status=status,
        result=result if status == "done" else None,
        error=None if status == "done" else "Traceback\nRuntimeError: no luck",
        measurement=Measurement(
            seconds={"total": seconds},
            environment={"device": "Some CPU", "device_kind": kind or device_kind()},
            peak_memory_bytes=1,
        ),
    )


def fake_train(
    run: Run,
    checkpoints: Checkpoints,
    log: Path,
    seconds: float = 0.0,
    raising: Collection[int] = (),
    diverging: Collection[int] = (),
    dying: Collection[int] = (),
    full_disk: Collection[int] = (),
) -> Record:
    """Writes `run_id pid` to the log; seeds choose what goes wrong."""
    with log.open("a") as file:
        file.write(f"{run.run_id} {os.getpid()}\n")
    if run.seed in raising:
        raise RuntimeError(f"seed {run.seed} has no luck")
    if run.seed in dying:
        os.kill(os.getpid(), signal.SIGKILL)
    if run.seed in full_disk:
        files.os.replace = no_space
    else:
        time.sleep(seconds)
    return make_record(run, "diverged" if run.seed in diverging else "done")


def no_space(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def trained(log: Path) -> list[str]:
    """The ids in a log, in the order of their starts."""
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


class FarStore(Store):
    """Sent to a task, it is the folder of the same name on another machine."""

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return Store, (self.folder.with_name("elsewhere"),)


class AfterStarts(Stop):
    """Stops when so many trainings have begun: a time limit that no slow machine can miss."""

    def __init__(self, log: Path, count: int) -> None:
        super().__init__()
        self._log, self._count = log, count

    def __call__(self) -> bool:
        return super().__call__() or len(trained(self._log)) >= self._count


def pids(log: Path) -> set[int]:
    return (
        {int(line.split()[1]) for line in log.read_text().splitlines()} if log.exists() else set()
    )


def strays(folder: Path) -> list[Path]:
    return list(folder.glob("**/*.tmp"))


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Every file with its bytes and the time it was written."""
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}

"""Small real runs, and one sound file of each kind."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from basisconv.plan import Plan
from basisconv.study.data.packing import write_pack
from basisconv.study.data.packs import RawSet, RawSplit
from basisconv.study.data.sets import DIGESTS
from basisconv.study.experiments.profiles import load_profile
from basisconv.study.records.checkpoint import Checkpoints, Paused, checkpoint_files
from basisconv.study.records.environment import device_kind
from basisconv.study.records.publish import publish
from basisconv.study.records.run import (
    Arm,
    Data,
    Measurement,
    Phase,
    Record,
    Result,
    Run,
    Section,
)
from basisconv.study.records.store import Store
from basisconv.study.timing.costs import add_rows, table_settings
from basisconv.study.training.train import train

BASIS = Plan({"layer2.0.conv2": 4, "layer4.1.conv2": 16})
FULL = Plan({"layer1.0.conv1": 4, "layer4.1.conv2": 8}, form="full")


def small_run(*steps: tuple[int, Plan], **changes: Any) -> Run:
    """A real training of some seconds: width 8, 60 images, epochs of 3 steps."""
    settings: dict[str, Any] = {
        "width": 8, "learning_rate": 0.05, "seed": 0, "batch_size": 20,
        "data": Data(name="cifar10-sample", sha256=DIGESTS["cifar10-sample"], train_images=60),
        "phases": tuple(Phase(steps=n, plan=p) for n, p in steps),
    }  # fmt: skip
    return Run(**settings | changes)


RUNS = (
    small_run((2, BASIS), (2, Plan()), momentum_carry="carried"),
    small_run((5, Plan()), seed=1),
    small_run((2, FULL), (1, BASIS), seed=2, carry="reinit", schedule="restart"),
)


def put_aside(run: Run, folder: Path, steps: int) -> list[Path]:
    """Train a run for some steps, and return its two checkpoints, the newer first."""
    asked = itertools.count()
    try:
        train(run, Checkpoints(folder, run, seconds=0, stop=lambda: next(asked) == steps))
    except Paused:
        return checkpoint_files(folder)
    raise AssertionError("the run was to be put aside")


def random_pack(folder: Path, seed: int) -> Path:
    """A pack of 200 noisy pictures."""
    draw = np.random.default_rng(seed)

    def split() -> RawSplit:
        images = draw.integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)
        return RawSplit(images, {"labels": draw.integers(0, 10, 100, dtype=np.uint8)})

    classes = tuple("abcdefghij")
    write_pack(RawSet("cifar10", classes, {"train": split(), "test": split()}), folder)
    return folder


def cost_table(path: Path, profile: str, ratio: float = 0.5) -> Path:
    """A cost table of a profile, with one row."""
    head = {"device": "abacus", "device_kind": "abacus", **table_settings(load_profile(profile))}
    add_rows(path, head, [{"plan": BASIS.to_dict(), "width": 8, "batch_size": 50, "ratio": ratio}])
    return path


def published(folder: Path, profile: str, store: Store, *runs: Run) -> Path:
    """A folder of published records with a section of these runs."""
    arm = Arm(label="dense", method="dense", run_ids=tuple(run.run_id for run in runs))
    section = Section(name="01_baseline", profile=profile, arms=(arm,), facts={})
    publish(store, section, folder / profile)
    return folder / profile


def counted(run: Run, checkpoints: object, log: Path | None = None, seconds: float = 0) -> Record:
    """A record without training; the log gets lines of `run_id pid begin` and `… end`."""

    def note(what: str) -> None:
        if log is not None:
            with log.open("a") as file:
                file.write(f"{run.run_id} {os.getpid()} {what}\n")

    note("begin")
    time.sleep(seconds)
    result = Result(
        steps=run.steps, epochs=1.0, parameters=1, train_loss=1.0, val_loss=1.0 + run.seed / 10,
        val_accuracy=0.5, test_loss=None, test_accuracy=0.4 if run.test else None, history=(),
    )  # fmt: skip
    measurement = Measurement(
        seconds={"total": 1.0}, environment={"device_kind": device_kind()}, peak_memory_bytes=1
    )
    note("end")
    return Record(run=run, status="done", result=result, measurement=measurement)

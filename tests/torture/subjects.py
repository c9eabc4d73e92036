"""Small real runs, and one sound file of each kind."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from small_runs import BASIS, make_run

from basisconv.plan import Plan
from basisconv.study.data.packing import write_pack
from basisconv.study.data.packs import RawSet, RawSplit
from basisconv.study.experiments.profiles import load_profile
from basisconv.study.records.checkpoint import Checkpoints, Paused, checkpoint_files
from basisconv.study.records.publish import publish
from basisconv.study.records.run import (
    Arm,
    Run,
    Section,
)
from basisconv.study.records.store import Store
from basisconv.study.timing.costs import add_rows, table_settings
from basisconv.study.training.train import train

FULL = Plan({"layer1.0.conv1": 4, "layer4.1.conv2": 8}, form="full")


RUNS = (
    make_run((2, BASIS), (2, Plan()), momentum_carry="carried"),
    make_run((5, Plan()), seed=1),
    make_run((2, FULL), (1, BASIS), seed=2, carry="reinit", schedule="restart"),
)


def paused_at(run: Run, folder: Path, steps: int) -> list[Path]:
    """Train a run for some steps, and return its two checkpoints, the newer first."""
    asked = itertools.count()
    try:
        train(run, Checkpoints(folder, run, seconds=0, stop=lambda: next(asked) == steps))
    except Paused:
        return checkpoint_files(folder)
    raise AssertionError("the run was to be paused")


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

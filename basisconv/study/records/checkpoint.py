"""Checkpoints of trainings: the last two of each run, and final weights that are kept.

    checkpoints/<run id>/000000120-<sha256 of the file>.pt
    weights/<run id>/000000240-<sha256 of the file>.pt

The digest is in the name, not in a second file, because one rename then puts both in place.
Nothing is unpickled before the digest was compared, and then only tensors and plain values
(`weights_only=True`).
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import Field
from torch import Tensor

from basisconv.study.records.files import DamagedFile, write_atomic
from basisconv.study.records.run import NUMERICS, SCHEMA, Epoch, Model, Run

CHECKPOINT_SECONDS: Final = 60.0
"""Between two checkpoints, by default: what a killed training loses at most. Writing one of the
largest network here (90 MB) takes less than a second."""

FORMAT: Final = 1
"""Version of the entries of a file."""

_KEPT = 2
_NAME = re.compile(r"(\d{9})-([0-9a-f]{64})\.pt")


class Paused(Exception):
    """A training was asked to stop and left a checkpoint, from which it resumes."""


class CheckpointNotSaved(OSError):
    """A checkpoint could not be written; older ones stand."""


class Position(Model):
    """Where a training stands between two steps.

    The learning rate and every batch are functions of the Run and the step, so this is the
    schedule's state and the data's too.
    """

    phase: int = Field(ge=0)
    step: int = Field(ge=0)
    """Steps taken."""
    first: int = Field(ge=0)
    """The step that the running loss is summed from."""
    eager: bool
    """Whether the phase's network does not compile."""
    history: tuple[Epoch, ...]
    seconds: dict[str, float]
    notes: tuple[str, ...]
    device_kinds: tuple[str, ...] = Field(min_length=1)
    """Of the sessions so far; equal ones in a row count once."""


@dataclass(frozen=True)
class TrainingState:
    """All that the rest of a training depends on, apart from its Run.

    Attributes:
        position: the plain values.
        weights: the network's state dict; tensors keep their strides, and with them the kernels
            that a convolution picks.
        momentum: SGD's buffers by parameter name.
        losses: the running sum of the losses since `position.first`, ().
        streams: states of torch's own generators by device type. Only layers such as dropout draw
            from them.
    """

    position: Position
    weights: Mapping[str, Tensor]
    momentum: Mapping[str, Tensor]
    losses: Tensor
    streams: Mapping[str, Tensor]


class Checkpoints:
    """The last two checkpoints of one run, and when the next one is due.

    Whoever trains the run holds its lock, so nobody else writes here.

    Args:
        folder: has the checkpoints and nothing else.
        run: whose they are.
        seconds: between two; 0 for one before every step.
        stop: whether the training is to stop now; asked before every step.
        weights: the folder that gets the state after the last step; None where it is not kept.

    Attributes:
        refused: why `resume` skipped files.
    """

    def __init__(
        self,
        folder: str | Path,
        run: Run,
        seconds: float = CHECKPOINT_SECONDS,
        stop: Callable[[], bool] = lambda: False,
        weights: Path | None = None,
    ) -> None:
        self.folder, self.run_id, self.seconds, self.stop = Path(folder), run.run_id, seconds, stop
        self.weights = weights
        self.refused: list[str] = []
        self._sound: list[Path] = []
        self._last = time.monotonic()

    def save_if_due(self, state: Callable[[], TrainingState]) -> None:
        """Write a checkpoint if one is due.

        Raises:
            Paused: if the training is to stop; its checkpoint is written.
            CheckpointNotSaved: if it could not be.
        """
        stopping = self.stop()
        if stopping or time.monotonic() - self._last >= self.seconds:
            self.save(state())
        if stopping:
            raise Paused(f"after step {step_of_file(self._sound[-1])}")

    def save(self, state: TrainingState) -> None:
        """Write a checkpoint, and remove all but it and the last sound one before it.

        Raises:
            CheckpointNotSaved: if it could not be written, as on a full disk.
        """
        self._sound = self._write(self.folder, state, self._sound, _KEPT)
        self._last = time.monotonic()

    def keep_weights(self, state: Callable[[], TrainingState]) -> None:
        """Write the state after the last step, if it is kept; what was kept before is removed.

        Raises:
            CheckpointNotSaved: if it could not be written.
        """
        if self.weights is not None:
            self._write(self.weights, state(), [], 1)

    def _write(
        self, folder: Path, state: TrainingState, sound: list[Path], count: int
    ) -> list[Path]:
        """Write a file, and remove all but the last `count` of the sound ones and it."""
        data = _bytes(state, self.run_id)
        digest = hashlib.sha256(data).hexdigest()
        path = folder / f"{state.position.step:09d}-{digest}.pt"
        kept = [*(old for old in sound if old != path), path][-count:]
        try:
            write_atomic(path, data)
            for old in [*folder.glob("*.pt"), *folder.glob(".*.tmp")]:
                if old not in kept:
                    old.unlink()
        except OSError as error:
            raise CheckpointNotSaved(error.errno, error.strerror, error.filename) from error
        return kept

    def resume(self, restore: Callable[[TrainingState], None]) -> bool:
        """Restore the newest sound checkpoint, if there is one; warn of damaged ones.

        Args:
            restore: restores a state, or raises ValueError and changes nothing.
        """
        for path in checkpoint_files(self.folder):
            try:
                restore(read_checkpoint(path, self.run_id))
            except (ValueError, OSError) as error:
                self.refused.append(f"a checkpoint was refused: {error}")
                warnings.warn(self.refused[-1], stacklevel=2)
            else:
                self._sound = [path]
                return True
        return False

    def remove(self) -> None:
        """Remove them all: the run has its record."""
        shutil.rmtree(self.folder, ignore_errors=True)


def checkpoint_files(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder, the latest first."""
    return sorted(Path(folder).glob("*.pt"), reverse=True)


def step_of_file(path: Path) -> int:
    """After how many steps a checkpoint was written, by its name; 0 if that is not its form."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else 0


def read_checkpoint(path: Path, run_id: str) -> TrainingState:
    """Read a checkpoint that `Checkpoints` wrote.

    Raises:
        DamagedFile: if its bytes are not those that were written, or it is another run's or
            another version's.
        OSError: if it cannot be read.
    """
    data = path.read_bytes()
    stated = match[2] if (match := _NAME.fullmatch(path.name)) else "none in its name"
    found = hashlib.sha256(data).hexdigest()
    if found != stated:
        raise DamagedFile(
            f"{path} ({len(data)} bytes) was cut short or changed after it was written: expected "
            f"sha256 {stated}, found {found}."
        )
    wanted = _head(run_id)
    try:
        values = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        head = {key: values.pop(key) for key in wanted}
        position = Position.model_validate(values.pop("position"))
        state = TrainingState(position, **values)
    except Exception as error:  # torch has many for a file that is not its own
        # The first sentence only: torch goes on to advise weights_only=False.
        reason = re.split(r"\.\s|\n", str(error))[0].rstrip(".")
        raise DamagedFile(
            f"{path} is not a checkpoint: {type(error).__name__}: {reason}."
        ) from error
    if head != wanted:
        raise DamagedFile(f"{path} is a checkpoint of {head}; expected {wanted}.")
    return state


def _bytes(state: TrainingState, run_id: str) -> bytes:
    buffer = io.BytesIO()
    values = {**vars(state), "position": state.position.model_dump()}
    torch.save({**_head(run_id), **values}, buffer)
    return buffer.getvalue()


def _head(run_id: str) -> dict[str, Any]:
    return {"format": FORMAT, "run_id": run_id, "schema": SCHEMA, "numerics": NUMERICS}

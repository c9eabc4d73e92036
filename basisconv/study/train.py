"""One Run in, one Record out."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from basisconv.study.augment import TrainingStream, evaluation_batches
from basisconv.study.compiling import Forward, compiled
from basisconv.study.data import Dataset, Split, load
from basisconv.study.environment import (
    device,
    environment,
    forget_peak_memory,
    peak_memory_bytes,
    prepare,
)
from basisconv.study.optimization import learning_rate, momentum_of, sgd, squared_norms
from basisconv.study.phases import Buffers, first_network, switch
from basisconv.study.precision import autocast, check_native, convolutions_in
from basisconv.study.run import Epoch, Measurement, Record, Result, Run


class Diverged(ArithmeticError):
    """A loss is no longer finite."""


def train(run: Run) -> Record:
    """Train a network as a Run says and measure it.

    On the CPU the result is the same, bit for bit, each time and on each machine of one kind.
    A loss that is not finite ends the run with the status "diverged".

    Raises:
        ValueError: if the data are not those of the Run, the batch is larger than the training
            set, or the precision is one that this device only emulates.
    """
    prepare(run.threads)
    check_native(run.precision)
    forget_peak_memory()  # a worker trains many Runs
    seconds: dict[str, float] = {}
    notes: list[str] = []
    result, error = None, None
    with _timed(seconds, "total"), convolutions_in(run.precision):
        try:
            result = _Training(run, seconds, notes).result()
        except Diverged:
            error = traceback.format_exc()
    return Record(
        run=run,
        status="diverged" if result is None else "done",
        result=result,
        error=error,
        measurement=Measurement(
            seconds=seconds,
            environment=environment(),
            peak_memory_bytes=peak_memory_bytes(),
            notes=tuple(notes),
        ),  # fmt: skip
    )


class _Training:
    """The state of one run: network, optimizer, position."""

    def __init__(self, run: Run, seconds: dict[str, float], notes: list[str]) -> None:
        self.run, self.seconds, self.notes, self.device = run, seconds, notes, device()
        with _timed(seconds, "data"):
            self.data: Dataset = load(run.data.name, run.data.train_images)
            if self.data.sha256 != run.data.sha256:
                raise ValueError(
                    f"The Run wants {run.data.name} with sha256 {run.data.sha256}, but the data "
                    f"here have {self.data.sha256}. See python -m basisconv data verify."
                )
            self.stream = TrainingStream(self.data.train, run.batch_size, run.seed, self.device)
        with _timed(seconds, "switch"):
            self.model = first_network(run, len(self.data.classes)).to(self.device)
            self.optimizer = self._sgd({})
        self.step = 0
        self.history: list[Epoch] = []

    def result(self) -> Result:
        """Train to the end and measure."""
        end = 0
        for index, phase in enumerate(self.run.phases):
            if index:
                with _timed(self.seconds, "switch"):
                    momentum = momentum_of(self.model, self.optimizer)
                    momentum = switch(self.model, self.run, index, momentum)
                    self.optimizer = self._sgd(momentum)
            start, end = end, end + phase.steps
            self._phase(start, end)
        last = self.history[-1]
        test = self._evaluate(self.data.test) if self.run.test else (None, None)
        return Result(
            steps=self.step,
            epochs=self.step / self.stream.steps_per_epoch,
            parameters=sum(p.numel() for p in self.model.parameters()),
            train_loss=last.train_loss,
            val_loss=last.val_loss,
            val_accuracy=last.val_accuracy,
            test_loss=test[0],
            test_accuracy=test[1],
            history=tuple(self.history),
        )

    def _phase(self, start: int, end: int) -> None:
        run, forward = self.run, self._forward(start)
        every = self.stream.steps_per_epoch
        while self.step < end:
            stop = min(end, (self.step // every + 1) * every)
            with _timed(self.seconds, "train"):
                self.model.train()
                losses = torch.zeros((), device=self.device)
                first = self.step
                for step in range(first, stop):
                    rate = learning_rate(run, step, start, end)
                    for group in self.optimizer.param_groups:
                        group["lr"] = rate
                    losses += self._one_step(forward, step)
                self.step = stop
                loss = float(losses) / (stop - first)
            if not math.isfinite(loss):
                raise Diverged(f"The training loss is {loss} by step {stop} of {run.steps}.")
            if stop % every == 0 or stop == run.steps:
                val_loss, val_accuracy = self._evaluate(self.data.validation)
                self.history.append(
                    Epoch(
                        epoch=stop / every, step=stop, learning_rate=rate, train_loss=loss,
                        val_loss=val_loss, val_accuracy=val_accuracy,
                    )
                )  # fmt: skip

    def _sgd(self, buffers: Buffers) -> torch.optim.SGD:
        run = self.run
        return sgd(
            self.model, run.learning_rate, run.momentum, run.weight_decay, run.decay, buffers
        )

    def _one_step(self, forward: Forward, step: int) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        total, loss = self._losses(forward, *self.stream.batch(step))
        total.backward()
        self.optimizer.step()
        return loss.detach()

    def _losses(self, forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What is minimised, and the cross-entropy in it."""
        run = self.run
        with autocast(run.precision):
            logits = forward(x)
        loss = F.cross_entropy(logits.float(), y, label_smoothing=run.label_smoothing)
        if run.decay == "product":
            return loss + run.weight_decay / 2 * squared_norms(self.model), loss
        return loss, loss

    @torch.no_grad()
    def _evaluate(self, split: Split) -> tuple[float, float]:
        """Mean cross-entropy and accuracy (a fraction)."""
        with _timed(self.seconds, "evaluate"):
            self.model.eval()
            loss = torch.zeros((), dtype=torch.float64, device=self.device)
            right = torch.zeros((), dtype=torch.int64, device=self.device)
            for x, y in evaluation_batches(split, self.device):
                with autocast(self.run.precision):
                    logits = self.model(x)
                loss += F.cross_entropy(logits.float(), y, reduction="sum")
                right += (logits.argmax(1) == y).sum()
            n = len(split.labels)
            mean = float(loss) / n
            if not math.isfinite(mean):
                raise Diverged(f"The evaluation loss is {mean} at step {self.step}.")
            return mean, int(right) / n

    def _forward(self, step: int) -> Forward:
        """What the phase that begins with a step trains with: compiled, or the network itself."""
        if not self.run.compile:
            return self.model
        with _timed(self.seconds, "compile"):
            self.model.train()
            batch = self.stream.batch(step)
            forward, reason = compiled(
                self.model, lambda f: self._losses(f, *batch)[0], self.run.precision
            )
        if reason is not None:
            self.notes.append(f"from step {step} on eager: torch.compile is not used, as {reason}")
        return forward


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Add the wall seconds of a block to seconds[part]."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - start

"""One Run in, one Record out."""

from __future__ import annotations

import base64
import math
import traceback
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from basisconv.study.data.sets import Dataset, Split, load
from basisconv.study.records.checkpoint import Checkpoints, Position, TrainingState
from basisconv.study.records.environment import (
    configure_cpu,
    device,
    device_kind,
    environment,
    peak_memory_bytes,
    reset_peak_memory,
)
from basisconv.study.records.run import Epoch, Measurement, Precision, Record, Result, Run
from basisconv.study.training.augment import TrainingStream, evaluation_batches
from basisconv.study.training.compiling import Forward, compile_if_accurate
from basisconv.study.training.distributed import SINGLE_PROCESS, Group
from basisconv.study.training.graphs import graph_if_accurate
from basisconv.study.training.optimization import (
    learning_rate,
    make_optimizer,
    momentum_of,
    set_learning_rate,
    squared_norms,
)
from basisconv.study.training.phases import initial_network, restored_network, switch_plan
from basisconv.study.training.precision import autocast, check_native, convolution_precision
from basisconv.study.training.rng import global_streams, restore_global_streams, seed_global_streams
from basisconv.study.training.stopwatch import Stopwatch

COMPARED_STEPS = 3
"""Steps that are taken both as a CUDA graph and eagerly before the graph is used."""

FITTED_IMAGES = 512
"""Training images, the first ones and not augmented, that a switch fits responses to."""


class Diverged(ArithmeticError):
    """A loss is no longer finite."""


def train(
    run: Run, checkpoints: Checkpoints | None = None, group: Group = SINGLE_PROCESS
) -> Record:
    """Train a network as a Run says and measure it.

    On the CPU the result is the same, bit for bit, on each machine of one kind, whether the
    training was paused or not. A loss that is not finite ends the run with status "diverged".

    Args:
        run: what to train.
        checkpoints: from which to resume, and which to write; None for neither.
        group: the processes that train it together; each makes this call.

    Raises:
        UnsuitableMachine: if the data are not here, or this device only emulates the precision.
        ValueError: if the data are not the Run's, the batch is larger than the training set, or
            the group has another number of processes than the Run.
        Paused: when the checkpoints' `stop` asks for it.
        CheckpointNotSaved: if a checkpoint cannot be written.
    """
    if run.processes != group.size:
        raise ValueError(
            f"Run {run.run_id} needs {run.processes} processes, and there are {group.size}: use "
            f"torchrun --nproc-per-node {run.processes} -m basisconv train."
        )
    configure_cpu(run.threads)
    check_native(run.precision)
    reset_peak_memory()  # a worker trains many Runs
    result, error = None, None
    with convolution_precision(run.precision):
        training = _Training(run, checkpoints, group)
        try:
            result = training.result()
        except Diverged:
            error = traceback.format_exc()
    return Record(
        run=run,
        status="diverged" if result is None else "done",
        result=result,
        error=error,
        measurement=Measurement(
            seconds=training.clock.seconds(),
            environment=environment() | {"device_kind": " then ".join(training.device_kinds)},
            peak_memory_bytes=peak_memory_bytes(),
            notes=tuple(training.notes),
        ),  # fmt: skip
    )


class _Training:
    """The state of one run: network, optimizer, position."""

    def __init__(
        self, run: Run, checkpoints: Checkpoints | None = None, group: Group = SINGLE_PROCESS
    ) -> None:
        self.run, self.checkpoints, self.group, self.device = run, checkpoints, group, device()
        self.clock = Stopwatch()
        with self.clock.part("data"):
            self.data: Dataset = load(run.data.name, run.data.train_images)
            if self.data.sha256 != run.data.sha256:
                raise ValueError(
                    f"The Run wants {run.data.name} with sha256 {run.data.sha256}, but the data "
                    f"here have {self.data.sha256}. See python -m basisconv data verify."
                )
            self.stream = TrainingStream(self.data.train, run.batch_size, run.seed, self.device)
        # `first` is the step that `losses` is summed from: an epoch's first, or a phase's.
        self.phase, self.first, self.step, self.eager = 0, 0, 0, False
        self.losses = torch.zeros((), device=self.device)
        self.history: list[Epoch] = []
        self.notes: list[str] = []
        self.device_kinds = [device_kind()]
        with self.clock.part("switch"):
            if checkpoints is None or not checkpoints.resume(self._restore):
                self.model = initial_network(run, len(self.data.classes)).to(self.device)
                self.optimizer = make_optimizer(self.model, run)
                seed_global_streams(run.seed)
        if checkpoints is not None:
            self.notes += checkpoints.refused
        if group.broadcast(self.step) != self.step:
            raise ValueError(
                f"Process {group.rank} would resume from step {self.step}, the first from another: "
                "all of them need the store, on one machine or a network file system."
            )

    def result(self) -> Result:
        """Train to the end and measure."""
        end = 0
        for index, phase in enumerate(self.run.phases):
            start, end = end, end + phase.steps
            if index < self.phase:
                continue
            if index > self.phase:
                self._switch(index)
            self._phase(start, end)
        last = self.history[-1]
        test = self._evaluate(self.data.test) if self.run.test else (None, None, None)
        if self.checkpoints is not None:
            with self.clock.part("checkpoint"):
                self.checkpoints.keep_weights(self._state)
        return Result(
            steps=self.step,
            epochs=self.step / self.stream.steps_per_epoch,
            parameters=sum(p.numel() for p in self.model.parameters()),
            train_loss=last.train_loss,
            val_loss=last.val_loss,
            val_accuracy=last.val_accuracy,
            test_loss=test[0],
            test_accuracy=test[1],
            test_correct=test[2],
            history=tuple(self.history),
        )

    def _switch(self, phase: int) -> None:
        with self.clock.part("switch"):
            momentum = momentum_of(self.model, self.optimizer)
            images = None
            if self.run.carry == "responses":
                images, _ = next(evaluation_batches(self.data.train, self.device, FITTED_IMAGES))
            momentum = switch_plan(self.model, self.run, phase, momentum, images)
            self.optimizer = make_optimizer(self.model, self.run, momentum)
        self.phase, self.eager = phase, False

    def _phase(self, start: int, end: int) -> None:
        run, take = self.run, self._stepper()
        every = self.stream.steps_per_epoch
        while self.first < end:
            stop = min(end, (self.first // every + 1) * every)
            self.model.train()
            while self.step < stop:
                self._save_if_due()
                with self.clock.part("train"):
                    rate = learning_rate(run, self.step, start, end)
                    set_learning_rate(self.optimizer, rate)
                    self.losses += take(self.step)
                self.step += 1
            with self.clock.part("train"):  # includes waiting for a GPU
                loss = float(self.losses) / (stop - self.first)
            if not math.isfinite(loss):
                raise Diverged(f"The training loss is {loss} by step {stop} of {run.steps}.")
            if stop % every == 0 or stop == run.steps:
                val_loss, val_accuracy, _ = self._evaluate(self.data.validation)
                self.history.append(
                    Epoch(
                        epoch=stop / every, step=stop,
                        learning_rate=learning_rate(run, stop - 1, start, end), train_loss=loss,
                        val_loss=val_loss, val_accuracy=val_accuracy,
                    )
                )  # fmt: skip
            self.first, self.losses = stop, torch.zeros_like(self.losses)

    def _save_if_due(self) -> None:
        """Write a checkpoint if one is due, between two steps or during an evaluation."""
        if self.checkpoints is not None:
            with self.clock.part("checkpoint"):
                self.checkpoints.save_if_due(self._state)

    def _state(self) -> TrainingState:
        return TrainingState(
            Position(
                phase=self.phase, step=self.step, first=self.first, eager=self.eager,
                history=tuple(self.history), seconds=self.clock.seconds(),
                notes=tuple(self.notes), device_kinds=tuple(self.device_kinds),
            ),
            self.model.state_dict(), momentum_of(self.model, self.optimizer), self.losses,
            global_streams(),
        )  # fmt: skip

    def _restore(self, state: TrainingState) -> None:
        """Restore a state, or raise ValueError and change nothing."""
        at = state.position
        model = restored_network(self.run, at.phase, len(self.data.classes), state.weights)
        model = model.to(self.device)
        momentum = {n: b.to(self.device) for n, b in state.momentum.items()}
        made = make_optimizer(model, self.run, momentum)
        restore_global_streams(state.streams)
        self.model, self.optimizer, self.losses = model, made, state.losses.to(self.device)
        self.phase, self.first, self.step, self.eager = at.phase, at.first, at.step, at.eager
        self.history, self.notes = list(at.history), [*at.notes, f"went on from step {at.step}"]
        self.clock.add(at.seconds)
        here = [] if at.device_kinds[-1] == device_kind() else [device_kind()]
        self.device_kinds = [*at.device_kinds, *here]

    def _stepper(self) -> Callable[[int], Tensor]:
        """How the phase takes a step from here on: as a CUDA graph where possible."""
        forward = self._forward()
        graphs = self.device.type == "cuda" and not self.run.compile and not self.eager
        if graphs and self.group.size == 1:
            with self.clock.part("compile"):
                self.model.train()
                step, reason = graph_if_accurate(
                    partial(self._train_on, forward), self.model, self.optimizer,
                    [self._batch(self.step + i) for i in range(COMPARED_STEPS)],
                )  # fmt: skip
            if reason is None:
                return lambda number: step(*self._batch(number))
            self.eager = True
            self.notes.append(f"from step {self.step} on without a CUDA graph, as {reason}")
        return lambda number: self._one_step(forward, number)

    def _one_step(self, forward: Forward, step: int) -> Tensor:
        return self._train_on(forward, *self._batch(step))

    def _train_on(self, forward: Forward, x: Tensor, y: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        total, loss = self._losses(forward, x, y, self.run.precision)
        total.backward()
        self.optimizer.step()
        return self.group.mean(loss.detach())

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        return self.group.shard(*self.stream.batch(step))

    def _losses(
        self, forward: Forward, x: Tensor, y: Tensor, precision: Precision
    ) -> tuple[Tensor, Tensor]:
        """What is minimised, and its cross-entropy part."""
        run = self.run
        with autocast(precision):
            logits = forward(x)
        loss = F.cross_entropy(logits.float(), y, label_smoothing=run.label_smoothing)
        if run.decay == "product" and run.optimizer == "sgd":
            return loss + run.weight_decay / 2 * squared_norms(self.model), loss
        return loss, loss

    @torch.no_grad()
    def _evaluate(self, split: Split) -> tuple[float, float, str]:
        """Mean cross-entropy, accuracy, and in base64 a bit per image that was right."""
        self.model.eval()
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        right: list[Tensor] = []
        for x, y in evaluation_batches(split, self.device):
            self._save_if_due()
            with self.clock.part("evaluate"):
                with autocast(self.run.precision):
                    logits = self.model(x)
                loss += F.cross_entropy(logits.float(), y, reduction="sum")
                right.append(logits.argmax(1) == y)
        n = len(split.labels)
        with self.clock.part("evaluate"):  # includes waiting for a GPU
            correct = torch.cat(right).cpu()
            mean, accuracy = float(loss) / n, int(correct.sum()) / n
            bits = base64.b64encode(np.packbits(correct.numpy()).tobytes()).decode()
        mean, accuracy, bits = self.group.broadcast((mean, accuracy, bits))
        if not math.isfinite(mean):
            raise Diverged(f"The evaluation loss is {mean} at step {self.step}.")
        return mean, accuracy, bits

    def _forward(self) -> Forward:
        """The phase's forward pass: compiled, or the network itself."""
        if not self.run.compile or self.eager:
            return self.group.wrap(self.model)
        with self.clock.part("compile"):
            self.model.train()
            batch = self._batch(self.step)
            forward, reason = compile_if_accurate(
                self.model,
                lambda forward, precision: self._losses(forward, *batch, precision)[0],
                self.run.precision,
            )
        if reason is not None:
            self.eager = True
            self.notes.append(
                f"from step {self.step} on eager: torch.compile is not used, as {reason}"
            )
        return self.group.wrap(forward)

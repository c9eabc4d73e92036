"""One Run in, one Record out."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basisconv.layer import BasisConv2d
from basisconv.study.augment import TrainingStream, evaluation_batches
from basisconv.study.data import Dataset, Split, load
from basisconv.study.environment import (
    computes_bfloat16,
    device,
    environment,
    peak_memory_bytes,
)
from basisconv.study.phases import Buffers, first_network, switch
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
    torch.set_num_threads(run.threads)
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # a worker trains many Runs
    if run.precision == "bfloat16" and not computes_bfloat16():
        raise ValueError(
            "precision='bfloat16' asked for, but this device only emulates it, many times slower "
            "than float32. Use precision='float32' here."
        )
    seconds: dict[str, float] = {}
    result, error = None, None
    with _timed(seconds, "total"):
        try:
            result = _Training(run, seconds).result()
        except Diverged:
            error = traceback.format_exc()
    return Record(
        run=run,
        status="diverged" if result is None else "done",
        result=result,
        error=error,
        measurement=Measurement(
            seconds=seconds, environment=environment(), peak_memory_bytes=peak_memory_bytes()
        ),
    )


class _Training:
    """The state of one run: network, optimizer, position."""

    def __init__(self, run: Run, seconds: dict[str, float]) -> None:
        self.run, self.seconds, self.device = run, seconds, device()
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
            self._new_optimizer({})
        self.step = 0
        self.history: list[Epoch] = []

    def result(self) -> Result:
        """Train to the end and measure."""
        end = 0
        for index, phase in enumerate(self.run.phases):
            if index:
                with _timed(self.seconds, "switch"):
                    self._new_optimizer(switch(self.model, self.run, index, self._momentum()))
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
        run, forward = self.run, self._forward()
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

    def _one_step(self, forward: Callable[[Tensor], Tensor], step: int) -> Tensor:
        x, y = self.stream.batch(step)
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            logits = forward(x)
        loss = F.cross_entropy(logits.float(), y, label_smoothing=self.run.label_smoothing)
        total = loss
        if self.run.decay == "product":
            total = loss + self.run.weight_decay / 2 * squared_norms(self.model)
        total.backward()
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def _evaluate(self, split: Split) -> tuple[float, float]:
        """Mean cross-entropy and accuracy (a fraction)."""
        with _timed(self.seconds, "evaluate"):
            self.model.eval()
            loss = torch.zeros((), dtype=torch.float64, device=self.device)
            right = torch.zeros((), dtype=torch.int64, device=self.device)
            for x, y in evaluation_batches(split, self.device):
                with self._autocast():
                    logits = self.model(x)
                loss += F.cross_entropy(logits.float(), y, reduction="sum")
                right += (logits.argmax(1) == y).sum()
            n = len(split.labels)
            mean = float(loss) / n
            if not math.isfinite(mean):
                raise Diverged(f"The evaluation loss is {mean} at step {self.step}.")
            return mean, int(right) / n

    def _forward(self) -> Callable[[Tensor], Tensor]:
        return torch.compile(self.model) if self.run.compile else self.model

    def _autocast(self) -> AbstractContextManager[None]:
        bfloat16 = self.run.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16)

    def _momentum(self) -> Buffers:
        # A parameter's state is there from its first step on, its buffer with momentum alone.
        states = {n: self.optimizer.state[p] for n, p in self.model.named_parameters()}
        return {n: s["momentum_buffer"] for n, s in states.items() if "momentum_buffer" in s}

    def _new_optimizer(self, momentum: Buffers) -> None:
        """SGD over the present parameters, beginning with the momentum given."""
        run = self.run
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.model, run.weight_decay, run.decay),
            lr=run.learning_rate, momentum=run.momentum, nesterov=run.momentum > 0,
        )  # fmt: skip
        for name, buffer in momentum.items():
            parameter = self.model.get_parameter(name)
            self.optimizer.state[parameter]["momentum_buffer"] = buffer.clone()


def learning_rate(run: Run, step: int, start: int, end: int) -> float:
    """Linear warm-up, then half a cosine down to zero (Loshchilov & Hutter, 2017).

    Args:
        run: gives the peak, the warm-up's share of the steps, and whether one cosine spans the
            run or each phase has its own.
        step: the step about to be taken, from 0.
        start: first step of its phase.
        end: step after its phase's last.
    """
    if run.schedule == "one":
        start, end = 0, run.steps
    steps = end - start
    warm = math.ceil(run.warmup * steps)
    done = step - start
    if done < warm:
        return run.learning_rate * (done + 1) / warm
    return run.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - warm) / (steps - warm)))


def parameter_groups(model: nn.Module, weight_decay: float, decay: str) -> list[dict[str, object]]:
    """Kernels and matrices decay, biases and batch-norm do not.

    With decay="product" the factors of basis layers do not either: `squared_norms` decays
    their product instead.
    """
    spared = set()
    if decay == "product":
        spared = {p for m in model.modules() if isinstance(m, BasisConv2d) for p in m.parameters()}
    decayed = [p for p in model.parameters() if p.ndim > 1 and p not in spared]
    others = [p for p in model.parameters() if p.ndim <= 1 or p in spared]
    groups = [(decayed, weight_decay), (others, 0.0)]
    return [{"params": params, "weight_decay": value} for params, value in groups]


def squared_norms(model: nn.Module) -> Tensor:
    """Sum over basis layers of ||A·B||² (Frobenius), without multiplying any kernel out.

    ||A·B||² = sum((AᵀA) ∘ (BBᵀ)), block by block.
    """
    total = torch.zeros((), device=next(model.parameters()).device)
    for layer in model.modules():
        if isinstance(layer, BasisConv2d):
            width = layer.n_basis // layer.blocks
            a = layer.combine.view(layer.blocks, -1, width)
            b = layer.basis.reshape(layer.blocks, width, -1)
            total = total + ((a.mT @ a) * (b @ b.mT)).sum()
    return total


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Add the wall seconds of a block to seconds[part]."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - start

"""One epoch of training for a network that was cut, and what it gets right."""

from __future__ import annotations

import base64

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from basisconv.plan import Plan
from basisconv.study.data.sets import Split
from basisconv.study.records.run import Phase, Run
from basisconv.study.training.augment import TrainingStream, evaluation_batches
from basisconv.study.training.optimization import learning_rate, make_optimizer, set_learning_rate


def train_epoch(model: nn.Module, run: Run, rate: float, split: Split) -> None:
    """Train a network in place for one epoch, with a Run's settings but at another rate.

    Args:
        model: the network, on the CPU.
        run: gives the batch, the optimizer and its schedule, and the seed of the batches.
        rate: the peak of the learning rate.
        split: the images.

    Raises:
        ArithmeticError: if the loss is no longer finite.
    """
    stream = TrainingStream(split, run.batch_size, run.seed)
    steps = stream.steps_per_epoch
    phase = Phase(steps=steps, plan=Plan())
    own = run.model_copy(update={"learning_rate": rate, "phases": (phase,)})
    optimizer = make_optimizer(model, own)
    model.train()
    for step in range(steps):
        set_learning_rate(optimizer, learning_rate(own, step, 0, steps))
        images, labels = stream.batch(step)
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(images), labels, label_smoothing=own.label_smoothing)
        loss.backward()
        optimizer.step()
    if not loss.isfinite():
        reached = float(loss.detach())
        raise ArithmeticError(f"The loss is {reached} after one epoch at a rate of {rate:g}.")


def evaluate(model: nn.Module, split: Split) -> tuple[float, str]:
    """Accuracy, and in base64 a bit per image that was right, as in a record's `test_correct`."""
    with torch.inference_mode():
        right = [model.eval()(x).argmax(1) == y for x, y in evaluation_batches(split)]
    correct = torch.cat(right)
    bits = base64.b64encode(np.packbits(correct.numpy()).tobytes()).decode()
    return float(correct.double().mean()), bits

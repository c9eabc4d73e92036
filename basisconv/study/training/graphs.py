"""A whole training step as one CUDA graph, used only where it agrees with eager steps.

A small network's step is hundreds of kernels, and launching them one by one takes longer than
running them. A graph launches them at once: forward and backward pass and the optimizer. It is
recorded in a second, where a compiler takes a minute for each plan. Before it is used, a few steps
are taken both ways from one state. Where they disagree, or nothing can be recorded, the phase is
trained in eager mode, with a note of the reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_T = TypeVar("_T")

Step = Callable[[Tensor, Tensor], Tensor]
"""Trains on images and labels; returns the detached loss."""

Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Records a call without arguments and returns what replays it."""

_ALLOWED = 0.05
"""How far the change of all weights over the compared steps may be off, relative to its norm.
Sums in another order move it by thousandths; a kernel left out or a tensor not updated by all."""

_EAGER_CALLS = 3
"""Before the recording: cuDNN picks its kernels in them."""


def graph_if_accurate(
    step: Step,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[tuple[Tensor, Tensor]],
    record: Record | None = None,
) -> tuple[Step, str | None]:
    """A step as a graph, or the step itself and the reason.

    Args:
        step: one training step; it changes the model and the optimizer and does not synchronise
            with the host. Learning rates are tensors on the device.
        model: the network in training mode; it is left as it was.
        optimizer: of its parameters; it is left as it was, but momentum that did not exist
            before is zero afterwards.
        batches: of the shapes to come, on the device; each is trained on once, both ways.
        record: how a call is recorded; by default as a CUDA graph.

    Returns:
        the graph's step and None; or the step and the reason, which is also a warning.
    """
    before = {id(tensor): tensor.detach().clone() for tensor in _state(model, optimizer)}
    step(*batches[0])  # an optimizer makes its buffers in its first step
    tensors = _state(model, optimizer)
    first = [before.get(id(tensor), torch.zeros_like(tensor)) for tensor in tensors]
    _put_back(tensors, first)
    eager = [step(*batch).double() for batch in batches]
    wanted = _copies(tensors)
    _put_back(tensors, first)
    try:
        graph = _Graph(step, batches[0], record or record_cuda)
        _put_back(tensors, first)
        losses = [graph(*batch).double() for batch in batches]
        found = _copies(tensors)
    except Exception as failure:
        head = str(failure).strip().partition("\n")[0][:200]
        reason = f"recording it failed with {type(failure).__name__}: {head}"
    else:
        off = max(_distance(found, wanted, first), _relative(losses, eager))
        if off <= _ALLOWED:  # not so for NaN either
            return graph, None
        reason = f"its weights or losses are off by {off:.2g}"
    finally:
        _put_back(tensors, first)
        model.zero_grad(set_to_none=True)
    warnings.warn(f"No CUDA graph is used: {reason}.", stacklevel=2)
    return step, reason


class _Graph:
    """A recorded step, with the tensors that it reads its batch from."""

    def __init__(self, step: Step, batch: tuple[Tensor, Tensor], record: Record) -> None:
        self._images, self._labels = (tensor.clone() for tensor in batch)
        self._step = step  # keeps what the graph reads
        self._replay = record(lambda: step(self._images, self._labels))

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        if images.shape != self._images.shape:
            raise ValueError(
                f"The graph takes {len(self._images)} images at a time, and not {len(images)}."
            )
        self._images.copy_(images)
        self._labels.copy_(labels)
        return self._replay().clone()  # the next replay overwrites it


def record_cuda(call: Callable[[], _T], pool: Any = None) -> Callable[[], _T]:
    """Record a call that does not synchronise as a CUDA graph.

    Args:
        call: what is recorded.
        pool: memory that the graph shares with others; None for its own.

    Returns:
        what replays it and returns what the recorded call returned.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_EAGER_CALLS):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        output = call()

    def replay() -> _T:
        graph.replay()
        return output

    return replay


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All that a step changes: parameters, buffers and momentum."""
    kept = [value for state in optimizer.state.values() for value in state.values()]
    return [*model.parameters(), *model.buffers(), *(v for v in kept if isinstance(v, Tensor))]


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def _put_back(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def _distance(
    found: Sequence[Tensor], wanted: Sequence[Tensor], first: Sequence[Tensor]
) -> float:  # fmt: skip
    """‖found - wanted‖ / ‖wanted - first‖ over all tensors that are real numbers."""
    apart = moved = 0.0
    for a, b, start in zip(found, wanted, first, strict=True):
        if a.is_floating_point():
            apart += float((a.double() - b.double()).square().sum())
            moved += float((b.double() - start.double()).square().sum())
    return float((apart / moved) ** 0.5) if moved else float("nan")


def _relative(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    pairs = zip(found, wanted, strict=True)
    return max(float((a - b).abs() / b.abs().clamp(min=1e-6)) for a, b in pairs)

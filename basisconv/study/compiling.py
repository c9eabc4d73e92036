"""`torch.compile`, used only where it agrees with eager.

Compiled convolutions have been wrong in some releases, so the loss and the gradients of one batch
are compared before anything is trained, in every phase; where they disagree, or where nothing can
be compiled, training goes on in eager mode and says why.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
import torch._dynamo
from torch import Tensor, nn

Forward = Callable[[Tensor], Tensor]

TOLERANCE = {"float32": 0.01, "tf32": 0.05, "bfloat16": 0.2}
"""Largest relative error of a loss or a gradient. A wrong kernel errs by about 1; two right ones
differ by rounding, which twenty layers of bfloat16 amplify to some per cent."""

# A gradient that should be zero (a bias before batch-norm) is rounding alone, so errors count
# relative to this share of the largest gradient at least.
_FLOOR = 1e-3

# The first call of what runs as CUDA graphs is eager, the second is recorded, the third a replay.
_CALLS = 3


def compiled(
    model: nn.Module, loss: Callable[[Forward], Tensor], precision: str = "float32"
) -> tuple[Forward, str | None]:
    """A compiled forward pass of a model as it stands, or the model itself and the reason.

    Args:
        model: the network, on its device and in training mode; its buffers are left as they
            were, its gradients empty.
        loss: of one batch, through the forward pass given.
        precision: whose `TOLERANCE` counts.

    Returns:
        what to train with, and None; or the model and why it is not compiled, which is warned
        of as well.
    """
    # A process trains many networks of one class, and dynamo compiles a class's forward a few
    # times only before it gives up silently.
    torch.compiler.reset()
    forward = graph(model)
    expected = loss_and_gradients(model, model, loss)  # what fails here is no compiler's fault
    try:
        error = disagreement(loss_and_gradients(model, forward, loss, _CALLS), expected)
    except Exception as failure:
        reason = f"it failed with {type(failure).__name__}: {_first_line(failure)}"
    else:
        if error <= TOLERANCE[precision]:  # not so for NaN either
            return forward, None
        reason = f"its loss or gradients are {error:.2g} off (at most {TOLERANCE[precision]:g})"
    warnings.warn(f"torch.compile is not used: {reason}.", stacklevel=2)
    return model, reason


def graph(model: nn.Module) -> Forward:
    """A model's forward pass, to be compiled for the shapes of its first call.

    On CUDA the kernels are launched as CUDA graphs: eager launches bound a small network's pace.
    """
    on_cuda = next(model.parameters()).device.type == "cuda"
    forward: Forward = torch.compile(
        model, mode="reduce-overhead" if on_cuda else "default", dynamic=False
    )
    return forward


def many_networks() -> AbstractContextManager[None]:
    """For timing: lets dynamo compile as many networks of one class as are compared.

    On its own it gives up after a few, silently, and runs the rest in eager mode.
    """
    patched: AbstractContextManager[None] = torch._dynamo.config.patch(
        recompile_limit=4096, accumulated_recompile_limit=4096
    )
    return patched


def loss_and_gradients(
    model: nn.Module, forward: Forward, loss: Callable[[Forward], Tensor], calls: int = 1
) -> list[Tensor]:
    """One batch's loss and every parameter's gradient, in float64, of the last of some calls.

    Batch-norm's running statistics, which move with every forward pass in training mode, are put
    back after each call.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for _ in range(calls):
        try:
            model.zero_grad(set_to_none=True)
            value = loss(forward)
            value.backward()
        finally:
            _restore(model, buffers)
    # Copies: what a CUDA graph returns is overwritten by its next replay.
    gradients = [
        p.grad.to(torch.float64, copy=True) for p in model.parameters() if p.grad is not None
    ]
    model.zero_grad(set_to_none=True)
    return [value.detach().to(torch.float64, copy=True), *gradients]


def disagreement(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative error among the loss and the gradients of one batch.

    For each gradient ‖g − g₀‖ / max(‖g₀‖, 0.001 · the largest ‖g₀‖), and so for the loss.
    """
    floor = _FLOOR * max(g.norm().item() for g in expected[1:])
    errors = [
        ((a - b).norm() / b.norm().clamp(min=floor)).item()
        for a, b in zip(found, expected, strict=True)
    ]
    return max(errors, key=lambda e: float("inf") if e != e else e)


def _restore(model: nn.Module, buffers: dict[str, Tensor]) -> None:
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or "no message"

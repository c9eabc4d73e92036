"""`torch.compile`, used only where it agrees with eager.

Compiled convolutions have been wrong in some releases. So the loss and gradients of one batch are
compared with eager float32's before each phase. Where they are further off than eager ones, or
nothing can be compiled, the phase is trained in eager mode, with a note of the reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
import torch._dynamo
from torch import Tensor, nn

from basisconv.study.records.run import Precision
from basisconv.study.training.precision import convolution_precision

Forward = Callable[[Tensor], Tensor]

_ALLOWED = 1.5
_ROUNDING = 0.05
"""The relative error of the compiled loss and of each compiled gradient may be so many times its
eager one's, and so much more. It depends on the layer: bfloat16 moves the first gradients of a
ResNet-18 by half and the last by hundredths. Two correct kernels are about as far off; a wrong one
spoils the gradients of its layer and of all before it."""

# Errors are relative to at least this share of the largest gradient: a gradient that should be zero
# (a bias before batch-norm) is only rounding.
_FLOOR = 1e-3

# With CUDA graphs the first call is eager, the second is recorded, the third is a replay.
_CALLS = 3


def compile_if_accurate(
    model: nn.Module, loss: Callable[[Forward, Precision], Tensor], precision: Precision
) -> tuple[Forward, str | None]:
    """A compiled forward pass of a model as it stands, or the model itself and the reason.

    Args:
        model: the network, on its device and in training mode; its buffers are left as they
            were, its gradients empty.
        loss: of one batch, through the forward pass given and in the precision given.
        precision: to train in.

    Returns:
        the compiled forward pass and None; or the model and the reason, which is also a warning.
    """
    # A process trains many networks of one class, and dynamo silently gives up on a class after a
    # few compilations.
    torch.compiler.reset()
    forward = compile_network(model)
    # Outside of the try: an error here is not the compiler's.
    eager = loss_and_gradients(model, model, lambda f: loss(f, precision))
    try:
        exact = eager
        if precision != "float32":
            with convolution_precision("float32"):
                exact = loss_and_gradients(model, model, lambda f: loss(f, "float32"))
        fast = loss_and_gradients(model, forward, lambda f: loss(f, precision), _CALLS)
    except Exception as failure:
        reason = f"it, or float32, failed with {type(failure).__name__}: {_first_line(failure)}"
    else:
        names = ["loss", *(name for name, p in model.named_parameters() if p.requires_grad)]
        found = zip(names, relative_errors(fast, exact), relative_errors(eager, exact), strict=True)
        off = [
            f"{name} by {error:.2g} (eager {of_eager:.2g})"
            for name, error, of_eager in found
            if not error <= _ALLOWED * of_eager + _ROUNDING  # not so for NaN either
        ]
        if not off:
            return forward, None
        reason = f"{len(off)} of {len(names)} gradients and loss are off, the first {off[0]}"
    warnings.warn(f"torch.compile is not used: {reason}.", stacklevel=2)
    return model, reason


def compile_network(model: nn.Module) -> Forward:
    """A model's forward pass, compiled at the first call for its shapes.

    On CUDA it runs as CUDA graphs: launches limit the speed of a small network.
    """
    on_cuda = next(model.parameters()).device.type == "cuda"
    forward: Forward = torch.compile(
        model, mode="reduce-overhead" if on_cuda else "default", dynamic=False
    )
    return forward


def unlimited_recompiles() -> AbstractContextManager[None]:
    """For timing: lets dynamo compile any number of networks of one class."""
    patched: AbstractContextManager[None] = torch._dynamo.config.patch(
        recompile_limit=4096, accumulated_recompile_limit=4096
    )
    return patched


def loss_and_gradients(
    model: nn.Module, forward: Forward, loss: Callable[[Forward], Tensor], calls: int = 1
) -> list[Tensor]:
    """One batch's loss and every parameter's gradient, in float64, of the last of some calls.

    Batch-norm's running statistics are restored after each call.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for _ in range(calls):
        try:
            model.zero_grad(set_to_none=True)
            value = loss(forward)
            value.backward()
        finally:
            _restore(model, buffers)
    # Copies: the next replay of a CUDA graph overwrites its outputs.
    gradients = [
        p.grad.to(torch.float64, copy=True) for p in model.parameters() if p.grad is not None
    ]
    model.zero_grad(set_to_none=True)
    return [value.detach().to(torch.float64, copy=True), *gradients]


def relative_errors(found: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """The relative errors of one batch's loss and of each gradient.

    For a gradient ‖g − g₀‖ / max(‖g₀‖, 0.001 · the largest ‖g₀‖).
    """
    floor = _FLOOR * max(g.norm().item() for g in expected[1:])
    least = [0.0] + [floor] * (len(expected) - 1)
    return [
        ((a - b).norm() / b.norm().clamp(min=smallest)).item()
        for a, b, smallest in zip(found, expected, least, strict=True)
    ]


def _restore(model: nn.Module, buffers: dict[str, Tensor]) -> None:
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or "no message"

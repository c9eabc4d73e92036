"""How a Run's parameters are updated: SGD, its learning rate, and weight decay."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from basisconv.layer import BasisConv2d
from basisconv.study.run import Run


def sgd(
    model: nn.Module,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    decay: str = "factors",
    buffers: Mapping[str, Tensor] | None = None,
) -> torch.optim.SGD:
    """SGD with Nesterov's momentum, all parameters together.

    Args:
        model: the network whose parameters are updated.
        learning_rate: of the first step.
        momentum: 0 for none.
        weight_decay: of kernels and matrices; see `parameter_groups`.
        decay: "factors" or "product", likewise.
        buffers: momentum to begin with, by parameter name.

    Raises:
        ValueError: if those are not of the parameters' shapes.
    """
    # Not fused: a step is not measurably faster by it, and on a CPU it pairs up numbers by their
    # place in memory, which is wrong, silently, for a gradient in another memory format.
    optimizer = torch.optim.SGD(
        parameter_groups(model, weight_decay, decay),
        lr=learning_rate, momentum=momentum, nesterov=momentum > 0, foreach=True,
    )  # fmt: skip
    parameters = dict(model.named_parameters())
    for name, buffer in (buffers or {}).items():
        if name not in parameters or parameters[name].shape != buffer.shape:
            raise ValueError(f"No parameter {name!r} has momentum of shape {tuple(buffer.shape)}.")
        optimizer.state[parameters[name]]["momentum_buffer"] = buffer.clone()
    return optimizer


def momentum_of(model: nn.Module, optimizer: torch.optim.SGD) -> dict[str, Tensor]:
    """The momentum buffers that there are, by parameter name."""
    # A parameter's state is there from its first step on, its buffer with momentum alone.
    states = {n: optimizer.state[p] for n, p in model.named_parameters()}
    return {n: s["momentum_buffer"] for n, s in states.items() if "momentum_buffer" in s}


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

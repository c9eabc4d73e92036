"""How a Run's parameters are updated: optimizer, learning rate and weight decay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from basisconv.layer import BasisConv2d
from basisconv.optim import Muon, muon_groups
from basisconv.study.records.run import Run

# Not fields of a Run: Newton–Schulz steps, and SGD's settings for biases, batch-norm and the
# classifier. A change of them needs a new NUMERICS.
_MUON: dict[str, Any] = {"steps": 3, "sgd_lr": 0.1, "sgd_momentum": 0.9, "sgd_weight_decay": 5e-4}


def make_optimizer(
    model: nn.Module, run: Run, buffers: Mapping[str, Tensor] | None = None
) -> torch.optim.Optimizer:
    """The optimizer of a Run.

    Args:
        model: the network whose parameters are updated.
        run: the Run.
        buffers: momentum to begin with, by parameter name.

    Raises:
        ValueError: if those are not of the parameters' shapes.
    """
    made = (
        muon(model, run)
        if run.optimizer == "muon"
        else sgd(model, run.learning_rate, run.momentum, run.weight_decay, run.decay)
    )
    parameters = dict(model.named_parameters())
    for name, buffer in (buffers or {}).items():
        if name not in parameters or parameters[name].shape != buffer.shape:
            raise ValueError(f"No parameter {name!r} has momentum of shape {tuple(buffer.shape)}.")
        made.state[parameters[name]]["momentum_buffer"] = buffer.clone()
    device = next(model.parameters()).device
    for group in made.param_groups:
        group["ratio"] = group["lr"] / run.learning_rate  # see `set_learning_rate`
        if device.type == "cuda":  # a recorded step reads it from there
            group["lr"] = torch.tensor(group["lr"], device=device)
    return made


def muon(model: nn.Module, run: Run) -> Muon:
    """Muon with a Run's settings.

    With decay="product" factors decay at half the rate, so that their product decays as a dense
    kernel does.
    """
    groups = muon_groups(model)
    for group in groups:
        if run.decay == "product" and group["kind"] == "factors":
            group["weight_decay"] = run.weight_decay / 2
    return Muon(
        groups, run.learning_rate, run.momentum, run.weight_decay, run.factor_lr_ratio, **_MUON
    )


def sgd(
    model: nn.Module,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    decay: str = "factors",
) -> torch.optim.Optimizer:
    """SGD with Nesterov's momentum, all parameters together.

    Args:
        model: the network whose parameters are updated.
        learning_rate: of the first step.
        momentum: 0 for none.
        weight_decay: of kernels and matrices; see `parameter_groups`.
        decay: "factors" or "product", likewise.
    """
    groups = parameter_groups(model, weight_decay, decay)
    if any(p.is_cuda for p in model.parameters()):
        return recordable_sgd(groups, learning_rate, momentum)
    # Not fused: that is no faster, and on a CPU it is silently wrong for a gradient in another
    # memory format than its parameter.
    return torch.optim.SGD(
        groups,
        lr=learning_rate, momentum=momentum, nesterov=momentum > 0, foreach=True,
    )  # fmt: skip


def recordable_sgd(groups: list[dict[str, Any]], learning_rate: float, momentum: float) -> Muon:
    """The same updates by an optimizer that reads its rate from a tensor, for CUDA graphs.

    torch's own fetches the rate from the device, or is fused, which takes a gradient in another
    memory format than its parameter for one in the same.
    """
    rest = [{**group, "kind": "rest"} for group in groups if group["params"]]
    return Muon(rest, sgd_lr=learning_rate, sgd_momentum=momentum)


def momentum_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The momentum buffers that there are, by parameter name."""
    # A parameter has a state after its first step, and a buffer only with momentum.
    states = {n: optimizer.state[p] for n, p in model.named_parameters()}
    return {n: s["momentum_buffer"] for n, s in states.items() if "momentum_buffer" in s}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set a step's rate; groups with another peak keep their ratio to the Run's."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate * group["ratio"])
        else:
            group["lr"] = rate * group["ratio"]


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


def parameter_groups(model: nn.Module, weight_decay: float, decay: str) -> list[dict[str, Any]]:
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

"""Muon for networks of convolutions: orthogonalised updates of kernels and factors.

Momentum, then the update's singular values brought near 1 by a few Newton–Schulz steps (Jordan et
al., Muon, 2024). For W = A · B each factor is a matrix of its own.

    B ← μ·B + G          momentum of the gradient G
    U ← G + μ·B          Nesterov's
    O ← NS(U / ‖U‖)      singular values near 1, the same singular vectors
    W ← (1 − η·λ)·W − η·O
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter

from basisconv.layer import BasisConv2d
from basisconv.orthogonal import orthogonalised

Kind = Literal["kernels", "factors", "rest"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Muon(torch.optim.Optimizer):
    """Muon for convolution kernels and basis layers' factors, SGD for all else.

    Given a module it divides the parameters by `muon_groups`. Of bare parameters, and of groups
    that state no "kind", those with two and with four dimensions count as kernels.

    Args:
        params: a module, or what every optimizer of torch takes: parameters or groups of them.
        lr: learning rate η of kernels: the spectral norm of an update. A number or a tensor of
            no dimensions.
        momentum: μ of kernels and factors, in [0, 1).
        weight_decay: λ of kernels and factors, decoupled: a step multiplies them by 1 − η·λ.
        factor_lr_ratio: learning rate of factors over that of kernels.
        steps: of Newton–Schulz.
        sgd_lr: learning rate of the rest: biases, norms, linear layers, embeddings.
        sgd_momentum: Nesterov's, of the rest.
        sgd_weight_decay: of the rest's matrices; biases and norms do not decay.
        dtype: in which matrices are multiplied; by default float32, or float64 for parameters of
            that. bfloat16 saves time on a GPU.

    Groups hold "lr", "momentum", "weight_decay", "kind", "blocks", "steps" and "dtype"; learning
    rate schedulers scale each group's own.

    Raises:
        ValueError: for no parameters, a parameter that is not real, sharded, not initialised or
            given twice, and settings out of range.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float | Tensor = 0.1,
        momentum: float = 0.6,
        weight_decay: float = 0.05,
        factor_lr_ratio: float = 1.0,
        steps: int = 3,
        sgd_lr: float | Tensor = 0.1,
        sgd_momentum: float = 0.9,
        sgd_weight_decay: float = 5e-4,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 0 < factor_lr_ratio < math.inf:
            raise ValueError(f"factor_lr_ratio={factor_lr_ratio!r} is not a number above 0.")
        muon = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        sgd = {"lr": sgd_lr, "momentum": sgd_momentum, "weight_decay": sgd_weight_decay}
        self._of_kind: dict[Kind, dict[str, Any]] = {
            "kernels": muon,
            "factors": muon | {"lr": lr * factor_lr_ratio},
            "rest": sgd,
        }
        if isinstance(params, nn.Module):
            params = muon_groups(params)
        super().__init__(params, {**muon, "blocks": 1, "steps": steps, "dtype": dtype})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters.

        Where the group states no "kind", those of two and four dimensions are kernels, and all
        others the rest.

        Raises:
            ValueError: as the class does.
        """
        given = param_group["params"]
        members = [given] if isinstance(given, Tensor) else list(given)
        if not members:
            raise ValueError("A group without parameters: give it some.")
        tensors = [member[1] if isinstance(member, tuple) else member for member in members]
        for member, tensor in zip(members, tensors, strict=True):
            name = f"Parameter {member[0]}" if isinstance(member, tuple) else "A parameter"
            _check_parameter(name, tensor)
        held = [p for group in self.param_groups for p in group["params"]]
        if len({id(p) for p in (*held, *tensors)}) < len(held) + len(tensors):
            raise ValueError("A parameter is given twice.")
        parts: dict[Kind, list[Any]] = defaultdict(list)
        for member, tensor in zip(members, tensors, strict=True):
            usual: Kind = "kernels" if tensor.ndim in (2, 4) else "rest"
            parts[param_group.get("kind", usual)].append(member)
        groups = []
        for kind, part in parts.items():
            if kind not in KINDS:
                raise ValueError(f"kind={kind!r} is unknown. Kinds: {', '.join(KINDS)}.")
            group = {**self.defaults, **self._of_kind[kind], **param_group}
            if isinstance(group["lr"], Tensor):
                group["lr"] = group["lr"].clone()  # schedulers write into it
            _check_settings(group)
            if any(len(t) % group["blocks"] for t in tensors if t.ndim):
                raise ValueError(f"Not every parameter of a group has {group['blocks']} blocks.")
            groups.append({**group, "kind": kind, "params": part})
        if param_group.get("kind", "rest") != "rest" and any(t.ndim < 2 for t in tensors):
            raise ValueError(
                f"A parameter of less than two dimensions is no matrix: kind="
                f"{param_group['kind']!r} is not for it; 'rest' is."
            )
        for group in groups:
            super().add_param_group(group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: computes the loss again, and its gradients.

        Returns:
            The closure's loss.

        Raises:
            ValueError: for a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None and p.numel()]
            if not params:
                continue
            updates = self._with_momentum(params, group)
            lr = group["lr"]
            if group["kind"] != "rest":
                updates = orthogonalised(updates, group["blocks"], group["steps"], group["dtype"])
                torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            torch._foreach_mul_(updates, -lr)
            torch._foreach_add_(params, updates)
        return loss

    def _with_momentum(self, params: Sequence[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Nesterov's updates, in new memory."""
        grads, buffers = [], []
        for p in params:
            if p.grad is None or p.grad.is_sparse:
                raise ValueError("Muon takes no sparse gradients: set sparse=False.")
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            buffers.append(state["momentum_buffer"])
            # Kernels and factors decay apart from their momentum.
            decays = group["kind"] == "rest" and group["weight_decay"] and p.ndim > 1
            grads.append(p.grad.add(p, alpha=group["weight_decay"]) if decays else p.grad)
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, grads)
        return list(torch._foreach_add(grads, buffers, alpha=group["momentum"]))


def muon_groups(module: nn.Module) -> list[dict[str, Any]]:
    """A module's parameters, as `Muon` divides them: groups to look at and to change.

    Kernels are the weights of convolutions, factors those of basis layers; all else is the rest.
    Each group is {"kind", "blocks", "params": [(name, parameter), …]}: layers with as many
    diagonal blocks stand together, for each block is orthogonalised by itself.

    Raises:
        ValueError: for a module without parameters.
    """
    found: dict[tuple[Kind, int], list[tuple[str, Tensor]]] = defaultdict(list)
    kinds: dict[Tensor, tuple[Kind, int]] = {}
    for layer in module.modules():
        if isinstance(layer, BasisConv2d):
            for name, parameter in layer.named_parameters(recurse=False):
                blocks = layer.groups if name == "basis" else layer.blocks
                if name != "bias":
                    kinds[parameter] = ("factors", blocks)
        elif isinstance(layer, _ConvNd) and isinstance(layer._parameters.get("weight"), Tensor):
            kinds[layer.weight] = ("kernels", layer.groups)
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point():  # others cannot be trained
            found[kinds.get(parameter, ("rest", 1))].append((name, parameter))
    if not found:
        raise ValueError(f"{type(module).__name__} has no parameters to train.")
    return [
        {"kind": kind, "blocks": blocks, "params": found[kind, blocks]}
        for kind, blocks in sorted(found, key=lambda key: (KINDS.index(key[0]), key[1]))
    ]


def _check_parameter(name: str, parameter: Any) -> None:
    if not isinstance(parameter, Tensor):
        raise ValueError(f"{name} is a {type(parameter).__name__}, and no parameter.")
    if isinstance(parameter, UninitializedParameter):
        raise ValueError(f"{name} is not initialised yet: run one batch first.")
    if not parameter.is_floating_point():
        raise ValueError(f"{name} is {parameter.dtype}, and not a real floating type.")
    if _is_sharded(parameter):
        raise ValueError(
            f"{name} is sharded ({type(parameter).__name__}): Muon needs whole matrices. Train "
            "with DistributedDataParallel, or leave the parameter to another optimizer."
        )


def _is_sharded(parameter: Tensor) -> bool:
    # Looked up, for importing them takes a second. FSDP1 marks its parameters.
    tensors = sys.modules.get("torch.distributed.tensor")
    if tensors is not None and isinstance(parameter, tensors.DTensor):
        return True
    return hasattr(parameter, "_fsdp_flattened")


def _check_settings(group: dict[str, Any]) -> None:
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.ndim:
        raise ValueError(
            f"lr has shape {tuple(lr.shape)}: a tensor of no dimensions is one number."
        )
    for name in ("lr", "weight_decay"):
        if not 0 <= float(group[name]) < math.inf:
            raise ValueError(f"{name}={group[name]!r} is not a number of at least 0.")
    if not 0 <= group["momentum"] < 1:
        raise ValueError(f"momentum={group['momentum']!r} is not in [0, 1).")
    for name in ("steps", "blocks"):
        if type(group[name]) is not int or group[name] < 1:
            raise ValueError(f"{name}={group[name]!r} is not a whole number of at least 1.")

"""BALF's rule: kernels truncated for the data that they see, with ranks by a Lagrangian.

"BALF: Budgeted Activation-Aware Low-Rank Factorization for Fine-Tuning-Free Model Compression"
(arXiv 2509.25136). A kernel W, (C_out, C_in·k²), is replaced by the one of rank m that is nearest
for the moments S = E[x·xᵀ] of its input patches: with S = F·Fᵀ, the truncated SVD of W·F times F⁻¹.
Its left vectors U are those of W·S·Wᵀ = E[z·zᵀ], of the layer's outputs z without bias, and the
kernel is U_m·U_mᵀ·W: so moments of outputs are enough, and the result is the same. Biases stay.

Ranks maximise the kept energy Σ_layers Σ_{i ≤ m} e_i, each layer's energies e normalised to one, at
a share of the multiplications: a component is kept where e_i > λ · (its multiplications).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from basisconv.convert import apply_plan
from basisconv.cost import summary
from basisconv.layer import BasisConv2d
from basisconv.plan import Plan
from basisconv.surgery import convolutions


class Spectrum(NamedTuple):
    """A layer's directions, the most energy first, and what one of them costs.

    Attributes:
        vectors: U, (C_out, C_out), float64.
        energies: (C_out,), they add up to 1.
        cost: multiplications of one component.
        dense: those of the dense layer.
    """

    vectors: Tensor
    energies: Tensor
    cost: float
    dense: float


def spectra(model: nn.Module, batches: Sequence[Tensor]) -> dict[str, Spectrum]:
    """The spectrum of every convolution without groups, 1×1 ones included.

    Args:
        model: the network, in evaluation mode.
        batches: images, (n, c, h, w) each.
    """
    found = {
        name: conv
        for name, conv in convolutions(model).items()
        if isinstance(conv, nn.Conv2d) and conv.groups == 1
    }
    moments: dict[str, Tensor] = {}

    def add(name: str, conv: nn.Conv2d, _: object, output: Tensor) -> None:
        z = output if conv.bias is None else output - conv.bias.view(-1, 1, 1)
        z = z.movedim(1, 0).flatten(1).double()
        moments[name] = moments.get(name, 0) + z @ z.T

    hooks = [conv.register_forward_hook(partial(add, name)) for name, conv in found.items()]
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    rows = {row.name: row for row in summary(model, (1, *batches[0].shape[1:])).rows}
    result = {}
    for name, conv in found.items():
        values, vectors = torch.linalg.eigh(moments[name])
        energies = values.flip(0).clamp_min(0)
        columns = conv.weight[0].numel()
        positions = rows[name].macs / (conv.out_channels * columns)
        result[name] = Spectrum(
            vectors.flip(1),
            energies / energies.sum(),
            positions * (columns + conv.out_channels),
            rows[name].macs,
        )
    return result


def ranks(found: Mapping[str, Spectrum], share: float) -> dict[str, int]:
    """The rank of each layer that gets cheaper, at a share of these layers' multiplications."""
    budget = share * sum(own.dense for own in found.values())
    low, high = 0.0, max(float(own.energies[0]) / own.cost for own in found.values())

    def at(price: float) -> dict[str, int]:
        return {
            name: max(1, int((own.energies > price * own.cost).sum()))
            for name, own in found.items()
        }

    def total(chosen: Mapping[str, int]) -> float:
        return sum(min(m * found[name].cost, found[name].dense) for name, m in chosen.items())

    for _ in range(60):
        price = (low + high) / 2
        low, high = (price, high) if total(at(price)) > budget else (low, price)
    return {n: m for n, m in at(high).items() if m * found[n].cost < found[n].dense}


def truncated(model: nn.Module, found: Mapping[str, Spectrum], share: float) -> nn.Module:
    """A copy of the network with the layers' kernels at those ranks, as two convolutions."""
    chosen = ranks(found, share)
    if not chosen:
        return apply_plan(model, Plan())
    small = apply_plan(model, Plan(chosen, form="full"), init="random")
    dense = convolutions(model)
    with torch.no_grad():
        for name, m in chosen.items():
            layer = small.get_submodule(name)
            assert isinstance(layer, BasisConv2d)
            u = found[name].vectors[:, :m]
            kernel = dense[name].weight.double().flatten(1)
            layer.basis.copy_((u.T @ kernel).view_as(layer.basis))
            layer.coef.copy_(u)
    return small

"""Tucker-2: a kernel as three convolutions, 1×1 into fewer inputs, k×k, and 1×1 to all outputs.

    W[o, i, :, :] ~ Σ_{r, s} U[o, r] · core[r, s, :, :] · V[i, s]

Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile
Applications" (2016). U and V by higher-order orthogonal iteration: each holds the first left
singular vectors of the kernel with the other one applied.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from basisconv.surgery import convolutions, swap

_ITERATIONS = 5


def factors(kernel: Tensor, outer: int, inner: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (C_out, outer), the core (outer, inner, k, k) and V (C_in, inner), float64."""
    w = kernel.detach().double()
    v = _left(w.movedim(1, 0), inner)
    for _ in range(_ITERATIONS):
        u = _left(torch.einsum("oikl,is->oskl", w, v), outer)
        v = _left(torch.einsum("oikl,or->irkl", w, u), inner)
    return u, torch.einsum("oikl,or,is->rskl", w, u, v), v


def _left(tensor: Tensor, count: int) -> Tensor:
    """The first left singular vectors of a tensor flattened behind its first dimension."""
    flat = tensor.flatten(1)
    return torch.linalg.eigh(flat @ flat.T).eigenvectors.flip(1)[:, :count]


def tucker(model: nn.Module, share: float) -> nn.Module:
    """A copy with this share of inputs and outputs in every convolution larger than 1×1.

    The stem, whose inputs are the image, stays dense, as do layers that get no cheaper.
    """
    small = copy.deepcopy(model).eval()
    wide = [c for c in convolutions(small).values() if isinstance(c, nn.Conv2d)][1:]
    swap(small, {c: made for c in wide if (made := _three(c, share)) is not None})
    return small


def _three(conv: nn.Conv2d, share: float) -> nn.Module | None:
    rows, inputs = conv.out_channels, conv.in_channels
    outer, inner = max(1, round(share * rows)), max(1, round(share * inputs))
    taps = conv.weight[0, 0].numel()
    # At least as many positions come in as go out.
    cheaper = inputs * inner + inner * outer * taps + outer * rows < inputs * rows * taps
    if taps == 1 or conv.groups != 1 or not cheaper:
        return None
    u, core, v = factors(conv.weight, outer, inner)
    layers = nn.Sequential(
        nn.Conv2d(inputs, inner, 1, bias=False),
        nn.Conv2d(inner, outer, conv.kernel_size, conv.stride, conv.padding, bias=False),  # type: ignore[arg-type]
        nn.Conv2d(outer, rows, 1, bias=conv.bias is not None),
    )
    with torch.no_grad():
        for layer, weight in zip(layers, (v.T, core, u), strict=True):
            assert isinstance(layer, nn.Conv2d)
            layer.weight.copy_(weight.view_as(layer.weight))
        if conv.bias is not None:
            layers[2].bias.copy_(conv.bias)  # type: ignore[union-attr, operator]
    return layers.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]

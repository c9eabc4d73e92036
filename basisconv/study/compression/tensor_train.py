"""Tensor trains: a kernel as a chain of four factors, run by tensorly-torch as four convolutions.

    W[o, i, y, x] ~ Σ_{p, q, r} G1[i, p] · G2[p, y, q] · G3[q, x, r] · G4[r, o]

Oseledets, "Tensor-Train Decomposition" (2011).
"""

from __future__ import annotations

import copy
import warnings

from torch import nn

from basisconv.surgery import convolutions, swap


def tensor_train(model: nn.Module, share: float) -> nn.Module:
    """A copy with this share of every rank, in every convolution larger than 1×1 but the stem.

    Layers that get no smaller stay dense.

    Raises:
        ImportError: if tensorly-torch is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        import tltorch

    small = copy.deepcopy(model).eval()
    replaced: dict[nn.Module, nn.Module] = {}
    for conv in list(convolutions(small).values())[1:]:
        rows, inputs, height, width = conv.weight.shape
        first, last = max(1, round(share * inputs)), max(1, round(share * rows))
        middle = max(1, round(share * min(first * height, last * width)))
        size = inputs * first + first * height * middle + middle * width * last + last * rows
        if height * width == 1 or conv.groups != 1 or size >= conv.weight.numel():
            continue
        replaced[conv] = tltorch.FactorizedConv.from_conv(
            conv, rank=(1, first, middle, last, 1), factorization="tt", implementation="factorized"
        )
    swap(small, replaced)
    return small.eval()

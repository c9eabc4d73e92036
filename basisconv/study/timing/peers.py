"""Other factorised layers: two plain convolutions, and tensorly-torch's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

Peer = Callable[[nn.Conv2d, int], nn.Module]


def sequential(conv: nn.Conv2d, n_basis: int) -> nn.Module:
    """The full form in plain torch: a convolution to n_basis channels, then a 1×1."""
    # torch's stubs want pairs, and call a layer's own attributes tuples of any length.
    first = nn.Conv2d(
        conv.in_channels, n_basis, conv.kernel_size, conv.stride, conv.padding, bias=False  # type: ignore[arg-type]
    )  # fmt: skip
    return nn.Sequential(first, nn.Conv2d(n_basis, conv.out_channels, 1, bias=False))


def tucker(conv: nn.Conv2d, n_basis: int) -> nn.Module:
    """tensorly-torch's Tucker form of rank n_basis over the outputs and full elsewhere.

    The same functions as a basis layer's; run as its three convolutions.
    """
    return _factorized(conv, "tucker", (n_basis, conv.in_channels, *conv.kernel_size))


def cp(conv: nn.Conv2d, n_basis: int) -> nn.Module:
    """tensorly-torch's CP form with as many parameters as the subset form has."""
    m, rows, columns = n_basis, conv.out_channels, conv.weight[0].numel()
    budget = m * columns + (rows - m) * m
    rank = budget // (conv.out_channels + conv.in_channels + sum(conv.kernel_size))
    return _factorized(conv, "cp", max(1, rank))


def peers() -> tuple[dict[str, Peer], list[str]]:
    """The peers that are installed, by name, and a sentence on each one that is not."""
    found: dict[str, Peer] = {"conv, 1×1": sequential}
    try:
        _tltorch()
    except ImportError as error:
        return found, [f"tensorly-torch is left out: {error}. pip install tensorly-torch"]
    return found | {"tensorly-torch Tucker": tucker, "tensorly-torch CP": cp}, []


def _factorized(conv: nn.Conv2d, factorization: str, rank: Any) -> nn.Module:
    layer: nn.Module = _tltorch().FactorizedConv(
        conv.in_channels, conv.out_channels, conv.kernel_size, order=2, stride=conv.stride,
        padding=conv.padding, bias=False, factorization=factorization, rank=rank,
        implementation="factorized",
    )  # fmt: skip
    # Its weights are uninitialised memory; any noise takes the same time.
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.02)
    return layer


def _tltorch() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        import tltorch
    return tltorch

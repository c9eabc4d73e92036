"""Matrices with singular values near 1: the Newton–Schulz iteration of Jordan et al., Muon (2024).

p(σ) = 3.4445 σ − 4.775 σ³ + 2.0315 σ⁵
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Jordan's quintic: its slope at zero is as steep as can be with all of [0, 1] ending near 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_EPS = 1e-7


def orthogonalised(
    updates: Sequence[Tensor], blocks: int = 1, steps: int = 3, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Matrices with the same singular vectors and singular values near 1, in new memory.

    The polynomial p is applied `steps` times to the singular values over the Frobenius norm. After
    three steps those that were above a tenth of the norm are in [0.68, 1.14], after five those
    above 1/300 in [0.68, 1.21].

    Args:
        updates: of two or more dimensions; all but the first are flattened.
        blocks: how many matrices the first dimension holds, one after the other.
        steps: how often the polynomial is applied.
        dtype: in which matrices are multiplied, as in `Muon`.
    """
    alike: dict[Any, list[int]] = defaultdict(list)
    matrices = []
    for place, update in enumerate(updates):
        matrix = _flat(update)
        matrix = matrix.view(blocks, len(matrix) // blocks, -1)
        matrices.append(matrix)
        alike[matrix.shape, matrix.dtype, matrix.device].append(place)
    results = list(updates)
    for places in alike.values():
        stacked = torch.stack([matrices[place] for place in places])
        flat = _newton_schulz(stacked.flatten(0, 1), steps, dtype).view_as(stacked)
        for place, matrix in zip(places, flat.unbind(), strict=True):
            results[place] = _unflat(matrix, updates[place])
    return results


def _newton_schulz(x: Tensor, steps: int, dtype: torch.dtype | None) -> Tensor:
    """The polynomial of each matrix of a stack, (n, rows, columns)."""
    given = x.dtype
    dtype = dtype or torch.promote_types(given, torch.float32)
    x = x.to(dtype)
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / x.flatten(1).norm(dim=1).clamp(min=_EPS)[:, None, None]
    # All of it are polynomials in the Gram matrix, which commute: the long side is multiplied
    # twice in all, and not twice a step. Half precision rounds too coarsely for that.
    exact = dtype in (torch.float32, torch.float64)
    gram, product = x @ x.mT, None
    for left in reversed(range(steps)):
        step = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
        if not exact:
            x = torch.baddbmm(x, step, x, beta=_A)
            gram = x @ x.mT if left else gram
            continue
        step.diagonal(dim1=1, dim2=2).add_(_A)
        product = step if product is None else step @ product
        gram = step @ gram @ step if left else gram
    x = x if product is None else product @ x
    return (x.mT if tall else x).to(given)


def _flat(update: Tensor) -> Tensor:
    """A kernel as a matrix, the columns in the order of memory: nothing is copied."""
    return update.permute(_order(update)).flatten(1)


def _unflat(matrix: Tensor, like: Tensor) -> Tensor:
    """The kernel that `_flat` made a matrix of."""
    order = _order(like)
    inverse = [order.index(dim) for dim in range(like.ndim)]
    return matrix.reshape([like.shape[dim] for dim in order]).permute(inverse)


def _order(tensor: Tensor) -> list[int]:
    return [0, *sorted(range(1, tensor.ndim), key=tensor.stride, reverse=True)]

"""Screening designs: plans for trainings of which each says something about every layer.

A sweep trains one network for each layer, which says nothing about the others. In a screening
design every network has a level in every layer, and each layer's effect is estimated from all of
them (Plackett & Burman, 1946). `basisconv.effects` estimates it.

    plans, blocks = screening({"layer1.0.conv1": 64, "layer1.0.conv2": 64})
    losses = [train(plan, seed=block) for plan, block in zip(plans, blocks)]
    found = effects(plans, losses, blocks)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from basisconv.plan import Plan

Array = NDArray[np.int64]  # (runs, columns): which level each run has in each column
RESTARTS = 5


class Screening(NamedTuple):
    """The runs of a screening design.

    Attributes:
        plans: of each run; a layer at level 1 is not in its plan.
        blocks: of each run, from 0: runs of one block share what is no layer's, as a seed.
    """

    plans: tuple[Plan, ...]
    blocks: tuple[int, ...]


def screening(
    candidates: Mapping[str, int],
    levels: Sequence[float] = (1, 1 / 2, 1 / 4, 1 / 8),
    runs: int = 64,
    blocks: int = 4,
    seed: int = 0,
) -> Screening:
    """A design in which every layer has every level equally often, in every block.

    Four levels, four blocks and 64 runs of up to 20 layers are an orthogonal array: any two layers
    have each pair of levels equally often. It is OA(64, 4²¹, strength 2), whose columns are the
    linear forms on GF(4)³ (Bush, 1952). Any other size is as near to one as exchanges within
    columns get (J₂-optimality: Xu, 2002).

    Args:
        candidates: layers with their numbers of outputs.
        levels: shares of basis filters, descending; the first is 1, the dense layer. A layer gets
            max(1, round(level · outputs)) basis filters.
        runs: how many networks are trained.
        blocks: of how many seeds, say; runs are divided evenly among them.
        seed: which layer gets which column, and in which order levels and runs stand.

    Raises:
        ValueError: without layers, for levels that do not begin with 1 or do not descend, that are
            the same number of filters in a layer, and for fewer runs than blocks and layers have
            effects.
    """
    shares = [float(level) for level in levels]
    if len(shares) < 2 or shares[0] != 1 or shares[-1] <= 0 or not _descend(shares):
        raise ValueError(f"levels={list(levels)} must begin with 1 and descend to above 0.")
    if not candidates:
        raise ValueError("There are no layers to screen.")
    counts = {name: [max(1, round(s * c)) for s in shares[1:]] for name, c in candidates.items()}
    for name, outputs in candidates.items():
        if not _descend([outputs, *counts[name]]):
            raise ValueError(
                f"{name}: at these levels it has {outputs}, {', '.join(map(str, counts[name]))} "
                "filters, which are not all different. Take fewer levels, or leave the layer out."
            )
    if blocks < 1:
        raise ValueError(f"blocks={blocks} must be at least 1.")
    needed = blocks + len(candidates)
    if runs < needed:
        raise ValueError(
            f"runs={runs} cannot tell {needed} effects apart ({blocks} blocks and "
            f"{len(candidates)} layers): take {needed} runs or more."
        )
    random = np.random.default_rng(seed)
    if (runs, len(shares), blocks) == (64, 4, 4) and len(candidates) <= 20:
        table = _orthogonal_array()[:, random.permutation(21)[: len(candidates) + 1]]
    else:
        table = _nearly_orthogonal([blocks] + [len(shares)] * len(candidates), runs, random)
    for column, size in enumerate([blocks] + [len(shares)] * len(candidates)):
        table[:, column] = random.permutation(size)[table[:, column]]
    table = random.permutation(table)
    table = table[np.argsort(table[:, 0], kind="stable")]
    plans = [
        Plan(
            {
                name: counts[name][level - 1]
                for name, level in zip(candidates, row[1:], strict=True)
                if level > 0
            }
        )
        for row in table.tolist()
    ]
    return Screening(tuple(plans), tuple(table[:, 0].tolist()))


def _descend(values: Sequence[float]) -> bool:
    return all(a > b for a, b in pairwise(values)) and all(map(math.isfinite, values))


def _orthogonal_array() -> Array:
    """Rows are the vectors of GF(4)³, columns the 21 points of its projective plane."""

    def times(a: int, b: int) -> int:
        """A product in GF(4) = {0, 1, x, x + 1}, x² = x + 1; a sum is the exclusive or."""
        found = (a if b & 1 else 0) ^ (a << 1 if b & 2 else 0)
        return found ^ 0b111 if found & 0b100 else found

    vectors = list(product(range(4), repeat=3))
    # One of each line through the origin: its first coordinate that is not 0 is 1.
    points = [v for v in vectors if next((x for x in v if x), 0) == 1]
    return np.array(
        [
            [times(r[0], p[0]) ^ times(r[1], p[1]) ^ times(r[2], p[2]) for p in points]
            for r in vectors
        ]
    )  # fmt: skip


def _nearly_orthogonal(sizes: Sequence[int], runs: int, random: np.random.Generator) -> Array:
    """Balanced columns, of some random starts the one whose pairs of columns are most balanced."""
    starts = []
    for _ in range(RESTARTS):
        columns = [random.permutation(np.arange(runs) % size) for size in sizes]
        starts.append(_exchanged(np.stack(columns, axis=1)))
    return min(starts, key=lambda table: float((_coincidences(table) ** 2).sum()))


def _coincidences(table: Array) -> Array:
    """How many columns two runs agree in, for all pairs of runs; 0 on the diagonal."""
    same = (table[:, None, :] == table[None, :, :]).sum(axis=2)
    np.fill_diagonal(same, 0)
    return same


def _exchanged(table: Array) -> Array:
    """The table after the best exchanges of two runs' levels within a column, until none helps.

    The sum of squared coincidences, J₂, falls with each; orthogonal arrays alone have the least.
    """
    table = table.copy()
    coincidences = _coincidences(table)
    improved = True
    while improved:
        improved = False
        for column in table.T:
            same = (column[:, None] == column[None, :]).astype(np.int64)
            np.fill_diagonal(same, 0)
            cross = same @ coincidences  # [a, b]: Σ over k of same[a, k] · coincidences[k, b]
            own = np.diag(cross)
            apart = same.sum(axis=1)
            change = cross + cross.T - own[:, None] - own[None, :]
            change += apart[:, None] + apart[None, :] - 2 * same @ same
            change[column[:, None] == column[None, :]] = 0
            a, b = np.unravel_index(int(change.argmin()), change.shape)
            if change[a, b] < 0:
                column[a], column[b] = column[b], column[a]
                coincidences = _coincidences(table)
                improved = True
    return table

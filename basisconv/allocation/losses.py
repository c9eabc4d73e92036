"""What a network loses when its layers get few basis filters, predicted from data.

A plan's loss is the sum over its layers of weight · lost(m), the share of the energy of a layer's
responses outside the m directions that are kept (see `Directions`), with weight 1 unless `scores`
says otherwise: BALF's objective (arXiv 2509.25136).

Two others were tried, with multiples of 8 filters, fitted to responses and not trained: the product
of the kept energies (Zhang et al., 2015), and this sum weighted by how much the network's outputs
change when a layer alone is cut, which takes a forward pass for each layer.

- ResNet-18 of width 16, trained on CIFAR-10 for 160 steps to 62.9 % of 5,000 validation images, 512
  training images. At 0.57, 0.45 and 0.35 of the multiplications: 60.3, 58.4 and 56.0 % for the sum,
  60.3, 58.0 and 55.9 % for the product, 59.9, 57.1 and 53.9 % for the weighted sum.
- EasyOCR's text detector at 0.45: plans from four crops of 240 × 160 (the weights from one), fitted
  to eight, judged on six other pages of 480 × 320. Overlap (IoU) of the text mask with the
  original's: 0.955 for sum and product, whose plans were the same, 0.948 for the weighted sum. Of
  285 word boxes 285, 285 and 284 were found again, and of the 253 words that the original reads
  239, 239 and 243 were read alike: undecided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from basisconv.allocation.costs import DENSE, Level
from basisconv.allocation.directions import Directions, directions, real_tensors
from basisconv.observe import Forward
from basisconv.responses.batches import forward_pass, layers_named
from basisconv.responses.followers import Hook

Score = float | Mapping[int, float]


def outputs_of(
    model: nn.Module,
    batches: Sequence[Any],
    forward: Forward | None = None,
    cuts: Mapping[str, Hook] | None = None,
) -> list[list[Tensor]]:
    """The real tensors that a network returns for each batch, with some of its layers cut.

    Args:
        model: the network; it is left as it was.
        batches: what `take_batches` gave.
        forward: as `take_batches` takes it.
        cuts: by layer, what `Directions.cut` gave.
    """
    found = layers_named(model, cuts or {})
    hooks: dict[nn.Module, Hook] = {found[name]: hook for name, hook in (cuts or {}).items()}
    return [
        real_tensors(forward_pass(model, batch, forward, hooks, seed))
        for seed, batch in enumerate(batches)
    ]


def change(after: Sequence[Sequence[Tensor]], before: Sequence[Sequence[Tensor]]) -> float:
    """How far outputs changed, relative to their variance: Σ(after - before)² / Σ(before - mean)².

    The mean is over one tensor of one batch, and what is returned is averaged over tensors and
    batches. What has another shape, another number of tensors, no finite difference, or was
    constant and is another, counts as 1.
    """
    shares = []
    for new, old in zip(after, before, strict=True):
        if len(new) != len(old):
            shares.append(1.0)
            continue
        for a, b in zip(new, old, strict=True):
            energy = float((b.double() - b.double().mean()).square().sum()) if b.numel() else 0.0
            same = a.shape == b.shape
            error = float((a.double() - b.double()).square().sum()) if same else energy or 1.0
            share = error / energy if energy > 0 else float(error > 0)
            shares.append(share if math.isfinite(share) else 1.0)
    return math.fsum(shares) / len(shares)


def predict(
    model: nn.Module,
    batches: Sequence[Any],
    numbers: Mapping[str, Sequence[int]],
    coef_groups: int,
    scores: Mapping[str, Score],
    forward: Forward | None = None,
) -> tuple[dict[str, dict[Level, float]], dict[str, Directions]]:
    """The loss of each layer with each of its numbers of basis filters, and its directions.

    Args:
        model: the network, with dense layers; it is left as it was.
        batches: what `take_batches` gave.
        numbers: by layer, the numbers asked for, ascending; of a layer without any nothing is
            looked at.
        coef_groups: as in `Plan`.
        scores: losses known otherwise, for some layers: see `search`.
        forward: as `take_batches` takes it.

    Raises:
        ValueError: as `directions`.
    """
    layers = layers_named(model, [name for name, own in numbers.items() if own])
    blocks = {name: conv.groups * coef_groups for name, conv in layers.items()}
    found = directions(model, batches, blocks, forward)
    levels: dict[str, dict[Level, float]] = {}
    for name, own in numbers.items():
        levels[name] = {DENSE: 0.0}
        if name not in found:
            continue
        score = scores.get(name, 1.0)
        if isinstance(score, Mapping):
            levels[name].update(given_curve(score, own, len(found[name].energies)))
        else:
            scale = max(0.0, float(score))
            levels[name].update({m: scale * found[name].lost(m) for m in own})
    return levels, found


def given_curve(
    score: Mapping[int, float], numbers: Sequence[int], rows: int
) -> dict[Level, float]:
    """Losses with some numbers of basis filters, from those with others: linear in between.

    With all of its filters a layer loses nothing, and a loss below zero counts as none. Fewer
    filters than the fewest of `score` have no loss that could be known, and are left out.
    """
    points = {**score, rows: 0.0}
    known = sorted(points)
    heights = [max(0.0, float(points[m])) for m in known]
    return {m: float(np.interp(m, known, heights)) for m in numbers if m >= min(score)}

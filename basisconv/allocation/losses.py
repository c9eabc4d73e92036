"""What a network loses when its layers get few basis filters, predicted from data.

A plan's loss is the sum over its layers of weight · lost(m) (see `Directions`), with the layer's
*sensitivity* as its weight: the change of the network's own outputs, relative to their variance,
when that layer alone is cut to about a quarter of its filters, for each unit of lost(m) there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from basisconv.allocation.costs import DENSE, Level
from basisconv.allocation.directions import Directions, directions, real_tensors
from basisconv.observe import Forward
from basisconv.progress import progress
from basisconv.responses.batches import forward_pass, layers_named
from basisconv.responses.followers import Hook

# How the losses of layers add up to a plan's: the energies kept are multiplied (Zhang et al.), the
# shares lost are added (BALF, arXiv 2509.25136), or they are added weighted by sensitivity.
Criterion = Literal["product", "sum", "sensitivity"]
_CRITERION: Criterion = "sensitivity"

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


def sensitivities(
    model: nn.Module,
    batches: Sequence[Any],
    found: Mapping[str, Directions],
    numbers: Mapping[str, Sequence[int]],
    forward: Forward | None = None,
) -> dict[str, float]:
    """Change of the network's outputs for each unit of lost energy, of each layer cut alone.

    Args:
        model: the network, with dense layers; it is left as it was.
        batches: what `take_batches` gave; they are passed forward once, and once for each layer.
        found: of the layers asked about.
        numbers: the numbers of basis filters that each may have, ascending; it is cut to the one
            next to a quarter of its filters at which it loses energy.
        forward: as `take_batches` takes it.

    Returns:
        By layer; 0 for one that loses no energy with any of its numbers.

    Raises:
        ValueError: if the network returns no tensor of real numbers, or none that is finite.
    """
    before = outputs_of(model, batches, forward)
    if not all(before):
        raise ValueError(
            "The network returns no tensors of real numbers whose change could be measured: give "
            "scores=, or a forward= that returns some."
        )
    weights = {}
    for name, own in progress(found.items(), "search"):
        losing = [m for m in numbers[name] if own.lost(m) > 0]
        if not losing:
            weights[name] = 0.0
            continue
        m = min(losing, key=lambda m: abs(m - len(own.energies) / 4))
        after = outputs_of(model, batches, forward, {name: own.cut(m)})
        weights[name] = change(after, before) / own.lost(m)
    return weights


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
        ValueError: as `directions` and `sensitivities`.
    """
    layers = layers_named(model, [name for name, own in numbers.items() if own])
    blocks = {name: conv.groups * coef_groups for name, conv in layers.items()}
    found = directions(model, batches, blocks, forward)
    unknown = {name: own for name, own in found.items() if name not in scores}
    weights = {name: 1.0 for name in numbers}
    if _CRITERION == "sensitivity" and unknown:
        sensed = batches[: -(-len(batches) // 4)]  # one pass for each layer: a part must do
        weights |= sensitivities(model, sensed, unknown, numbers, forward)
    levels: dict[str, dict[Level, float]] = {}
    for name, own in numbers.items():
        levels[name] = {DENSE: 0.0}
        if name not in found:
            continue
        score = scores.get(name, weights[name])
        if isinstance(score, Mapping):
            levels[name].update(given_curve(score, own, len(found[name].energies)))
        else:
            scale = max(0.0, float(score))
            levels[name].update({m: scale * _shape(found[name].lost(m)) for m in own})
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


def _shape(lost: float) -> float:
    if _CRITERION == "product":
        return -math.log1p(-min(lost, 1 - 1e-12))
    return lost

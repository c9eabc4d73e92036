"""One layer's factors and bias from the moments of its responses, and what they reach."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from basisconv.layer import BasisConv2d
from basisconv.responses.batches import check_finite
from basisconv.responses.moments import Moments
from basisconv.responses.regression import RIDGE, as_map, fit, residual

ENOUGH = 10  # positions for each output of a group; with fewer the ridge is raised


@dataclass(frozen=True)
class LayerFit:
    """How well a layer meets the responses of the network as it was, on held-out batches.

    Attributes:
        name: the layer's.
        error: mean square of what is missed, relative to the responses' variance, both weighted by
            the batch-norm that follows.
        svd: the same of the kernel and bias by `init="svd"` in its place, for the same input.
        projected: the responses of the network as it was were projected on a subspace, instead of
            a fit to them: it was worse on held-out batches or could not be paired.
    """

    name: str
    error: float
    svd: float
    projected: bool


@dataclass(frozen=True)
class FitReport:
    """What `apply_plan(..., init="responses")` reached; it prints as a table.

    Attributes:
        layers: in the order in which they run.
        output: mean square of the change of the network's floating-point outputs on held-out
            batches, relative to their variance about their mean; NaN where their number or shape
            changes.
        svd: the same with `init="svd"`.
        batches: how many batches the layers were fitted to.
        held_out: how many batches the errors are measured on; 0 where there was but one batch,
            which then serves for both.
    """

    layers: tuple[LayerFit, ...]
    output: float
    svd: float
    batches: int
    held_out: int

    def __str__(self) -> str:
        rows = [(r.name, r.error, r.svd, r.projected) for r in self.layers]
        rows.append(("output", self.output, self.svd, False))
        width = max(len(name) for name, *_ in rows)
        where = f"{self.held_out} batches held out" if self.held_out else "the batch fitted to"
        lines = [f"Relative error on {where}:", f"{'':{width}}  responses     svd"]
        for name, error, svd, projected in rows:
            line = f"{name:{width}}  {error:9.4f}  {svd:6.4f}"
            lines.append(line + ("  projected" if projected else ""))
        return "\n".join(lines)


class Best(NamedTuple):
    """The layer that was chosen."""

    layer: BasisConv2d  # with the bias that the dense layer had
    bias: Tensor  # (C_out,), float64: the bias that it is to have
    row: LayerFit
    raised: bool  # there were few positions, and the ridge was raised


class _Candidate(NamedTuple):
    layer: BasisConv2d
    bias: Tensor
    error: float


def best_fit(
    name: str,
    dense: nn.Conv2d,
    svd: BasisConv2d,
    d: Tensor,
    fitting: Moments,
    held: Moments,
    paired: bool,
) -> Best:
    """The better of a fit and of projecting the responses of the network as it was.

    Args:
        name: the layer's.
        dense: its dense form.
        svd: the best approximation of its kernel, in the form that is wanted.
        d: weights of its outputs, (C_out,).
        fitting: moments of y and of z with the dense layer's bias.
        held: the same of batches that nothing is fitted to.
        paired: whether z are responses to the input that the layer gets now; else it is y again,
            and the projection is taken.

    Raises:
        ValueError: for responses that are not finite.
    """
    covariance, mean = fitting.covariance(), fitting.mean()
    check_finite(name, covariance)
    check_finite(name, held.covariance())
    weight = dense.weight.detach().cpu().double().flatten(1)
    own = torch.zeros_like(d) if dense.bias is None else dense.bias.detach().cpu().double()

    def error(maps: list[Tensor], bias: Tensor) -> float:
        mean_y, mean_z = held.mean()
        offset = mean_y - _apply(maps, mean_z - own) - bias
        missed, total = residual(maps, offset, held.covariance(), d)
        return missed / total if total > 0 else 0.0

    def candidate(source: int, ridge: float) -> _Candidate:
        layer = copy.deepcopy(svd)
        parts, pairs = fit(
            weight, covariance[0, source], covariance[source, source], d, layer.n_basis,
            layer.form, layer.coef_groups, layer.coef_rank, ridge,
        )  # fmt: skip
        with torch.no_grad():
            layer._fill(parts, pairs)
        maps = _maps(layer, weight)  # of the factors as they were rounded
        bias = mean[0] - _apply(maps, mean[source] - own)
        return _Candidate(layer, bias, error(maps, bias))

    enough = ENOUGH * len(d) / dense.groups
    projection = best = candidate(0, RIDGE)
    if paired:
        fitted = candidate(1, RIDGE * max(1.0, enough / fitting.count))
        best = min(fitted, projection, key=lambda c: c.error)
    row = LayerFit(name, best.error, error(_maps(svd, weight), own), best is projection)
    return Best(best.layer, best.bias, row, paired and fitting.count < enough)


def _maps(layer: BasisConv2d, weight: Tensor) -> list[Tensor]:
    """M of each group, (c, c), with which a layer answers M · z."""
    with torch.no_grad():
        kernel = layer._kernel(torch.float64).cpu().flatten(1)
    groups = layer.groups
    return [as_map(k, w) for k, w in zip(kernel.chunk(groups), weight.chunk(groups), strict=True)]


def _apply(maps: list[Tensor], values: Tensor) -> Tensor:
    return torch.cat([m @ v for m, v in zip(maps, values.chunk(len(maps)), strict=True)])

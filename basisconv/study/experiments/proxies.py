"""Scores of layers that cost one short training, or none: what a layer might lose with few filters.

Each function takes a dense network, and by layer the numbers of basis filters that are asked for;
it returns a score for each, larger where more is lost. No score is in another's unit. Write W for a
layer's flattened kernel, σ₁ ≥ σ₂ ≥ … for its singular values, and W_m for its best approximation of
rank m, which is what m basis filters can be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from basisconv.allocation.losses import predict
from basisconv.convert import apply_plan
from basisconv.plan import Plan
from basisconv.responses.batches import take_batches
from basisconv.surgery import convolutions

Numbers = Mapping[str, Sequence[int]]
Scores = dict[str, dict[int, float]]
Batch = tuple[Tensor, Tensor]  # images and labels


def one_shot(
    model: nn.Module, numbers: Numbers, fitted: Sequence[Batch], judged: Sequence[Batch]
) -> Scores:
    """The rise of cross-entropy when a layer alone is cut to W_m and nothing is trained again.

    Batch-norm's statistics are estimated again after each cut: without that the loss says little of
    what the network can still do (Li et al., EagleEye, 2020).

    Args:
        model: the network.
        numbers: by layer.
        fitted: what the statistics are estimated on.
        judged: what the loss is of.
    """

    def loss(plan: Plan) -> float:
        cut = apply_plan(model, plan)
        update_bn([images for images, _ in fitted], cut)
        cut.eval()
        with torch.no_grad():
            total = sum(float(F.cross_entropy(cut(x), y, reduction="sum")) for x, y in judged)
        return total / sum(len(y) for _, y in judged)

    whole = loss(Plan())
    return {
        name: {m: loss(Plan({name: m})) - whole for m in counts} for name, counts in numbers.items()
    }


def response_energies(model: nn.Module, numbers: Numbers, batches: Sequence[Batch]) -> Scores:
    """The share of the energy of a layer's responses that is lost, as `basisconv.search` has it.

    Zhang et al., Accelerating Very Deep Convolutional Networks (2015); BALF (arXiv 2509.25136).
    """
    images = [images for images, _ in batches]
    taken = take_batches(images, sum(map(len, images)))
    losses, _ = predict(model, taken, {n: sorted(own) for n, own in numbers.items()}, 1, {})
    return {name: {m: losses[name][m] for m in own} for name, own in numbers.items()}


def curvature(model: nn.Module, numbers: Numbers, batches: Sequence[Batch]) -> Scores:
    """Σ F·(W - W_m)² / 2, with F the diagonal of the Fisher information.

    It is the rise of loss to second order (LeCun et al., Optimal Brain Damage, 1990), with the
    empirical Fisher information, the mean square of one image's gradient, for the curvature (Hsu et
    al., FWSVD, arXiv 2207.00112). Batch-norm's statistics stay.
    """
    layers = {name: convolutions(model)[name] for name in numbers}
    weights = [layer.weight for layer in layers.values()]
    fisher = [torch.zeros_like(weight) for weight in weights]
    images = 0
    model.eval()
    for x, y in batches:
        for i in range(len(y)):
            loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
            for total, gradient in zip(fisher, torch.autograd.grad(loss, weights), strict=True):
                total += gradient.square()
        images += len(y)
    scores: Scores = {}
    for (name, counts), weight, total in zip(numbers.items(), weights, fisher, strict=True):
        kernel = weight.detach().flatten(1).double()
        u, s, v = torch.linalg.svd(kernel, full_matrices=False)
        scores[name] = {}
        for m in counts:
            error = kernel - (u[:, :m] * s[:m]) @ v[:m]
            scores[name][m] = float((total.flatten(1) * error.square()).sum()) / images / 2
    return scores


def singular_energy(model: nn.Module, numbers: Numbers) -> Scores:
    """Σ_{i>m} σᵢ² / Σ σᵢ²: the share of the kernel's energy that is lost (Eckart & Young, 1936)."""
    return _of_values(model, numbers, lambda s, m: float((s[m:] ** 2).sum() / (s**2).sum()))


def relative_error(model: nn.Module, numbers: Numbers) -> Scores:
    """σ_{m+1} / σ₁: the error of W_m in the operator norm, relative to W.

    What ALDS chooses ranks by, without its parts of channels (Liebenwein et al., arXiv 2107.11442).
    """
    return _of_values(model, numbers, lambda s, m: float(s[m] / s[0]) if m < len(s) else 0.0)


def scaled_stable_rank(model: nn.Module, numbers: Numbers, initial: nn.Module) -> Scores:
    """The part of a layer's scaled stable rank r that m filters do not reach: max(0, 1 - m/r).

    The stable rank is Σ σᵢ² / σ₁², and r is the network's, times what makes the kernel of the start
    one of full rank (Wang et al., Cuttlefish, arXiv 2305.02538).

    Args:
        model: the network.
        numbers: by layer.
        initial: the network before its training.
    """

    def stable(s: Tensor) -> float:
        return float((s**2).sum() / s[0] ** 2)

    start = {name: _values(initial, name) for name in numbers}
    scores: Scores = {}
    for name, counts in numbers.items():
        first = start[name]
        rank = stable(_values(model, name)) * len(first) / stable(first)
        scores[name] = {m: max(0.0, 1 - m / rank) for m in counts}
    return scores


def _of_values(model: nn.Module, numbers: Numbers, score: Callable[[Tensor, int], float]) -> Scores:
    """A score of the singular values of each layer's kernel."""
    return {
        name: {m: score(_values(model, name), m) for m in counts}
        for name, counts in numbers.items()
    }


def _values(model: nn.Module, name: str) -> Tensor:
    return torch.linalg.svdvals(convolutions(model)[name].weight.detach().flatten(1).double())

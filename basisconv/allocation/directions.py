"""The directions in which a layer's responses to data have their energy.

With m filters a layer's responses y keep at best the m directions in which they have most energy
(Zhang et al., 2015). Let Σ be their covariance, D the weights of the batch-norm that follows the
layer, and D·Σ·D = U·diag(λ)·Uᵀ with λ descending. Then the layer, cut by itself, gives

    ŷ = μ + D⁻¹ · U_m · U_mᵀ · D · (y - μ)        lost(m) = Σ_{i>m} λ_i / Σ_i λ_i
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from basisconv.observe import Forward
from basisconv.responses.batches import check_finite, check_reached, forward_pass, layers_named
from basisconv.responses.followers import Followers, Hook, channel_weights
from basisconv.responses.moments import Moments


@dataclass(frozen=True)
class Directions:
    """The directions of one layer's responses, in each block of its coefficients.

    Attributes:
        mean: (C,), of the responses.
        weights: (C,), of the batch-norm that follows; ones where none does.
        vectors: (blocks, c, c) with c = C/blocks, U of each block, the largest energy first.
        energies: (C,), descending: λ, those of equal rank in all blocks averaged, so that sums are
            right for multiples of `blocks`.
    """

    mean: Tensor
    weights: Tensor
    vectors: Tensor
    energies: Tensor

    def lost(self, n_basis: int) -> float:
        """The share of the energy that is lost with this many filters; 0 of no energy."""
        total = float(self.energies.sum())
        return float(self.energies[n_basis:].sum()) / total if total > 0 else 0.0

    def cut(self, n_basis: int) -> Hook:
        """A hook for `forward_pass` that keeps the first directions of a layer's responses."""
        blocks, width, _ = self.vectors.shape
        kept = self.vectors[:, :, : n_basis // blocks]
        d = self.weights.view(blocks, width)
        projection = (kept @ kept.mT) * d[:, None, :] / d[:, :, None]
        offset = self.mean - (projection @ self.mean.view(blocks, width, 1)).flatten()
        kernel = projection.flatten(0, 1)[:, :, None, None]

        def hook(_: tuple[Any, ...], output: Any) -> Any:
            if not isinstance(output, Tensor):
                return None
            return F.conv2d(output, kernel.to(output), offset.to(output), groups=blocks)

        return hook


def directions(
    model: nn.Module,
    batches: Sequence[Any],
    blocks: Mapping[str, int],
    forward: Forward | None = None,
) -> dict[str, Directions]:
    """The directions of layers' responses, from one forward pass for each batch.

    Args:
        model: the network, with dense layers; it is left as it was.
        batches: what `take_batches` gave.
        blocks: by layer, the blocks that its coefficients fall into.
        forward: as `take_batches` takes it.

    Raises:
        ValueError: for layers that the data never reach, and for responses or outputs of the
            network that are not finite.
    """
    found = layers_named(model, blocks)
    moments = {name: Moments(conv.groups) for name, conv in found.items()}
    followers = Followers(model, found)
    hooks: dict[nn.Module, Hook] = followers.hooks()

    def watch(name: str, inner: Hook) -> Hook:
        def hook(args: tuple[Any, ...], output: Any) -> None:
            inner(args, output)
            if isinstance(output, Tensor):
                moments[name].add(output)

        return hook

    for name, conv in found.items():
        hooks[conv] = watch(name, hooks[conv])
    for seed, batch in enumerate(batches):
        _check_finite_outputs(real_tensors(forward_pass(model, batch, forward, hooks, seed)))
    check_reached([name for name, m in moments.items() if not m.count])
    result = {}
    for name, conv in found.items():
        covariance = moments[name].covariance()[0, 0]  # (groups, C/groups, C/groups)
        check_finite(name, covariance)
        weights = channel_weights(followers.of(name, conv.out_channels), conv.out_channels)
        width = conv.out_channels // blocks[name]
        # The blocks on the diagonal of each group.
        parts = covariance.unflatten(1, (-1, width)).unflatten(3, (-1, width))
        diagonal = parts.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).flatten(0, 1)
        d = weights.view(-1, width)
        values, vectors = torch.linalg.eigh(d[:, :, None] * diagonal * d[:, None, :])
        level = values.clamp_min(0).flip(1).mean(0)
        result[name] = Directions(
            moments[name].mean()[0],
            weights,
            vectors.flip(2),
            level.repeat_interleave(blocks[name]),
        )
    return result


def real_tensors(returned: object) -> list[Tensor]:
    """Copies of the tensors of real numbers in what a network returned."""
    leaves = tree_leaves(returned)
    return [y.detach().clone() for y in leaves if isinstance(y, Tensor) and y.is_floating_point()]


def _check_finite_outputs(outputs: Iterable[Tensor]) -> None:
    """Raise ValueError unless a network's outputs are finite numbers."""
    if not all(bool(y.isfinite().all()) for y in outputs):
        raise ValueError("The network's outputs for the data are not finite numbers.")

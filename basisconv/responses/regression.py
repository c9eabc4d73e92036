"""Reduced-rank regression: kernels of low rank that answer like a layer, from responses' moments.

With y the responses to be met, z = W ∗ x what a dense kernel W without bias answers now, and K the
kernel of rank m that is sought, K = M · W for a map M of rank m between responses. M minimises

    E ‖d · (ỹ - M z̃)‖² + ‖d · (1 - M) D^½‖²        D = λ (tr Σ_zz / tr WWᵀ) WWᵀ + δ (tr Σ_zz / C) 1

for centred ỹ and z̃. The second term, a ridge, shrinks K towards the kernel as it was: for λ → ∞ and
d = 1 it becomes the SVD's. With L Lᵀ = Σ_zz + D and U the first m left singular vectors of
R = diag(d) (Σ_yz + D) L⁻ᵀ, the solution is M = diag(d)⁻¹ U Uᵀ R L⁻¹. Sources: Izenman,
*Reduced-rank regression for the multivariate linear model* (1975); Zhang et al., *Accelerating Very
Deep Convolutional Networks* (2015).

Everything is float64. Kernels are flattened to (C_out, C_in/groups · kH · kW).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from basisconv.decompose import Factors, Form, decompose, low_rank

RIDGE = 1e-3  # λ
_FLOOR = 1e-9  # δ


def fit(
    weight: Tensor,
    target: Tensor,
    source: Tensor,
    d: Tensor,
    n_basis: int,
    form: Form,
    coef_groups: int,
    coef_rank: int | None,
    ridge: float = RIDGE,
) -> tuple[list[Factors], list[tuple[Tensor, Tensor]]]:
    """Factors of each block of a layer, fitted to responses.

    A block of `coef_groups` is fitted by itself, from all of its group's z. With a `coef_rank` its
    coefficients are cut by the covariance of the basis filters' responses, so that what is cut off
    is measured in outputs.

    Args:
        weight: W, (C_out, columns).
        target: Σ_yz of each group, (groups, c, c) with c = C_out/groups.
        source: Σ_zz of each group, (groups, c, c).
        d: weights of the outputs, (C_out,), positive.
        n_basis: m of the whole layer.
        form: "subset" or "full".
        coef_groups: as in `BasisConv2d`.
        coef_rank: likewise.
        ridge: λ.

    Returns:
        Factors of each of the groups · coef_groups blocks, in order, and with a `coef_rank`
        coef_out and coef_in of each.
    """
    groups = len(source)
    width = n_basis // (groups * coef_groups)
    parts: list[Factors] = []
    pairs: list[tuple[Tensor, Tensor]] = []
    for w, yz, zz, weights in zip(
        weight.chunk(groups), target, source, d.chunk(groups), strict=True
    ):
        penalty = _penalty(w, zz, ridge)
        root, inverse = _roots(zz + penalty)
        for rows, scale in zip(
            (yz + penalty).chunk(coef_groups), weights.chunk(coef_groups), strict=True
        ):
            r = scale[:, None] * rows @ inverse.T
            # Its left singular vectors, the largest first; no more of an SVD is used.
            u = torch.linalg.eigh(r @ r.T).eigenvectors[:, -width:].flip(1)
            kernel = (u / scale[:, None]) @ (u.T @ r @ inverse @ w)
            part = decompose(kernel, width, "svd", form)
            parts.append(part)
            if coef_rank is not None:
                kept = scale if part.passed is None else scale[~part.passed]
                outer, inner = low_rank(
                    kept[:, None] * part.coef, as_map(part.basis, w) @ root, coef_rank
                )
                pairs.append((outer / kept[:, None], inner))
    return parts, pairs


def as_map(kernel: Tensor, weight: Tensor) -> Tensor:
    """The least map M between responses with M · W = K, for a kernel K in W's row space.

    Args:
        kernel: K, (rows, columns).
        weight: W, (c, columns).
    """
    q, r = torch.linalg.qr(weight.T)  # W = rᵀ qᵀ
    return kernel @ q @ torch.linalg.pinv(r.T)


def residual(
    maps: Sequence[Tensor], offset: Tensor, covariance: Tensor, d: Tensor
) -> tuple[float, float]:
    """E ‖d · (y - M z - b)‖², the weighted error of responses, and E ‖d · ỹ‖², what there is.

    Args:
        maps: M of each group, (c, c).
        offset: μ_y - M μ_z - b, (C_out,).
        covariance: of y and z, (2, 2, groups, c, c), as `Moments.covariance` gives it.
        d: weights, (C_out,).
    """
    square = d.square()
    error = (square * offset.square()).sum()
    total = torch.zeros_like(error)
    for g, (m, weights) in enumerate(zip(maps, square.chunk(len(maps)), strict=True)):
        yy, yz, zz = covariance[0, 0, g], covariance[0, 1, g], covariance[1, 1, g]
        left = yy.diagonal() - 2 * (yz * m).sum(1) + ((m @ zz) * m).sum(1)
        error += (weights * left).sum()
        total += (weights * yy.diagonal()).sum()
    return error.item(), total.item()


def _penalty(weight: Tensor, source: Tensor, ridge: float) -> Tensor:
    """D; of a layer whose responses are constant, or whose kernel is zeros, in the unit 1."""
    gram, c = weight @ weight.T, len(weight)
    energy = source.trace()
    energy = torch.where(energy > 0, energy, 1.0)
    size = gram.trace()
    shrink = gram / torch.where(size > 0, size, 1.0)
    eye = torch.eye(c, dtype=gram.dtype, device=gram.device)
    return energy * (ridge * shrink + _FLOOR / c * eye)


def _roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """L and L⁻¹ with L Lᵀ the matrix, a covariance, whose rounding may have made it indefinite."""
    values, vectors = torch.linalg.eigh(matrix)
    floor = _FLOOR * values.sum().clamp_min(torch.finfo(values.dtype).tiny) / len(values)
    root = values.clamp_min(floor.item()).sqrt()
    return vectors * root, vectors.T / root[:, None]

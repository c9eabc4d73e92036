"""Dense kernel -> basis filters and coefficients, one block of filters at a time.

A block is a matrix W of shape (rows, columns): `rows` filters, each flattened to
`columns` = C_in/groups * kH * kW weights. It is written as

    W  ~  A · B        B: (m, columns) the basis filters      A: (rows, m) the coefficients

In the *full* form A is free. In the *subset* form m of the filters are themselves the basis
and pass through: those rows of A are the identity's, and the others are C of shape (rows - m, m).

`svd` reaches the best rank-m kernel (Eckart & Young, 1936) in both forms; `qr` keeps m of the
real filters, chosen by column-pivoted QR, and fits the others to them by least squares.
Everything is computed in float64: kernels are small, and factors of an ill-conditioned kernel
lose half of their digits otherwise. The exception are kernels of a thousand filters and more, whose
exact SVD takes minutes: there subspace iteration (Halko, Martinsson & Tropp, 2011) finds a kernel
whose error exceeds the best one's by a few thousandths of it at most.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Form = Literal["subset", "full"]
Method = Literal["svd", "qr"]
FORMS: tuple[Form, ...] = ("subset", "full")
METHODS: tuple[Method, ...] = ("svd", "qr")
LARGE = 1024  # rows and columns from which on an SVD is approximate


class Factors(NamedTuple):
    """A block's factors; `assemble(factors)` @ `basis` is its kernel."""

    basis: Tensor  # (m, columns)
    coef: Tensor  # (rows - m, m) in the subset form, (rows, m) in the full form
    passed: Tensor | None  # (rows,) bool: the filter is a basis filter; None in the full form


def assemble(factors: Factors) -> Tensor:
    """The coefficient matrix A of shape (rows, m)."""
    if factors.passed is None:
        return factors.coef
    coef, m = factors.coef, len(factors.basis)
    a = coef.new_empty(len(factors.passed), m)
    a[factors.passed] = torch.eye(m, dtype=coef.dtype, device=coef.device)
    a[~factors.passed] = coef
    return a


def decompose(
    weight: Tensor, n_basis: int, method: Method = "svd", form: Form = "subset"
) -> Factors:
    """Factor one block of filters.

    Args:
        weight: (rows, columns), any real floating dtype; the factors are float64.
        n_basis: m, from 1 to `rows`. Above the kernel's rank the product is exact and the
            spare basis filters are real rows (subset) or zeros (full), the latter with
            coefficients that let them train, as far as independent filters go.
        method: "svd" for the best rank-m kernel (to a few thousandths of its error for kernels of
            `LARGE` rows and columns in at most single precision, and m up to half of those), "qr"
            for m real filters and a least-squares fit of the others.
        form: "subset" or "full".

    Raises:
        ValueError: if n_basis, method or form is none of these.
    """
    rows = len(weight)
    if not 1 <= n_basis <= rows:
        raise ValueError(f"n_basis={n_basis} is outside 1..{rows}, the filters of this block.")
    if form not in FORMS:
        raise ValueError(f"form={form!r} is unknown. Forms: {', '.join(FORMS)}.")
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown. Methods: {', '.join(METHODS)}.")
    single = torch.finfo(weight.dtype).bits <= 32
    large = single and min(weight.shape) >= LARGE and 2 * n_basis <= min(weight.shape)
    weight = weight.detach().to(torch.float64)
    if form == "subset" and n_basis == rows:  # every filter passes through
        every = torch.ones(rows, dtype=torch.bool, device=weight.device)
        return Factors(weight, weight.new_zeros(0, rows), every)
    return _qr(weight, n_basis, form) if method == "qr" else _svd(weight, n_basis, form, large)


def _svd(weight: Tensor, m: int, form: Form, large: bool) -> Factors:
    rows, columns = weight.shape
    rank = min(m, columns)  # a kernel of `columns` columns has no more than that
    if large:
        u, s, vh = _truncated(weight, rank)
    else:
        left, right = _lq(weight)
        u, s, vh = torch.linalg.svd(left, full_matrices=False)
        u, s, vh = u[:, :rank], s[:rank], vh[:rank] @ right
    if form == "full":
        # sqrt(s) on both sides keeps the two factors' scales, and so their gradients, alike.
        left_scale, right_scale = _split(s, _rounding(s, weight))
        a = torch.cat([u * left_scale, u.new_zeros(rows, m - rank)], dim=1)
        b = torch.cat([right_scale[:, None] * vh, vh.new_zeros(m - rank, columns)])
        return Factors(b, a, None)
    pivots = _lu_rows(u) if large else pivoted_rows(u, rank)
    spare = _others(pivots, rows)[: m - rank]
    rest = _others(torch.cat([pivots, spare]), rows)
    # W_m[rest] = U[rest] S V = (U[rest] U[p]^-1) (U[p] S V): the same best kernel, from real rows.
    coef = torch.linalg.solve(u[pivots].T, u[rest].T).T
    coef = torch.cat([coef, coef.new_zeros(len(rest), m - rank)], dim=1)
    return _subset((u * s) @ vh, coef, torch.cat([pivots, spare]))


def _truncated(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first singular vectors and values, by subspace iteration on W Wᵀ in float32.

    Products of large matrices are all that it does, but for one eigenproblem of `rank` and a few
    more. The sum of squares that the subspace holds grows with each step; it ends where a step
    adds less than 1e-4 of what is left outside.
    """
    rows = len(weight)
    scale = weight.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    single = (weight / scale).float()
    gram = single @ single.T
    total = gram.diagonal().double().sum()
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(rows, min(rows, rank + rank // 8 + 8), generator=generator)
    q, held = torch.linalg.qr(gram @ start.to(gram.device)).Q, total.new_zeros(())
    for _ in range(40):
        step = gram @ q
        before, held = held, (q * step).sum(dtype=torch.float64)
        if held - before <= 1e-4 * (total - held).clamp_min(1e-6 * total):
            break
        q = torch.linalg.qr(gram @ step).Q
    q = torch.linalg.qr(q.double()).Q
    inner = q.T @ weight
    _, turn = torch.linalg.eigh(inner @ inner.T)  # the smallest first
    turn = turn[:, -rank:].flip(1)
    vh = turn.T @ inner
    s = vh.norm(dim=1)
    return q @ turn, s, vh / s.clamp_min(torch.finfo(s.dtype).tiny)[:, None]


def _lu_rows(matrix: Tensor) -> Tensor:
    """Well-conditioned rows, one a column: the pivots of Gaussian elimination, in their order."""
    _, swaps = torch.linalg.lu_factor(matrix)
    order = list(range(len(matrix)))
    for i, j in enumerate(swaps.tolist()):
        order[i], order[j - 1] = order[j - 1], order[i]
    return torch.tensor(order[: matrix.shape[1]], device=matrix.device)


def _qr(weight: Tensor, m: int, form: Form) -> Factors:
    left, _ = _lq(weight)
    picked = pivoted_rows(left, m)
    rest = _others(picked, len(weight))
    # The pseudo-inverse gives the minimum-norm fit; bases above the rank have many.
    coef = left[rest] @ torch.linalg.pinv(left[picked])
    factors = _subset(weight, coef, picked)
    return factors if form == "subset" else Factors(factors.basis, assemble(factors), None)


def _subset(filters: Tensor, coef: Tensor, picked: Tensor) -> Factors:
    """Factors whose basis are the picked filters, in the order that they have as outputs."""
    passed = torch.zeros(len(filters), dtype=torch.bool, device=filters.device)
    passed[picked] = True
    return Factors(filters[passed], coef[:, picked.argsort()], passed)


def _split(s: Tensor, rounding: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values as two factors: their roots, but 1 and 0 for those that are but rounding.

    Roots of zero on both sides would be a saddle: each factor's gradient is a multiple of the
    other factor, so a kernel of zeros, a common start of a branch, would stay one for ever.
    """
    live = s > rounding
    root = s.sqrt() * live
    return torch.where(live, root, 1.0), root


def _rounding(s: Tensor, matrix: Tensor) -> Tensor:
    """Up to where a matrix's singular values s, the largest first, may be nothing but rounding."""
    return s[:1] * torch.finfo(s.dtype).eps * max(matrix.shape)


def pivoted_rows(matrix: Tensor, count: int) -> Tensor:
    """Indices of `count` well-conditioned rows: greedy column-pivoted QR of the transpose.

    Each step takes the row with the largest part orthogonal to those already taken
    (Businger & Golub, 1965). Rows past the rank are the first ones not yet taken.

    Args:
        matrix: (rows, columns).
        count: how many rows, at most `rows`.

    Returns:
        int64 tensor of shape (count,), in the order of the pivots.
    """
    rest = matrix.clone()
    free = torch.ones(len(matrix), dtype=torch.bool, device=matrix.device)
    floor = rest.square().sum(1).max() * torch.finfo(matrix.dtype).eps ** 2 * max(matrix.shape)
    taken: list[int] = []
    while len(taken) < count:
        norms = rest.square().sum(1).masked_fill(~free, -1.0)
        pivot = int(norms.argmax())
        if norms[pivot] <= floor:  # nothing but rounding is left: every row is as good
            spare = free.nonzero().flatten().tolist()
            taken += spare[: count - len(taken)]
            break
        taken.append(pivot)
        free[pivot] = False
        direction = rest[pivot] / norms[pivot].sqrt()
        rest.addr_(rest @ direction, direction, alpha=-1)
    return torch.tensor(taken, device=matrix.device)


def low_rank(coef: Tensor, basis: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Coefficients through `rank` channels: coef ~ out · in with the least error in the kernel.

    The SVD is that of coef · L, where B = L · Q has orthonormal rows in Q, so that what is cut
    off is measured in the kernel coef · B and not in the coefficients, whose scale is arbitrary.
    Channels that the kernel has no use for carry coefficients of basis filters that are zeros, and
    past those are zero in `out` alone: both can train.

    Args:
        coef: (rows, m).
        basis: (m, columns).
        rank: q, from 1 to m.

    Returns:
        out of shape (rows, q) and in of shape (q, m).
    """
    left, _ = _lq(basis)
    u, s, vh = torch.linalg.svd(coef @ left, full_matrices=False)
    live = min(rank, int((s > _rounding(s, coef)).sum()))
    root = s[:live].sqrt()
    outer, inner = u[:, :live] * root, root[:, None] * vh[:live] @ torch.linalg.pinv(left)
    if live == rank:
        return outer, inner
    # Channels are left: the kernel is exact without them, and they have no part in it.
    u, s, vh = torch.linalg.svd(coef - outer @ inner, full_matrices=False)
    u, s, vh = u[:, : rank - live], s[: rank - live], vh[: rank - live]
    inner_scale, outer_scale = _split(s, _rounding(torch.linalg.svdvals(coef), coef))
    outer = torch.cat([outer, u * outer_scale], dim=1)
    inner = torch.cat([inner, inner_scale[:, None] * vh])
    short = rank - len(inner)  # no row of `out` is left that could use them
    outer = torch.cat([outer, outer.new_zeros(len(outer), short)], dim=1)
    return outer, torch.cat([inner, inner.new_zeros(short, inner.shape[1])])


def _lq(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """L and Q with L · Q = matrix and orthonormal rows in Q.

    L is (rows, min(rows, columns)) and has the matrix's row inner products, so what depends on
    those alone is found from L, several times faster for the many columns of a kernel.
    """
    q, r = torch.linalg.qr(matrix.T)
    return r.T, q.T


def _others(picked: Tensor, rows: int) -> Tensor:
    """The indices below `rows` that are not in `picked`, in order."""
    free = torch.ones(rows, dtype=torch.bool, device=picked.device)
    free[picked] = False
    return free.nonzero().flatten()

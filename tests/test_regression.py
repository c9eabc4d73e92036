"""Reduced-rank regression of responses, against least squares on the responses themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from basisconv.decompose import Factors, Form, assemble, decompose
from basisconv.responses.regression import RIDGE, as_map, fit, residual

ONE = torch.ones(6, dtype=torch.float64)


def responses(noise: float = 0.5, c: int = 6, columns: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """A kernel, what it answers to inputs of unlike sizes, and the responses to be met; centred."""
    sizes = torch.logspace(-1, 1, columns, dtype=torch.float64)
    weight = torch.randn(c, columns, dtype=torch.float64)
    z = weight @ (sizes[:, None] * torch.randn(columns, 300, dtype=torch.float64))
    y = z + noise * torch.randn(c, c, dtype=torch.float64) @ z.tanh()
    return weight, y - y.mean(1, keepdim=True), z - z.mean(1, keepdim=True)


def moments(y: Tensor, z: Tensor) -> Tensor:
    """(2, 2, 1, c, c), as of one group."""
    both = torch.cat([y, z])
    return (both @ both.T / y.shape[1]).view(2, len(y), 2, len(y)).transpose(1, 2)[:, :, None]


def fitted(weight: Tensor, y: Tensor, z: Tensor, m: int, **given: Any) -> Tensor:
    """The kernel."""
    settings = {"d": ONE, "form": "subset", "coef_groups": 1, "coef_rank": None} | given
    covariance = moments(y, z)
    parts, pairs = fit(weight, covariance[0, 1], covariance[1, 1], n_basis=m, **settings)
    return kernel(parts, pairs)


def kernel(parts: list[Factors], pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    if pairs:
        parts = [p._replace(coef=a @ b) for p, (a, b) in zip(parts, pairs, strict=True)]
    return torch.cat([assemble(p) @ p.basis for p in parts])


def missed(weight: Tensor, y: Tensor, z: Tensor, k: Tensor, d: Tensor = ONE) -> float:
    """The oracle: the weighted mean square of what a kernel misses, from the responses."""
    return (d[:, None] * (y - as_map(k, weight) @ z)).square().sum().item() / y.shape[1]


def least_squares(weight: Tensor, y: Tensor, z: Tensor, m: int, d: Tensor) -> Tensor:
    """The oracle: the ridge as rows that are appended to the data, then a plain regression.

    Of all maps of rank m the best one projects what the best map answers on its first m directions.
    """
    n, zz = y.shape[1], z @ z.T / y.shape[1]
    ridge = zz.trace() * (
        RIDGE * weight @ weight.T / weight.square().sum() + 1e-9 / len(y) * torch.eye(len(y))
    )
    rows = n**0.5 * torch.linalg.cholesky(ridge)
    targets, sources = torch.cat([y, rows], 1), torch.cat([z, rows], 1)
    b = torch.linalg.lstsq(sources.T, (d[:, None] * targets).T).solution.T
    u = torch.linalg.svd(b @ sources, full_matrices=False).U[:, :m]
    return (u @ u.T @ b) / d[:, None] @ weight


@pytest.mark.parametrize("form", ["subset", "full"])
@pytest.mark.parametrize("m", [1, 3, 6])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_kernel_is_the_least_squares_solution(form: Form, m: int, weighted: bool) -> None:
    weight, y, z = responses()
    d = torch.tensor([1, 0.02, 3, 1, 0.5, 2]).double() if weighted else ONE
    got = fitted(weight, y, z, m, form=form, d=d)
    want = least_squares(weight, y, z, m, d)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
    maps = [as_map(got, weight)]
    error, total = residual(maps, 0.1 * ONE, moments(y, z), d)
    assert error == pytest.approx(missed(weight, y, z, got, d) + 0.01 * d.square().sum().item())
    assert total == pytest.approx((d[:, None] * y).square().sum().item() / y.shape[1])


@pytest.mark.parametrize("form", ["subset", "full"])
@pytest.mark.parametrize("coef_groups", [1, 2, 3])
@pytest.mark.parametrize("ridge", [RIDGE, 0.3])
def test_a_fit_is_never_worse_than_the_svd_on_the_same_responses(
    form: Form, coef_groups: int, ridge: float
) -> None:
    m = 2 * coef_groups if coef_groups < 3 else 3
    for seed in range(20):
        torch.manual_seed(seed)
        weight, y, z = responses(noise=seed / 10)
        got = fitted(weight, y, z, m, form=form, coef_groups=coef_groups, ridge=ridge)
        parts = [decompose(w, m // coef_groups, "svd", form) for w in weight.chunk(coef_groups)]
        svd = missed(weight, y, z, kernel(parts, []))
        assert missed(weight, y, z, got) <= svd * (1 + 1e-9)


def test_a_large_ridge_is_the_svd() -> None:
    weight, y, z = responses()
    part = decompose(weight, 3)
    torch.testing.assert_close(
        fitted(weight, y, z, 3, ridge=1e9), assemble(part) @ part.basis, rtol=0, atol=1e-7
    )


def test_groups_and_blocks_are_fitted_one_by_one() -> None:
    first, second = responses(), responses()
    weight = torch.cat([first[0], second[0]])
    covariance = torch.cat([moments(*first[1:]), moments(*second[1:])], 2)
    d = torch.rand(12, dtype=torch.float64) + 0.5
    got = kernel(*fit(weight, covariance[0, 1], covariance[1, 1], d, 8, "subset", 2, None))
    for group, (w, y, z) in enumerate((first, second)):
        scale = d[6 * group : 6 * group + 6]
        for rows in (slice(0, 3), slice(3, 6)):
            # All of the group's z serve, also those of the other block.
            n, zz = y.shape[1], z @ z.T / y.shape[1]
            ridge = RIDGE * zz.trace() * w @ w.T / w.square().sum()
            root = n**0.5 * torch.linalg.cholesky(ridge + 1e-9 * zz.trace() / 6 * torch.eye(6))
            sources = torch.cat([z, root], 1)
            targets = scale[rows, None] * torch.cat([y, root], 1)[rows]
            b = torch.linalg.lstsq(sources.T, targets.T).solution.T
            u = torch.linalg.svd(b @ sources, full_matrices=False).U[:, :2]
            want = (u @ u.T @ b) / scale[rows, None] @ w
            torch.testing.assert_close(got.view(2, 6, -1)[group, rows], want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("form", ["subset", "full"])
def test_coefficients_are_cut_by_what_it_costs_in_responses(form: Form) -> None:
    weight, y, z = responses(c=6)
    d = torch.tensor([1, 0.1, 3, 1, 0.5, 2]).double()
    covariance = moments(y, z)
    parts, pairs = fit(weight, covariance[0, 1], covariance[1, 1], d, 4, form, 1, 1)
    (part,), ((outer, inner),) = parts, pairs
    assert outer.shape == part.coef[:, :1].shape and inner.shape == (1, 4)
    kept = d if part.passed is None else d[~part.passed]
    basis = as_map(part.basis, weight) @ z  # the basis filters' responses
    lost = (kept[:, None] * (part.coef - outer @ inner) @ basis).square().sum()
    s = torch.linalg.svdvals(kept[:, None] * part.coef @ basis)
    best = s[1:].square().sum()
    assert best > 0 and lost / best - 1 < 1e-2  # the ridge has its part, too


@pytest.mark.parametrize("form", ["subset", "full"])
def test_responses_of_low_rank_are_met(form: Form) -> None:
    weight, _, z = responses(c=8, columns=20)
    z = z[:3].T @ torch.randn(3, 8, dtype=torch.float64)
    z = z.T
    y = 1.5 * z.flip(0)  # another input than the kernel's own
    got = fitted(weight, y, z, 3, form=form, d=torch.ones(8).double(), ridge=1e-7)
    assert missed(weight, y, z, got, torch.ones(8).double()) < 1e-4 * y.square().mean() * 8
    got = fitted(weight, z, z, 3, form=form, d=torch.ones(8).double())
    assert missed(weight, z, z, got, torch.ones(8).double()) < 1e-4 * z.square().mean() * 8


def test_singular_covariances() -> None:
    # A stem's filters outnumber its inputs; two channels are constant, one kernel is zeros.
    weight, y, z = responses(c=6, columns=4)
    for dead in ([], [1, 4]):
        z[dead], y[dead] = 0, 0
        for m in (2, 6):
            got = fitted(weight, y, z, m)
            assert got.isfinite().all()
            map_ = as_map(got, weight)
            torch.testing.assert_close(map_ @ weight, got)  # within the kernel's rows
            error = missed(weight, y, z, got)
            assert error <= missed(weight, y, z, weight if m == 6 else 0 * weight) + 1e-9
    for constant in (weight, 0 * weight):
        got = fitted(constant, 0 * y, 0 * z, 3)
        part = decompose(constant, 3)
        torch.testing.assert_close(got, assemble(part) @ part.basis, rtol=0, atol=1e-6)


def test_rounding_may_make_a_covariance_indefinite() -> None:
    weight, y, z = responses(c=6, columns=4)
    covariance = moments(y, z)
    zz = covariance[1, 1] - 1e-7 * covariance[1, 1, 0].trace() * torch.eye(6)
    assert torch.linalg.eigvalsh(zz).min() < 0
    parts, _ = fit(weight, covariance[0, 1], zz, ONE, 3, "full", 1, None, ridge=1e-6)
    want = missed(weight, y, z, fitted(weight, y, z, 3, ridge=1e-6))
    assert missed(weight, y, z, kernel(parts, [])) == pytest.approx(want, rel=1e-2)

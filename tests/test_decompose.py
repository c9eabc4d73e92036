"""Decompositions against numpy's SVD and least squares, and scipy's pivoted QR."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

import basisconv.decompose as module
from basisconv.decompose import FORMS, Form, assemble, decompose, low_rank, pivoted_rows

# Wide, tall, square, one column, one row.
SHAPES = [(12, 45), (16, 5), (9, 9), (7, 1), (1, 6)]


def random_matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def of_rank(rows: int, columns: int, rank: int) -> Tensor:
    return random_matrix(rows, rank, seed=1) @ random_matrix(rank, columns, seed=2)


def best_error(weight: Tensor, rank: int) -> float:
    """Eckart & Young: what is left is the root of the squares of the other singular values."""
    values = np.linalg.svd(weight.numpy(), compute_uv=False)
    return float(np.sqrt((values[rank:] ** 2).sum()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_svd_reaches_the_best_error_in_both_forms(shape, form):
    weight = random_matrix(*shape)
    for n_basis in range(1, shape[0] + 1):
        factors = decompose(weight, n_basis, "svd", form)
        assert factors.basis.shape == (n_basis, shape[1])
        error = torch.linalg.norm(assemble(factors) @ factors.basis - weight).item()
        assert error == pytest.approx(best_error(weight, n_basis), abs=1e-12 * shape[0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_qr_keeps_real_filters_and_fits_the_others_by_least_squares(shape, form):
    weight = random_matrix(*shape)
    for n_basis in range(1, shape[0] + 1):
        factors = decompose(weight, n_basis, "qr", form)
        whole = {tuple(row) for row in weight.tolist()}
        assert all(tuple(row) in whole for row in factors.basis.tolist())
        fitted = np.linalg.lstsq(factors.basis.numpy().T, weight.numpy().T, rcond=None)[0].T
        np.testing.assert_allclose(
            (assemble(factors) @ factors.basis).numpy(), fitted @ factors.basis.numpy(), atol=1e-10
        )


@pytest.mark.parametrize("method", ["svd", "qr"])
def test_outputs_of_the_subset_form_that_are_basis_filters_pass_through(method):
    factors = decompose(random_matrix(12, 45), 5, method, "subset")
    assert factors.passed is not None and factors.passed.sum() == 5
    kernel = assemble(factors) @ factors.basis
    assert torch.equal(kernel[factors.passed], factors.basis)
    torch.testing.assert_close(kernel[~factors.passed], factors.coef @ factors.basis)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["svd", "qr"])
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_any_n_basis_from_the_rank_up_is_exact(rank, method, form):
    weight = of_rank(11, 18, rank)
    for n_basis in range(max(rank, 1), 12):
        factors = decompose(weight, n_basis, method, form)
        torch.testing.assert_close(assemble(factors) @ factors.basis, weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["svd", "qr"])
@pytest.mark.parametrize("rank", [None, 1, 3])
@pytest.mark.parametrize("live", [0, 2])
def test_a_kernel_of_zeros_can_train(live, rank, method, form):
    weight = torch.zeros(8, 18, dtype=torch.float64)
    weight[:live] = random_matrix(live, 18)
    factors = decompose(weight, 4, method, form)
    values = [factors.basis, factors.coef]
    if rank is not None:
        values = [factors.basis, *low_rank(factors.coef, factors.basis, rank)]
    basis, *coefs = [v.clone().requires_grad_() for v in values]

    def kernel() -> torch.Tensor:
        coef = coefs[0] if rank is None else coefs[0] @ coefs[1]
        return assemble(factors._replace(coef=coef)) @ basis

    if rank is None or rank >= live:
        torch.testing.assert_close(kernel().detach(), weight)
    target = random_matrix(8, 18, seed=5)
    for _ in range(400):
        loss = (kernel() - target).square().sum() / 2
        slopes = torch.autograd.grad(loss, [basis, *coefs])
        with torch.no_grad():
            for value, slope in zip([basis, *coefs], slopes, strict=True):
                value.sub_(slope, alpha=0.02)
    # All filters and channels take part: none stays at a saddle, where its gradient is zero.
    made = kernel().detach().numpy()
    combined = made if factors.passed is None else made[~factors.passed.numpy()]
    assert np.linalg.matrix_rank(combined, tol=0.02 * np.linalg.norm(combined, 2)) == (rank or 4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["svd", "qr"])
def test_of_a_kernel_of_zeros_the_filters_are_zeros_and_the_coefficients_are_not(method, form):
    factors = decompose(torch.zeros(8, 18), 4, method, form)
    assert factors.basis.shape == (4, 18) and factors.basis.count_nonzero() == 0
    # So the filters get gradients, each one its own.
    assert np.linalg.matrix_rank(assemble(factors).numpy()) == 4
    if (method, form) == ("svd", "full"):
        columns = factors.coef.T @ factors.coef
        torch.testing.assert_close(columns, torch.eye(4, dtype=torch.float64))


def test_of_coefficients_of_zeros_the_outer_matrix_is_zeros_and_the_inner_one_is_not():
    outer, inner = low_rank(torch.zeros(6, 4, dtype=torch.float64), random_matrix(4, 18), 2)
    assert outer.shape == (6, 2) and outer.count_nonzero() == 0
    torch.testing.assert_close(inner @ inner.T, torch.eye(2, dtype=torch.float64))


def test_spare_basis_filters_are_real_filters_or_zeros():
    weight = random_matrix(10, 3)
    subset = decompose(weight, 7, "svd", "subset")
    assert (torch.cdist(subset.basis, weight).min(dim=1).values < 1e-12).all()
    full = decompose(weight, 7, "svd", "full")
    assert full.basis[3:].count_nonzero() == 0 and full.coef[:, 3:].count_nonzero() == 0


@pytest.mark.parametrize("scale", [1e-35, 1e35])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["svd", "qr"])
def test_scale_of_the_kernel_does_not_matter(method, form, scale):
    weight = (of_rank(10, 12, 4) * scale).to(torch.float32)
    factors = decompose(weight, 6, method, form)
    error = assemble(factors) @ factors.basis - weight
    assert (error.abs().max() / weight.abs().max()).item() < 1e-6


def test_pivoted_rows_are_those_of_lapack():
    matrix = random_matrix(40, 15)
    expected = scipy.linalg.qr(matrix.numpy().T, mode="r", pivoting=True)[1][:15]
    assert pivoted_rows(matrix, 15).tolist() == expected.tolist()


def test_rows_past_the_rank_are_the_first_ones_free():
    matrix = of_rank(8, 20, 3)
    picked = pivoted_rows(matrix, 6).tolist()
    assert picked[3:] == [i for i in range(8) if i not in picked[:3]][:3]
    assert np.linalg.matrix_rank(matrix[picked[:3]].numpy()) == 3


def test_subset_form_is_well_conditioned_where_its_first_rows_are_not():
    weight = random_matrix(512, 576)
    factors = decompose(weight, 128, "svd", "subset")
    u = np.linalg.svd(weight.numpy(), full_matrices=False)[0][:, :128]
    first = u[128:] @ np.linalg.inv(u[:128])
    assert np.linalg.cond(u[:128]) > 200 and np.abs(first).max() > 8
    assert factors.passed is not None
    picked = u[factors.passed.numpy()]
    assert np.linalg.cond(picked) < 50
    assert factors.coef.abs().max() < 2


@pytest.mark.parametrize("shape", [(12, 8, 20), (5, 8, 20), (12, 8, 3), (0, 4, 9), (6, 1, 4)])
def test_low_rank_coefficients_lose_the_least_of_the_kernel(shape):
    rows, m, columns = shape
    coef, basis = random_matrix(rows, m), random_matrix(m, columns, seed=3)
    basis[0] *= 1e3  # coefficients of another scale must not count for more
    kernel = coef @ basis
    for rank in range(1, m + 1):
        outer, inner = low_rank(coef, basis, rank)
        assert outer.shape == (rows, rank) and inner.shape == (rank, m)
        error = torch.linalg.norm(outer @ inner @ basis - kernel).item()
        assert error == pytest.approx(best_error(kernel, rank), abs=1e-9)


def test_low_rank_of_dependent_basis_filters():
    coef, basis = random_matrix(12, 6), of_rank(6, 20, 2)
    outer, inner = low_rank(coef, basis, 2)
    torch.testing.assert_close(outer @ inner @ basis, coef @ basis, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("n_basis", "method", "form", "message"),
    [
        (0, "svd", "subset", r"n_basis=0 is outside 1\.\.6"),
        (7, "svd", "subset", r"n_basis=7 is outside 1\.\.6"),
        (3, "svd", "subsett", "form='subsett' is unknown. Forms: subset, full"),
        (3, "lu", "subset", "method='lu' is unknown. Methods: svd, qr"),
    ],
)
def test_arguments_that_do_not_exist_are_named(n_basis, method, form, message):
    with pytest.raises(ValueError, match=message):
        decompose(random_matrix(6, 4), n_basis, method, form)


# Large kernels.


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller ones are large here, which takes less time."""
    monkeypatch.setattr(module, "LARGE", 200)


def spectra() -> dict[str, Tensor]:
    noise, decay = random_matrix(256, 330).float(), torch.arange(1, 257) ** -0.7
    mixed = torch.linalg.qr(random_matrix(256, 256, 1)).Q.float() * decay
    return {"noise": noise, "trained": mixed @ noise, "tall": (mixed @ noise).T.contiguous()}


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("m", [16, 64, 128])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["noise", "trained", "tall"])
def test_a_large_kernel_is_nearly_the_best_of_its_rank(kind: str, form: Form, m: int) -> None:
    weight = spectra()[kind]
    best = torch.linalg.svdvals(weight.double())[m:].square().sum().sqrt()
    factors = decompose(weight, m, "svd", form)
    product = assemble(factors) @ factors.basis
    assert 1 - 1e-9 < (product - weight).norm() / best < 1.005
    assert factors.coef.abs().max() < 100 and factors.basis.shape == (m, weight.shape[1])
    assert torch.equal(factors.basis, decompose(weight, m, "svd", form).basis)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("form", FORMS)
def test_large_kernels_of_low_rank_of_zeros_and_of_small_numbers(form: Form) -> None:
    weight = of_rank(256, 330, 20).float()
    factors = decompose(weight, 64, "svd", form)
    assert (assemble(factors) @ factors.basis - weight).norm() < 1e-5 * weight.norm()
    zeros = decompose(torch.zeros(256, 330), 64, "svd", form)
    assert (assemble(zeros) @ zeros.basis).abs().max() == 0
    small = decompose(1e-30 * spectra()["noise"], 64, "svd", form)
    assert torch.isfinite(small.coef).all() and small.basis.abs().max() > 0


@pytest.mark.usefixtures("large")
def test_what_stays_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_truncated", None)
    decompose(random_matrix(256, 330), 8)  # double precision
    decompose(random_matrix(199, 330).float(), 8)
    decompose(random_matrix(256, 330).float(), 129)
    decompose(random_matrix(256, 330).float(), 8, "qr")
    monkeypatch.undo()
    assert module.LARGE > 512  # no network of the study has as many filters and as many weights

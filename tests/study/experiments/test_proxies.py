"""Cheap scores of layers, each against an answer that is known otherwise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basisconv.study.experiments import proxies
from basisconv.study.training.rng import generator


class Net(nn.Module):
    """Two convolutions with batch-norm; the first has a kernel with given singular values."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        stream = generator(0, "test of proxies")
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 10, 1, bias=False)
        u = torch.linalg.qr(torch.randn(8, 8, generator=stream)).Q
        v = torch.linalg.qr(torch.randn(27, 8, generator=stream)).Q
        kernel = u[:, : len(values)] * torch.tensor(values) @ v[:, : len(values)].T
        self.first.weight.data.copy_(kernel.view(8, 3, 3, 3))
        self.second.weight.data.normal_(generator=stream)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.norm(self.first(x)).relu()).mean((2, 3))
        return out


VALUES = [4.0, 3.0, 2.0, 1.0]


def batches(count: int, size: int = 6) -> list[proxies.Batch]:
    stream = generator(1, "test of proxies")
    return [
        (
            torch.randn(size, 3, 7, 5, generator=stream),
            torch.randint(10, (size,), generator=stream),
        )
        for _ in range(count)
    ]


def test_the_energy_is_that_of_the_singular_values_cut_off() -> None:
    found = proxies.singular_energy(Net(VALUES), {"first": [1, 3, 4]})["first"]
    assert found == pytest.approx({1: 14 / 30, 3: 1 / 30, 4: 0}, abs=1e-6)


def test_the_relative_error_is_the_first_singular_value_cut_off() -> None:
    found = proxies.relative_error(Net(VALUES), {"first": [1, 3, 4, 8]})["first"]
    assert found == pytest.approx({1: 3 / 4, 3: 1 / 4, 4: 0, 8: 0}, abs=1e-6)


def test_the_stable_rank_is_scaled_by_that_of_the_start() -> None:
    # 30/16 = 1.875 now. At the start 8, all singular values alike, and 4 of full rank 8.
    flat, half = Net([2.0] * 8), Net([2.0] * 4)
    found = proxies.scaled_stable_rank(Net(VALUES), {"first": [1, 2]}, flat)["first"]
    assert found == pytest.approx({1: 1 - 1 / 1.875, 2: 0}, abs=1e-6)
    found = proxies.scaled_stable_rank(Net(VALUES), {"first": [1, 2]}, half)["first"]
    assert found == pytest.approx({1: 1 - 1 / 3.75, 2: 1 - 2 / 3.75}, abs=1e-6)


def test_a_cut_that_loses_nothing_costs_nothing_in_one_shot() -> None:
    model = Net(VALUES)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = proxies.one_shot(model, {"first": [1, 4], "second": [4]}, batches(2), batches(1))
    assert found["first"][4] == pytest.approx(0, abs=1e-5)
    assert abs(found["first"][1]) > 1e-3
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_one_shot_estimates_batch_norm_again_after_each_cut() -> None:
    """By hand: the cut kernel, the mean and variance of its own outputs, the loss."""
    model, (fitted,), (judged,) = Net(VALUES), batches(1, 9), batches(1, 4)

    def loss(rank: int) -> float:
        kernel = model.first.weight.detach().flatten(1)
        u, s, v = torch.linalg.svd(kernel, full_matrices=False)
        cut = (u[:, :rank] * s[:rank] @ v[:rank]).view(8, 3, 3, 3)
        y = F.conv2d(fitted[0], cut, padding=1)
        mean, variance = y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=True)
        y = F.batch_norm(F.conv2d(judged[0], cut, padding=1), mean, variance)
        out = F.conv2d(y.relu(), model.second.weight.detach()).mean((2, 3))
        return float(F.cross_entropy(out, judged[1]))

    found = proxies.one_shot(model, {"first": [2]}, [fitted], [judged])
    assert found["first"][2] == pytest.approx(loss(2) - loss(4), rel=1e-3, abs=1e-5)


def test_curvature_weights_each_error_by_the_mean_square_gradient() -> None:
    model, data = Net(VALUES).eval(), batches(2, 3)
    squares = torch.zeros(8, 27)
    for x, y in data:
        for i in range(3):
            model.zero_grad()
            F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
            assert model.first.weight.grad is not None
            squares += model.first.weight.grad.flatten(1) ** 2
    kernel = model.first.weight.detach().flatten(1)
    u, s, v = torch.linalg.svd(kernel, full_matrices=False)
    lost = u[:, 2:4] * s[2:4] @ v[2:4]
    found = proxies.curvature(model, {"first": [2, 4]}, data)["first"]
    assert found[2] == pytest.approx(float((squares / 6 * lost**2).sum()) / 2, rel=1e-3)
    assert found[4] == pytest.approx(0, abs=1e-9)


def test_response_energies_are_the_eigenvalues_of_the_outputs_covariance() -> None:
    model, data = Net(VALUES).eval(), batches(3)
    with torch.no_grad():
        model.norm.weight.copy_(torch.linspace(0.5, 2, 8))
        y = torch.cat([model.first(x) for x, _ in data]).double()
    rows = (
        (y * model.norm.weight.detach().double()[:, None, None]).permute(0, 2, 3, 1).flatten(0, 2)
    )
    energy = torch.linalg.eigvalsh(rows.T.cov(correction=0)).flip(0)
    found = proxies.response_energies(model, {"first": [3, 1]}, data)["first"]
    assert found == pytest.approx(
        {m: float(energy[m:].sum() / energy.sum()) for m in (3, 1)}, rel=1e-4
    )

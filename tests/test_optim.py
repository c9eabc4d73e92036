"""Muon against independent oracles: the SVD, torch's own Muon and SGD, and itself taken apart."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import basisconv as bc
from basisconv.orthogonal import _flat, orthogonalised


def polynomial(sigma: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        sigma = 3.4445 * sigma - 4.7750 * sigma**3 + 2.0315 * sigma**5
    return sigma


def by_svd(matrix: Tensor, steps: int) -> Tensor:
    """What the iteration promises: the same singular vectors, the polynomial of the values."""
    u, sigma, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (u * polynomial(sigma / matrix.double().norm(), steps)) @ vt


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (3, 5), (17, 4), (16, 144), (96, 33)])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_singular_values_go_through_the_polynomial_and_vectors_stay(
    shape: tuple[int, int], steps: int
) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    (found,) = orthogonalised([matrix], steps=steps)
    torch.testing.assert_close(found.double(), by_svd(matrix, steps), rtol=1e-3, atol=2e-5)


def test_a_matrix_with_even_singular_values_becomes_its_polar_factor_within_the_band() -> None:
    torch.manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(40, 40))
    v, _ = torch.linalg.qr(torch.randn(90, 40))
    sigma = torch.linspace(1, 3, 40)  # each above a tenth of the norm
    (found,) = orthogonalised([(u * sigma) @ v.T])
    values = torch.linalg.svdvals(found)
    assert 0.68 < values.min() and values.max() < 1.14
    torch.testing.assert_close(found @ v, u * torch.diagonal(u.T @ found @ v), atol=1e-4, rtol=0)


def test_a_singular_and_a_zero_matrix_stay_finite() -> None:
    torch.manual_seed(0)
    rank_one = torch.outer(torch.randn(20), torch.randn(30))
    found, zero = orthogonalised([rank_one, torch.zeros(20, 30)], steps=5)
    torch.testing.assert_close(found.double(), by_svd(rank_one, 5), rtol=1e-3, atol=1e-4)
    assert not zero.any()


def test_matrices_of_one_shape_and_of_several_are_each_as_alone() -> None:
    torch.manual_seed(0)
    many = [torch.randn(4, 6), torch.randn(6, 4), torch.randn(4, 2, 3), torch.randn(4, 6)]
    for found, matrix in zip(orthogonalised(many), many, strict=True):
        assert found.shape == matrix.shape
        want = by_svd(matrix.flatten(1), 3).view_as(matrix)
        torch.testing.assert_close(found.double(), want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("blocks", [2, 3])
def test_each_block_is_a_matrix_of_its_own(blocks: int) -> None:
    torch.manual_seed(0)
    kernel = torch.randn(6, 5, 3, 2)
    (found,) = orthogonalised([kernel], blocks)
    want = torch.cat([by_svd(part.flatten(1), 3) for part in kernel.chunk(blocks)])
    torch.testing.assert_close(found.double(), want.view_as(kernel), rtol=1e-3, atol=1e-5)


def test_a_channels_last_kernel_is_flattened_without_a_copy_and_keeps_its_format() -> None:
    torch.manual_seed(0)
    kernel = torch.randn(8, 6, 3, 3)
    last = kernel.to(memory_format=torch.channels_last)
    assert _flat(last).data_ptr() == last.data_ptr()
    plain, found = orthogonalised([kernel]), orthogonalised([last])
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-4)
    assert found[0].is_contiguous(memory_format=torch.channels_last)


def test_it_is_torchs_own_muon_on_matrices_to_bfloat16s_rounding() -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in [(12, 30), (12, 30), (24, 24)]]
    theirs = copy.deepcopy(ours)
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.7, "weight_decay": 0.2}
    mine = bc.Muon(ours, **settings, steps=5, dtype=torch.bfloat16)
    other = torch.optim.Muon(theirs, **settings, nesterov=True, ns_steps=5)
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        mine.step()
        other.step()
    # Another momentum, 0.6, would be off by 0.01.
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=4e-3, rtol=0)


def test_the_rest_is_torchs_sgd_to_the_bit() -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    theirs = copy.deepcopy(ours)
    mine = bc.Muon(ours, sgd_lr=0.3, sgd_momentum=0.8, sgd_weight_decay=0.1)
    matrices = [p for p in theirs.parameters() if p.ndim > 1]
    vectors = [p for p in theirs.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors}]
    other = torch.optim.SGD(groups, lr=0.3, momentum=0.8, nesterov=True)
    for _ in range(3):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        mine.step()
        other.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)


class Mixed(nn.Module):
    """A layer of every kind that the division knows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2, bias=False)
        self.line = nn.Conv1d(4, 4, 3, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 2, bias=False)
        self.basis = bc.BasisConv2d(8, 12, 3, 4, groups=2, coef_groups=2, form="full")
        self.low = bc.BasisConv2d(8, 12, 3, 4, coef_rank=2, bias=False)
        self.head = nn.Linear(4, 2)
        self.words = nn.Embedding(5, 2)
        self.again = self.stem
        self.free = nn.Parameter(torch.zeros(2, 2))


def test_a_modules_parameters_are_divided_by_what_their_layers_are() -> None:
    groups = bc.muon_groups(Mixed())
    found = {(g["kind"], g["blocks"]): {name for name, _ in g["params"]} for g in groups}
    assert found == {
        ("kernels", 1): {"stem.weight", "line.weight", "up.weight"},
        ("kernels", 2): {"grouped.weight"},
        ("factors", 1): {"low.basis", "low.coef_in", "low.coef_out"},
        ("factors", 2): {"basis.basis"},
        ("factors", 4): {"basis.coef"},
        ("rest", 1): {
            "free", "stem.bias", "norm.weight", "norm.bias", "basis.bias", "head.weight",
            "head.bias", "words.weight",
        },
    }  # fmt: skip


def test_each_kind_has_its_own_rates_and_the_division_can_be_overruled() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), bc.BasisConv2d(4, 8, 3, 2), nn.Linear(8, 2))
    groups = bc.muon_groups(model)
    assert [g["kind"] for g in groups] == ["kernels", "factors", "rest"]
    groups[1]["lr"] = 0.7
    groups[0]["kind"] = "rest"
    optimizer = bc.Muon(groups, lr=0.2, factor_lr_ratio=0.5, sgd_lr=0.3, momentum=0.4)
    assert [g["lr"] for g in optimizer.param_groups] == [0.3, 0.7, 0.3]
    assert [g["momentum"] for g in optimizer.param_groups] == [0.9, 0.4, 0.9]
    rates = [g["lr"] for g in bc.Muon(model, lr=0.2, factor_lr_ratio=0.5, sgd_lr=0.3).param_groups]
    assert rates == [0.2, 0.1, 0.3]


def test_bare_parameters_are_divided_by_their_dimensions() -> None:
    parameters = [nn.Parameter(torch.zeros([2] * n)) for n in range(1, 6)]
    optimizer = bc.Muon(parameters)
    found = {g["kind"]: [p.ndim for p in g["params"]] for g in optimizer.param_groups}
    assert found == {"rest": [1, 3, 5], "kernels": [2, 4]}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        bc.BasisConv2d(8, 8, 3, 8, padding=1, bias=False), bc.BasisConv2d(8, 12, 3, 4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 3, 8, 8, generator=stream, dtype=next(model.parameters()).dtype)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 2] * 2)).backward()
    optimizer.step()


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_saved_and_loaded_in_the_middle_it_continues_to_the_bit() -> None:
    model = network()  # one coefficient matrix in it is empty
    optimizer = bc.Muon(model, lr=0.05)
    for seed in range(2):
        step(model, optimizer, seed)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    other = network()
    later = bc.Muon(other)
    other.load_state_dict(saved["model"])
    later.load_state_dict(saved["optimizer"])
    for seed in (2, 3):
        step(model, optimizer, seed)
        step(other, later, seed)
    assert equal(model, other)


SCHEDULERS: list[Callable[[torch.optim.Optimizer], Any]] = [
    lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
    lambda o: torch.optim.lr_scheduler.OneCycleLR(o, [0.1, 0.2, 0.3], 10, cycle_momentum=False),
    lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, 10),
    lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch),
    lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, 3),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_set_each_groups_rate(scheduler: Callable[..., Any]) -> None:
    model = network()
    optimizer = bc.Muon(model, lr=0.1, factor_lr_ratio=0.5)
    schedule = scheduler(optimizer)
    before = [group["lr"] for group in optimizer.param_groups]
    assert len(before) == 3
    step(model, optimizer, 0)
    schedule.step()
    assert all(a != b["lr"] for a, b in zip(before, optimizer.param_groups, strict=True))


def test_a_rate_in_a_tensor_is_the_number_and_can_be_changed_in_place() -> None:
    models = [network() for _ in range(2)]
    optimizers = [bc.Muon(models[0], lr=0.05), bc.Muon(models[1], lr=torch.tensor(0.05))]
    for seed in range(2):
        for model, optimizer in zip(models, optimizers, strict=True):
            step(model, optimizer, seed)
        for group in optimizers[0].param_groups:
            group["lr"] *= 0.5
        for group in optimizers[1].param_groups:
            group["lr"] *= 0.5
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_step_asks_nothing_of_the_device() -> None:
    """On `meta` there are no values, and a step that read one would fail."""
    model = network().to("meta")
    optimizer = bc.Muon(model)
    for group in optimizer.param_groups:
        group["lr"] = torch.empty((), device="meta")
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()


def test_half_precision_parameters_are_updated_as_float32s_are() -> None:
    torch.manual_seed(0)
    kernel = torch.randn(8, 4, 3, 3)
    ours, theirs = nn.Parameter(kernel.bfloat16()), nn.Parameter(kernel.bfloat16().float())
    gradient = torch.randn_like(kernel).bfloat16()
    for parameter in (ours, theirs):
        parameter.grad = gradient.to(parameter.dtype)
        bc.Muon([parameter], lr=0.5).step()
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), theirs, atol=0.02, rtol=0.01)


def test_frozen_and_unused_parameters_stay_and_may_be_thawed() -> None:
    model = network()
    model[0].requires_grad_(False)
    unused = nn.Conv2d(3, 4, 3)
    whole = nn.ModuleList([model, unused])
    optimizer = bc.Muon(whole)
    before = copy.deepcopy(whole)
    step(model, optimizer, 0)
    assert equal(unused, before[1]) and equal(model[0], before[0][0])
    assert not torch.equal(model[4].basis, before[0][4].basis)
    model[0].requires_grad_(True)
    step(model, optimizer, 1)
    assert not equal(model[0], before[0][0])


def test_a_closure_is_called_with_gradients_and_its_loss_returned() -> None:
    model = network()
    optimizer = bc.Muon(model)
    x = torch.randn(2, 3, 8, 8)

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        return float(loss.detach())

    first = optimizer.step(closure)
    assert first is not None and optimizer.step(closure) != first


def test_a_scaled_gradient_is_unscaled_and_one_that_overflows_skips_the_step() -> None:
    models = [network() for _ in range(2)]
    optimizers = [bc.Muon(model) for model in models]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x = torch.randn(4, 3, 8, 8)
    models[0](x).square().sum().backward()
    optimizers[0].step()
    scaler.scale(models[1](x).square().sum()).backward()
    scaler.step(optimizers[1])
    scaler.update()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)
    before = copy.deepcopy(models[1])
    optimizers[1].zero_grad()
    scaler.scale(models[1](x).square().sum() * float("inf")).backward()
    scaler.step(optimizers[1])
    assert equal(models[1], before)


def test_weight_decay_is_decoupled_from_the_gradient() -> None:
    kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
    start = kernel.detach().clone()
    kernel.grad = torch.zeros_like(kernel)
    bc.Muon([kernel], lr=0.2, weight_decay=0.1).step()
    torch.testing.assert_close(kernel.detach(), start * (1 - 0.2 * 0.1))


ONE = nn.Parameter(torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("params", "settings", "words"),
    [
        ([], {}, "empty"),
        (nn.ReLU(), {}, "ReLU has no parameters"),
        ([ONE], {"lr": -0.1}, "lr=-0.1"),
        ([ONE], {"lr": torch.zeros(2)}, r"lr has shape \(2,\)"),
        ([ONE], {"momentum": 1.0}, r"momentum=1.0 is not in \[0, 1\)"),
        ([ONE], {"momentum": -0.1}, "momentum=-0.1"),
        ([ONE], {"weight_decay": -1}, "weight_decay=-1"),
        ([ONE], {"steps": 0}, "steps=0"),
        ([ONE], {"factor_lr_ratio": 0}, "factor_lr_ratio=0"),
        ([torch.zeros(2, 2, dtype=torch.int64)], {}, "torch.int64"),
        ([torch.zeros(2, 2, dtype=torch.complex64)], {}, "torch.complex64"),
        ([ONE, ONE], {}, "twice"),
        ([{"params": [ONE]}, {"params": [ONE]}], {}, "twice"),
        ([{"params": [nn.Parameter(torch.zeros(3))], "kind": "kernels"}], {}, "two dimensions"),
        ([{"params": [ONE], "kind": "factor"}], {}, "'factor' is unknown.*kernels, factors, rest"),
        ([{"params": [ONE], "blocks": 3}], {}, "3 blocks"),
        ([{"params": []}], {}, "without parameters"),
        (nn.LazyConv2d(4, 3), {}, "weight is not initialised yet"),
        ([3], {}, "int"),
    ],
)
def test_bad_input_is_refused_and_named(params: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bc.Muon(params, **settings)


def test_a_group_that_is_refused_adds_nothing() -> None:
    optimizer = bc.Muon([ONE])
    new = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, 2)), ONE]
    with pytest.raises(ValueError, match="twice"):
        optimizer.add_param_group({"params": new})
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


def test_a_sparse_gradient_is_refused() -> None:
    words = nn.Embedding(5, 2, sparse=True)
    words(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match="sparse"):
        bc.Muon(words).step()


def test_sharded_parameters_are_refused() -> None:
    marked = nn.Parameter(torch.zeros(4))
    marked._fsdp_flattened = True  # type: ignore[attr-defined]  # as FSDP1 does
    with pytest.raises(ValueError, match="sharded.*DistributedDataParallel"):
        bc.Muon([marked])

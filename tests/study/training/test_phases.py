"""Switching between phases: functions kept, momentum carried, the right layers re-initialised."""

from __future__ import annotations

from typing import Any

import pytest
import small_runs
import torch
from torch import nn

import basisconv as bc
from basisconv.study.records.run import Run
from basisconv.study.training.phases import (
    initial_network,
    kernel_momentum,
    parameter_momentum,
    switch_plan,
)

BASIS = {"layer1.0.conv1": 2, "layer3.1.conv2": 8}


def make_run(*plans: bc.Plan, **changes: Any) -> Run:
    return small_runs.make_run(*((2, plan) for plan in plans), **changes)


def buffers_of(model: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        n: torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for n, p in model.named_parameters()
    }


@pytest.mark.parametrize("init", ["random", "svd", "qr"])
def test_arms_share_the_kernels_of_the_layers_they_have_in_common(init: str) -> None:
    dense = initial_network(make_run(bc.Plan()), 10)
    basis = initial_network(make_run(bc.Plan(BASIS), init=init), 10)
    assert bc.plan_of(basis) == bc.Plan(BASIS)
    ours, theirs = dict(basis.named_parameters()), dict(dense.named_parameters())
    common = ours.keys() & theirs.keys()
    assert len(common) == len(theirs) - 2
    assert all(torch.equal(ours[n], theirs[n]) for n in common)


def test_a_random_start_has_the_dense_scale_and_an_svd_start_the_best_kernel() -> None:
    plan = bc.Plan({"layer4.1.conv2": 16})
    dense = initial_network(make_run(bc.Plan()), 10).layer4[1].conv2.weight
    drawn = initial_network(make_run(plan), 10).layer4[1].conv2.weight
    best = initial_network(make_run(plan, init="svd"), 10).layer4[1].conv2.weight
    assert drawn.var().item() == pytest.approx(dense.var().item(), rel=0.3)
    values = torch.linalg.svdvals(dense.detach().flatten(1))
    error = (best - dense).norm().item()
    assert error == pytest.approx(values[16:].square().sum().sqrt().item(), rel=1e-4)


@pytest.mark.parametrize("form", ["subset", "full"])
def test_an_exact_switch_to_dense_keeps_the_function(form: str) -> None:
    run = make_run(bc.Plan(BASIS, form), bc.Plan())
    model = initial_network(run, 10).double().eval()
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    before = model(x)
    switch_plan(model, run, 1, {})
    assert bc.plan_of(model) == bc.Plan()
    torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-12)


def test_a_switch_fitted_to_responses_keeps_outputs_that_svd_does_not() -> None:
    plan = bc.Plan({"layer1.0.conv1": 2, "layer2.1.conv1": 4, "layer4.1.conv2": 8})
    torch.manual_seed(0)
    # Inputs of few directions, as images are: what a kernel does to the others is lost on them.
    images = torch.einsum("nk,kchw->nchw", torch.randn(64, 6), torch.randn(6, 3, 32, 32))
    errors = {}
    for carry in ("exact", "responses"):
        run = make_run(bc.Plan(), plan, carry=carry, momentum_carry="carried")
        model = initial_network(run, 10).eval()
        before = model(images)
        carried = switch_plan(model, run, 1, buffers_of(model), images)
        assert bc.plan_of(model) == plan
        assert carried.keys() == {n for n, _ in model.named_parameters()}
        errors[carry] = (model(images) - before).square().mean().item()
    assert errors["responses"] < 0.7 * errors["exact"]


def test_reinit_draws_the_converted_layers_again_and_no_others() -> None:
    run = make_run(bc.Plan(BASIS), bc.Plan(), carry="reinit", momentum_carry="carried")
    model = initial_network(run, 10)
    kept = {n: p.clone() for n, p in model.named_parameters() if n.rpartition(".")[0] not in BASIS}
    kernels = {n: model.get_submodule(n).weight.clone() for n in BASIS}
    buffers = buffers_of(model)
    carried = switch_plan(model, run, 1, buffers)
    assert all(torch.equal(model.get_parameter(n), p) for n, p in kept.items())
    for name, kernel in kernels.items():
        new = model.get_submodule(name).weight
        assert not torch.allclose(new, kernel)
        assert abs((new * kernel).sum() / (new.norm() * kernel.norm())) < 0.25
    assert carried.keys() == kept.keys()
    assert all(torch.equal(carried[n], buffers[n]) for n in carried)


def test_momentum_starts_fresh_unless_carried() -> None:
    run = make_run(bc.Plan(BASIS), bc.Plan())
    model = initial_network(run, 10)
    assert switch_plan(model, run, 1, buffers_of(model)) == {}


@pytest.mark.parametrize(
    "options", [{}, {"form": "full"}, {"coef_groups": 2}, {"form": "full", "coef_rank": 2}]
)
def test_momentum_to_the_kernel_is_the_product_rule(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 12, 3, dtype=torch.float64)
    layer = bc.BasisConv2d.from_conv2d(conv, 4, **options)
    momentum = {n: torch.randn_like(p) for n, p in layer.named_parameters()}
    got = kernel_momentum(layer, momentum)
    # Independent: a central difference of the kernel along the momentum.
    step = 1e-5
    ends = []
    for sign in (1, -1):
        moved = bc.BasisConv2d.from_conv2d(conv, 4, **options)
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                parameter.add_(momentum[name], alpha=sign * step)
        ends.append(moved.weight.detach())
    torch.testing.assert_close(got, (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-7)


def test_momentum_to_the_factors_is_the_chain_rule() -> None:
    torch.manual_seed(1)
    conv = nn.Conv2d(4, 12, 3, bias=False, dtype=torch.float64)
    kernel = torch.randn_like(conv.weight)
    full = bc.BasisConv2d.from_conv2d(conv, 5, form="full")
    a, b = full.coef.detach(), full.basis.detach().flatten(1)
    got = parameter_momentum(full, kernel)
    torch.testing.assert_close(got["basis"].flatten(1), a.T @ kernel.flatten(1))
    torch.testing.assert_close(got["coef"], kernel.flatten(1) @ b.T)
    subset = bc.BasisConv2d.from_conv2d(conv, 5)
    got = parameter_momentum(subset, kernel)
    combined = subset.combine.detach()
    rest = [i for i in range(12) if subset.passed[i] == 0]
    b = subset.basis.detach().flatten(1)
    torch.testing.assert_close(got["basis"].flatten(1), combined.T @ kernel.flatten(1))
    torch.testing.assert_close(got["coef"], (kernel.flatten(1) @ b.T)[rest])


def test_without_momentum_there_is_none_to_carry() -> None:
    run = make_run(bc.Plan(BASIS), bc.Plan(), momentum=0.0, momentum_carry="carried")
    assert switch_plan(initial_network(run, 10), run, 1, {}) == {}


def test_reinit_draws_neither_the_first_weights_again_nor_one_layers_for_another() -> None:
    plan = bc.Plan({"layer1.0.conv1": 2, "layer1.0.conv2": 2})
    run = make_run(plan, bc.Plan(), carry="reinit")
    model, dense = initial_network(run, 10), initial_network(make_run(bc.Plan()), 10)
    switch_plan(model, run, 1, {})
    one, other = (model.get_submodule(name).weight for name in plan.layers)
    assert not torch.equal(one, other)
    for name in plan.layers:
        assert not torch.equal(model.get_submodule(name).weight, dense.get_submodule(name).weight)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (bc.Plan(), bc.Plan({"features.3": 4})),
        (bc.Plan({"features.3": 4}), bc.Plan({"features.3": 2}, "full")),
        (bc.Plan({"features.3": 4}), bc.Plan()),
    ],
)
def test_momentum_is_carried_to_every_parameter_and_that_of_biases_as_it_is(
    first: bc.Plan, second: bc.Plan
) -> None:
    """VGG's convolutions have biases."""
    run = make_run(first, second, network="vgg16_bn", momentum_carry="carried")
    model = initial_network(run, 10)
    buffers = buffers_of(model)
    carried = switch_plan(model, run, 1, buffers)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    assert {n: b.shape for n, b in carried.items()} == shapes
    biases = {n for n in buffers if n.endswith("bias")}
    assert "features.3.bias" in biases
    assert all(torch.equal(carried[n], buffers[n]) for n in biases)

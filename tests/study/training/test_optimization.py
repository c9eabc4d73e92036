"""The learning rate's course, and what decays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_runs import BASIS, make_run

import basisconv as bc
from basisconv.study.training.optimization import (
    learning_rate,
    make_optimizer,
    parameter_groups,
    set_learning_rate,
    sgd,
    squared_norms,
)
from basisconv.study.training.phases import initial_network


def test_the_learning_rate_warms_up_and_falls_to_nothing_over_the_run_or_each_phase() -> None:
    run = make_run((10, BASIS), (10, bc.Plan()), warmup=0.2, learning_rate=1.0)
    rates = [learning_rate(run, step, 0, 10) for step in range(20)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4] == 1.0 and rates[12] == pytest.approx(0.5)
    assert all(a > b for a, b in zip(rates[4:], rates[5:], strict=False)) and 0 < rates[-1] < 0.02
    restart = make_run((10, BASIS), (5, bc.Plan()), warmup=0.2, schedule="restart")
    second = [learning_rate(restart, step, 10, 15) for step in range(10, 15)]
    assert second[0] == pytest.approx(0.05) and second[1] == pytest.approx(0.05)
    assert second[3] == pytest.approx(0.05 * 0.5)


def test_every_kernel_decays_and_nothing_else() -> None:
    model = initial_network(make_run((1, BASIS)), 10)
    decayed, others = parameter_groups(model, 0.1, "factors")
    assert decayed["weight_decay"] == 0.1 and others["weight_decay"] == 0.0
    kernels = {p for n, p in model.named_parameters() if p.ndim > 1}
    assert set(decayed["params"]) == kernels  # type: ignore[call-overload]
    spared = {p for n in BASIS.layers for p in model.get_submodule(n).parameters()}
    decayed, others = parameter_groups(model, 0.1, "product")
    assert set(decayed["params"]) == kernels - spared  # type: ignore[call-overload]
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"form": "full"}, {"coef_groups": 2}, {"coef_rank": 2}])
def test_product_decay_is_the_norm_of_the_kernel(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, dtype=torch.float64),
        torch.nn.Conv2d(8, 12, 3, groups=2, dtype=torch.float64),
    )
    model = bc.apply_plan(model, bc.make_plan(model, ratio=0.5, layers=["0", "1"], **options))
    want = sum((m.weight.square().sum() for m in model), start=torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(squared_norms(model), want, check_dtype=False)


def test_a_gradient_in_another_memory_format_is_the_same_gradient() -> None:
    torch.manual_seed(0)
    kernel = torch.nn.Conv2d(4, 6, 3, bias=False)
    twin = torch.nn.Conv2d(4, 6, 3, bias=False).to(memory_format=torch.channels_last)
    twin.load_state_dict(kernel.state_dict())
    optimizers = [sgd(model, 0.1, 0.9, 0.01) for model in (kernel, twin)]
    for _ in range(2):
        gradient = torch.randn(6, 4, 3, 3)
        for model, optimizer in zip((kernel, twin), optimizers, strict=True):
            model.weight.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(kernel.weight, twin.weight)


def test_momentum_that_fits_no_parameter_is_refused() -> None:
    model = torch.nn.Linear(3, 2)
    for buffers in ({"weight": torch.zeros(3, 2)}, {"wieght": torch.zeros(2, 3)}):
        with pytest.raises(ValueError, match=next(iter(buffers))):
            make_optimizer(model, make_run((1, bc.Plan())), buffers)


def muon_groups(**changes: Any) -> dict[str, dict[str, Any]]:
    run = make_run((1, BASIS), optimizer="muon", learning_rate=0.2, momentum=0.6, **changes)
    optimizer = make_optimizer(initial_network(run, 10), run)
    set_learning_rate(optimizer, 0.05)  # a quarter of the peak
    return {group["kind"]: group for group in optimizer.param_groups}


def test_under_muon_each_kind_of_parameter_follows_the_schedule_from_its_own_peak() -> None:
    groups = muon_groups(factor_lr_ratio=0.5, weight_decay=0.03)
    rates = {kind: group["lr"] for kind, group in groups.items()}
    assert rates == pytest.approx({"kernels": 0.05, "factors": 0.025, "rest": 0.1 / 4})
    momenta = {kind: group["momentum"] for kind, group in groups.items()}
    assert momenta == {"kernels": 0.6, "factors": 0.6, "rest": 0.9}
    decays = {kind: group["weight_decay"] for kind, group in groups.items()}
    assert decays == {"kernels": 0.03, "factors": 0.03, "rest": 5e-4}


def test_under_muon_decay_of_the_product_is_half_of_each_factors() -> None:
    groups = muon_groups(decay="product", weight_decay=0.03)
    decays = {kind: group["weight_decay"] for kind, group in groups.items()}
    assert decays == {"kernels": 0.03, "factors": 0.015, "rest": 5e-4}


def test_only_muon_has_a_rate_of_factors() -> None:
    with pytest.raises(ValueError, match="factor_lr_ratio=0.5 is Muon's"):
        make_run((1, BASIS), factor_lr_ratio=0.5)

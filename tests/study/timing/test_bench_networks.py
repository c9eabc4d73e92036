"""The benchmark of other networks, at a size that takes seconds; speeds are not tested."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from basisconv.cost import summary
from basisconv.study.timing import networks
from basisconv.study.timing.bench import Conditions
from basisconv.study.timing.networks import Case
from basisconv.study.training.models import build_network, check_images


@pytest.fixture(scope="module")
def facts() -> Iterator[dict[str, Any]]:
    before = torch.get_num_threads()
    cases = [Case("vgg16_bn", 8, 32), Case("mobilenet_v2", 8, 32)]
    yield networks.measure(cases, [0.25], Conditions("float32", 2, 2), threads=1)
    torch.set_num_threads(before)


def test_a_network_without_eligible_layers_has_a_row_without_times(facts: dict[str, Any]) -> None:
    rows = {(r["network"], r["layers"]): r for r in facts["networks"]}
    assert len(rows) == 4
    nothing = rows["mobilenet_v2", "k×k"]
    assert nothing["converted"] == 0 and nothing["macs_ratio"] == 1 and "speedup" not in nothing
    # Projections from six times the channels gain in multiplications: 6 · 1/4 + 1/4 of 6 parts.
    assert rows["mobilenet_v2", "all"]["macs_ratio"] > 1.2
    vgg = rows["vgg16_bn", "k×k"]
    assert vgg["converted"] == 12 and vgg["speedup_low"] <= vgg["speedup"] <= vgg["speedup_high"]


def test_the_promise_is_the_ratio_of_executed_macs(facts: dict[str, Any]) -> None:
    layers = {(r["network"], r["layer"]): r for r in facts["layers"]}
    # f = 1/4 of a 3×3 of as many inputs as outputs: 1 / (1/4 · (1 + 1/9)).
    assert layers["vgg16_bn", "64→64, 4×4"]["macs_ratio"] == pytest.approx(3.6)
    assert all(row["macs_ratio"] > 1 and row["median_ms"] > 0 for row in layers.values())


@pytest.mark.parametrize(("kernel", "promise"), [(5, 3.846), (7, 3.92)])
def test_larger_kernels_promise_more(kernel: int, promise: float) -> None:
    name = f"resnet18_{kernel}x{kernel}"
    plan = networks.plans(Case(name, 8, 32), 0.25)["k×k"]
    assert len(plan.layers) == 16
    model = build_network(name, 8, 10)
    before, after = (summary(model, (1, 3, 32, 32), p) for p in (None, plan))
    ratio = before["layer2.0.conv2"].macs / after["layer2.0.conv2"].macs
    assert ratio == pytest.approx(promise, rel=1e-3)
    assert before["conv1"].output_shape == (1, 8, 32, 32)


def test_images_that_do_not_fit_are_refused_before_anything_is_timed() -> None:
    check_images("resnet18", 64)
    for size in (16, 64):
        with pytest.raises(ValueError, match=f"Images of {size}×{size} do not fit vgg16_bn"):
            networks.measure(
                [Case("vgg16_bn", 8, size)], [0.25], Conditions("float32", 2, 2), threads=1
            )

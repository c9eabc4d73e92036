"""`bench --networks` and notebook 09: what a step gains in other networks, kernels and image sizes.

Every network is timed dense and with basis filters at each ratio in two sets of layers: those that
`make_plan` takes by itself (here "k×k"), and all whose executed multiplications fall ("all", 1×1
ones too). A set without a layer has nothing to gain: it has a row without times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from basisconv.cost import Summary, summary
from basisconv.layer import BasisConv2d
from basisconv.observe import observe
from basisconv.plan import Plan
from basisconv.planning import basis_filters, make_plan
from basisconv.study.records.environment import configure_cpu, device, environment
from basisconv.study.records.run import Precision
from basisconv.study.timing import bench
from basisconv.study.timing.bench_layers import layer_macs
from basisconv.study.timing.conditions import Conditions, timing_of, title
from basisconv.study.timing.steps import (
    CLASSES,
    initialised_network,
    random_images,
    training_step,
)
from basisconv.study.training.models import build_network, check_images
from basisconv.study.training.precision import is_native
from basisconv.timing import forward_backward

FOLDER = bench.FOLDER / "networks"
"""Where these benchmarks of all devices are kept, as <device>.json."""


class Case(NamedTuple):
    """A network, its width, and the height and width of its images."""

    network: str
    width: int
    size: int


CASES = (
    *(Case(name, 64, 32) for name in ("resnet18", "vgg16_bn", "resnet50", "wide_resnet16_4",
                                      "mobilenet_v2", "convnext_pico")),
    *(Case(f"resnet18_{k}x{k}", 64, 32) for k in (5, 7)),
    Case("resnet18", 64, 64), Case("resnet50", 64, 64),
)  # fmt: skip
"""What `bench --networks` times."""


def measure(
    cases: Sequence[Case],
    ratios: Sequence[float],
    setting: Conditions,
    threads: int,
) -> dict[str, Any]:
    """One device's benchmark of some networks: their training steps, and each distinct layer.

    Args:
        cases: the networks.
        ratios: shares of basis filters.
        setting: precision, batch size and interleaved turns.
        threads: CPU threads.

    Raises:
        ValueError: for a network that does not exist or that the images do not fit.
    """
    for case in cases:
        check_images(case.network, case.size)
    configure_cpu(threads)
    steps: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []
    for case in tqdm(cases, desc="networks", leave=False, disable=None):
        steps += _steps(case, ratios, setting)
        layers += _layers(case, ratios, setting)
    return {
        "device": environment(),
        "settings": {"layout": "channels-last", "threads": threads, **setting._asdict()},
        "networks": steps,
        "layers": layers,
    }


def benchmark_device(repeats: int = 10) -> dict[str, Any]:
    """The benchmark that `bench --networks` keeps, of this device with all of its cores."""
    on_cuda = device().type == "cuda"
    precision: Precision = "bfloat16" if on_cuda and is_native("bfloat16") else "float32"
    setting = Conditions(precision, 128 if on_cuda else 64, repeats)
    return measure(CASES, (0.25, 0.5), setting, torch.get_num_threads())


def plans(case: Case, ratio: float) -> dict[str, Plan]:
    """The two sets of layers in basis form; a plan without layers where none is eligible."""
    model = build_network(case.network, case.width, CLASSES)
    try:
        usual = make_plan(model, ratio=ratio)
    except ValueError:  # it says that no layer is eligible
        usual = Plan()
    shape = (1, 3, case.size, case.size)
    every = Plan({
        name: basis_filters(conv.out_channels, ratio)
        for name, conv in model.named_modules()
        if isinstance(conv, nn.Conv2d) and conv.groups == 1
    })  # fmt: skip
    before, after = summary(model, shape), summary(model, shape, every)
    less = [name for name in every.layers if after[name].macs < before[name].macs]
    return {"k×k": usual, "all": every.only(less) if less else Plan()}


def _steps(case: Case, ratios: Sequence[float], setting: Conditions) -> list[dict[str, Any]]:
    """Rows of whole training steps."""
    found = [(layers, f, plan) for f in ratios for layers, plan in plans(case, f).items()]
    made = {f"{layers}, {f:g}": plan for layers, f, plan in found if plan.layers}
    images = random_images(setting.batch_size, case.size)
    arms: dict[str, Callable[[], object]] = {}
    for key, plan in {"dense": Plan(), **made}.items():
        model = initialised_network(case.network, case.width, plan)
        arms[key] = training_step(setting.running(model), images)
    timings = setting.compare(arms)
    dense = build_network(case.network, case.width, CLASSES)
    before = summary(dense, images.shape)
    rows = []
    for layers, f, plan in found:
        after, timed = summary(dense, images.shape, plan), timings.get(f"{layers}, {f:g}")
        rows.append(
            {
                **case._asdict(), **setting.columns(), "layers": layers, "ratio": f,
                "converted": len(plan.layers), "macs_ratio": _executed(before) / _executed(after),
                **(timing_of(timed, timings["dense"]) if timed else {}),
            }
        )  # fmt: skip
    return rows


def _layers(case: Case, ratios: Sequence[float], setting: Conditions) -> list[dict[str, Any]]:
    """Rows of each distinct layer alone whose multiplications fall, forward and backward."""
    model = initialised_network(case.network, case.width, Plan())
    images = random_images(setting.batch_size, case.size)
    seen = observe(model, images, (nn.Conv2d,))
    rows = []
    for f in ratios:
        less = plans(case, f)["all"].layers
        for what, name in {title(*seen[n][:2]): n for n in less}.items():
            conv, given = seen[name].module, seen[name].input
            x = setting.input(given)
            layer = BasisConv2d.from_conv2d(conv, less[name], init="qr")
            arms = {
                key: forward_backward(setting.running(m), x)
                for key, m in {"dense": conv, "basis": layer}.items()
            }
            timings = setting.compare(arms)
            rows.append(
                {
                    **case._asdict(), **setting.columns(), "layer": what, "ratio": f,
                    "macs_ratio": layer_macs(conv, given) / layer_macs(layer, given),
                    **timing_of(timings["basis"], timings["dense"]),
                }
            )  # fmt: skip
    return rows


def _executed(cost: Summary) -> int:
    return cost.macs + cost.macs_backward

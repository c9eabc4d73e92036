"""The distinct layers of a network, dense and in every basis form and peer, timed alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from basisconv.cost import summary
from basisconv.layer import BasisConv2d
from basisconv.observe import observe
from basisconv.plan import Plan
from basisconv.planning import basis_filters
from basisconv.study.timing.conditions import Conditions, timing_of, title
from basisconv.study.timing.machine import Roof
from basisconv.study.timing.steps import inference, initialised_network, random_images
from basisconv.timing import forward_backward

# The forms of a basis layer that are timed.
FORMS_TIMED: dict[str, dict[str, Any]] = {
    "subset": {"form": "subset"},
    "full": {"form": "full"},
    "subset, rebuilt": {"form": "subset", "mode": "rebuilt"},
    "full, rebuilt": {"form": "full", "mode": "rebuilt"},
    "full, coef_groups = 4": {"form": "full", "coef_groups": 4},
    "full, coef_rank = m/4": {"form": "full", "coef_rank": 4},  # a share of n_basis
}


def measure_layers(
    name: str,
    width: int,
    ratios: Sequence[float],
    ways: Mapping[str, dict[str, Any]],
    others: Mapping[str, Callable[[nn.Conv2d, int], nn.Module]],
    setting: Conditions,
    roof: Roof,
) -> list[dict[str, Any]]:
    """A row for each distinct convolution of a network, each basis form and peer, and each ratio.

    Args:
        name: the network's.
        width: its width.
        ratios: shares of basis filters.
        ways: the basis forms, some or all of `FORMS_TIMED`.
        others: the peers: each makes its form of a convolution with m filters.
        setting: how the layers are run.
        roof: measured before each layer; it places basis layers under the roofline.
    """
    found: list[tuple[dict[str, Any], nn.Conv2d, nn.Module, Tensor]] = []
    model = initialised_network(name, width, Plan())
    seen = observe(model, random_images(setting.batch_size), (nn.Conv2d,)).values()
    distinct = {title(o.module, o.input): o for o in seen}
    for what, (conv, given, *_) in tqdm(distinct.items(), desc="layers", leave=False, disable=None):
        roof.measure()
        x = setting.input(given)
        rows: dict[str, tuple[str, float, nn.Module]] = {}
        for f in ratios:
            m = basis_filters(conv.out_channels, f)
            made: dict[str, nn.Module] = dict(_basis_forms(conv, m, ways))
            made |= {peer: _placed(make(conv, m), conv) for peer, make in others.items()}
            for way, layer in made.items():
                rows[f"{way}, {f:g}"] = (way, f, layer)
        arms = {"dense": conv} | {key: layer for key, (_, _, layer) in rows.items()}
        running = {key: setting.running(layer) for key, layer in arms.items()}
        forward = setting.compare({k: inference(m, x) for k, m in running.items()})
        both = setting.compare({k: forward_backward(m, x) for k, m in running.items()})
        for key, (way, f, layer) in rows.items():
            timed = timing_of(both[key], both["dense"])
            ratio = layer_macs(conv, given) / layer_macs(layer, given)
            row = {
                "layer": what, **setting.columns(), "arm": way, "ratio": f,
                "forward": timing_of(forward[key], forward["dense"]), "both": timed,
                "macs_ratio": ratio, "share": timed["speedup"] / ratio,
                "gmac_s": layer_macs(layer, given) / timed["median_ms"] / 1e6,
            }  # fmt: skip
            found.append((row, conv, layer, given))
    return [
        row | _roofline(conv, layer, setting.input(given), roof)
        for row, conv, layer, given in found
    ]


def _placed(layer: nn.Module, conv: nn.Conv2d) -> nn.Module:
    layer = layer.to(conv.weight.device)
    # torch's own stubs do not know this keyword.
    return layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _basis_forms(
    conv: nn.Conv2d, m: int, ways: Mapping[str, dict[str, Any]]
) -> Iterator[tuple[str, BasisConv2d]]:
    """Each of some basis forms that is possible with m filters."""
    for name, options in ways.items():
        if m % options.get("coef_groups", 1):
            continue
        given = dict(options)
        if "coef_rank" in given:
            given["coef_rank"] = max(1, m // given["coef_rank"])
        yield name, BasisConv2d.from_conv2d(conv, m, init="qr", **given)


def layer_macs(layer: nn.Module, x: Tensor) -> float:
    """Multiply-accumulates of forward and backward, the input's gradient included."""
    if isinstance(layer, nn.Conv2d | BasisConv2d):
        # Not the first layer, whose input needs no gradient.
        before = nn.Conv2d(x.shape[1], x.shape[1], 1, device=x.device)
        row = summary(nn.Sequential(before, layer), x.shape)["1"]
        return row.macs + row.macs_backward
    # Peers: torch counts their operators, none of which is grouped.
    x = x.detach().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    layer.zero_grad(set_to_none=True)
    return counter.get_total_flops() / 2


def _roofline(conv: nn.Conv2d, layer: nn.Module, x: Tensor, roof: Roof) -> dict[str, float | None]:
    """A basis layer's place under the roofline; None for peers, whose bytes are not counted.

    The speed-up is that of the forward pass if dense and basis both ran at the roof. Bytes are
    counted in the precision of `x`, in which the layers were run.
    """
    if not isinstance(layer, BasisConv2d):
        return {"intensity": None, "bound_speedup": None}
    ours, dense = (
        summary(nn.Sequential(copy.deepcopy(part).to(x.dtype)), x.shape)["0"]
        for part in (layer, conv)
    )
    machine = roof.macs_per_second, roof.bytes_per_second
    expected = dense.roofline_seconds(*machine) / ours.roofline_seconds(*machine)
    return {"intensity": ours.intensity, "bound_speedup": expected}

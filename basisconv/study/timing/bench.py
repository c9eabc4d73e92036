"""`make bench` and notebook 06: what the saving in multiplications is worth in seconds.

Each distinct layer of a network and whole networks are timed, dense and every basis form and
peer interleaved in one process. Every speed-up has the ratio of executed MACs, the share of it
that was realised, and the expected speed-up (`bound_speedup` in the record): of a layer's forward
pass if dense and basis ran at this machine's roof, of a network if each convolution's time shrank
by its MACs and the rest stayed the same. Neither is an upper bound: dense may be further from its
roof, and a convolution may gain more than its MACs.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from basisconv.cost import LayerCost, Summary, observe, summary
from basisconv.decompose import FORMS
from basisconv.layer import BasisConv2d
from basisconv.plan import Plan
from basisconv.planning import basis_filters, make_plan
from basisconv.study.records.environment import ROOT, configure_cpu, device, environment
from basisconv.study.records.files import read_json, write_json
from basisconv.study.records.run import Precision
from basisconv.study.timing.machine import Roof, step_memory
from basisconv.study.timing.peers import peers
from basisconv.study.timing.steps import (
    CLASSES,
    Prepared,
    as_cuda_graphs,
    inference,
    initialised_network,
    random_images,
    training_step,
)
from basisconv.study.training.models import build_network
from basisconv.study.training.precision import convolution_precision, is_native
from basisconv.timing import Timing, compare, forward_backward

FOLDER = ROOT / "paper" / "runs" / "bench"
"""Where the benchmarks of all devices are kept, as <device>.json."""

# The forms of a basis layer that are timed.
FORMS_TIMED: dict[str, dict[str, Any]] = {
    "subset": {"form": "subset"},
    "full": {"form": "full"},
    "subset, rebuilt": {"form": "subset", "mode": "rebuilt"},
    "full, rebuilt": {"form": "full", "mode": "rebuilt"},
    "full, coef_groups = 4": {"form": "full", "coef_groups": 4},
    "full, coef_rank = m/4": {"form": "full", "coef_rank": 4},  # a share of n_basis
}


class Conditions(NamedTuple):
    """How the arms of one part of a benchmark are run."""

    precision: Precision
    batch_size: int
    repeats: int

    def running(self, module: nn.Module) -> nn.Module:
        return Prepared(module, self.precision, compiled=False)

    def compare(self, arms: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
        with convolution_precision(self.precision):
            return compare(as_cuda_graphs(arms), self.repeats, device=device())

    def input(self, x: Tensor) -> Tensor:
        """A layer's input in the format that it has inside a network."""
        dtype = torch.bfloat16 if self.precision == "bfloat16" else x.dtype
        return x.to(dtype, memory_format=torch.channels_last)

    def columns(self) -> dict[str, Any]:
        return {"precision": self.precision, "batch": self.batch_size}


def measure(
    networks: Sequence[tuple[str, int]],
    ratios: Sequence[float],
    batch_sizes: Sequence[int],
    precisions: Sequence[Precision],
    repeats: int,
    threads: int,
) -> dict[str, Any]:
    """One device's benchmark: the distinct layers of the first network, and whole networks.

    Args:
        networks: names (see `basisconv.study.training.models.build_network`) and widths.
        ratios: shares of basis filters.
        batch_sizes: images a batch.
        precisions: see `basisconv.study.training.precision`; emulated ones are left out.
        repeats: interleaved turns for layers; networks take half, at least three.
        threads: CPU threads.
    """
    configure_cpu(threads)
    others, left_out = peers()
    left_out += [
        f"{p} is left out: this device only emulates it" for p in precisions if not is_native(p)
    ]
    few = max(3, repeats // 2)
    machine: dict[str, dict[str, float]] = {}
    layers: list[dict[str, Any]] = []
    wholes: list[dict[str, Any]] = []
    memory: list[dict[str, Any]] = []
    for precision in filter(is_native, precisions):
        roof = Roof(precision)
        for batch_size in batch_sizes:
            one = Conditions(precision, batch_size, repeats)
            try:
                layers += _layers(*networks[0], ratios, others, one, roof)
            except torch.OutOfMemoryError:
                left_out.append(_too_large("layers", one))
            for name, width in tqdm(networks, desc="networks", leave=False, disable=None):
                try:
                    timed = list(_network(name, width, ratios, one._replace(repeats=few)))
                    memory += _memory(name, width, ratios, one, threads)
                except torch.OutOfMemoryError:
                    left_out.append(_too_large(f"{name}, width {width}", one))
                else:
                    wholes += timed
        machine[precision] = {
            "rate_gmac_s": roof.macs_per_second / 1e9,
            "bandwidth_gb_s": roof.bytes_per_second / 1e9,
        }
    return {
        "device": environment(),
        "settings": {
            "layout": "channels-last", "threads": threads,
            "compile": f"off{' (CUDA graphs)' if device().type == 'cuda' else ''}",
            "repeats": repeats, "network_repeats": few,
        },
        "machine": machine, "left_out": left_out, "layers": layers, "networks": wholes,
        "memory": memory,
    }  # fmt: skip


def _too_large(what: str, setting: Conditions) -> str:
    conditions = f"{setting.precision}, batch {setting.batch_size}"
    return f"{what}, {conditions} is left out: this device's memory does not hold it"


def benchmark_device(repeats: int = 20) -> dict[str, Any]:
    """The benchmark that `make bench` keeps, of this device with all of its cores."""
    on_cuda = device().type == "cuda"
    return measure(
        networks=[("resnet18", 64), ("resnet18", 32), ("resnet18", 16), ("vgg16_bn", 64),
                  ("resnet50", 64)],
        ratios=(0.125, 0.25, 0.5),
        batch_sizes=(128, 512) if on_cuda else (64,),
        # A GPU older than Ampere has neither.
        precisions=("bfloat16", "tf32")
        if on_cuda and is_native("tf32")
        else ("float32", "bfloat16"),
        repeats=repeats,
        # torch's count respects containers, hyper-threads and OMP_NUM_THREADS.
        threads=torch.get_num_threads(),
    )  # fmt: skip


def _layers(
    name: str,
    width: int,
    ratios: Sequence[float],
    others: Mapping[str, Callable[[nn.Conv2d, int], nn.Module]],
    setting: Conditions,
    roof: Roof,
) -> list[dict[str, Any]]:
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
            made: dict[str, nn.Module] = dict(_basis_forms(conv, m))
            made |= {peer: _placed(make(conv, m), conv) for peer, make in others.items()}
            for way, layer in made.items():
                rows[f"{way}, {f:g}"] = (way, f, layer)
        arms = {"dense": conv} | {key: layer for key, (_, _, layer) in rows.items()}
        running = {key: setting.running(layer) for key, layer in arms.items()}
        forward = setting.compare({k: inference(m, x) for k, m in running.items()})
        both = setting.compare({k: forward_backward(m, x) for k, m in running.items()})
        for key, (way, f, layer) in rows.items():
            timed = _timing(both[key], both["dense"])
            ratio = _macs(conv, given) / _macs(layer, given)
            row = {
                "layer": what, **setting.columns(), "arm": way, "ratio": f,
                "forward": _timing(forward[key], forward["dense"]), "both": timed,
                "macs_ratio": ratio, "share": timed["speedup"] / ratio,
                "gmac_s": _macs(layer, given) / timed["median_ms"] / 1e6,
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


def _basis_forms(conv: nn.Conv2d, m: int) -> Iterator[tuple[str, BasisConv2d]]:
    """Every basis form that is possible with m filters."""
    for name, options in FORMS_TIMED.items():
        if m % options.get("coef_groups", 1):
            continue
        given = dict(options)
        if "coef_rank" in given:
            given["coef_rank"] = max(1, m // given["coef_rank"])
        yield name, BasisConv2d.from_conv2d(conv, m, init="qr", **given)


def _network(
    name: str, width: int, ratios: Sequence[float], setting: Conditions
) -> Iterator[dict[str, Any]]:
    dense = build_network(name, width, CLASSES)
    plans = {f"{form}, {f:g}": make_plan(dense, ratio=f, form=form)
             for f in ratios for form in FORMS}  # fmt: skip
    models = {
        key: initialised_network(name, width, plan)
        for key, plan in {"dense": Plan(), **plans}.items()
    }
    x = random_images(setting.batch_size)
    # The convolutions in basis form, the same ones in all plans; equal ones count once.
    observed = observe(models["dense"], x, (nn.Conv2d,))
    titles = {n: title(*observed[n][:2]) for n in plans[f"{FORMS[0]}, {ratios[0]:g}"].layers}
    alone = {what: observed[n] for n, what in titles.items()}
    before = summary(dense, x.shape)
    for what, backward in (("forward", False), ("training step", True)):
        step, layer = (training_step, forward_backward) if backward else (inference, inference)
        arms = {key: step(setting.running(model), x) for key, model in models.items()}
        arms |= {t: layer(setting.running(o.module), setting.input(o.input))
                 for t, o in alone.items()}  # fmt: skip
        timings = setting.compare(arms)
        for (f, form), key in zip(itertools.product(ratios, FORMS), plans, strict=True):
            after = summary(dense, x.shape, plans[key])
            timed = _timing(timings[key], timings["dense"])
            expected = _amdahl(timings, titles, before, after, backward)
            yield {
                "network": name, "width": width, **setting.columns(), "arm": form, "ratio": f,
                "what": what, **timed, "bound_speedup": expected,
                "share": timed["speedup"] / expected,
                "macs_ratio": _executed(before, backward) / _executed(after, backward),
            }  # fmt: skip


def _amdahl(
    timings: Mapping[str, Timing],
    titles: Mapping[str, str],
    before: Summary,
    after: Summary,
    backward: bool,
) -> float:
    """The speed-up by Amdahl's law, if layers shrink by their MACs and the rest stays the same.

    It is not an upper bound: a layer may gain more than its MACs, and its time alone differs from
    its time in the network.
    """
    rest = 1.0
    for name, what in titles.items():
        # The layer's share of the dense network's time; it was timed alone in the same turns.
        share = timings["dense"].speedup_over(timings[what])[0]
        kept = _executed(after[name], backward) / _executed(before[name], backward)
        rest -= share * (1 - kept)
    return 1 / rest


def _executed(cost: Summary | LayerCost, backward: bool) -> int:
    return cost.macs + (cost.macs_backward if backward else 0)


def _memory(
    name: str, width: int, ratios: Sequence[float], setting: Conditions, threads: int
) -> Iterator[dict[str, Any]]:
    dense = build_network(name, width, CLASSES)
    plans = {f: make_plan(dense, ratio=f) for f in ratios}
    peak = {
        f: step_memory(name, width, plan, setting.batch_size, setting.precision, threads)
        for f, plan in {1.0: Plan(), **plans}.items()
    }
    for f in ratios:
        yield {"network": name, "width": width, **setting.columns(), "ratio": f,
               "peak_mb": peak[f] / 1e6, "dense_peak_mb": peak[1.0] / 1e6}  # fmt: skip


def _macs(layer: nn.Module, x: Tensor) -> float:
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


def _timing(arm: Timing, dense: Timing) -> dict[str, float]:
    median, low, high = arm.speedup_over(dense)
    first, third = arm.quartiles
    return {
        "median_ms": arm.median * 1e3, "iqr_ms": (third - first) * 1e3, "speedup": median,
        "speedup_low": low, "speedup_high": high,
    }  # fmt: skip


def title(conv: nn.Conv2d, x: Tensor) -> str:
    """A layer's name in tables, the same for all layers that cost the same."""
    stride = "" if conv.stride == (1, 1) else f", stride {conv.stride[0]}"
    kernel = "" if conv.kernel_size == (3, 3) else f", {conv.kernel_size[0]}×{conv.kernel_size[1]}"
    return f"{conv.in_channels}→{conv.out_channels}, {x.shape[2]}×{x.shape[3]}{kernel}{stride}"


def save_benchmark(facts: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Save a benchmark, in place of an older one of the same device."""
    device_name = re.sub(r"[^A-Za-z0-9]+", "-", " ".join(_device(facts))).strip("-").lower()
    path = folder / f"{device_name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, facts)
    return path


def saved_benchmarks(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The benchmarks of all devices, by the names of their files.

    Raises:
        DamagedFile: if one of them was changed after it was written.
    """
    return [read_json(path) for path in sorted(folder.glob("*.json"))]


def markdown(facts: dict[str, Any]) -> str:
    """The benchmark as Markdown, a row for each arm of each layer and network."""
    head = _device(facts) + [f"{key} {value}" for key, value in facts["settings"].items()]
    lines = [
        ", ".join(head), *facts["left_out"], "",
        "| what | precision, batch | f | arm | speed-up | quartiles | expected | share |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    rows = [(r, r["layer"], r["both"], r["macs_ratio"]) for r in facts["layers"]]
    rows += [(r, f"{r['network']}, width {r['width']}, {r['what']}", r, r["bound_speedup"])
             for r in facts["networks"]]  # fmt: skip
    for row, what, timed, expected in rows:
        lines.append(
            f"| {what} | {row['precision']}, {row['batch']} | {row['ratio']:g} | {row['arm']} | "
            f"{timed['speedup']:.2f}× | {timed['speedup_low']:.2f}–{timed['speedup_high']:.2f} | "
            f"{expected:.2f}× | {row['share']:.2f} |"
        )
    lines += ["", "| network | precision, batch | f | peak memory, MB | of dense |",
              "| --- | --- | ---: | ---: | ---: |"]  # fmt: skip
    lines += [
        f"| {r['network']}, width {r['width']} | {r['precision']}, {r['batch']} | {r['ratio']:g} | "
        f"{r['peak_mb']:.0f} | {r['peak_mb'] / r['dense_peak_mb']:.2f} |"
        for r in facts["memory"]
    ]
    return "\n".join(lines)


def _device(facts: dict[str, Any]) -> list[str]:
    """Its name and its kind, which are the same for a GPU."""
    return list(dict.fromkeys([facts["device"]["device"], facts["device"]["device_kind"]]))

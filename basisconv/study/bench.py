"""`make bench` and notebook 06: what the saving in multiplications is worth in seconds.

Each distinct layer of the network, and whole training steps, dense beside each basis form in
one process, interleaved. Beside every speed-up stand the ratio of executed MACs, the share of it
that was realised, and the bound that a roofline of this machine sets: its bandwidth and its
arithmetic rate are measured in the same process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from basisconv.convert import apply_plan
from basisconv.cost import LayerCost, observe, summary
from basisconv.decompose import Form
from basisconv.layer import BasisConv2d, Mode
from basisconv.plan import basis_filters, make_plan
from basisconv.study.environment import ROOT, device, environment
from basisconv.study.files import write_json
from basisconv.study.models import build, initialise
from basisconv.timing import Timing, compare, forward_backward

FOLDER = ROOT / "paper" / "runs" / "bench"
# Form and mode of a basis layer: every way it runs.
WAYS: tuple[tuple[Form, Mode], ...] = (
    ("subset", "factored"),
    ("full", "factored"),
    ("subset", "rebuilt"),
)


def measure(
    network: str,
    widths: Sequence[int],
    ratios: Sequence[float],
    batch_size: int,
    repeats: int,
    threads: int,
) -> dict[str, Any]:
    """The facts of section 06: layers of the widest network, training steps of all.

    Args:
        network: see `basisconv.study.models.build`.
        widths: of the networks.
        ratios: shares of basis filters.
        batch_size: images a batch.
        repeats: interleaved turns.
        threads: CPU threads.
    """
    torch.set_num_threads(threads)
    place = device()
    rate, bandwidth = arithmetic_rate(place), memory_bandwidth(place)
    layers = list(_layers(network, max(widths), ratios, batch_size, repeats, (rate, bandwidth)))
    networks = [
        row
        for width in widths
        for row in _training_steps(network, width, ratios, batch_size, max(3, repeats // 4))
    ]
    settings = {"dtype": "float32", "layout": "channels-last", "batch": batch_size,
                "threads": threads, "compile": "off", "repeats": repeats}  # fmt: skip
    return {
        "device": environment(),
        "settings": settings,
        "rate_gmac_s": rate / 1e9,
        "bandwidth_gb_s": bandwidth / 1e9,
        "layers": layers,
        "networks": networks,
    }


def save(facts: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Write a benchmark beside those of other devices; a device's own is replaced."""
    device_name = f"{facts['device']['device']} {facts['device']['device_kind']}"
    path = folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', device_name).strip('-').lower()}.json"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, facts)
    return path


def markdown(facts: dict[str, Any]) -> str:
    """The benchmark as a Markdown table, one row a layer or network and way to run it."""
    lines = [
        f"{facts['device']['device']}, {facts['device']['device_kind']}; "
        + ", ".join(f"{key} {value}" for key, value in facts["settings"].items()),
        "",
        "| what | f | form, mode | forward and backward | quartiles | MACs | share |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    rows = [(r["layer"], f"{r['form']}, {r['mode']}", r["ratio"], r["both"], r["macs_ratio"])
            for r in facts["layers"]]  # fmt: skip
    rows += [(f"{r['what']}, {r['network']}, width {r['width']}", "subset, factored", r["ratio"],
              r, r["macs_ratio"]) for r in facts["networks"]]  # fmt: skip
    for what, way, f, timed, macs in rows:
        lines.append(
            f"| {what} | {f:g} | {way} | {timed['speedup']:.2f}× | {timed['speedup_low']:.2f}–"
            f"{timed['speedup_high']:.2f} | {macs:.2f}× | {timed['speedup'] / macs:.2f} |"
        )
    return "\n".join(lines)


def _layers(
    network: str,
    width: int,
    ratios: Sequence[float],
    batch_size: int,
    repeats: int,
    machine: tuple[float, float],
) -> Iterable[dict[str, Any]]:
    model = build(network, width, 10).to(device())
    initialise(model, 0)
    x = random_images(batch_size)
    distinct = {_title(o.module, o.input): o for o in observe(model, x, (nn.Conv2d,)).values()}
    for title, (conv, given, _) in tqdm(distinct.items(), desc="layers", leave=False, disable=None):
        given = given.contiguous(memory_format=torch.channels_last)
        ways = {f"{form}, {mode}, {f:g}": (f, form, mode) for f in ratios for form, mode in WAYS}
        arms: dict[str, nn.Module] = {"dense": conv}
        for key, (f, form, mode) in ways.items():
            n_basis = basis_filters(conv.out_channels, f)
            arms[key] = BasisConv2d.from_conv2d(conv, n_basis, init="qr", form=form, mode=mode)
        forward = compare(
            {k: _inference(m, given) for k, m in arms.items()}, repeats, device=given.device
        )
        both = compare(
            {k: forward_backward(m, given) for k, m in arms.items()}, repeats, device=given.device
        )
        dense = _cost(conv, given)
        for key, (f, form, mode) in ways.items():
            cost = _cost(arms[key], given)
            ratio = (dense.macs + dense.macs_backward) / (cost.macs + cost.macs_backward)
            timed = _timing(both[key], both["dense"])
            yield {
                "layer": title, "ratio": f, "form": form, "mode": mode,
                "forward": _timing(forward[key], forward["dense"]), "both": timed,
                "macs_ratio": ratio, "share": timed["speedup"] / ratio,
                "intensity": cost.intensity,
                "gmac_s": (cost.macs + cost.macs_backward) / timed["median_ms"] / 1e6,
                "bound_speedup": dense.roofline_seconds(*machine) / cost.roofline_seconds(*machine),
            }  # fmt: skip


def _training_steps(
    network: str, width: int, ratios: Sequence[float], batch_size: int, repeats: int
) -> Iterable[dict[str, Any]]:
    dense = build(network, width, 10).to(device())
    initialise(dense, 0)
    plans = {f"{f:g}": make_plan(dense, ratio=f) for f in ratios}
    arms = {key: apply_plan(dense, plan, init="qr") for key, plan in plans.items()}
    x = random_images(batch_size)
    timings = step_times({"dense": dense, **arms}, x, repeats)
    whole = summary(dense, x.shape)
    for f, (key, plan) in zip(ratios, plans.items(), strict=True):
        cost = summary(dense, x.shape, plan)
        yield {
            "network": network, "width": width, "ratio": f, "what": "training step",
            **_timing(timings[key], timings["dense"]),
            "macs_ratio": (whole.macs + whole.macs_backward) / (cost.macs + cost.macs_backward),
        }  # fmt: skip


def step_times(
    models: Mapping[str, nn.Module],
    x: Tensor,
    repeats: int,
    precision: str = "float32",
    compiled: bool = False,
) -> dict[str, Timing]:
    """Forward, backward and SGD update of each network, interleaved, on random labels.

    Args:
        models: the networks, by name; they end in training mode.
        x: a batch, where the networks are.
        repeats: interleaved turns.
        precision: "float32" or "bfloat16", as in a Run.
        compiled: whether the networks are compiled, before the turns that count.
    """
    labels = torch.randint(10, (len(x),), generator=torch.Generator().manual_seed(0)).to(x.device)

    def stepper(model: nn.Module) -> Callable[[], None]:
        # A rate of nearly nothing: the arithmetic is a real step's, the weights stay put.
        optimizer = torch.optim.SGD(
            model.parameters(), lr=1e-9, momentum=0.9, nesterov=True, weight_decay=5e-4
        )

        forward = torch.compile(model) if compiled else model

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                logits = forward(x)
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()

        return step

    steppers = {name: stepper(model.train()) for name, model in models.items()}
    return compare(steppers, repeats, device=x.device)


def arithmetic_rate(place: torch.device, size: int = 1536, repeats: int = 10) -> float:
    """Multiply-accumulates a second of a float32 matrix product at its best: the roof."""
    a, b = torch.randn(2, size, size, device=place)
    product = compare({"product": lambda: a @ b}, repeats, device=place)["product"]
    return size**3 / min(product.samples)


def memory_bandwidth(place: torch.device, size: int = 2**26, repeats: int = 10) -> float:
    """Bytes a second of a copy that no cache holds, read and written, at its best: the slope."""
    source = torch.ones(size, device=place)
    target = torch.empty_like(source)
    copy = compare({"copy": lambda: target.copy_(source)}, repeats, device=place)["copy"]
    return 2 * source.numel() * source.element_size() / min(copy.samples)


def random_images(batch_size: int) -> Tensor:
    """A batch of noise on the device, channels-last."""
    x = torch.randn(batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return x.to(device()).contiguous(memory_format=torch.channels_last)


def _inference(module: nn.Module, x: Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            module(x)

    return run


def _cost(layer: nn.Module, x: Tensor) -> LayerCost:
    # Behind another layer, so that the input's gradient counts, as it does inside a network.
    before = nn.Conv2d(x.shape[1], x.shape[1], 1, device=x.device, dtype=x.dtype)
    row = summary(nn.Sequential(before, layer), x.shape)
    return row["1"]


def _timing(arm: Timing, dense: Timing) -> dict[str, float]:
    median, low, high = arm.speedup_over(dense)
    first, third = arm.quartiles
    return {
        "median_ms": arm.median * 1e3, "iqr_ms": (third - first) * 1e3, "speedup": median,
        "speedup_low": low, "speedup_high": high,
    }  # fmt: skip


def _title(conv: nn.Conv2d, x: Tensor) -> str:
    stride = "" if conv.stride == (1, 1) else f", stride {conv.stride[0]}"
    kernel = "" if conv.kernel_size == (3, 3) else f", {conv.kernel_size[0]}×{conv.kernel_size[1]}"
    return f"{conv.in_channels}→{conv.out_channels}, {x.shape[2]}×{x.shape[3]}{kernel}{stride}"

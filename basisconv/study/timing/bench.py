"""`make bench` and notebook 06: what the saving in multiplications is worth in seconds.

Each distinct layer of a network and whole networks are timed, dense and every basis form and
peer interleaved in one process. Every speed-up has the ratio of executed MACs, the share of it
that was realised, and the expected speed-up (`bound_speedup` in the record): of a layer's forward
pass if dense and basis ran at this machine's roof, of a network if each convolution's time shrank
by its MACs and the rest stayed the same. Neither is an upper bound: dense may be further from its
roof, and a convolution may gain more than its MACs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from basisconv.study.records.environment import ROOT, configure_cpu, device, environment
from basisconv.study.records.files import read_json, write_json
from basisconv.study.records.run import Precision
from basisconv.study.timing.bench_layers import measure_layers
from basisconv.study.timing.bench_networks import measure_memory, measure_network
from basisconv.study.timing.conditions import Conditions
from basisconv.study.timing.machine import Roof
from basisconv.study.timing.peers import peers
from basisconv.study.training.precision import is_native

FOLDER = ROOT / "paper" / "runs" / "bench"
"""Where the benchmarks of all devices are kept, as <device>.json."""


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
                layers += measure_layers(*networks[0], ratios, others, one, roof)
            except torch.OutOfMemoryError:
                left_out.append(_too_large("layers", one))
            for name, width in tqdm(networks, desc="networks", leave=False, disable=None):
                try:
                    timed = list(measure_network(name, width, ratios, one._replace(repeats=few)))
                    memory += measure_memory(name, width, ratios, one, threads)
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


def save_benchmark(facts: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Save a benchmark, in place of an older one of the same device."""
    device_name = re.sub(r"[^A-Za-z0-9]+", "-", " ".join(_device(facts))).strip("-").lower()
    path = folder / f"{device_name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, facts)
    return path


def saved_benchmarks() -> list[dict[str, Any]]:
    """The benchmarks of all devices, by the names of their files.

    Raises:
        DamagedFile: if one of them was changed after it was written.
    """
    return [read_json(path) for path in sorted(FOLDER.glob("*.json"))]


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

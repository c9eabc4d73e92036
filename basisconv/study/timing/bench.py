"""`make bench` and notebook 06: what the saving in multiplications is worth in seconds.

Each distinct layer of a network and whole networks are timed, dense and every basis form and
peer interleaved in one process. Every speed-up has the ratio of executed MACs, the share of it
that was realised, and the expected speed-up (`bound_speedup` in the record): of a layer's forward
pass if dense and basis ran at this machine's roof, of a network if each convolution's time shrank
by its MACs and the rest stayed the same. Neither is an upper bound: dense may be further from its
roof, and a convolution may gain more than its MACs.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from basisconv.decompose import FORMS
from basisconv.study.records.environment import ROOT, configure_cpu, device, environment
from basisconv.study.records.files import read_json, write_json
from basisconv.study.records.run import Precision
from basisconv.study.timing.bench_layers import FORMS_TIMED, measure_layers
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
    minutes: float | None = None,
) -> dict[str, Any]:
    """One device's benchmark: the distinct layers of the first network, and whole networks.

    Args:
        networks: names (see `basisconv.study.training.models.build_network`) and widths.
        ratios: shares of basis filters.
        batch_sizes: images a batch.
        precisions: see `basisconv.study.training.precision`; emulated ones are left out.
        repeats: interleaved turns for layers; networks take half, at least three.
        threads: CPU threads.
        minutes: what it may take: layers then have neither peers nor other arms than the two forms,
            and a part is left out that might not end in time. None for no limit.
    """
    configure_cpu(threads)
    others, left_out = peers() if minutes is None else ({}, [])
    ways = {way: FORMS_TIMED[way] for way in (FORMS_TIMED if minutes is None else FORMS)}
    limit = _Limit(minutes)
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
            with limit.part("layers", one, left_out) as fits:
                if fits:
                    layers += measure_layers(*networks[0], ratios, ways, others, one, roof)
            for name, width in tqdm(networks, desc="networks", leave=False, disable=None):
                with limit.part(f"{name}, width {width}", one, left_out) as fits:
                    if fits:
                        timed = list(
                            measure_network(name, width, ratios, one._replace(repeats=few))
                        )
                        memory += measure_memory(name, width, ratios, one, threads)
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


class _Limit:
    """The minutes that a benchmark may take, and what is left out for this or for memory."""

    def __init__(self, minutes: float | None) -> None:
        self._end = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self._longest = 0.0  # seconds of a part so far; a slower format may take twice as long

    @contextmanager
    def part(self, what: str, conditions: Conditions, left_out: list[str]) -> Iterator[bool]:
        """Whether there is time for a part, which is left out if the memory does not hold it."""
        why, start = None, time.monotonic()
        fits = start + 2 * self._longest <= self._end
        try:
            yield fits
        except torch.OutOfMemoryError:
            why = "this device's memory does not hold it"
        self._longest = max(self._longest, time.monotonic() - start)
        if not fits:
            why = "the minutes that were asked for are over"
        if why:
            asked = f"{conditions.precision}, batch {conditions.batch_size}"
            left_out.append(f"{what}, {asked} is left out: {why}")


def benchmark_device(repeats: int = 20, minutes: float | None = None) -> dict[str, Any]:
    """The benchmark that `make bench` keeps, of this device with all of its cores.

    Args:
        repeats: as in `measure`.
        minutes: for a device that is at hand for as long: the widest ResNet-18 alone, with a
            quarter of its filters as basis filters, in the two forms. None for all.
    """
    on_cuda, brief = device().type == "cuda", minutes is not None
    others = [("resnet18", 32), ("resnet18", 16), ("vgg16_bn", 64), ("resnet50", 64)]
    return measure(
        networks=[("resnet18", 64), *([] if brief else others)],
        ratios=(0.25,) if brief else (0.125, 0.25, 0.5),
        batch_sizes=(128, 512, 1024) if on_cuda else (64,),
        # A GPU older than Ampere has float32 alone.
        precisions=("bfloat16", "tf32", "float32") if on_cuda else ("float32", "bfloat16"),
        repeats=repeats,
        # torch's count respects containers, hyper-threads and OMP_NUM_THREADS.
        threads=torch.get_num_threads(),
        minutes=minutes,
    )


def save_benchmark(facts: dict[str, Any], folder: Path) -> Path:
    """Save a benchmark, in place of an older one of the same device."""
    device_name = re.sub(r"[^A-Za-z0-9]+", "-", " ".join(_device(facts))).strip("-").lower()
    path = folder / f"{device_name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, facts)
    return path


def saved_benchmarks(folder: Path) -> list[dict[str, Any]]:
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

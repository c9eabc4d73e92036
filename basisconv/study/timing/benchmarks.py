"""The benchmarks of all devices, kept side by side: `paper/runs/bench/<device>.json`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from basisconv.study.records.environment import ROOT
from basisconv.study.records.files import read_json, write_json

FOLDER = ROOT / "paper" / "runs" / "bench"


def save_benchmark(facts: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Write a benchmark beside those of other devices; a device's own is replaced."""
    device_name = re.sub(r"[^A-Za-z0-9]+", "-", " ".join(_device(facts))).strip("-").lower()
    path = folder / f"{device_name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, facts)
    return path


def saved_benchmarks(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The benchmarks of all devices, by the names of their files.

    Raises:
        DamagedFile: if one of them is not what was written.
    """
    return [read_json(path) for path in sorted(folder.glob("*.json"))]


def markdown(facts: dict[str, Any]) -> str:
    """The benchmark as a Markdown table, one row a layer or network and way to run it."""
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
    """Its name and its kind, which of a GPU are the same."""
    return list(dict.fromkeys([facts["device"]["device"], facts["device"]["device_kind"]]))

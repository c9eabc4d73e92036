"""How long EasyOCR looks for text on a page with faster detectors: interleaved, a script to copy.

    python time_text_detection.py FOLDER THREADS [TURNS]

Times what evaluate_text_detection.py has fitted in FOLDER, against the original and against its
smaller `canvas_size`, eagerly and in onnxruntime, on five of the pages that it judges by: all of
`Reader.detect`, preparation and boxes included. Each turn takes every arm once, in a new order, on
one page; ratios are within a turn. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from evaluate_text_detection import CANVASES, SIDE, draw_page
from faster_text_detection import Exported, english_reader, export

import basisconv as bc

PAGES = 5


def detect(reader: Any, detector: Any, settings: dict[str, int]) -> Callable[[], object]:
    """Looks for text on one page after another, of the same few, by a detector."""
    pages = cycle([draw_page(9000 + index, True, SIDE, SIDE).pixels for index in range(PAGES)])

    def one_page() -> object:
        reader.detector = detector
        return reader.detect(next(pages), **settings)

    return one_page


def table(timings: dict[str, bc.timing.Timing]) -> str:
    """Markdown: seconds a page and the share of the first arm's time, with quartiles over turns."""
    first = next(iter(timings.values()))
    lines = [
        "| detector | seconds a page | of the original's time [quartiles] |",
        "|---|---:|---:|",
    ]
    for name, timing in timings.items():
        middle, low, high = (1 / speedup for speedup in timing.speedup_over(first))
        lines.append(f"| {name} | {timing.median:.2f} | {middle:.2f} [{high:.2f}, {low:.2f}] |")
    return "\n".join(lines)


def main(folder: Path, threads: int, turns: int) -> None:
    """Time every detector of the folder and print the table."""
    torch.set_num_threads(threads)
    reader = english_reader()
    original = reader.detector
    detectors = {"original": original}
    for weights in sorted(folder.glob("*.pt"), reverse=True):
        plan = bc.Plan.load(weights.with_suffix(".json"))
        small = bc.apply_plan(original, plan, init="random")
        small.load_state_dict(torch.load(weights))
        detectors[weights.stem] = small.eval()
    arms = {name: detect(reader, detector, {}) for name, detector in detectors.items()}
    for side in CANVASES:
        name = f"original, canvas_size={side}"
        arms[name] = detect(reader, original, {"canvas_size": side})
    for name, detector in detectors.items():
        path = folder / f"{name}.onnx"
        if not path.exists():
            export(detector, str(path))
        arms[f"{name}, onnxruntime"] = detect(reader, Exported(str(path), threads), {})
    with torch.inference_mode():
        timings = bc.compare(arms, repeats=turns, warmup=1)
    print(f"{threads} threads, {turns} turns over {PAGES} pages of {SIDE} × {SIDE} pixels")
    print(table(timings))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 10)

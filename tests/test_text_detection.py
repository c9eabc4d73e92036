"""The functions that hold logic in the script of the guide to trained networks."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "faster_text_detection.py"
_spec = importlib.util.spec_from_file_location("faster_text_detection", SCRIPT)
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)


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

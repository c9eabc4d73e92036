"""The style file: colours that everybody tells apart, and files that never change."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from basisconv.study.records.run import Method
from basisconv.study.report import arms, style, text

# Machado, Oliveira & Fernandes (2009), severity 1.0, on linear RGB.
DEFICIENCIES = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
               [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


def lab(colour: str, deficiency: str) -> np.ndarray:
    """CIELAB as seen with a colour-vision deficiency (sRGB, D65)."""
    srgb = np.array(to_rgb(colour))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(DEFICIENCIES[deficiency]) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    f = np.cbrt(np.maximum(xyz @ seen / [0.9505, 1.0, 1.089], 1e-6))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_every_two_methods_look_different(deficiency: str) -> None:
    for a, b in combinations(style.LOOKS, 2):
        gap = lab(style.LOOKS[a].colour, deficiency) - lab(style.LOOKS[b].colour, deficiency)
        assert np.linalg.norm(gap) > 15, (a, b)


def test_without_any_colour_markers_tell_methods_apart() -> None:
    assert len({shape.marker for shape in style.LOOKS.values()}) == len(style.LOOKS)
    # Lines drawn in one figure: those of the frontier.
    lines = [style.LOOKS[m].line for m in ("dense", "narrow", "skip")]
    assert len(set(map(str, lines))) == len(lines)


def test_what_the_frontier_draws_stands_out_from_its_bands() -> None:
    band = lab(style.BAND, "normal")
    for method in ("dense", "narrow", "basis", "selected", "skip", "same_size"):
        assert band[0] - lab(style.LOOKS[method].colour, "normal")[0] > 30, method


def test_a_hollow_mark_lets_through_what_it_lies_on() -> None:
    size, dense = style.handle("same_size", "equal size"), style.handle("dense", "dense")
    assert size.get_markerfacecolor() == "none" != dense.get_markerfacecolor()
    assert size.get_markersize() > dense.get_markersize()


def test_every_method_of_a_run_has_a_look() -> None:
    assert set(Method.__args__) == set(style.LOOKS)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="'other' has no colour. Methods: dense"):
        style.look("other")


def test_files_carry_no_date() -> None:
    with style.drawing():
        drawn = style.figure(2, 1)
        drawn.add_subplot().plot([1, 2])
    for kind in style.FORMATS:
        data = style.render(drawn, kind)
        assert data == style.render(drawn, kind)
        assert b"CreationDate" not in data and b"dc:date" not in data


def test_a_watermark_changes_the_picture_and_not_its_size() -> None:
    with style.drawing():
        drawn = style.figure(4, 2)
        drawn.add_subplot().plot([1, 2])
        before = style.render(drawn, "png")
        style.watermark(drawn, "quick")
        after = style.render(drawn, "png")
    assert before != after
    assert before[16:24] == after[16:24]  # width and height in the PNG header


def test_near_points_are_set_apart_and_far_ones_stay() -> None:
    assert style.apart([60.0, 100.0, 60.5, 33.0], near=2.5, step=2.0) == [59.0, 100.0, 61.5, 33.0]


@pytest.mark.parametrize(
    ("value", "digits", "signed", "shown"),
    [(-0.04, 1, True, "0.0"), (-0.06, 1, True, "−0.1"), (3, 2, True, "+3.00"),
     (3.14159, 2, False, "3.14"), (float("nan"), 2, True, "–")],
)  # fmt: skip
def test_numbers_as_read(value: float, digits: int, signed: bool, shown: str) -> None:
    assert text.fixed(value, digits, signed) == shown


@pytest.mark.parametrize(
    ("p", "shown"),
    [
        (0.0004, "<0.001"),
        (0.0496, "0.0496"),
        (0.0504, "0.0504"),
        (0.049996, "0.049996"),
        (0.05, "0.050"),
        (0.0494, "0.049"),
        (1.0, "1.000"),
    ],
)
def test_a_p_value_does_not_read_as_the_level_itself(p: float, shown: str) -> None:
    assert text.p_value(p) == shown


@pytest.mark.parametrize(
    ("difference", "equivalence", "p", "verdict"),
    [(-0.04, 0.001, 0.001, "equal"), (0.04, 0.001, 0.001, "equal"), (-1.0, 0.9, 0.001, "below"),
     (1.0, 0.9, 0.001, "above"), (0.1, 0.2, 0.2, "open"), (0.1, float("nan"), float("nan"),
      "untested")],
)  # fmt: skip
def test_what_is_negligible_is_equal_though_a_test_tells_it(
    difference: float, equivalence: float, p: float, verdict: str
) -> None:
    assert arms.verdict(difference, equivalence, p) == verdict


def test_intervals_as_read() -> None:
    assert (
        text.gain(arms.Comparison(0.42, -0.1, 0.94, 0.1, 0.5, 1.0)) == "+0.42 points [−0.10, +0.94]"
    )
    assert text.listed(["a", "b", "c"]) == "a, b and c"
    assert [text.share(f) for f in (0.25, 0.125, 0.3)] == ["1/4", "1/8", "0.3"]
    assert text.seeds(2, 1) == "2 (1 lost)"

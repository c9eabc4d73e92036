"""Seeds and test images resampled together: variances in closed form, coverage, decoding."""

from __future__ import annotations

import base64
import math

import numpy as np
import pytest

from basisconv.study.report.statistics.image_bootstrap import crossed_difference, decode


def runs(rng, seeds, images, hard, shift=0.0, seed_sd=0.0):
    """By seed, which images are right: a run's own skill, an image's own hardness, and chance."""
    skill = shift + rng.normal(0, seed_sd, seeds)
    return {s: rng.random(images) < np.clip(hard + skill[s], 0, 1) for s in range(seeds)}


def test_decoding_is_the_inverse_of_how_records_are_packed():
    for images in (1, 8, 13, 10_000):
        right = np.random.default_rng(images).random(images) < 0.7
        bits = base64.b64encode(np.packbits(right).tobytes()).decode()
        got = decode(bits, images)
        assert got.dtype == bool and (got == right).all()
    assert decode("gA==", 3).tolist() == [True, False, False]  # the first image's bit is highest


def test_the_estimate_is_the_difference_in_points_over_shared_seeds():
    a = {0: [1, 1, 1, 0], 1: [1, 0, 1, 1], 5: [0, 0, 0, 0]}
    b = {1: [1, 0, 0, 0], 0: [0, 1, 1, 0], 6: [1, 1, 1, 1]}
    got = crossed_difference(a, b)
    assert (got.estimate, got.seeds, got.images) == (37.5, 2, 4)
    back = crossed_difference(b, a)
    assert back.estimate == -37.5 and back.low == pytest.approx(-got.high, rel=0.05)
    assert got == crossed_difference(a, b) != crossed_difference(a, b, seed=1)


def test_its_variance_is_the_pigeonholes():
    """Against its closed form: how often rows and columns are drawn is multinomial."""
    rng = np.random.default_rng(0)
    n, m = 4, 30
    hard = rng.random(m)
    a, b = runs(rng, n, m, hard, 0.1), runs(rng, n, m, hard)
    d = np.array([a[s].astype(float) - b[s] for s in range(n)])
    c = d - d.mean()
    # E[w_i w_j] = δ_ij + 1 - 1/n for n draws of n.
    rows, columns = np.eye(n) + 1 - 1 / n, np.eye(m) + 1 - 1 / m
    variance = np.einsum("si,tj,st,ij->", c, c, rows, columns) / (n * m) ** 2
    got = crossed_difference(a, b, resamples=40_000)
    expected = 100 * math.sqrt(variance * n / (n - 1))
    assert got.error == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("seed_sd", "images"), [(0.07, 2000), (0.0, 100)])
def test_intervals_cover_what_new_seeds_and_images_would_give(seed_sd, images):
    """As often as they say where seeds are what varies, and more often where chance is."""
    rng, trials, hits = np.random.default_rng(1), 200, 0
    for _ in range(trials):
        hard = rng.uniform(0.4, 0.6, images)
        gap = rng.normal(0, 0.05, images)  # images differ in what they gain
        a = runs(rng, 4, images, hard + gap, 0.05, seed_sd)
        b = runs(rng, 4, images, hard, 0.0, seed_sd)
        got = crossed_difference(a, b, resamples=300)
        hits += got.low <= 5.0 <= got.high
    noise = 4 * math.sqrt(0.05 * 0.95 / trials)
    assert hits / trials > 0.95 - noise
    if seed_sd:
        assert hits / trials < 0.99


def test_a_planted_effect_is_seen_and_none_is_not():
    rng = np.random.default_rng(2)
    hard = rng.uniform(0.2, 0.8, 2000)
    a, b, c = (runs(rng, 5, 2000, hard, shift) for shift in (0.06, 0.0, 0.0))
    assert crossed_difference(a, b).low > 0
    none = crossed_difference(b, c)
    assert none.low < 0 < none.high


def test_images_count_beside_seeds():
    """Runs that agree with each other leave the images' part, which seeds alone would not see."""
    right = np.random.default_rng(3).random(500) < 0.8
    wrong = np.random.default_rng(4).random(500) < 0.8
    got = crossed_difference(dict.fromkeys(range(4), right), dict.fromkeys(range(4), wrong))
    d = right.astype(float) - wrong
    assert got.error == pytest.approx(100 * math.sqrt(d.var() / 500 * 4 / 3), rel=0.05)


def test_one_shared_seed_has_no_interval():
    got = crossed_difference({0: [1, 0]}, {0: [1, 1], 1: [0, 0]})
    assert (got.estimate, got.seeds) == (-50.0, 1)
    assert math.isnan(got.error) and math.isnan(got.low) and math.isnan(got.high)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decode("not base64", 8), "not base64"),
        (lambda: decode("gA==", 9), "8 bits, not those of 9"),
        (lambda: decode("gA==", 0), "of 0 images"),
        (lambda: decode("gQ==", 7), "8 bits, not those of 7"),  # a padding bit is set
        (lambda: crossed_difference({0: [1]}, {1: [1]}), "no seed"),
        (lambda: crossed_difference({0: [1, 0]}, {0: [1]}), "2 and 1 test images"),
        (lambda: crossed_difference({0: [1], 1: [1, 0]}, {0: [1], 1: [1]}), "as many test images"),
        (lambda: crossed_difference({0: [0.9]}, {0: [1]}), "true or false"),
        (lambda: crossed_difference({0: []}, {0: []}), "at least one"),
        (lambda: crossed_difference({0: [1]}, {0: [1]}, resamples=1), "resamples=1"),
        (lambda: crossed_difference({0: [1]}, {0: [1]}, confidence=0), "confidence=0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

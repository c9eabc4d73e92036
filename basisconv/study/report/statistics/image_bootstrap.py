"""Seeds × test images: the difference of two arms from which images each run classified right.

Every run of the study is tested on the same images. A confidence interval over seeds alone is for
this test set; resampling seeds and images together, crossed, is for new ones of both. The
resampled variance (the pigeonhole bootstrap; Owen, 2007) is that of

    mean over drawn seeds s and images i of  D_si = right_a(s, i) - right_b(s, i)

with seeds and images drawn with replacement, independently. A bootstrap of n seeds finds (n - 1)/n
of their variance: that is made up for, and the interval is t's with n - 1 degrees of freedom, for
percentiles of three seeds are far too narrow. It is on the safe side: the resampled variance counts
what is chance of one run on one image up to three times (Owen), and where that chance outweighs the
differences between seeds the interval is up to 1.7 times as wide as it need be.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from basisconv.study.report.statistics.stats import NAN, check_share

_CHUNK = 4_000_000
"""Resampled counts held at once."""


class Crossed(NamedTuple):
    """A difference of two arms' accuracies, in percentage points.

    Attributes:
        estimate: mean over seeds and images.
        error: its standard error over both; NaN with fewer than two seeds.
        low: lower end of the confidence interval.
        high: upper end.
        seeds: that both arms have.
        images: tested.
    """

    estimate: float
    error: float
    low: float
    high: float
    seeds: int
    images: int


def decode(bits: str, images: int) -> NDArray[np.bool_]:
    """A record's `test_correct` as one truth value an image, in the test set's order.

    Raises:
        ValueError: if it is not base64 of that many bits, padded with zeros to whole bytes.
    """
    try:
        packed = np.frombuffer(base64.b64decode(bits, validate=True), dtype=np.uint8)
    except binascii.Error as error:
        raise ValueError(f"test_correct is not base64: {error}.") from error
    if images < 1 or len(packed) != -(-images // 8) or np.unpackbits(packed)[images:].any():
        raise ValueError(
            f"test_correct holds {8 * len(packed)} bits, not those of {images} images."
        )
    return np.unpackbits(packed)[:images].astype(np.bool_)


def crossed_difference(
    a: Mapping[int, ArrayLike],
    b: Mapping[int, ArrayLike],
    resamples: int = 4000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Crossed:
    """Accuracy of arm a less that of b over the seeds that both have, by the crossed bootstrap.

    Args:
        a: by seed, whether each test image was right (see `decode`).
        b: the same of the other arm.
        resamples: how often seeds and images are drawn.
        confidence: of the interval.
        seed: of the draws.

    Raises:
        ValueError: if the two share no seed, runs were tested on different numbers of images,
            values are not truth values, resamples is below 2 or confidence outside (0, 1).
    """
    check_share(confidence, "confidence")
    if resamples < 2:
        raise ValueError(f"resamples={resamples} must be at least 2.")
    shared = sorted(a.keys() & b.keys())
    if not shared:
        raise ValueError("The two arms share no seed.")
    right, wrong = _table(a, shared), _table(b, shared)
    if right.shape != wrong.shape:
        raise ValueError(f"Runs saw {right.shape[1]} and {wrong.shape[1]} test images.")
    d = right.astype(np.int8) - wrong.astype(np.int8)
    n, images = d.shape
    estimate = 100 * float(d.mean())
    if n < 2:
        return Crossed(estimate, NAN, NAN, NAN, n, images)
    error = math.sqrt(n / (n - 1)) * 100 * float(_means(d, resamples, seed).std(ddof=1))
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    return Crossed(estimate, error, estimate - half, estimate + half, n, images)


def _means(d: NDArray[np.int8], resamples: int, seed: int) -> NDArray[np.float64]:
    """The mean of each resample of rows and columns."""
    rng = np.random.default_rng(seed)
    n, images = d.shape
    # Images that all runs got alike are drawn as one kind, with its count.
    kinds, counts = np.unique(d, axis=1, return_counts=True)
    found = []
    for start in range(0, resamples, size := max(1, _CHUNK // len(counts))):
        draws = min(size, resamples - start)
        rows = rng.multinomial(n, np.full(n, 1 / n), size=draws)
        columns = rng.multinomial(images, counts / images, size=draws)
        found.append(((rows @ kinds) * columns).sum(axis=1) / (n * images))
    return np.concatenate(found)


def _table(arm: Mapping[int, ArrayLike], seeds: list[int]) -> NDArray[np.bool_]:
    rows = [np.asarray(arm[seed]) for seed in seeds]
    if len({row.shape for row in rows}) != 1 or rows[0].ndim != 1 or len(rows[0]) == 0:
        raise ValueError("Runs of one arm need as many test images each, and at least one.")
    if not all(np.isin(row, (0, 1)).all() for row in rows):
        raise ValueError("Whether an image was right is true or false.")
    return np.array(rows, dtype=np.bool_)

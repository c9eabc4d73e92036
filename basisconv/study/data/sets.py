"""CIFAR-10, CIFAR-100 and the embedded sample, as tensors in memory.

Of each class, the last tenth of the training images in canonical order is the validation split
(500 per class of CIFAR-10, 20 of the sample, 50 of CIFAR-100). Checksums are verified before use.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from basisconv.study.data.packs import (
    SAMPLE,
    DamagedData,
    MissingData,
    RawSet,
    RawSplit,
    read_pack,
)
from basisconv.study.data.sources import (
    FULL_SETS,
    fetch,
    locate,
    places_of,
    read_set,
    searched_folders,
)

DIGESTS: dict[str, str] = {
    "cifar10": "e3d105fe00fff7103d7c73586033f326c7c627a14f5c202d0551b5cdcbac9b83",
    "cifar10-sample": "ff4590f1226b3d398d1e8d2bfff111b895b2688633beb64102972246390e3009",
    "cifar100": "68be53369b4e33cc6a6963e2ac9ea99345566c2d1ecbd7da38f7eaf91ce6ef83",
}
"""sha256 of each set's pixels, labels and class names, in whatever layout."""

CLASSES: dict[str, int] = {"cifar10": 10, "cifar10-sample": 10, "cifar100": 100}
"""How many classes each set has."""

TRAINING_IMAGES: dict[str, int] = {"cifar10": 45_000, "cifar10-sample": 1_800, "cifar100": 45_000}
"""How many images each set's training split has, so that a Run can be made without the data."""

EVALUATED_IMAGES: dict[str, tuple[int, int]] = {
    "cifar10": (5_000, 10_000),
    "cifar10-sample": (200, 1_000),
    "cifar100": (5_000, 10_000),
}
"""How many validation and test images each set has, likewise."""

_SAMPLE_NAME = "cifar10-sample"
_HELD_OUT = 10  # one image in ten is for validation


@dataclasses.dataclass(frozen=True)
class Split:
    """Images with their labels.

    Attributes:
        images: uint8, (n, 3, 32, 32), in channels-last memory.
        labels: int64, (n,).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set's three splits. Its tensors are shared within the process: do not write to them.

    Attributes:
        name: "cifar10", "cifar10-sample" or "cifar100".
        classes: their names, by label.
        sha256: `DIGESTS[name]`, verified.
        train: the training split, or what was asked of it.
        validation: the last tenth of each class of the training images.
        test: the test split.
    """

    name: str
    classes: tuple[str, ...]
    sha256: str
    train: Split
    validation: Split
    test: Split


@functools.lru_cache(maxsize=2)  # a full set takes 180 MB
def load(name: str, train_images: int | None = None) -> Dataset:
    """Load a data set; the process keeps the last two.

    The embedded sample is read from the package; for full sets see `basisconv.study.data.sources`.

    Args:
        name: "cifar10-sample", "cifar10" or "cifar100".
        train_images: how many training images to keep: the first train_images / classes of each
            class in canonical order; None keeps all. The other splits are not cut.

    Raises:
        ValueError: if there is no such set, or it has no such number of training images.
        MissingData: if it is not here and cannot be fetched.
        DamagedData: if a file is not what its publisher wrote.
    """
    raw = read_verified(name)
    labels = raw.splits["train"].labels
    classes = len(raw.classes)
    by_class = np.argsort(labels, kind="stable").reshape(classes, -1)
    first_held_out = by_class.shape[1] - by_class.shape[1] // _HELD_OUT
    kept = first_held_out
    if train_images is not None:
        kept, rest = divmod(train_images, classes)
        if rest or not 1 <= kept <= first_held_out:
            raise ValueError(
                f"train_images={train_images!r} of {name}, whose training split has "
                f"{first_held_out * classes} images in {classes} classes: ask for a multiple of "
                f"{classes} from {classes} to {first_held_out * classes}, or for None to have all."
            )
    train = np.sort(by_class[:, :kept].ravel())
    validation = np.sort(by_class[:, first_held_out:].ravel())
    return Dataset(
        name,
        raw.classes,
        DIGESTS[name],
        _split(raw.splits["train"], train),
        _split(raw.splits["train"], validation),
        _split(raw.splits["test"], slice(None)),
    )


def verify_sets(path: str | Path | None = None) -> str:
    """Verify every checksum of the sets in a folder, or of all that `load` would find.

    Args:
        path: a folder of sets, or a set's own; None for the sample and all full sets found.

    Returns:
        a line for each set.

    Raises:
        MissingData: if the folder holds no set.
        DamagedData: if a file is not what its publisher wrote.
    """
    if path is None:
        found = [(_SAMPLE_NAME, SAMPLE), *((name, locate(name)) for name in FULL_SETS)]
    else:
        found = [(name, folder) for name in DIGESTS for folder in places_of(name, Path(path))]
        if not found:
            raise MissingData(
                f"{path} holds none of {', '.join(DIGESTS)}: name a folder with packs or with "
                "torchvision's cifar-10-batches-py or cifar-100-python, or such a folder itself."
            )
    lines = []
    for name, folder in found:
        if folder is None:
            lines.append(f"{name}: not on this machine")
        else:
            raw = _verified(name, folder)
            lines.append(f"{name}: sound, sha256 {raw.sha256}, {folder}")
    return "\n".join(lines)


def list_sets() -> str:
    """Where each set is and which folders were searched; nothing is verified or fetched."""
    lines = [f"{_SAMPLE_NAME}: {SAMPLE}"]
    for name in FULL_SETS:
        lines.append(f"{name}: {locate(name) or 'not on this machine'}")
    searched = ", ".join(str(folder) for folder in searched_folders())
    return "\n".join([*lines, f"searched: {searched}"])


def read_verified(name: str) -> RawSet:
    """A set as it lies on disk, fetched if need be.

    Raises:
        ValueError, MissingData, DamagedData: as `load`.
    """
    if name not in DIGESTS:
        raise ValueError(f"No data set {name!r}: there are {', '.join(DIGESTS)}.")
    if name == _SAMPLE_NAME:
        return _verified(name, SAMPLE)
    return _verified(name, locate(name) or fetch(name, DIGESTS[name]))


def _verified(name: str, folder: Path) -> RawSet:
    raw = read_pack(folder) if name == _SAMPLE_NAME else read_set(name, folder)
    if raw.sha256 != DIGESTS[name]:
        raise DamagedData(
            f"{folder} is sound, but not {name}: expected sha256 {DIGESTS[name]} of its pixels, "
            f"labels and class names, found {raw.sha256}. Replace or remove it."
        )
    return raw


def _split(raw: RawSplit, indices: np.ndarray | slice) -> Split:
    images = torch.from_numpy(np.ascontiguousarray(raw.images[indices]))
    labels = torch.from_numpy(raw.labels[indices].astype(np.int64))
    return Split(images.permute(0, 3, 1, 2), labels)

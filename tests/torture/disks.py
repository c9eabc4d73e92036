"""Disks that are full, and renames that fail, in every kind of write."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from basisconv.plan import Plan
from basisconv.study import cli
from basisconv.study.execution.many_runs import train_runs
from basisconv.study.experiments import cost_table as cost_table_module
from basisconv.study.experiments import pipeline
from basisconv.study.experiments import study as study_module
from basisconv.study.experiments.registry import draft
from basisconv.study.experiments.study import Study
from basisconv.study.records import environment
from basisconv.study.records.checkpoint import Checkpoints, Paused
from basisconv.study.records.files import write_json
from basisconv.study.records.run import Record
from basisconv.study.timing import costs
from basisconv.study.timing.costs import Step
from basisconv.study.training.train import train
from torture import Line, Scale
from torture.subjects import cost_table, counted
from torture.writes import at_writes

_FAILURES = {"half written": errno.ENOSPC, "written": errno.ENOSPC, "synced": errno.EIO}
_OPTIONS = ["--profile", "smoke", "--set", "workers=1"]


class Write(NamedTuple):
    """A command that writes a kind of file.

    `name` is what the names of such files hold; `prepare` makes an older one where there is to
    be one, and the command necessary.
    """

    kind: str
    name: str
    command: list[str]
    prepare: Callable[[], object] = lambda: None


def disk_trials(folder: Path, scale: Scale) -> list[Line]:
    """Let each kind of write fail in each way: the older file stands, and the command says no."""
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        for room in (study_module, environment):
            stack.enter_context(mock.patch.object(room, "ROOT", folder))
        return [_disk(write, folder) for write in _writes(folder, stack)]


def _disk(write: Write, folder: Path) -> Line:
    good = 0
    for point, number in _FAILURES.items():
        write.prepare()
        before, hits = _contents(folder), []

        def act(name: str, at: str, point: str = point, number: int = number) -> None:
            if write.name in name and at == point:
                hits.append(name)  # noqa: B023
                raise OSError(number, os.strerror(number))

        with at_writes(act):
            status, said = quiet(write.command)
        after = _contents(folder)
        old = {path: data for path, data in before.items() if write.name in path.name}
        new = {path: data for path, data in after.items() if write.name in path.name}
        left = [path for path in after if ".tmp" in path.name or ".partial" in str(path)]
        told = os.strerror(number) in said and "Traceback" not in said
        good += len(hits) == 1 and status == 1 and old == new and not left and told
    found = f"{good} times the older file stood, nothing was left over, and the command exited 1"
    return Line(f"disk full or rename failing: {write.kind}", 3, found, good == 3)


def quiet(command: list[str]) -> tuple[int, str]:
    """A command's exit status and what it said on stderr."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        return cli.main(command), said.getvalue()


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _writes(folder: Path, stack: contextlib.ExitStack) -> Iterator[Write]:
    study = Study.open("smoke", ["workers=1"])
    first, second = draft(study, "01_baseline").runs.values()
    folder_of_first = study.store.checkpoints(first.run_id)

    def put_aside() -> None:
        if not folder_of_first.exists():
            asked = iter([False, False, True])
            with contextlib.suppress(Paused):
                stop = lambda: next(asked)  # noqa: E731
                train(first, Checkpoints(folder_of_first, first, seconds=0, stop=stop))

    run = ["run", *_OPTIONS, "--retry-failed"]
    yield Write("checkpoint", ".pt", [*run, "--checkpoint-seconds", "0"], put_aside)

    stack.enter_context(mock.patch.object(pipeline, "train_runs", _without_training))

    def failed() -> None:
        if study.store.get(second.run_id) is None:
            train_runs([second], study.store, workers=1, train=_no_luck)

    yield Write("record", second.run_id, run, failed)
    assert quiet(run)[0] == 0

    path = study.folder / "sections" / "01_baseline.json"
    yield Write("section", path.name, run, lambda: write_json(path, {"older": 1}))
    assert quiet(run)[0] == 0

    yield Write("published record", second.run_id, ["publish", "01_baseline", *_OPTIONS])
    assert quiet(["publish", "01_baseline", *_OPTIONS])[0] == 0
    yield Write("manifest of sections", "manifest.json", ["publish", "02_all_layers", *_OPTIONS])

    device = {"device": "abacus", "device_kind": "abacus"}
    for module, name, stand_in in (
        (cost_table_module, "_steps", lambda study, names: [Step(Plan(), 8, 128)]),
        (costs, "environment", lambda: device),
        (costs, "compare", _compare),
    ):
        stack.enter_context(mock.patch.object(module, name, stand_in))
    table = study_module.cost_table("desk")
    yield Write(
        "cost table", table.name, ["bench", "--costs", "desk"], lambda: cost_table(table, "desk")
    )


def _without_training(runs: Any, store: Any, **options: Any) -> Any:
    return train_runs(runs, store, **options | {"train": counted, "workers": 1})


def _no_luck(run: object, checkpoints: object) -> Record:
    raise RuntimeError("no luck")


def _compare(arms: dict[str, Any], *settings: Any, **named: Any) -> dict[str, Any]:
    timing = mock.Mock()
    timing.speedup_over.return_value = (2.0, 1.9, 2.1)
    return dict.fromkeys(arms, timing)

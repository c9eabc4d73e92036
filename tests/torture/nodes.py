"""A Ray worker, then a whole node of the cluster, killed in the middle of a sweep.

The cluster is simulated: its nodes are processes of this machine, started without the package, as
on a machine that Ray sends it to.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest import mock

from small_runs import BASIS, make_run

import basisconv
from basisconv.plan import Plan
from basisconv.study.execution.many_runs import train_runs
from basisconv.study.records.checkpoint import Checkpoints
from basisconv.study.records.run import Record, Run
from basisconv.study.records.store import Store
from basisconv.study.training.train import train
from torture import Line, Scale


def small_run(seed: int, steps: int = 12) -> Run:
    """A second or two of real training, in two phases."""
    return make_run((steps, BASIS), (steps, Plan()), seed=seed)


def logged_train(run: Run, checkpoints: Checkpoints, log: Path) -> Record:
    """Trains, and writes "begun" and "ended" with run, process and the package's place to a log."""

    def write(event: str) -> None:
        with log.open("a") as file:
            file.write(f"{event} {run.run_id} {os.getpid()} {basisconv.__file__}\n")

    write("begun")
    record = train(run, checkpoints)
    write("ended")
    return record


def events(log: Path, kind: str) -> list[list[str]]:
    """Of one kind, in order: [run's id, process, the package's place]."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [words[1:] for line in lines if (words := line.split())[0] == kind]


@contextmanager
def simulated_cluster() -> Iterator[Any]:
    """A Ray cluster of a head with one CPU, at $RAY_ADDRESS; all that it writes is removed."""
    with TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        settings = {
            "RAY_TMPDIR": folder,  # the only way to tell it to `Cluster`
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        with mock.patch.dict(os.environ, settings):
            from ray.cluster_utils import Cluster

            head = {"num_cpus": 1, "include_dashboard": False}
            cluster = Cluster(initialize_head=True, head_node_args=head)
            try:
                with mock.patch.dict(os.environ, {"RAY_ADDRESS": cluster.address}):
                    yield cluster
            finally:
                cluster.shutdown()


def kill_node(cluster: Any, node: Any) -> None:
    """As a power cut would: all its processes at once."""
    raylet = node.all_processes["raylet"][0].process.pid
    for pid in [*children(raylet), raylet]:
        os.kill(pid, signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)


def children(parent: int) -> list[int]:
    """The processes that a process has started and that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, its_parent = path.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_parent) == parent and state != "Z":
            found.append(int(path.parent.name))
    return found


class Trial(NamedTuple):
    """What became of a sweep in which a worker and a node were killed."""

    begun: Counter[str]
    ended: Counter[str]
    records: dict[str, Record]
    killed: int
    """Trainings that were running in the processes killed."""
    places: set[str]
    """Where the tasks had the package from."""


def trial(cluster: Any, runs: Sequence[Run], folder: Path, moments: random.Random) -> Trial:
    """Sweep over runs on two nodes, and kill a worker and then a node while it goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    log, store = folder / "log", Store(folder / "runs")
    node = cluster.add_node(num_cpus=1)
    ended, killed = threading.Event(), 0

    def at_work(on_node: bool) -> set[int]:
        """The processes that are training, on the node or beside it."""
        over = {(run, pid) for run, pid, _ in events(log, "ended")}
        begun = {(run, pid) for run, pid, _ in events(log, "begun")}
        there = children(node.all_processes["raylet"][0].process.pid)
        return {
            pid
            for pid in (int(pid) for _, pid in begun - over)
            if (pid in there) == on_node and Path(f"/proc/{pid}").exists()
        }

    def wait_for_work(on_node: bool) -> set[int]:
        """Until a random moment of a training, halted there; one that is over is let go."""
        while not ended.wait(0.01):
            if at_work(on_node):
                ended.wait(moments.uniform(0, 0.5))
                halted = at_work(on_node)
                tell(halted, signal.SIGSTOP)
                found = at_work(on_node) & halted  # it may have ended between look and signal
                tell(halted - found, signal.SIGCONT)
                if found:
                    return found
        return set()

    def tell(pids: set[int], number: int) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill() -> None:
        nonlocal killed
        for pid in wait_for_work(on_node=False):
            os.kill(pid, signal.SIGKILL)
            killed += 1
        killed += len(wait_for_work(on_node=True))
        kill_node(cluster, node)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        work = partial(logged_train, log=log)
        train_runs(runs, store, train=work, executor="ray", checkpoint_seconds=0.2)
    finally:
        ended.set()
        killer.join()
    begun, over = (Counter(run for run, *_ in events(log, kind)) for kind in ("begun", "ended"))
    places = {place for *_, place in events(log, "begun")}
    return Trial(begun, over, store.all(), killed, places)


def node_trials(folder: Path, scale: Scale) -> list[Line]:
    """A worker and then a node killed in each of some sweeps."""
    runs = [small_run(seed) for seed in range(8)]
    expected = {run.run_id: train(run).result for run in runs}
    moments, done, twice, equal, begun, killed = random.Random(0), 0, 0, 0, 0, 0
    with simulated_cluster() as cluster:
        for number in range(scale.nodes):
            got = trial(cluster, runs, folder / str(number), moments)
            done += len(got.records)
            twice += sum(count > 1 for count in got.ended.values())
            equal += sum(got.records[i].result == expected[i] for i in got.records)
            begun += got.begun.total()
            killed += got.killed
    wanted = scale.nodes * len(runs)
    return [
        Line(
            "a Ray worker, then a whole node of a simulated cluster, killed in mid-sweep",
            scale.nodes,
            f"{killed} trainings cut short, {begun - wanted} begun again; {done} of {wanted} runs "
            f"done, {twice} of them trained twice, {equal} results as undisturbed ones",
            done == equal == wanted and twice == 0 and killed == begun - wanted == 2 * scale.nodes,
        )
    ]

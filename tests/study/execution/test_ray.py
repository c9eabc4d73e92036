"""Sweeps on Ray: the same results, nothing lost, nothing left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import platform
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
from fake_runs import FarStore, fake_train, make_run, trained
from torture.nodes import small_run

from basisconv.study.cli import main
from basisconv.study.data.packs import MissingData
from basisconv.study.execution import ray_team
from basisconv.study.execution.many_runs import train_runs
from basisconv.study.execution.one_run import Trainer
from basisconv.study.execution.ray_team import _task, _train_without_store
from basisconv.study.execution.stopping import Stop
from basisconv.study.records.environment import environment
from basisconv.study.records.run import NUMERICS
from basisconv.study.records.store import Store
from basisconv.study.training.train import train

ROOT = Path(__file__).parents[3]

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install '.[ray]'"
)


def test_without_ray_one_sentence_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install '\.\[ray\]'"):
        train_runs([make_run()], Store(tmp_path), executor="ray")
    monkeypatch.chdir(tmp_path)
    arguments = ["run", "--profile", "smoke", "--executor", "ray", "--runs", str(tmp_path)]
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("basisconv: executor='ray' needs Ray")


def test_a_node_whose_code_gives_other_results_is_refused():
    assert _task(make_run(3), lambda run, more: run.seed + more, 2) == 5
    refused = _task(make_run(numerics=NUMERICS + 1), make_run)
    assert isinstance(refused, RuntimeError)
    assert f"numerics {NUMERICS}, not {NUMERICS + 1}" in str(refused)
    assert isinstance(_task(make_run(), lambda: None), TypeError)


def test_a_node_that_lacks_what_a_run_needs_is_named_and_the_run_has_not_failed():
    def train(run, checkpoints):
        raise MissingData("CIFAR-10 is not here")

    answer = _task(make_run(), _train_without_store, train)
    assert isinstance(answer, RuntimeError)
    assert str(answer).startswith(f"{platform.node()} cannot train run {make_run().run_id}: CIFAR")


@pytest.mark.parametrize(
    ("nodes", "gpu_per_run", "threads", "room"),
    [
        ([{"CPU": 2.0}], 0.25, 1, 2),
        ([{"CPU": 16.0, "GPU": 1.0}], 0.25, 1, 4),
        ([{"CPU": 16.0, "GPU": 1.0}], 0.1, 1, 10),
        ([{"CPU": 16.0, "GPU": 3.0}], 0.3, 1, 9),
        ([{"CPU": 3.0, "GPU": 1.0}], 0.25, 1, 3),
        ([{"CPU": 7.0}, {"CPU": 3.0}, None], 0.0, 2, 4),
        ([{"CPU": 8.0}, {"CPU": 8.0, "GPU": 1.0}], 0.5, 4, 2),
        ([{"memory": 1e9}], 0.0, 1, 1),
    ],
)
def test_as_many_runs_are_trained_as_fit_on_the_nodes(
    tmp_path, monkeypatch, nodes, gpu_per_run, threads, room
):
    output = [{"Alive": has is not None, "Resources": has or {"CPU": 99.0}} for has in nodes]
    ray = SimpleNamespace(remote=lambda **_: lambda work: work, nodes=lambda: output)
    monkeypatch.setattr(ray_team, "import_ray", lambda: ray)
    team = ray_team.RayTeam(Trainer(Store(tmp_path)), Stop(), gpu_per_run)
    team._threads = threads
    assert team._room() == room


def test_a_gpu_that_joins_the_cluster_later_is_used(tmp_path, monkeypatch):
    nodes, given = [{"Alive": True, "Resources": {"CPU": 2.0}}], []

    class Remote:
        def options(self, num_cpus, num_gpus):
            given.append((num_cpus, num_gpus))
            return self

        def remote(self, run, *arguments):
            return run.run_id

    ray = SimpleNamespace(remote=lambda **_: lambda work: Remote(), nodes=lambda: nodes)
    monkeypatch.setattr(ray_team, "import_ray", lambda: ray)
    team = ray_team.RayTeam(Trainer(Store(tmp_path)), Stop(), 0.25)
    team.start(make_run(0), None)
    nodes.append({"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}})
    team.start(make_run(1, threads=2), None)
    nodes[1]["Alive"] = False
    team.start(make_run(2), None)
    assert given == [(1, 0.0), (2, 0.25), (1, 0.0)]


class OneWorker:
    """Ray with one worker, this process: a task is done when it is given, on what is sent to it."""

    exceptions = SimpleNamespace(
        **{
            f"{name}Error": type(name, (Exception,), {})
            for name in ("WorkerCrashed", "NodeDied", "ObjectLost", "OutOfMemory", "TaskCancelled",
                         "Ray")
        }
    )  # fmt: skip

    def __init__(self):
        self.answers = []

    def is_initialized(self):
        return True

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 1.0}}]

    def remote(self, **_):
        def work(task):
            def give(run, *sent):
                assert len(self.answers) < 9, "given again and again"
                self.answers.append(task(run, *pickle.loads(pickle.dumps(sent))))
                return len(self.answers) - 1

            return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=give))

        return work

    def wait(self, tasks, timeout):
        return tasks, []

    def get(self, task):
        return self.answers[task]


@pytest.mark.parametrize(("kind", "tasks"), [(Store, 1), (FarStore, 2)])
def test_a_run_is_started_again_only_where_its_task_does_not_see_the_store(
    tmp_path, monkeypatch, kind, tasks
):
    ray, run, store = OneWorker(), make_run(), kind(tmp_path / "runs")
    monkeypatch.setattr(ray_team, "import_ray", lambda: ray)
    report = train_runs(
        [run], store, executor="ray", train=partial(fake_train, log=tmp_path / "log")
    )
    assert trained(tmp_path / "log") == [run.run_id]
    assert (report.done, len(ray.answers)) == (1, tasks)
    assert store.get(run.run_id).status == "done"
    assert not (tmp_path / "elsewhere").exists()


def start(code: str, folder: Path, **environ: str) -> subprocess.Popen[str]:
    """A Python process of its own group, in a folder and with that as its mark."""
    hidden = {"RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        env={**kept, "PYTHONPATH": path, "MARK": str(folder), **environ}, cwd=folder,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def marked(folder: Path) -> dict[int, str]:
    """The processes that have MARK=folder in their environment, with their command lines."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"MARK={folder}\0".encode() in (path / "environ").read_bytes():
                found[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def end_all(folder: Path) -> None:
    """End what a failed test may have left; a passed one has left nothing."""
    for pid in marked(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


LOCAL = """
import os
import sys
from pathlib import Path
from torture.nodes import small_run
from basisconv.study.records.store import Store
from basisconv.study.execution.many_runs import train_runs

if __name__ == "__main__":
    runs = [small_run(0), small_run(1), small_run(2, steps=50), small_run(3, steps=50)]
    try:
        train_runs(runs, Store(Path(sys.argv[1]) / "runs"), executor="ray", checkpoint_seconds=0.2)
    finally:
        assert "RAY_AUTH_TOKEN" not in os.environ  # it is of the cluster that has ended
"""


@needs_ray
def test_ray_trains_as_this_process_does_and_an_interrupt_leaves_nothing_behind(tmp_path):
    runs = [small_run(0), small_run(1), small_run(2, steps=50)]
    store, home = Store(tmp_path / "runs"), tmp_path / "home"
    paused = store.checkpoints(runs[2].run_id)
    home.mkdir()
    # Paths of sockets are short.
    with TemporaryDirectory(dir="/tmp") as temporary:
        process = start(LOCAL, tmp_path, HOME=str(home), TMPDIR=temporary, OMP_NUM_THREADS="2")
        try:
            end = time.monotonic() + 180
            while not (any(paused.glob("*.pt")) and all(store.get(r.run_id) for r in runs[:2])):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < end, "waited in vain"
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            out, output = process.communicate(timeout=60)
            end = time.monotonic() + 20
            while marked(tmp_path):
                assert time.monotonic() < end, marked(tmp_path)
                time.sleep(0.1)
        finally:
            end_all(tmp_path)
        assert process.returncode == -signal.SIGINT
        assert output.count("Traceback") == 1 and "KeyboardInterrupt" in output
        assert "2/4 runs" in output and out == ""
        assert f"Run {runs[2].run_id} (resnet18, width 8, seed 2) was paused" in output
        assert contents(home) == [] and contents(Path(temporary)) == []
    assert [p.name for p in store.folder.iterdir() if p.name.startswith(".")] == []
    assert store.get(runs[2].run_id) is None and any(paused.glob("*.pt"))
    # What Ray has paused, this process goes on with.
    assert train_runs(runs, store, workers=1).done == 3
    assert "went on from step" in store.get(runs[2].run_id).measurement.notes[-1]
    assert [store.get(run.run_id).result for run in runs] == [train(run).result for run in runs]


CLUSTER = """
import json, os, random, signal, sys, threading, time
from functools import partial
from pathlib import Path
from fake_runs import FarStore, fake_train, make_record, make_run, trained
from torture.nodes import simulated_cluster, small_run, trial
from basisconv.study.records.run import NUMERICS
from basisconv.study.execution import ray_team
from basisconv.study.records.store import Store
from basisconv.study.execution.many_runs import train_runs

class Late(BaseException):
    # Of no Exception, for after one of these a sweep waits for the runs at hand.
    pass

def late(number, frame):
    raise Late("what takes a few seconds was waited for in vain")

def soon(work, folder):
    signal.alarm(40)
    try:
        return work(folder)
    finally:
        signal.alarm(0)

def apart(folder):
    runs, store = [make_run(seed) for seed in range(4)], FarStore(folder / "apart")
    log, locked = folder / "apart.log", threading.Event()

    def train_here():
        with store.lock(runs[0].run_id):
            locked.set()
            while len(trained(log)) < 3:
                time.sleep(0.01)
            store.put(make_record(runs[0], loss=7.0))

    other = threading.Thread(target=train_here, daemon=True)
    other.start()
    locked.wait()
    train = partial(fake_train, log=log, raising=[2])
    report = train_runs(runs, store, executor="ray", train=train)
    other.join()
    return {
        "wanted": [run.run_id for run in runs],
        "trained": trained(log),
        "done": report.done,
        "failed": report.failed,
        "loss": store.get(runs[0].run_id).result.val_loss,
        "elsewhere": [str(path) for path in folder.glob("elsewhere/**/*")],
        "second": train_runs(runs, store, executor="ray", train=train).done,
        "again": len(trained(log)),
    }

def paused_at(folder):
    runs, store = [make_run(seed) for seed in range(20, 23)], FarStore(folder / "aside")
    log = folder / "aside.log"

    def interrupt():
        while not trained(log):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        train_runs(runs, store, executor="ray", train=partial(fake_train, log=log, seconds=100))
    except KeyboardInterrupt:
        return trained(log), [run.run_id for run in runs if store.is_training(run.run_id)]

def on_gpu(run, checkpoints, log):
    import ray

    began = time.time()
    time.sleep(2)
    with log.open("a") as file:
        file.write(json.dumps([ray.get_gpu_ids(), began, time.time()]) + "\\n")
    return make_record(run)

def packed(folder, cluster):
    cluster.add_node(num_cpus=6, num_gpus=1)  # as it says of itself
    cluster.wait_for_nodes()
    runs, log = [make_run(seed) for seed in range(30, 36)], folder / "packed.log"
    train = partial(on_gpu, log=log)
    train_runs(runs, Store(folder / "packed"), executor="ray", train=train, gpu_per_run=0.5)
    return [json.loads(line) for line in log.read_text().splitlines()]

def full_disk(folder):
    runs, store = [make_run(seed) for seed in range(10, 16)], Store(folder / "full")
    train = partial(fake_train, log=folder / "full.log", full_disk=[10])
    try:
        train_runs(runs, store, executor="ray", train=train)
    except OSError as error:
        return str(error), error.filename, str(store.path(runs[0].run_id))

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    signal.signal(signal.SIGALRM, late)
    with simulated_cluster() as cluster:
        got = trial(cluster, [small_run(seed) for seed in range(4)], folder, random.Random(0))
        with ray_team.ray_cluster(ray_team.import_ray()):  # one that there is
            facts = {
                "apart": soon(apart, folder), "aside": soon(paused_at, folder),
                "full": soon(full_disk, folder), "packed": packed(folder, cluster),
            }
    facts["trial"] = {
        "begun": dict(got.begun), "ended": dict(got.ended), "killed": got.killed,
        "places": sorted(got.places),
        "results": {i: r.result.model_dump(mode="json") for i, r in got.records.items()},
        "commits": sorted({r.measurement.environment["commit"] for r in got.records.values()}),
    }
    json.dump(facts, sys.stdout)
"""


@pytest.fixture(scope="module")
def cluster_facts(tmp_path_factory) -> dict[str, Any]:
    """What happened on a simulated cluster of two nodes, in a process of its own."""
    folder = tmp_path_factory.mktemp("cluster")
    home = folder / "home"
    home.mkdir()
    process = start(CLUSTER, folder, HOME=str(home))
    try:
        out, output = process.communicate(timeout=300)
        assert process.returncode == 0, output
        assert marked(folder) == {}
    finally:
        end_all(folder)
    facts: dict[str, Any] = json.loads(out)
    return facts | {"home": contents(home), "output": output}


@needs_ray
def test_a_killed_worker_and_a_killed_node_cost_no_run(cluster_facts):
    trial = cluster_facts["trial"]
    runs = {run.run_id: run for run in map(small_run, range(4))}
    assert trial["ended"] == dict.fromkeys(runs, 1)
    assert trial["killed"] == 2 == sum(trial["begun"].values()) - len(runs)
    expected = {i: train(run).result.model_dump(mode="json") for i, run in runs.items()}
    assert trial["results"] == expected
    assert cluster_facts["home"] == []
    assert "4/4 runs" in cluster_facts["output"]


@needs_ray
def test_nodes_without_the_package_get_it_with_its_commit(cluster_facts):
    places = cluster_facts["trial"]["places"]
    assert places and all("py_modules_files" in place for place in places)
    assert cluster_facts["trial"]["commits"] == [environment()["commit"]]


@needs_ray
def test_where_the_store_is_not_shared_records_come_back_through_ray(cluster_facts):
    apart = cluster_facts["apart"]
    # The first was locked: somebody else trained it.
    assert sorted(apart["trained"]) == sorted(apart["wanted"][1:])
    assert apart["loss"] == 7.0 and apart["elsewhere"] == []
    assert (apart["done"], apart["failed"]) == (3, [apart["wanted"][2]])
    assert (apart["second"], apart["again"]) == (3, 3)


@needs_ray
def test_a_gpu_is_shared_by_as_many_runs_as_the_profile_says(cluster_facts):
    """The node only says that it has one: what Ray gives away is what is tested."""
    tasks = cluster_facts["packed"]
    assert len(tasks) == 6 and all(gpus == [0] for gpus, _, _ in tasks)
    at_once = [sum(began <= start < ended for _, began, ended in tasks) for _, start, _ in tasks]
    assert max(at_once) == 2


@needs_ray
def test_a_full_disk_in_a_task_ends_training(cluster_facts):
    output, filename, path = cluster_facts["full"]
    assert "Nothing was written" in output and filename == path


@needs_ray
def test_where_the_store_is_not_shared_an_interrupt_ends_runs_at_once(cluster_facts):
    begun, locked = cluster_facts["aside"]
    assert begun == [make_run(20).run_id] and locked == []
    assert f"Run {begun[0]} (resnet18, width 16, seed 20) was paused" in cluster_facts["output"]

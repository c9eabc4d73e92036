"""One Run over several processes: what they share, held against loops written out here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_runs
import torch
import torch.nn.functional as F
from fake_runs import make_record
from small_runs import BASIS
from torch import Tensor, nn

import basisconv as bc
from basisconv.study.cli import main
from basisconv.study.data.sets import load
from basisconv.study.execution import one_run
from basisconv.study.execution.one_run import train_distributed
from basisconv.study.execution.stopping import Stop
from basisconv.study.experiments.registry import draft
from basisconv.study.experiments.study import Study
from basisconv.study.records.checkpoint import checkpoint_files, step_of_file
from basisconv.study.records.run import Result, Run
from basisconv.study.records.store import Store
from basisconv.study.training import train as training
from basisconv.study.training.augment import TrainingStream
from basisconv.study.training.distributed import SINGLE_PROCESS, Group
from basisconv.study.training.optimization import (
    learning_rate,
    make_optimizer,
    momentum_of,
    set_learning_rate,
)
from basisconv.study.training.phases import initial_network, switch_plan
from basisconv.study.training.train import train

ROOT = Path(__file__).parents[3]
SEEN = (ROOT, ROOT / "tests", Path(__file__).parent)  # by the processes started here


def make_run(*phases: tuple[int, bc.Plan], **changes: Any) -> Run:
    own = {"processes": 2, "momentum_carry": "carried"}
    return small_runs.make_run(*phases, **own | changes)


def resnet(run: Run, classes: int) -> nn.Module:
    """The Run's network, in float64: in float32 rounding grows too fast to tell it from errors."""
    return in_float64(initial_network(run, classes))


def plain_network(run: Run, classes: int) -> nn.Module:
    """A small network without batch-norm, in float64."""
    torch.manual_seed(run.seed)
    convolutions = [nn.Conv2d(3, 8, 3, stride=2), nn.Tanh(), nn.Conv2d(8, 12, 3, stride=2)]
    model = nn.Sequential(*convolutions, nn.Tanh(), nn.Flatten(), nn.Linear(12 * 49, classes))
    return in_float64(bc.apply_plan(model, run.phases[0].plan, init="svd"))


def in_float64(model: nn.Module) -> nn.Module:
    model.double().register_forward_pre_hook(lambda _, args: (args[0].double(),))
    return model


NETWORKS: dict[str, Callable[[Run, int], nn.Module]] = {
    "resnet": resnet, "plain": plain_network, "float32": initial_network
}  # fmt: skip

TOGETHER = """
import json
import sys
from pathlib import Path
import torch
from test_distributed import NETWORKS
from basisconv.study.training import train as training
from basisconv.study.training.distributed import torchrun_group
from basisconv.study.records.run import Run

folder = Path(sys.argv[2])
with torchrun_group() as group:
    assert [group.any(group.rank == 1), group.any(False)] == [True, False]
    for name, (network, run) in json.loads(sys.argv[1]).items():
        training.initial_network = NETWORKS[network]
        trained = training._Training(Run.model_validate_json(run), None, group)
        result = trained.result()
        torch.save(trained.model.state_dict(), folder / f"{name} {group.rank}.pt")
        (folder / f"{name} {group.rank}.json").write_text(result.model_dump_json())
"""


def started(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """Two processes that torchrun starts and that talk over gloo; their logs go to `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, SEEN))}
        | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


SMOKE = ("notebooks.01_baseline.epochs=6", "confirm=[]")


def smoke_run(folder: Path) -> Run:
    """One of the smoke profile's runs, a little longer."""
    return next(iter(draft(Study.open("smoke", SMOKE, folder), "01_baseline").runs.values()))


def of_pair(run: Run) -> Run:
    return Run.model_validate(run.model_dump() | {"processes": 2})


PLAIN = (4, bc.Plan({"0": 3, "2": 5})), (3, bc.Plan())
JOBS = {
    "shards": ("resnet", make_run((3, BASIS), (4, bc.Plan()))),
    "product": ("plain", make_run(*PLAIN, weight_decay=0.05, decay="product")),
    "muon": (
        "plain", make_run(*PLAIN, weight_decay=0.05, optimizer="muon", factor_lr_ratio=0.5)
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def together(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[list[dict[str, Tensor]], Result]]:
    """Each process's network in the end, and the result, on which they agree, of every job."""
    folder = tmp_path_factory.mktemp("together")
    jobs = JOBS | {"smoke": ("float32", of_pair(smoke_run(folder / "runs")))}
    script = folder / "script.py"
    script.write_text(TOGETHER)
    given = json.dumps({name: (net, run.model_dump_json()) for name, (net, run) in jobs.items()})
    with started(folder, script, given, folder) as process:
        output = process.communicate(timeout=300)[1]
    assert process.returncode == 0, output
    found = {}
    for name in jobs:
        (result,) = {(folder / f"{name} {rank}.json").read_text() for rank in (0, 1)}
        states = [torch.load(folder / f"{name} {rank}.pt") for rank in (0, 1)]
        found[name] = states, Result.model_validate_json(result)
    return found


def shards_in_turn(run: Run, network: str) -> tuple[list[nn.Module], list[float]]:
    """One process that gives each shard to a network of its own and averages the gradients."""
    data = load(run.data.name, run.data.train_images)
    stream = TrainingStream(data.train, run.batch_size, run.seed)
    models = [NETWORKS[network](run, 10) for _ in range(run.processes)]
    optimizers = [make_optimizer(model, run) for model in models]
    losses, end, step = [], 0, 0
    for index, phase in enumerate(run.phases):
        start, end = end, end + phase.steps
        if index:
            momenta = [momentum_of(m, o) for m, o in zip(models, optimizers, strict=True)]
            momenta = [switch_plan(m, run, index, b) for m, b in zip(models, momenta, strict=True)]
            optimizers = [make_optimizer(m, run, b) for m, b in zip(models, momenta, strict=True)]
        for step in range(start, end):
            images, labels = stream.batch(step)
            shards = zip(
                models, images.chunk(run.processes), labels.chunk(run.processes), strict=True
            )
            shard_losses = [F.cross_entropy(m.train()(x).float(), y) for m, x, y in shards]
            for model, loss in zip(models, shard_losses, strict=True):
                model.zero_grad()
                loss.backward()
            for parameters in zip(*(model.parameters() for model in models), strict=True):
                mean = torch.stack([p.grad for p in parameters]).mean(0)
                for parameter in parameters:
                    parameter.grad = mean.clone()
            for optimizer in optimizers:
                set_learning_rate(optimizer, learning_rate(run, step, start, end))
                optimizer.step()
            losses.append(float(torch.stack(shard_losses).detach().mean()))
    return models, losses


def test_two_processes_train_as_one_that_takes_the_shards_in_turn(together: Any) -> None:
    run, (states, result) = JOBS["shards"][1], together["shards"]
    models, losses = shards_in_turn(run, "resnet")
    for state, model in zip(states, models, strict=True):
        torch.testing.assert_close(state, model.state_dict(), rtol=1e-9, atol=1e-9)
    # Weights are shared, batch-norm's statistics are not.
    first, second = states
    parameters = dict(models[0].named_parameters())
    assert all(torch.equal(first[name], second[name]) for name in parameters)
    assert not torch.equal(first["bn1.running_mean"], second["bn1.running_mean"])
    means = [sum(losses[i:j]) / (j - i) for i, j in ((0, 3), (3, 6), (6, 7))]
    assert [epoch.train_loss for epoch in result.history] == pytest.approx(means, abs=1e-6)
    # What counts is the first's network, statistics included.
    trained = training._Training(run, None)
    trained.model = models[0]
    assert result.val_loss == pytest.approx(trained._evaluate(trained.data.validation)[0], abs=1e-6)


@pytest.mark.parametrize("name", ["product", "muon"])
def test_without_batch_norm_it_is_plain_training(
    together: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    states, result = together[name]
    monkeypatch.setattr(training, "initial_network", plain_network)
    alone = training._Training(JOBS[name][1].model_copy(update={"processes": 1}), None)
    expected = alone.result()
    for state in states:
        torch.testing.assert_close(state, alone.model.state_dict(), rtol=1e-9, atol=1e-9)
    for what in ("train_loss", "val_loss", "val_accuracy"):
        lines = [[getattr(e, what) for e in r.history] for r in (result, expected)]
        assert lines[0] == pytest.approx(lines[1], abs=1e-6)


def test_a_run_of_two_processes_is_not_trained_by_one() -> None:
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2"):
        train(make_run((1, bc.Plan())))


def test_looking_at_a_lock_does_not_prevent_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, store = small_runs.make_run((2, bc.Plan())), Store(tmp_path)
    lock = store.lock(run.run_id)
    lock.acquire()
    monkeypatch.setattr(one_run.time, "sleep", lambda seconds: None)
    outcome = train_distributed(run, store, SINGLE_PROCESS, Stop())
    assert outcome is not None and outcome.status == "locked"
    monkeypatch.setattr(one_run.time, "sleep", lambda seconds: lock.release())
    outcome = train_distributed(run, store, SINGLE_PROCESS, Stop())
    assert outcome is not None and outcome.status == "done"


def test_torchrun_pauses_and_resumes_a_run(together: Any, tmp_path: Path) -> None:
    """`torchrun -m basisconv train`, ended by SIGTERM, and once more."""
    study = Study.open("smoke", SMOKE, tmp_path / "runs")
    run = smoke_run(tmp_path / "runs")
    pair = of_pair(run)
    command = ["-m", "basisconv", "train", run.run_id, "--profile", "smoke"]
    command += ["--runs", str(study.store.folder)]
    command += [word for setting in SMOKE for word in ("--set", setting)]
    with started(tmp_path, *command) as process:
        while not study.store.is_training(pair.run_id):
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        time.sleep(0.5)  # short of the run's end, on any machine
        process.terminate()
        output = process.communicate(timeout=60)[1]
    assert (
        process.returncode != 0
        and "terminated; finished work is kept, and the same command continues" in output
    )
    assert study.store.get(pair.run_id) is None
    (left,) = checkpoint_files(study.store.checkpoints(pair.run_id))[:1]
    assert 0 <= step_of_file(left) < run.steps
    with started(tmp_path, *command) as process:
        out, output = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert out == f"{study.store.path(pair.run_id)}: done\n"
    record = study.store.get(pair.run_id)
    assert record is not None and record.measurement.notes == (
        f"went on from step {step_of_file(left)}",
    )
    assert study.store.get(run.run_id) is None
    assert record.result == together["smoke"][1]


def test_a_run_that_has_its_record_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("trained")

    run, store = make_run((1, bc.Plan()), processes=1), Store(tmp_path)
    store.put(make_record(run))
    monkeypatch.setattr(training, "train", fail)
    assert train_distributed(run, store, SINGLE_PROCESS, Stop()).status == "done"
    monkeypatch.setattr(Group, "broadcast", lambda self, value: False)  # as the first tells
    assert train_distributed(run, store, Group(1, 2), Stop()) is None
    # A failure is, for somebody asks for this run by name.
    store.put(make_record(run, "failed"))
    assert "AssertionError: trained" in train_distributed(run, store, SINGLE_PROCESS, Stop()).error


def test_a_run_that_the_profile_does_not_have_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "0123456789abcdef", "--profile", "smoke"]) == 1
    assert "no run 0123456789abcdef with these settings" in capsys.readouterr().err

"""Final weights stay where the profile names an arm, whichever section trains its runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import BASIS, make_run

import basisconv as bc
from basisconv.study import cli
from basisconv.study.data.sets import load
from basisconv.study.execution.many_runs import train_runs
from basisconv.study.execution.one_run import Trainer
from basisconv.study.experiments.pipeline import make_section
from basisconv.study.experiments.profiles import load_profile
from basisconv.study.experiments.registry import draft, runs_with_kept_weights
from basisconv.study.experiments.study import Study
from basisconv.study.records.checkpoint import checkpoint_files
from basisconv.study.records.files import DamagedFile
from basisconv.study.records.run import Run
from basisconv.study.records.store import Store
from basisconv.study.training.augment import evaluation_batches
from basisconv.study.training.phases import trained_network


def accuracy(model: torch.nn.Module, run: Run) -> float:
    data = load(run.data.name, run.data.train_images)
    with torch.inference_mode():
        right = [(model.eval()(x).argmax(1) == y) for x, y in evaluation_batches(data.test)]
    return float(torch.cat(right).double().mean())


def test_the_kept_network_is_the_one_that_was_measured(tmp_path: Path) -> None:
    # Steps enough that the network's accuracy is its own.
    kept = make_run((3, BASIS), (9, bc.Plan()), test=True)
    other = make_run((2, bc.Plan()), seed=1)
    store, plain = Store(tmp_path / "runs"), Store(tmp_path / "plain")
    train_runs([kept, other], store, workers=1, keep_weights=frozenset([kept.run_id]))
    train_runs([kept], plain, workers=1)
    record, alone = store.get(kept.run_id), plain.get(kept.run_id)
    assert record and alone and record.result and record.same_result(alone)
    assert accuracy(trained_network(kept, store), kept) == record.result.test_accuracy
    (file,) = checkpoint_files(store.weights(kept.run_id))
    assert file.name.startswith("000000012-")
    assert not store.checkpoints(kept.run_id).exists()
    assert not store.weights(other.run_id).exists() and not (plain.folder / "weights").exists()
    # Nor does a later call, which knows of no weights to keep, remove them.
    train_runs([kept, other], store, workers=1)
    assert checkpoint_files(store.weights(kept.run_id)) == [file]


def test_weights_are_written_once_more_where_the_record_was_lost(tmp_path: Path) -> None:
    run, store = make_run((2, bc.Plan())), Store(tmp_path)
    trainer = Trainer(store, keep_weights=frozenset([run.run_id]))
    assert trainer.train_under_lock(run, None).status == "done"
    store.path(run.run_id).unlink()
    assert trainer.train_under_lock(run, None).status == "done"
    assert len(list(store.weights(run.run_id).iterdir())) == 1


def test_weights_that_are_missing_or_damaged_are_refused(tmp_path: Path) -> None:
    run, store = make_run((1, bc.Plan())), Store(tmp_path)
    with pytest.raises(LookupError, match="no final weights"):
        trained_network(run, store)
    train_runs([run], store, workers=1, keep_weights=frozenset([run.run_id]))
    (file,) = checkpoint_files(store.weights(run.run_id))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedFile, match="cut short or changed"):
        trained_network(run, store)


def test_another_section_that_trains_the_same_run_keeps_its_weights(tmp_path: Path) -> None:
    changes = (
        "train_images=100", "seeds.confirm=[100]", "notebooks.01_baseline.epochs=1",
        "notebooks.02_all_layers.budgets=[1]", "keep_weights={02_all_layers: [dense]}",
    )  # fmt: skip
    study = Study.open("smoke", changes, runs=tmp_path / "runs")
    wanted = runs_with_kept_weights(study)
    arms = [arm for arm in draft(study, "02_all_layers").arms if arm.label == "dense"]
    assert wanted == {run_id for arm in arms for run_id in arm.run_ids}
    section = make_section(study, "01_baseline")
    shared = wanted & set(section.run_ids)
    assert shared and all(checkpoint_files(study.store.weights(i)) for i in shared)
    assert cli.main(["verify", "--profile", "smoke", "--runs", str(study.store.folder)]) == 0


def test_a_label_that_no_arm_has_is_refused(tmp_path: Path) -> None:
    study = Study.open("smoke", ("keep_weights={02_all_layers: [nobody]}",), runs=tmp_path)
    with pytest.raises(ValueError, match="nobody"):
        runs_with_kept_weights(study)
    with pytest.raises(ValueError, match="keep_weights names"):
        load_profile("smoke", ("keep_weights={11_none: [dense]}",))


def test_desk2_keeps_the_longest_dense_runs_under_muon_and_the_short_one_of_the_search(
    tmp_path: Path,
) -> None:
    study = Study.open("desk2", runs=tmp_path)
    runs, search = draft(study, "02_all_layers").runs, draft(study, "07_search")
    short = {i for arm in search.arms if arm.label == "warm-up" for i in arm.run_ids}
    wanted = runs_with_kept_weights(study)
    assert short < wanted and [search.runs[i].steps for i in short] == [88]
    kept = [runs[run_id] for run_id in wanted - short]
    longest = max(run.steps for run in runs.values() if run.width == 32)
    assert sorted(run.seed for run in kept) == [110, 111, 112, 113]
    for run in kept:
        assert (run.steps, run.optimizer, run.width) == (longest, "muon", 32)
        assert [phase.plan for phase in run.phases] == [bc.Plan()]

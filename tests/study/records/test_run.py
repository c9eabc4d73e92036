from __future__ import annotations

import hashlib
import json
import pickle
import re

import pytest
from fake_runs import PLAN, make_record, make_run
from pydantic import ValidationError

from basisconv.plan import Plan
from basisconv.study.records.files import DamagedFile, read_json, write_json
from basisconv.study.records.run import Arm, Data, Phase, Record, Run, Section

# Written out by hand: were an id to change unnoticed, all published records would be orphans.
CANONICAL = (
    '{"batch_size":128,"carry":"exact","compile":false,"data":{"name":"cifar10-sample","sha256":"'
    + "0" * 64
    + '","train_images":null},"decay":"factors","init":"random","label_smoothing":0.0,'
    '"learning_rate":0.1,"momentum":0.9,"momentum_carry":"fresh","network":"resnet18",'
    '"numerics":1,"phases":[{"plan":{"coef_groups":1,"coef_rank":null,"form":"full","layers":'
    '{"layer1.0.conv1":4,"layer1.0.conv2":3},"modes":{}},"steps":20},{"plan":{"coef_groups":1,'
    '"coef_rank":null,"form":"subset","layers":{},"modes":{}},"steps":10}],"precision":"float32",'
    '"schedule":"one","schema_version":1,"seed":0,"test":false,"threads":1,"warmup":0.1,'
    '"weight_decay":0.0005,"width":16}'
)

# Another value for every field.
CHANGES = {
    "network": "resnet20",
    "width": 17,
    "data": Data(name="cifar10-sample", sha256="0" * 64, train_images=100),
    "phases": (Phase(steps=20, plan=PLAN), Phase(steps=11, plan=Plan())),
    "batch_size": 64,
    "learning_rate": 0.2,
    "momentum": 0.8,
    "weight_decay": 0.0,
    "decay": "product",
    "label_smoothing": 0.1,
    "warmup": 0.0,
    "schedule": "restart",
    "init": "svd",
    "carry": "reinit",
    "momentum_carry": "carried",
    "seed": 1,
    "precision": "bfloat16",
    "test": True,
    "compile": True,
    "threads": 2,
    "processes": 2,
    "optimizer": "muon",
    "factor_lr_ratio": 0.5,
    "numerics": 2,
}


def test_run_id_is_the_hash_of_the_canonical_json():
    assert make_run().run_id == hashlib.sha256(CANONICAL.encode()).hexdigest()[:16]
    assert make_run().steps == 30


def test_every_field_changes_the_id():
    assert set(CHANGES) == set(Run.model_fields) - {"schema_version"}
    needed = {"factor_lr_ratio": {"optimizer": "muon"}}
    ids = {make_run(**{n: value}, **needed.get(n, {})).run_id for n, value in CHANGES.items()}
    assert len(ids | {make_run().run_id}) == len(CHANGES) + 1


def test_equal_runs_have_one_id():
    backwards = Plan(dict(reversed(PLAN.layers.items())), form="full", modes={})
    same = make_run(
        learning_rate=1e-1,
        width=16.0,
        phases=[{"steps": 20, "plan": backwards}, {"steps": 10, "plan": {}}],
    )
    assert same == make_run() and hash(same) == hash(make_run())
    assert same.run_id == make_run().run_id
    assert make_run(learning_rate=1).run_id == make_run(learning_rate=1.0).run_id


def test_run_survives_json_and_pickle():
    run = make_run(seed=3)
    assert Run.model_validate_json(run.model_dump_json()) == run
    assert pickle.loads(pickle.dumps(run)).run_id == run.run_id


@pytest.mark.parametrize(
    ("changes", "output"),
    [
        ({"learning_rat": 0.1}, "learning_rat"),
        ({"learning_rate": 0.0}, "greater than 0"),
        ({"learning_rate": float("nan")}, "finite"),
        ({"phases": ()}, "at least 1 item"),
        ({"phases": [{"steps": 0, "plan": {}}]}, "greater than or equal to 1"),
        ({"phases": [{"steps": 1, "plan": {"layer": {}}}]}, "layer"),
        ({"phases": [{"steps": 1, "plan": {"layers": ["conv1"]}}]}, "plan"),
        ({"phases": [{"steps": 1, "plan": 3}]}, "plan"),
        ({"carry": "exactly"}, "'exact', 'reinit' or 'responses'"),
        ({"precision": "float16"}, "'float32', 'tf32' or 'bfloat16'"),
        ({"data": {"name": "cifar", "sha256": "0" * 64}}, "'cifar10-sample'"),
        ({"data": {"name": "cifar10", "sha256": "0"}}, "sha256"),
        ({"schema_version": 2}, "1"),
        ({"momentum": 1.0}, "less than 1"),
        ({"width": 0}, "greater than or equal to 1"),
        ({"seed": -1}, "greater than or equal to 0"),
    ],
)
def test_invalid_runs_are_refused(changes, output):
    with pytest.raises(ValidationError, match=output):
        make_run(**changes)


def test_a_run_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        make_run().seed = 4


@pytest.mark.parametrize("status", ["done", "failed", "diverged"])
def test_record_comes_back(tmp_path, status):
    record = make_record(make_run(), status, loss=0.1 + 0.2)
    record.save(tmp_path / "record.json")
    assert Record.load(tmp_path / "record.json") == record
    assert json.loads((tmp_path / "record.json").read_text())["run_id"] == record.run_id


def test_status_and_content_agree():
    done, failed = make_record(make_run()), make_record(make_run(), "failed")
    for changes in (
        {"run": done.run, "status": "done", "result": None},
        {"run": done.run, "status": "failed", "result": None},
        {"run": done.run, "status": "failed", "result": done.result, "error": "why"},
        {"run": done.run, "status": "finished", "result": done.result},
    ):
        with pytest.raises(ValidationError, match="status"):
            Record(**changes, measurement=failed.measurement)
    with pytest.raises(ValidationError, match="finite"):
        make_record(make_run(), loss=float("nan"))


def test_only_result_and_status_count_as_the_same():
    record = make_record(make_run(), seconds=1.0)
    assert record.same_result(make_record(make_run(), seconds=2.0, kind="abacus"))
    assert not record.same_result(make_record(make_run(), loss=1.5000000000000002))
    assert not record.same_result(make_record(make_run(), "diverged"))


def forge(path, **changes):
    """What a determined hand can do: another value, and the right checksum over it."""
    make_record(make_run()).save(path)
    write_json(path, read_json(path) | changes)


def test_a_record_whose_run_was_changed_is_refused(tmp_path):
    path = tmp_path / "record.json"
    forge(path, run=make_run(seed=1).model_dump(mode="json"))
    stated, own = make_run().run_id, make_run(seed=1).run_id
    with pytest.raises(DamagedFile, match=f"says run_id {stated}, but its run has {own}"):
        Record.load(path)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_a_record_of_another_schema_is_refused(tmp_path, version):
    path = tmp_path / "record.json"
    forge(path, schema_version=version)
    output = f"has schema version {version}, this code reads 1: use it with .* or delete it"
    with pytest.raises(DamagedFile, match=output):
        Record.load(path)


@pytest.mark.parametrize(
    "changes",
    [{"extra": 1}, {"result": None}, {"status": "finished"}, {"run": {}}, {"measurement": []}],
)
def test_invalid_records_are_refused(tmp_path, changes):
    path = tmp_path / "record.json"
    forge(path, **changes)
    with pytest.raises(DamagedFile, match=re.escape(f"{path} is not a record")):
        Record.load(path)


def test_section_names_each_run_once_in_order():
    section = Section(
        name="02_all_layers",
        profile="smoke",
        arms=(
            Arm(label="dense", method="dense", run_ids=("b", "a")),
            Arm(label="basis 1/4", method="basis", run_ids=("c", "a"), detail={"ratio": 0.25}),
        ),
        facts={"ratio": 0.25},
    )
    assert section.run_ids == ("b", "a", "c")
    assert Section.model_validate_json(section.model_dump_json()) == section
    with pytest.raises(ValidationError, match="method"):
        Arm(label="dense", method="dens", run_ids=())

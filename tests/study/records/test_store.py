from __future__ import annotations

import threading

import pytest
from fake_runs import contents, make_record, make_run, no_space, strays

from basisconv.study.records import files
from basisconv.study.records.files import DamagedFile, write_json
from basisconv.study.records.publish import publish, published
from basisconv.study.records.run import SCHEMA, Arm, Section
from basisconv.study.records.store import ConflictingResults, MissingRuns, Store


def filled(folder, seeds, **changes):
    store = Store(folder)
    for seed in seeds:
        store.put(make_record(make_run(seed), **changes))
    return store


def ids(*seeds):
    return tuple(make_run(seed).run_id for seed in seeds)


def section(*seeds, name="01_baseline"):
    arm = Arm(label="dense", method="dense", run_ids=ids(*seeds))
    return Section(name=name, profile="smoke", arms=(arm,), facts={"epochs": 2})


def test_reading_writes_nothing(tmp_path):
    store = Store(tmp_path / "runs")
    assert store.get(ids(0)[0]) is None
    assert store.untrained([make_run(0)]) == [make_run(0)]
    assert store.all() == {}
    assert not store.folder.exists()


def test_records_come_back_in_the_order_asked_for(tmp_path):
    store = filled(tmp_path, [0, 1, 2])
    records = store.records(ids(2, 0))
    assert list(records) == list(ids(2, 0))
    assert records[ids(2)[0]] == make_record(make_run(2))
    assert set(store.all()) == set(ids(0, 1, 2))


def test_missing_runs_are_named(tmp_path):
    store = filled(tmp_path, [1])
    with pytest.raises(MissingRuns, match="basisconv run --profile") as error:
        store.records(ids(0, 1, 2))
    assert error.value.run_ids == ids(0, 2)
    assert all(run_id in str(error.value) for run_id in ids(0, 2))
    with pytest.raises(MissingRuns, match="and 30 more"):
        store.records(ids(*range(2, 42)))


def test_failures_are_missing_only_when_they_are_to_be_retried(tmp_path):
    store = filled(tmp_path, [0], status="failed")
    filled(tmp_path, [1], status="diverged")
    runs = [make_run(seed) for seed in (2, 0, 1, 2)]
    assert store.untrained(runs) == [make_run(2)]
    assert store.untrained(runs, retry_failed=True) == [make_run(2), make_run(0)]


@pytest.mark.parametrize("name", ["../0123456789abcde", "0123", "0123456789ABCDEF", "a" * 17, ""])
def test_no_run_id_leads_out_of_the_folder(tmp_path, name):
    store = Store(tmp_path)
    for use in (store.path, store.get, store.lock):
        with pytest.raises(ValueError, match="is not a run id"):
            use(name)


def test_the_record_of_another_run_is_refused(tmp_path):
    store = filled(tmp_path, [0])
    store.path(ids(0)[0]).rename(store.path(ids(1)[0]))
    with pytest.raises(DamagedFile, match=f"holds the record of run {ids(0)[0]}"):
        store.get(ids(1)[0])


def test_merge_adds_what_is_new_once(tmp_path):
    here, there = filled(tmp_path / "here", [0, 1]), filled(tmp_path / "there", [1, 2, 3])
    (there.folder / "manifest.json").write_text("{}")
    report = here.merge(there.folder)
    assert set(report.added) == set(ids(2, 3))
    assert (report.known, report.kept) == (ids(1), ())
    assert here.all() == {i: make_record(make_run(s)) for s in range(4) for i in ids(s)}
    before = contents(here.folder)
    again = here.merge(there.folder)
    assert (again.added, set(again.known)) == ((), set(ids(1, 2, 3)))
    assert contents(here.folder) == before


def test_merge_refuses_another_result_of_the_same_kind_of_device(tmp_path):
    here = filled(tmp_path / "here", [5])
    there = filled(tmp_path / "there", [0, 1, 2, 3, 4])
    filled(tmp_path / "there", [5], loss=1.6)
    here.merge(filled(tmp_path / "same", [5]).folder)  # which leaves the lock that merges take
    before = contents(here.folder)
    with pytest.raises(ConflictingResults, match=f"other results of {ids(5)[0]}"):
        here.merge(there.folder)
    assert contents(here.folder) == before


def test_merge_sees_what_a_training_writes_meanwhile(tmp_path):
    store, raised = Store(tmp_path / "runs"), []

    def merge() -> None:
        try:
            store.merge(filled(tmp_path / "there", [0], loss=1.6).folder)
        except ConflictingResults as error:
            raised.append(error)

    with store.exclusive():  # as a training does when it writes its result
        other = threading.Thread(target=merge)
        other.start()
        other.join(0.2)
        assert other.is_alive()
        store.put(make_record(make_run(0)))
    other.join()
    assert len(raised) == 1 and store.get(ids(0)[0]) == make_record(make_run(0))


@pytest.mark.parametrize(
    "kind", ["NVIDIA H100 80GB HBM3", "cpu x86_64 AVX2 then cpu x86_64 AVX512"]
)
def test_merge_requires_no_equality_of_gpus_and_changed_devices(tmp_path, kind):
    here = filled(tmp_path / "here", [0], kind=kind)
    there = filled(tmp_path / "there", [0], loss=1.6, kind=kind)
    for _ in range(2):
        assert here.merge(there.folder).kept == ids(0)
    assert here.get(ids(0)[0]).result.val_loss == 1.5
    same = filled(tmp_path / "same", [0], kind=kind)
    assert here.merge(same.folder).known == ids(0)


def test_merge_keeps_the_first_result_where_devices_differ_in_kind(tmp_path):
    here = filled(tmp_path / "here", [0], kind="cpu")
    there = filled(tmp_path / "there", [0, 1], loss=1.6, kind="gpu")
    for added in (ids(1), ()):
        report = here.merge(there.folder)
        assert (report.added, report.kept) == (added, ids(0))
    assert here.get(ids(0)[0]) == make_record(make_run(0), kind="cpu")


def test_merge_replaces_failures_by_results_and_never_the_reverse(tmp_path):
    failed = filled(tmp_path / "failed", [0, 1], status="failed")
    done = filled(tmp_path / "done", [0])
    assert done.merge(failed.folder).known == ids(0)
    assert done.get(ids(0)[0]).status == "done"
    assert failed.merge(filled(tmp_path / "more", [0]).folder).added == ids(0)
    assert failed.get(ids(0)[0]).status == "done"


def test_merge_refuses_a_damaged_record_before_anything_is_written(tmp_path):
    here, there = filled(tmp_path / "here", [0]), filled(tmp_path / "there", range(1, 6))
    last = max(there.folder.glob("*.json"))
    last.write_bytes(last.read_bytes().replace(b"12345", b"12346"))
    before = contents(here.folder)
    with pytest.raises(DamagedFile, match=last.name):
        here.merge(there.folder)
    assert contents(here.folder) == before


def test_merge_refuses_a_folder_without_records(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match="holds no records"):
            Store(tmp_path / "here").merge(folder)


def test_published_sections_come_back_with_their_records(tmp_path):
    store, destination = filled(tmp_path / "runs", range(4)), tmp_path / "smoke"
    assert published(destination) == {}
    publish(store, section(0, 1), destination)
    report = publish(store, section(1, 2, name="02_all_layers"), destination)
    assert (report.added, report.known) == (ids(2), ids(1))
    found = published(destination)
    assert found == {s.name: s for s in (section(0, 1), section(1, 2, name="02_all_layers"))}
    assert Store(destination).records(found["01_baseline"].run_ids) == store.records(ids(0, 1))
    publish(store, section(3), destination)
    assert published(destination)["01_baseline"] == section(3)


def test_publishing_waits_for_another_and_keeps_its_section(tmp_path):
    store, destination = filled(tmp_path / "runs", [0, 1]), tmp_path / "smoke"
    later = section(1, name="02_all_layers")
    with Store(destination).exclusive():  # as one who has read the manifest, and has not written it
        other = threading.Thread(target=publish, args=(store, later, destination))
        other.start()
        other.join(0.2)
        assert other.is_alive() and not (destination / "manifest.json").exists()
        Store(destination).add(store.records(ids(0)).values())
        write_json(
            destination / "manifest.json",
            {
                "schema_version": SCHEMA,
                "sections": {
                    "01_baseline": {"complete": True, "section": section(0).model_dump(mode="json")}
                },
            },
        )
    other.join()
    assert published(destination) == {"01_baseline": section(0), "02_all_layers": later}


def test_publishing_twice_leaves_the_same_bytes(tmp_path):
    store, destination = filled(tmp_path / "runs", range(2)), tmp_path / "smoke"
    publish(store, section(0, 1), destination)
    before = {path: data for path, (data, _) in contents(destination).items()}
    publish(store, section(0, 1), destination)
    assert {path: data for path, (data, _) in contents(destination).items()} == before


def test_an_incomplete_section_is_not_published(tmp_path):
    store, destination = filled(tmp_path / "runs", [0]), tmp_path / "smoke"
    with pytest.raises(MissingRuns, match=ids(1)[0]):
        publish(store, section(0, 1), destination)
    filled(tmp_path / "runs", [1], status="failed")
    with pytest.raises(ValueError, match=f"{ids(1)[0]} failed"):
        publish(store, section(0, 1), destination)
    assert not destination.exists()


def test_an_incomplete_section_is_published_on_request_and_not_shown(tmp_path):
    store, destination = filled(tmp_path / "runs", [0, 1]), tmp_path / "smoke"
    store.put(make_record(make_run(2), "failed"))
    publish(store, section(0, name="02_all_layers"), destination)
    report = publish(store, section(0, 1, 2, 3), destination, incomplete=True)
    assert (report.added, report.known) == (ids(1), ids(0))
    assert set(Store(destination).all()) == set(ids(0, 1))
    assert set(published(destination)) == {"02_all_layers"}
    # Publishing another section does not make it complete; its last run does.
    publish(store, section(1, name="03_sensitivity"), destination)
    assert set(published(destination)) == {"02_all_layers", "03_sensitivity"}
    for seed in (2, 3):
        store.put(make_record(make_run(seed)))
    publish(store, section(0, 1, 2, 3), destination, incomplete=True)
    assert published(destination)["01_baseline"] == section(0, 1, 2, 3)


def test_records_published_by_other_machines_count(tmp_path):
    """A machine that trained one run of three, or none, takes nothing from the others'."""
    destination = tmp_path / "smoke"
    publish(filled(tmp_path / "one", [0, 1]), section(0, 1, 2), destination, incomplete=True)
    publish(filled(tmp_path / "other", [2]), section(0, 1, 2), destination, incomplete=True)
    assert published(destination) == {"01_baseline": section(0, 1, 2)}
    publish(Store(tmp_path / "empty"), section(0, 1, 2), destination, incomplete=True)
    assert published(destination) == {"01_baseline": section(0, 1, 2)}


def test_records_named_only_by_a_replaced_section_are_removed(tmp_path):
    store, destination = filled(tmp_path / "runs", range(4)), tmp_path / "smoke"
    publish(store, section(0, 1), destination)
    publish(store, section(1, 2, name="02_all_layers"), destination)
    report = publish(store, section(3), destination)
    assert (report.added, report.removed) == (tuple(ids(3)), tuple(ids(0)))
    assert set(Store(destination).all()) == set(ids(1, 2, 3))
    assert set(store.all()) == set(ids(0, 1, 2, 3))


def test_an_incomplete_section_adds_records_and_replaces_no_complete_one(tmp_path):
    store, destination = filled(tmp_path / "runs", [0, 1, 3]), tmp_path / "smoke"
    publish(store, section(0, 1), destination)
    report = publish(store, section(1, 2, 3), destination, incomplete=True)
    assert (report.added, report.removed) == (ids(3), ())
    assert published(destination) == {"01_baseline": section(0, 1)}
    store.put(make_record(make_run(2)))
    report = publish(store, section(1, 2, 3), destination, incomplete=True)
    assert (report.added, report.removed) == (ids(2), ids(0))
    assert published(destination) == {"01_baseline": section(1, 2, 3)}


def test_an_incomplete_section_removes_nothing(tmp_path):
    destination = tmp_path / "smoke"
    publish(filled(tmp_path / "runs", [0, 1]), section(0, 1, 4), destination, incomplete=True)
    report = publish(filled(tmp_path / "new", [2]), section(2, 3), destination, incomplete=True)
    assert report.removed == () and set(Store(destination).all()) == set(ids(0, 1, 2))


def test_a_published_result_is_not_replaced_by_another(tmp_path):
    destination = tmp_path / "smoke"
    publish(filled(tmp_path / "first", [0]), section(0), destination)
    before = contents(destination)
    with pytest.raises(ConflictingResults):
        publish(filled(tmp_path / "second", [0, 1], loss=9.0), section(1, 0), destination)
    assert contents(destination) == before


def test_a_full_disk_publishes_no_section_without_records(tmp_path, monkeypatch):
    store, destination = filled(tmp_path / "runs", range(3)), tmp_path / "smoke"
    publish(store, section(0), destination)
    replace = files.os.replace

    def no_manifest(source, target):
        no_space() if target.name == "manifest.json" else replace(source, target)

    monkeypatch.setattr(files.os, "replace", no_manifest)
    with pytest.raises(OSError, match="No space"):
        publish(store, section(1, 2), destination)
    assert published(destination) == {"01_baseline": section(0)}
    assert strays(destination) == []


def test_a_damaged_manifest_is_refused(tmp_path):
    store, destination = filled(tmp_path / "runs", [0]), tmp_path / "smoke"
    publish(store, section(0), destination)
    manifest = destination / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole.replace(b'"epochs": 2', b'"epochs": 3'))
    with pytest.raises(DamagedFile, match="was changed after it was written"):
        publish(store, section(0, name="02_all_layers"), destination)
    for values in (
        {"schema_version": 2, "sections": {}},
        {"schema_version": 1},
        {"schema_version": 1, "sections": {"a": {"complete": True, "section": {}}}},
        {"schema_version": 1, "sections": ["a"]},
    ):
        files.write_json(manifest, values)
        with pytest.raises(DamagedFile, match="manifest"):
            published(destination)

"""What each command does; `basisconv.study.cli` has their options.

Imports are local: a command loads only what it needs, and `--help` next to nothing.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from basisconv.study.experiments.study import Study
    from basisconv.study.records.run import Run
    from basisconv.study.records.store import MergeReport


def _study(options: Namespace) -> Study:
    from basisconv.study.experiments.study import Study
    from basisconv.study.records.environment import device

    name = options.profile or ("paper" if device().type == "cuda" else "quick")
    return Study.open(name, options.set, getattr(options, "runs", None))


def reproduce(options: Namespace) -> None:
    """Run every notebook and build the paper."""
    from basisconv.study.records.environment import ROOT
    from basisconv.study.reproduce import reproduce

    study = _study(options)
    started = time.monotonic()
    paths = reproduce(study, options.set)
    print(
        f"{len(paths)} files in {study.folder.relative_to(ROOT)}/, "
        f"{(time.monotonic() - started) / 60:.1f} minutes.\n"
        f"The paper: {paths[-1].relative_to(ROOT)}"
    )


def check(options: Namespace) -> None:
    """Check that a reproduction wrote all of its files."""
    from basisconv.study.reproduce import check_outputs

    print(f"All {len(check_outputs(_study(options)))} files are there.")


def run(options: Namespace) -> None:
    """Train what is missing."""
    from basisconv.study.execution.stopping import Stop
    from basisconv.study.experiments.cost_table import ensure_costs
    from basisconv.study.experiments.pipeline import Unfinished, make_section
    from basisconv.study.experiments.registry import TRAINED
    from basisconv.study.records.checkpoint import CHECKPOINT_SECONDS

    study = _study(options)
    if unknown := [name for name in options.sections if name not in TRAINED]:
        raise ValueError(f"No runs belong to {unknown}. Sections: {', '.join(TRAINED)}.")
    sections = options.sections or TRAINED
    if options.dry_run:
        _list_runs(study, sections, options.retry_failed)
        return
    stop = Stop(60 * options.minutes)  # for all that follows
    if not ensure_costs(study, sections, stop):
        print("Some step times are still to be measured, before any run: repeat the command.")
        return
    seconds = options.checkpoint_seconds
    seconds = CHECKPOINT_SECONDS if seconds is None else seconds
    failed: set[str] = set()  # once each: 04 fails with the runs of 03 that it waits for
    for name in sections:
        try:
            make_section(study, name, None, stop, options.retry_failed, seconds)
        except Unfinished as unfinished:
            print(unfinished, file=sys.stderr)
            failed.update(unfinished.failed)
    status(options)
    if failed:  # unlike a time limit, which was asked for
        raise RuntimeError(f"{len(failed)} runs failed")


def _list_runs(study: Study, sections: Iterable[str], retry_failed: bool) -> None:
    from basisconv.study.experiments.design import Waiting
    from basisconv.study.experiments.registry import draft
    from basisconv.study.progress import RunTimes, steps_done

    times = RunTimes.of(study)
    for name in sections:
        try:
            found = draft(study, name)
            runs = study.store.untrained(found.runs.values(), retry_failed)
        except Waiting as waiting:
            print(f"{name}: {waiting}")
            continue
        hours = times.hours_left(runs)
        duration = "unknown time" if hours is None else f"{hours:.1f} h"
        print(f"{name}: {len(runs)} runs to train{f', {duration}' if runs else ''}")
        left = {run.run_id: run for run in runs}
        for arm in found.arms:
            own = [left[run_id] for run_id in arm.run_ids if run_id in left]
            if own:
                print(f"  {arm.label}")
            for run in own:
                plans = " → ".join(f"{len(p.plan.layers)} basis layers" for p in run.phases)
                done = steps_done(run, study.store)
                print(
                    f"    {run.run_id}  {run.network}, width {run.width}, seed {run.seed}, "
                    f"{plans}, {run.steps} steps{f', {done} of them done' if done else ''}"
                )


def train(options: Namespace) -> None:
    """Train one run, with all processes that torchrun started."""
    from basisconv.study.execution.one_run import train_distributed
    from basisconv.study.execution.stopping import Stop, stop_on_signals
    from basisconv.study.experiments.registry import runs_with_kept_weights
    from basisconv.study.records.run import Run
    from basisconv.study.training.distributed import torchrun_group

    study, stop = _study(options), Stop()
    run = _find(study, options.run_id)
    with torchrun_group() as group:
        run = Run.model_validate(run.model_dump() | {"processes": group.size})
        with stop_on_signals(stop):
            kept = runs_with_kept_weights(study)
            outcome = train_distributed(run, study.store, group, stop, kept)
    if outcome is None:
        return
    if outcome.status not in ("done", "diverged"):
        raise RuntimeError(f"run {run.run_id} is {outcome.status}: {outcome.error}")
    print(f"{study.store.path(run.run_id)}: {outcome.status}")


def _find(study: Study, run_id: str) -> Run:
    from basisconv.study.experiments.design import Waiting
    from basisconv.study.experiments.registry import TRAINED, draft

    for name in TRAINED:
        with suppress(Waiting):
            runs = draft(study, name).runs
            if run_id in runs:
                return runs[run_id]
    raise LookupError(
        f"Profile {study.profile.name} has no run {run_id} with these settings: "
        "python -m basisconv run --dry-run lists its runs."
    )


def status(options: Namespace) -> None:
    """Print how far the profile's sections are."""
    from basisconv.study.experiments.study import published_folder
    from basisconv.study.progress import progress_by_section, table
    from basisconv.study.records.environment import ROOT
    from basisconv.study.records.publish import read_manifest

    study = _study(options)
    profile = study.profile.name
    print(f"profile {profile}: {study.profile.about}")
    rows, by_macs = progress_by_section(study)
    print(table(rows))
    if by_macs:
        print(
            "The numbers of steps are estimates, for not all step times are measured yet: "
            f"python -m basisconv bench --costs {profile}"
        )
    if there := read_manifest(published_folder(profile)):
        folder = published_folder(profile).relative_to(ROOT)
        whole = [name for name, entry in there.items() if entry.complete]
        parts = [name for name, entry in there.items() if not entry.complete]
        print(
            f"published in {folder}: {', '.join(whole) or 'no complete section'}"
            + (f"; in part {', '.join(parts)}" if parts else "")
            + f". To use these records: python -m basisconv merge {folder} --profile {profile}"
        )


def verify(options: Namespace) -> None:
    """Compare all files of a profile with their checksums."""
    from basisconv.study.verify import verify

    study = _study(options)
    findings = verify(study)
    if not (findings.problems or any(findings.sound.values())):
        print(f"Nothing to verify: {study.store.folder} is empty, and nothing is published.")
        return
    print(", ".join(f"{count} {kind}" for kind, count in findings.sound.items()) + " are sound")
    for problem in findings.problems:
        print(problem, file=sys.stderr)
    if findings.problems:
        raise RuntimeError(f"{len(findings.problems)} files are not what was written")


def merge(options: Namespace) -> None:
    """Add records made elsewhere."""
    from basisconv.study.records.publish import read_manifest

    study = _study(options)
    profile = study.profile.name
    profiles = {entry.section.profile for entry in read_manifest(options.folder).values()}
    if others := profiles - {profile}:
        raise ValueError(
            f"{options.folder} holds records of profile {', '.join(others)}, not of {profile}: "
            f"add --profile {min(others)}."
        )
    report = study.store.merge(options.folder)
    print(f"{_summary(report, 'added')}, in {study.store.folder}")


def _summary(report: MergeReport, verb: str) -> str:
    text = f"{len(report.added)} {verb}, {len(report.known)} known"
    if report.kept:
        text += (
            f", {len(report.kept)} not added, because there is another result of another kind of "
            f"device or of a GPU: {', '.join(report.kept)}"
        )
    return text


def publish(options: Namespace) -> None:
    """Copy a section's records to paper/runs."""
    from basisconv.study.experiments.pipeline import make_section
    from basisconv.study.experiments.registry import TRAINED, draft
    from basisconv.study.experiments.study import published_folder
    from basisconv.study.records.publish import publish, published, unpublished

    study, name = _study(options), options.section
    # Publishing trains nothing: what is missing is named.
    section = draft(study, name).section() if name in TRAINED else make_section(study, name)
    folder = published_folder(study.profile.name)
    report = publish(study.store, section, folder, options.incomplete)
    parts = [_summary(report, "records published")]
    if left := len(unpublished(section, folder)):
        parts.append(f"{left} missing")
        if name in published(folder):
            parts.append("and the complete section published before is still shown")
    if report.removed:
        parts.append(f"{len(report.removed)} removed: {' '.join(report.removed)}")
    print(f"{name}: {', '.join(parts)}")


def paper(options: Namespace) -> None:
    """Build the paper."""
    from basisconv.study.paper import best_published, build_paper, build_published
    from basisconv.study.records.environment import ROOT

    shown = None if options.profile else best_published()
    path = build_published(shown) if shown else build_paper(_study(options))
    print(path.relative_to(ROOT))


def bench(options: Namespace) -> None:
    """Time this device."""
    from basisconv.study.experiments.cost_table import measure_table
    from basisconv.study.experiments.study import Study
    from basisconv.study.records.environment import ROOT
    from basisconv.study.timing import bench, networks

    # Without --repeats each of these has its own number of turns.
    turns = {} if options.repeats is None else {"repeats": options.repeats}
    if options.costs:
        path = measure_table(Study.open(options.costs), **turns)
    elif options.networks:
        path = bench.save_benchmark(networks.benchmark_device(**turns), networks.FOLDER)
    else:
        facts = bench.benchmark_device(**turns, minutes=options.minutes)
        print(bench.markdown(facts))
        path = bench.save_benchmark(facts, bench.FOLDER)
    print(path.relative_to(ROOT))


def data(options: Namespace) -> None:
    """List or verify the data sets, or make the sample."""
    from basisconv.study.data.packing import write_sample
    from basisconv.study.data.sets import list_sets, verify_sets

    if options.action == "where":
        print(list_sets())
    elif options.action == "verify":
        print(verify_sets(options.folder))
    elif options.folder is None:
        raise ValueError("data sample writes a new folder: name it.")
    else:
        print(f"{options.folder}: sha256 {write_sample(options.folder).sha256}")


RESUMABLE = (reproduce, run, train)
"""The commands that continue where an interrupted call ended."""

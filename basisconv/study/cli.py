"""The reproduction's commands."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from basisconv import __version__
from basisconv.study.execution.stopping import Terminated, sigterm_raises

if TYPE_CHECKING:
    from basisconv.study.experiments.study import Study
    from basisconv.study.records.run import Run
    from basisconv.study.records.store import MergeReport

Command = Callable[[argparse.Namespace], None]

_EXAMPLES = """examples:
  basisconv status --profile desk          the plan in hours, and what is done
  basisconv run 03_sensitivity --profile desk --minutes 50
  basisconv merge paper/runs/desk --profile desk
  basisconv publish 03_sensitivity --profile desk
  basisconv reproduce --set width=8 --set "seeds.confirm=[100]"
`python -m basisconv` is the same; `basisconv COMMAND --help` explains a command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 when it did what was asked; 1, with one sentence on stderr, when not; 130 after Ctrl-C,
        141 when nobody reads its output to the end, and 143 after SIGTERM.
    """
    kept = ""
    try:
        options = _parser().parse_args(arguments)
        if options.command in (_reproduce, _run, _train) or vars(options).get("costs"):
            kept = "; what is done is kept, and the same command goes on from there"
        command: Command = options.command
        with sigterm_raises():
            command(options)
        print(end="", flush=True)  # at exit, nobody could catch that it fails
    except (ValueError, OSError, RuntimeError, LookupError, ImportError) as error:
        # A worker's pipe breaks, too, and that is no reader who has seen enough.
        if isinstance(error, BrokenPipeError) and _unread("\n"):
            return 141
        lacking = isinstance(error, ModuleNotFoundError)
        hint = ". The commands need more: pip install 'basisconv[study]'" if lacking else ""
        print(f"basisconv: {error}{hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"basisconv: interrupted{kept}", file=sys.stderr)
        return 130
    except Terminated:
        print(f"basisconv: terminated{kept}", file=sys.stderr)
        return 143
    finally:
        _unread()
    return 0


def _unread(more: str = "") -> bool:
    """Whether the reader of stdout is gone, which only a write tells for sure.

    Where stdout cannot be written, what it still holds goes nowhere: Python would try again at
    exit, and complain.
    """
    try:
        print(end=more, flush=True)
    except OSError as error:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return isinstance(error, BrokenPipeError)
    return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="basisconv", description=__doc__, epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"basisconv {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, command: Command, text: str, profile: bool = True, runs: bool = False
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        if runs:
            sub.add_argument("--runs", type=Path, default=None, metavar="DIR",
                             help="the store of records; default: build/PROFILE/runs")  # fmt: skip
        if profile:
            sub.add_argument("--profile", default=None,
                             help="default: paper with CUDA, else quick")  # fmt: skip
            sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                             help="change a setting of the profile, as in width=16 or "
                                  "training.learning_rate=0.1")  # fmt: skip
        return sub

    reproduce = add("reproduce", _reproduce, "run every notebook in order and build the paper")
    add("check", _check, "see that everything a reproduction declares is there")
    run = add("run", _run, "train what is missing, without notebooks", runs=True)
    run.add_argument("sections", nargs="*", metavar="SECTION",
                     help="whose runs are trained, in this order; default: all")  # fmt: skip
    for sub in (reproduce, run):
        sub.add_argument("--executor", action="append", type="executor={}".format, dest="set",
                         metavar="local|ray", help="who trains; as --set executor=")  # fmt: skip
    run.add_argument("--minutes", type=_time, default=math.inf,
                     help="stop after these, with a checkpoint of each run at hand")  # fmt: skip
    run.add_argument("--checkpoint-seconds", type=_time, default=None, metavar="SECONDS",
                     help="between two checkpoints of a run; default: 60")  # fmt: skip
    run.add_argument("--retry-failed", action="store_true", help="train failed runs again")
    run.add_argument("--dry-run", action="store_true", help="name the runs, and train nothing")
    train = add("train", _train, "train one run, alone or under torchrun", runs=True)
    train.add_argument("run_id", help="of the profile, as `run --dry-run` names them")
    add("status", _status, "how many runs are done, failed, running and missing, and the hours "
        "left", runs=True)  # fmt: skip
    add("verify", _verify, "hold every record, checkpoint and table against its checksum",
        runs=True)  # fmt: skip
    merge = add("merge", _merge, "take in records made elsewhere", runs=True)
    merge.add_argument("folder", type=Path)
    publish = add("publish", _publish, "copy a section's records beside the paper", runs=True)
    publish.add_argument("section")
    publish.add_argument("--incomplete", action="store_true",
                         help="what there is of it; it is shown once it is complete")  # fmt: skip
    add("paper", _paper, "build the paper from what there is")
    bench = add("bench", _bench, "time layers and training steps on this device", profile=False)
    bench.add_argument("--repeats", type=int, default=None,
                       help="interleaved turns; medians and quartiles are over these")  # fmt: skip
    bench.add_argument("--costs", metavar="PROFILE", help="add to a profile's cost table instead")
    data = add("data", _data, "the data sets", profile=False)
    data.add_argument("action", choices=["where", "verify", "sample", "pack"],
                      help="where: which sets are found; verify: check every file of what is "
                           "found, or of a folder; sample: make the embedded sample again from "
                           "the full set; pack: write a set as a pack")  # fmt: skip
    data.add_argument("name", nargs="?", help="a data set for pack, a folder for verify")
    data.add_argument("--out", type=Path, help="the folder to write, for sample and pack")
    return parser


def _time(text: str) -> float:
    time = float(text)
    if not 0 <= time < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no length of time")
    return time


def _study(options: argparse.Namespace) -> Study:
    from basisconv.study.experiments.study import Study
    from basisconv.study.records.environment import device

    name = options.profile or ("paper" if device().type == "cuda" else "quick")
    return Study.open(name, options.set, getattr(options, "runs", None))


def _reproduce(options: argparse.Namespace) -> None:
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


def _check(options: argparse.Namespace) -> None:
    from basisconv.study.reproduce import check_outputs

    print(f"{len(check_outputs(_study(options)))} declared files are there.")


def _run(options: argparse.Namespace) -> None:
    from basisconv.study.execution.stopping import Stop
    from basisconv.study.experiments.cost_table import ensure_costs
    from basisconv.study.experiments.pipeline import Unfinished, make_section
    from basisconv.study.experiments.registry import TRAINED
    from basisconv.study.records.checkpoint import CHECKPOINT_SECONDS

    study = _study(options)
    unknown = [name for name in options.sections if name not in TRAINED]
    if unknown:
        raise ValueError(f"No runs belong to {unknown}. Sections: {', '.join(TRAINED)}.")
    if options.dry_run:
        _dry_run(study, options.sections or TRAINED, options.retry_failed)
        return
    stop = Stop(60 * options.minutes)  # of all that follows together
    if not ensure_costs(study, options.sections or TRAINED, stop):
        print("Step times are left to be measured, before any run: the same command goes on.")
        return
    seconds = (
        CHECKPOINT_SECONDS if options.checkpoint_seconds is None else options.checkpoint_seconds
    )
    failed: dict[str, None] = {}  # by id: 04 fails over the runs of 03 that it waits for
    for name in options.sections or TRAINED:
        try:
            make_section(study, name, None, stop, options.retry_failed, seconds)
        except Unfinished as unfinished:
            print(unfinished, file=sys.stderr)
            failed |= dict.fromkeys(unfinished.failed)
    _status(options)
    if failed:  # being out of time is what --minutes asks for; a failure is not
        raise RuntimeError(f"{len(failed)} runs failed")


def _train(options: argparse.Namespace) -> None:
    from basisconv.study.execution.one_run import train_distributed
    from basisconv.study.execution.stopping import Stop, stop_on_signals
    from basisconv.study.records.run import Run
    from basisconv.study.training.distributed import torchrun_group

    study, stop = _study(options), Stop()
    run = _find(study, options.run_id)
    with torchrun_group() as group:
        run = Run.model_validate(run.model_dump() | {"processes": group.size})
        with stop_on_signals(stop):
            outcome = train_distributed(run, study.store, group, stop)
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
        "python -m basisconv run --dry-run names its runs."
    )


def _dry_run(study: Study, sections: Iterable[str], retry_failed: bool) -> None:
    from basisconv.study.experiments.design import Waiting
    from basisconv.study.experiments.registry import draft
    from basisconv.study.progress import RunTimes, steps_done

    clock = RunTimes.of(study)
    for name in sections:
        try:
            found = draft(study, name)
            runs = study.store.untrained(found.runs.values(), retry_failed)
        except Waiting as waiting:
            print(f"{name}: {waiting}")
            continue
        hours = clock.hours_left(runs)
        told = "unknown time" if hours is None else f"{hours:.1f} h"
        print(f"{name}: {len(runs)} runs to train{f', {told}' if runs else ''}")
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


def _status(options: argparse.Namespace) -> None:
    from basisconv.study.experiments.study import published_folder
    from basisconv.study.progress import progress_by_section, table
    from basisconv.study.records.environment import ROOT
    from basisconv.study.records.publish import read_manifest

    study = _study(options)
    print(f"profile {study.profile.name}: {study.profile.about}")
    rows, by_macs = progress_by_section(study)
    print(table(rows))
    if by_macs:
        print(
            "The runs are sized by multiplications, for not all step times are measured yet: "
            f"python -m basisconv bench --costs {study.profile.name}"
        )
    if there := read_manifest(published_folder(study.profile.name)):
        folder = published_folder(study.profile.name).relative_to(ROOT)
        whole = [name for name, entry in there.items() if entry.complete]
        parts = [name for name, entry in there.items() if not entry.complete]
        print(
            f"published in {folder}: {', '.join(whole) or 'no whole section'}"
            + (f"; in part {', '.join(parts)}" if parts else "")
            + f". Take these records up: python -m basisconv merge {folder} --profile "
            + study.profile.name
        )


def _verify(options: argparse.Namespace) -> None:
    from basisconv.study.verify import verify

    study = _study(options)
    findings = verify(study)
    if not (findings.problems or any(findings.sound.values())):
        print(
            f"There is nothing to verify: {study.store.folder} is empty, and nothing is published."
        )
        return
    print(", ".join(f"{count} {kind}" for kind, count in findings.sound.items()) + " are sound")
    for problem in findings.problems:
        print(problem, file=sys.stderr)
    if findings.problems:
        raise RuntimeError(f"{len(findings.problems)} files are not what was written")


def _merge(options: argparse.Namespace) -> None:
    from basisconv.study.records.publish import read_manifest

    study = _study(options)
    profile = study.profile.name
    if others := {entry.section.profile for entry in read_manifest(options.folder).values()} - {
        profile
    }:
        raise ValueError(
            f"{options.folder} holds records of profile {', '.join(others)}, not of {profile}: "
            f"add --profile {min(others)}."
        )
    print(f"{_told(study.store.merge(options.folder), 'added')}, in {study.store.folder}")


def _told(report: MergeReport, verb: str) -> str:
    told = f"{len(report.added)} {verb}, {len(report.known)} known"
    if report.kept:
        told += (
            f", {len(report.kept)} not taken, where the result that was here first stands, of "
            f"another kind of device or a GPU: {', '.join(report.kept)}"
        )
    return told


def _publish(options: argparse.Namespace) -> None:
    from basisconv.study.experiments.pipeline import make_section
    from basisconv.study.experiments.registry import TRAINED, draft
    from basisconv.study.experiments.study import published_folder
    from basisconv.study.records.publish import publish, published, unpublished

    study, name = _study(options), options.section
    # Publishing trains nothing: what is missing is named.
    section = draft(study, name).section() if name in TRAINED else make_section(study, name)
    folder = published_folder(study.profile.name)
    report = publish(study.store, section, folder, options.incomplete)
    left = len(unpublished(section, folder))
    parts = [_told(report, "records published")]
    if left:
        parts.append(f"{left} missing")
    if report.removed:
        parts.append(f"{len(report.removed)} removed: {' '.join(report.removed)}")
    shown = (
        "; until all are there the whole one is shown" if left and name in published(folder) else ""
    )
    print(f"{name}: {', '.join(parts)}{shown}")


def _paper(options: argparse.Namespace) -> None:
    from basisconv.study.paper import best_published, build_paper, build_published
    from basisconv.study.records.environment import ROOT

    shown = None if options.profile else best_published()
    path = build_published(shown) if shown else build_paper(_study(options))
    print(path.relative_to(ROOT))


def _bench(options: argparse.Namespace) -> None:
    from basisconv.study.experiments.cost_table import measure_table
    from basisconv.study.experiments.study import Study
    from basisconv.study.records.environment import ROOT
    from basisconv.study.timing import bench

    # Each has its own number of turns, a cost table the one that `run` measures it by.
    turns = {} if options.repeats is None else {"repeats": options.repeats}
    if options.costs:
        path = measure_table(Study.open(options.costs), **turns)
    else:
        facts = bench.benchmark_device(**turns)
        print(bench.markdown(facts))
        path = bench.save_benchmark(facts)
    print(path.relative_to(ROOT))


def _data(options: argparse.Namespace) -> None:
    from basisconv.study.data import sets

    if options.action == "where":
        print(sets.data_where())
    elif options.action == "verify":
        print(sets.data_verify(options.name))
    elif options.out is None:
        raise ValueError(f"data {options.action} writes a folder: name it with --out.")
    elif options.action == "sample":
        print(sets.data_sample(options.out))
    elif options.name is None:
        raise ValueError("data pack needs the data set's name: cifar10 or cifar100.")
    else:
        print(sets.data_pack(options.name, options.out))

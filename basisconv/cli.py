"""`python -m basisconv …`: the reproduction's commands."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from basisconv.study.protocol import Study

Command = Callable[[argparse.Namespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it did what was asked, 1 with one sentence on stderr when not."""
    options = _parser().parse_args(arguments)
    command: Command = options.command
    try:
        command(options)
    except (ValueError, OSError, RuntimeError, LookupError) as error:
        print(f"basisconv: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("basisconv: interrupted; finished runs are kept", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m basisconv", description=__doc__)
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
            sub.add_argument("--profile", default=None, help="smoke, quick, desk or paper")
            sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                             help="change a setting of the profile")  # fmt: skip
        return sub

    add("reproduce", _reproduce, "run every notebook in order and build the paper")
    add("check", _check, "see that everything a reproduction declares is there")
    run = add("run", _run, "train what is missing, without notebooks", runs=True)
    run.add_argument("sections", nargs="*", metavar="SECTION",
                     help="whose runs are trained, in this order; default: all")  # fmt: skip
    run.add_argument("--minutes", type=_minutes, default=None, help="start no run after these")
    run.add_argument("--retry-failed", action="store_true", help="train failed runs again")
    add("status", _status, "how many runs are done and missing, and the hours left", runs=True)
    merge = add("merge", _merge, "take in records made elsewhere", runs=True)
    merge.add_argument("folder", type=Path)
    publish = add("publish", _publish, "copy a section's records beside the paper", runs=True)
    publish.add_argument("section")
    add("paper", _paper, "build the paper from what there is")
    bench = add("bench", _bench, "time layers and training steps on this device", profile=False)
    bench.add_argument("--repeats", type=int, default=20,
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


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 <= minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no time to train for")
    return minutes


def _study(options: argparse.Namespace) -> Study:
    from basisconv.study.environment import device
    from basisconv.study.protocol import Study

    name = options.profile or ("paper" if device().type == "cuda" else "quick")
    return Study.open(name, options.set, getattr(options, "runs", None))


def _reproduce(options: argparse.Namespace) -> None:
    from basisconv.study.environment import ROOT
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
    from basisconv.study.reproduce import declared

    print(f"{len(declared(_study(options)))} declared files are there.")


def _run(options: argparse.Namespace) -> None:
    from basisconv.study.experiments import DRAFTS
    from basisconv.study.sections import Unfinished, make_section
    from basisconv.study.step_costs import ensure_costs

    study = _study(options)
    unknown = [name for name in options.sections if name not in DRAFTS]
    if unknown:
        raise ValueError(f"No runs belong to {unknown}. Sections: {', '.join(DRAFTS)}.")
    ensure_costs(study)
    started = time.monotonic()
    failed: dict[str, None] = {}  # by id: 04 fails over the runs of 03 that it waits for
    for name in options.sections or DRAFTS:
        minutes = None
        if options.minutes is not None:
            minutes = max(0.0, options.minutes - (time.monotonic() - started) / 60)
        try:
            make_section(study, name, None, minutes, options.retry_failed)
        except Unfinished as unfinished:
            print(unfinished, file=sys.stderr)
            failed |= dict.fromkeys(unfinished.failed)
    _status(options)
    if failed:  # being out of time is what --minutes asks for; a failure is not
        raise RuntimeError(f"{len(failed)} runs failed")


def _status(options: argparse.Namespace) -> None:
    from basisconv.study.experiments import DRAFTS, Waiting, draft
    from basisconv.study.status import status
    from basisconv.study.workload import table, workload

    study = _study(options)
    print(f"profile {study.profile.name}: {study.profile.about}")
    # First, for the plan can be told before the step times are measured that size the runs.
    print(f"{table(workload(study))}\n")
    for name in DRAFTS:
        try:
            runs = draft(study, name).runs.values()
        except Waiting as waiting:
            print(f"{name:<18} {waiting}")
            continue
        now = status(runs, study.store, study.profile.workers)
        left = "unknown time" if now.hours is None else f"{now.hours:.1f} h"
        print(
            f"{name:<18} {now.done:>5} done {now.failed:>5} failed {now.missing:>5} missing"
            f"  {left} left"
        )


def _merge(options: argparse.Namespace) -> None:
    report = _study(options).store.merge(options.folder)
    print(
        f"{len(report.added)} added, {len(report.known)} known, {len(report.kept)} from another "
        f"kind of device not taken: {', '.join(report.kept) or 'none'}"
    )


def _publish(options: argparse.Namespace) -> None:
    from basisconv.study.experiments import DRAFTS, draft
    from basisconv.study.protocol import published_folder
    from basisconv.study.publish import publish
    from basisconv.study.sections import make_section

    study, name = _study(options), options.section
    # Publishing trains nothing: what is missing is named.
    section = draft(study, name).section() if name in DRAFTS else make_section(study, name)
    report = publish(study.store, section, published_folder(study.profile.name))
    print(f"{name}: {len(report.added)} records published, {len(report.known)} known")


def _paper(options: argparse.Namespace) -> None:
    from basisconv.study.environment import ROOT
    from basisconv.study.paper import best_published, build_paper, build_published

    shown = None if options.profile else best_published()
    path = build_published(shown) if shown else build_paper(_study(options))
    print(path.relative_to(ROOT))


def _bench(options: argparse.Namespace) -> None:
    from basisconv.study import bench
    from basisconv.study.environment import ROOT
    from basisconv.study.protocol import Study
    from basisconv.study.step_costs import measure_costs

    if options.costs:
        path = measure_costs(Study.open(options.costs), options.repeats)
    else:
        facts = bench.measure_device(options.repeats)
        print(bench.markdown(facts))
        path = bench.save(facts)
    print(path.relative_to(ROOT))


def _data(options: argparse.Namespace) -> None:
    from basisconv.study import data

    if options.action == "where":
        print(data.data_where())
    elif options.action == "verify":
        print(data.data_verify(options.name))
    elif options.out is None:
        raise ValueError(f"data {options.action} writes a folder: name it with --out.")
    elif options.action == "sample":
        print(data.data_sample(options.out))
    elif options.name is None:
        raise ValueError("data pack needs the data set's name: cifar10 or cifar100.")
    else:
        print(data.data_pack(options.name, options.out))

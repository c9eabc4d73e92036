"""The reproduction's commands."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from basisconv import __version__
from basisconv.study import commands
from basisconv.study.execution.stopping import Terminated, sigterm_raises

Command = Callable[[argparse.Namespace], None]

_EXAMPLES = """examples:
  basisconv status --profile desk          hours of training, and what is done
  basisconv run 03_sensitivity --profile desk --minutes 50
  basisconv merge paper/runs/desk --profile desk
  basisconv publish 03_sensitivity --profile desk
  basisconv reproduce --set width=8 --set "seeds.confirm=[100]"
`python -m basisconv` is the same; `basisconv COMMAND --help` explains a command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 when it did what was asked; 1, with one sentence on stderr, when not; 130 after Ctrl-C,
        141 when the reader of its output is gone, and 143 after SIGTERM.
    """
    kept = ""
    try:
        options = _parser().parse_args(arguments)
        if options.command in commands.RESUMABLE or vars(options).get("costs"):
            kept = "; finished work is kept, and the same command continues"
        command: Command = options.command
        with sigterm_raises():
            command(options)
        print(end="", flush=True)  # an error at exit could not be caught
    except BrokenPipeError:
        return 141
    except (ValueError, OSError, RuntimeError, LookupError, ImportError) as error:
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
        try:
            print(end="", flush=True)
        except OSError:  # what cannot be written is discarded, or Python would complain at exit
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="basisconv", description=__doc__, epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"basisconv {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, command: Command, text: str, profile: bool = True, runs: bool = False
    ) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=text, description=text)
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

    reproduce = add("reproduce", commands.reproduce,
                    "run every notebook in order and build the paper")  # fmt: skip
    add("check", commands.check, "check that a reproduction wrote all of its files")
    run = add("run", commands.run, "train what is missing, without notebooks", runs=True)
    run.add_argument("sections", nargs="*", metavar="SECTION",
                     help="train their runs, in this order; default: all")  # fmt: skip
    for sub in (reproduce, run):
        sub.add_argument("--executor", action="append", type="executor={}".format, dest="set",
                         metavar="local|ray", help="short for --set executor=...")  # fmt: skip
    run.add_argument("--minutes", type=_duration, default=math.inf,
                     help="stop after these, leaving checkpoints of unfinished runs")  # fmt: skip
    run.add_argument("--checkpoint-seconds", type=_duration, default=None, metavar="SECONDS",
                     help="between two checkpoints of a run; default: 60")  # fmt: skip
    run.add_argument("--retry-failed", action="store_true", help="train failed runs again")
    run.add_argument("--dry-run", action="store_true", help="list the runs, train nothing")
    train = add("train", commands.train, "train one run, alone or under torchrun", runs=True)
    train.add_argument("run_id", help="one of the profile's, as `run --dry-run` lists them")
    add("status", commands.status, "how many runs are done, failed, running and missing, and the "
        "hours left", runs=True)  # fmt: skip
    add("verify", commands.verify, "compare every record, checkpoint and table with its checksum",
        runs=True)  # fmt: skip
    merge = add("merge", commands.merge, "add records made elsewhere", runs=True)
    merge.add_argument("folder", type=Path)
    publish = add("publish", commands.publish, "copy a section's records to paper/runs", runs=True)
    publish.add_argument("section")
    publish.add_argument("--incomplete", action="store_true",
                         help="copy what there is; the paper shows complete sections")  # fmt: skip
    add("paper", commands.paper, "build the paper from the records that there are")
    bench = add("bench", commands.bench, "time layers and training steps on this device",
                profile=False)  # fmt: skip
    bench.add_argument("--repeats", type=int, default=None,
                       help="how often each is timed, in turns with the others")  # fmt: skip
    instead = bench.add_mutually_exclusive_group()
    instead.add_argument("--costs", metavar="PROFILE", help="add to a profile's cost table instead")
    instead.add_argument("--networks", action="store_true",
                         help="time other networks, kernels and image sizes instead")  # fmt: skip
    instead.add_argument("--minutes", type=float, default=None,
                         help="time ResNet-18 alone, in both forms, within these")  # fmt: skip
    data = add("data", commands.data, "the data sets", profile=False)
    data.add_argument("action", choices=["where", "verify", "sample"],
                      help="where: list the sets that are found; verify: check every file of "
                           "these, or of a folder; sample: make the embedded sample from the full "
                           "set")  # fmt: skip
    data.add_argument("folder", nargs="?", type=Path, help="to verify, or a new one for the sample")
    return parser


def _duration(text: str) -> float:
    duration = float(text)
    if not 0 <= duration < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a length of time")
    return duration

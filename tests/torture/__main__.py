"""`make torture`: everything at full scale, and the report of it."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

from basisconv.study.records.environment import environment
from basisconv.study.records.files import write_atomic
from torture import FULL, Line
from torture.damage import damage_trials
from torture.kills import kill_trials
from torture.nodes import node_trials

REPORT = Path(__file__).parents[1] / "torture-report.md"
TRIALS = (kill_trials, damage_trials)


def main() -> int:
    """Run all trials; 1 if one of them found what it should not."""
    warnings.simplefilter("ignore")  # of checkpoints that are refused, by the hundred
    lines: list[Line] = []
    start = time.monotonic()
    for trials in (*TRIALS, node_trials):  # the last has a test of its own, in test_ray.py
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            lines += trials(Path(folder) / "trials", FULL)
            print(f"{trials.__name__}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    text = report(lines, time.monotonic() - start)
    print(text)
    write_atomic(REPORT, text.encode())
    return int(not all(line.passed for line in lines))


def report(lines: list[Line], seconds: float) -> str:
    """The report in Markdown."""
    here = environment()
    failed = sum(not line.passed for line in lines)
    rows = [
        f"| {line.what} | {line.trials} | {line.found} | {'yes' if line.passed else '**NO**'} |"
        for line in lines
    ]
    return "\n".join(
        [
            "# What was done to it, and what came of it",
            "",
            "Written by `make torture`; `make test` does the same on a smaller scale. Results are "
            "compared to the last bit; they are of real trainings (ResNet-18 of width 8, 60 "
            "images, 3 to 5 steps with switches between forms, a checkpoint before every step).",
            "",
            f"Commit {here['commit']}, {here['device']} ({here['device_kind']}), "
            f"{os.cpu_count()} cores, "
            f"{here['platform']}, Python {here['python']}, torch {here['torch']}; "
            f"{seconds / 60:.1f} minutes; {failed} of {len(lines)} lines are not as wanted.",
            "",
            "| what | trials | found | as wanted |",
            "| --- | ---: | --- | --- |",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())

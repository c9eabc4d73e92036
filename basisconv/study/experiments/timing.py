"""06: how much of the saving in multiplications does the clock see?"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from basisconv.study.experiments.parameters import Share, Strict
from basisconv.study.experiments.study import Study
from basisconv.study.records.run import Count
from basisconv.study.timing import bench


class Parameters(Strict):
    """06_timing: `widths` are those of the networks, `repeats` the interleaved turns.

    `devices` is "this" to time the profile's network here, or "all" to show what `make bench`
    has kept of every machine (and to run it where there is nothing yet).
    """

    devices: Literal["this", "all"]
    ratios: Annotated[list[Share], Field(min_length=1)]
    widths: Annotated[list[Count], Field(min_length=1)]
    batch_size: Count
    repeats: Count


def measure(study: Study, parameters: Parameters) -> dict[str, Any]:
    """This machine's timings at the profile's size, or `make bench`'s of every machine."""
    profile = study.profile
    if parameters.devices == "all":
        if not bench.saved_benchmarks(bench.FOLDER):
            bench.save_benchmark(bench.benchmark_device(parameters.repeats), bench.FOLDER)
        return {"devices": bench.saved_benchmarks(bench.FOLDER)}
    measured = bench.measure(
        [(profile.network, width) for width in parameters.widths], parameters.ratios,
        [parameters.batch_size], [profile.precision], parameters.repeats,
        threads=profile.threads * profile.workers,
    )  # fmt: skip
    return {"devices": [measured]}

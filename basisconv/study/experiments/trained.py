"""08b: a trained network made faster, against pruning and other decompositions.

Dense networks are trained at equal epochs, as 02's longest are, whose runs a profile can share.
What is measured of those cut from them is kept row by row in the store, and a draft reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from basisconv.plan import Plan
from basisconv.study.compression.cutting import Budget, Cutter, OutOfReach, Way, parameter_count
from basisconv.study.compression.epoch import evaluate, train_epoch
from basisconv.study.compression.runtime import RuntimeName, Stopwatch, available
from basisconv.study.data.sets import Dataset, load
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.named_arms import Comparison, add_comparison
from basisconv.study.experiments.parameters import Positive, Share, Strict
from basisconv.study.records.environment import configure_cpu, environment
from basisconv.study.records.files import canonical
from basisconv.study.records.run import Count, Run
from basisconv.study.timing.steps import initialised_network
from basisconv.study.training.augment import evaluation_batches
from basisconv.study.training.phases import trained_network

if TYPE_CHECKING:
    from basisconv.study.experiments.study import Study

NAME = "08b_trained"
ONE_RATIO: tuple[Way, ...] = ("svd", "responses")
"""Ways whose networks differ in nothing but their factors."""
_FITTED_BATCH = 64

Row = dict[str, Any]


class Parameters(Strict):
    """08b_trained: dense networks cut to shares of what they take.

    `epochs` are the networks, at equal epochs: D is cut, narrower dense ones are for comparison.
    `ways` cut it without training, to each of `shares`; `trained_ways` are trained for an epoch
    after that, at `trained_shares`, each at the best of `rates` by the first seed's validation
    accuracy. Shares are of a forward pass: of its time, or of its multiplications, as `budget`
    says. Factors are fitted to the first `images` training images. Times are measured in `runtime`,
    or eager where onnxruntime is not installed, at each of `batch_sizes`, in `repeats` turns; the
    first is that of the budget.
    """

    epochs: Comparison
    budget: Budget
    shares: Annotated[list[Share], Field(min_length=1)]
    ways: list[Way]
    trained_shares: list[Share]
    trained_ways: list[Way]
    rates: Annotated[list[Positive], Field(min_length=1)]
    images: Count
    runtime: RuntimeName
    batch_sizes: Annotated[list[Count], Field(min_length=1)]
    repeats: Count


def draft(study: Study, parameters: Parameters) -> Draft:
    """08b: the dense networks, and what has been measured of those cut from them."""
    result = Draft(NAME, study, parameters.model_dump())
    add_comparison(result, parameters.epochs, "equal epochs")
    runtimes: tuple[RuntimeName, ...] = (parameters.runtime, "eager")
    kept = [r for r in runtimes if study.store.measured(_key(study, parameters, r)) is not None]
    runtime = kept[0] if kept else parameters.runtime
    key = _key(study, parameters, runtime)
    known = {_id(row): row for row in _rows(study, key)}
    wanted = [_id(row) for run in _cut_runs(result) for row in _wanted(result, parameters, run)]
    result.facts |= {
        "runtime": runtime, "measured": key, "wanted": len(wanted),
        "rows": [known[name] for name in wanted if name in known],
    }  # fmt: skip
    return result


def measure(study: Study, parameters: Parameters, stop: Callable[[], bool]) -> bool:
    """Cut, time and evaluate what has no row yet, of the dense networks.

    Returns:
        Whether all rows are there; `stop` is asked before each.

    Raises:
        LookupError: if final weights of a dense network were not kept.
        DamagedFile: if these or the rows are not what was written.
    """
    made = Draft(NAME, study)
    add_comparison(made, parameters.epochs, "equal epochs")
    runtime = available(parameters.runtime)
    key = _key(study, parameters, runtime)
    known = {_id(row) for row in _rows(study, key)}
    for run in _cut_runs(made):
        work: _Work | None = None
        for wanted in _wanted(made, parameters, run):
            if _id(wanted) in known:
                continue
            if stop():
                return False
            work = work or _Work(study, parameters, runtime, run)
            row = wanted | work.measured(wanted, _rows(study, key))
            with study.store.exclusive():  # another process may measure as well
                study.store.put_measured(key, {"rows": [*_rows(study, key), row]})
    return True


def _key(study: Study, parameters: Parameters, runtime: RuntimeName) -> str:
    """Under which the store has the rows: a hash of the settings that decide any of them."""
    threads, p = study.profile.threads, parameters
    settings = [NAME, runtime, threads, p.budget, p.rates, p.images, p.batch_sizes, p.repeats]
    return hashlib.sha256(canonical(settings)).hexdigest()[:16]


def _rows(study: Study, key: str) -> list[Row]:
    return list((study.store.measured(key) or {"rows": []})["rows"])


def _id(row: Row) -> tuple[Any, ...]:
    return row["run_id"], row["way"], row["share"], row["trained"]


def _cut_runs(made: Draft) -> list[Run]:
    """The runs of the dense networks that are cut."""
    ids = [i for arm in made.arms if arm.detail["arm"] == "D" for i in arm.run_ids]
    return [made.runs[run_id] for run_id in ids]


def _wanted(made: Draft, parameters: Parameters, run: Run) -> Iterator[Row]:
    """What is to be measured of one dense network; a cut comes before its training."""
    one = {"run_id": run.run_id, "seed": run.seed}
    if run is _cut_runs(made)[0]:
        for arm in made.arms:
            if (way := arm.detail["arm"]) != "D":
                yield {**one, "way": way, "share": None, "trained": False,
                       "width": arm.detail["width"]}  # fmt: skip
    for share, way in product(parameters.shares, parameters.ways):
        yield {**one, "way": way, "share": share, "trained": False}
    for share, way in product(parameters.trained_shares, parameters.trained_ways):
        yield {**one, "way": way, "share": share, "trained": True}


class _Work:
    """Measures rows of one dense network."""

    def __init__(
        self, study: Study, parameters: Parameters, runtime: RuntimeName, run: Run
    ) -> None:
        self._parameters, self._run = parameters, run
        self._threads = study.profile.threads
        configure_cpu(self._threads)
        self._data: Dataset = load(run.data.name, run.data.train_images)
        dense = trained_network(run, study.store)
        fitted, _ = next(evaluation_batches(self._data.train, batch_size=parameters.images))
        self._watches = [
            Stopwatch(dense, _batch(fitted, size), runtime, parameters.repeats, self._threads)
            for size in parameters.batch_sizes
        ]
        batches = fitted.split(_FITTED_BATCH)
        self._cutter = Cutter(dense, batches, parameters.budget, self._watches[0])

    def measured(self, wanted: Row, known: list[Row]) -> Row:
        """Times, size and accuracy; or why there are none. `known` are the rows before it."""
        where = {"device": environment()["device"], "threads": self._threads}
        if wanted["share"] is None:
            narrow = initialised_network(self._run.network, wanted["width"], Plan()).eval()
            return where | {"times": self._times(narrow)}
        before = _same_size(wanted, known)
        if before is not None and "left_out" in before:
            return where | {"left_out": before["left_out"]}
        try:
            size = self._size(wanted, known) if before is None else before["size"]
        except OutOfReach as error:
            return where | {"left_out": str(error)}
        model = self._cutter.build(wanted["way"], size)
        found: Row = {
            "size": size, "times": self._times(model) if before is None else before["times"],
            "parameters": parameter_count(model), "macs": self._cutter.macs(model),
        }  # fmt: skip
        if wanted["trained"]:
            found |= self._train(model, wanted, known)
        accuracy, correct = evaluate(model, self._data.test)
        images = len(self._data.test)
        return where | found | {"accuracy": accuracy, "correct": correct, "images": images}

    def _size(self, wanted: Row, known: list[Row]) -> dict[str, Any]:
        if wanted["way"] != "tensor_train":
            return self._cutter.size(wanted["way"], wanted["share"])
        searched = _find(known, _id({**wanted, "way": "search", "trained": False}))
        if searched is None or "left_out" in searched:
            raise OutOfReach("There is no network of the search whose parameters it could have.")
        dense = parameter_count(self._cutter.dense)
        return self._cutter.size("tensor_train", searched["parameters"] / dense)

    def _times(self, model: nn.Module) -> dict[str, list[float]]:
        """By batch size: the median, relative to dense, and its quartiles."""
        sizes = self._parameters.batch_sizes
        watches = zip(sizes, self._watches, strict=True)
        return {f"{size}": list(watch.time(model)) for size, watch in watches}

    def _train(self, model: nn.Module, wanted: Row, known: list[Row]) -> Row:
        """Train a cut network for an epoch, in place, at the rate that was best for its kind."""
        kind = (wanted["way"], wanted["share"], True)
        tried = next((r["tried"] for r in known if _id(r)[1:] == kind and "tried" in r), None)
        if tried is None:
            tried = {f"{rate:g}": self._validated(model, rate) for rate in self._parameters.rates}
        rate = max(self._parameters.rates, key=lambda rate: tried[f"{rate:g}"])
        train_epoch(model, self._run, rate, self._data.train)
        return {"rate": rate, "tried": tried}

    def _validated(self, model: nn.Module, rate: float) -> float:
        tried = deepcopy(model)
        try:
            train_epoch(tried, self._run, rate, self._data.train)
        except ArithmeticError:
            return 0.0
        return evaluate(tried, self._data.validation)[0]


def _same_size(wanted: Row, known: list[Row]) -> Row | None:
    """The row of an untrained network of the same size, which was timed."""
    alike = ONE_RATIO if wanted["way"] in ONE_RATIO else (wanted["way"],)
    rows = (_find(known, _id({**wanted, "way": way, "trained": False})) for way in alike)
    return next((row for row in rows if row is not None), None)


def _find(known: list[Row], name: tuple[Any, ...]) -> Row | None:
    return next((row for row in known if _id(row) == name), None)


def _batch(images: Tensor, size: int) -> Tensor:
    """So many images, the same ones again where there are fewer."""
    chosen = images[torch.arange(size) % len(images)]
    return chosen.contiguous(memory_format=torch.channels_last)

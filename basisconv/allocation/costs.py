"""What layers cost inside a running network, in seconds of its forward pass.

Times of layers alone do not add up to a network's. So the whole network runs, with every layer
dense and with all of them on one level (an eighth, a quarter, ... of their filters), in turn, and
hooks read each layer's share of the pass.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from basisconv.layer import BasisConv2d
from basisconv.observe import Forward, run, undisturbed
from basisconv.plan import Plan
from basisconv.surgery import Convolution, convolutions, swap
from basisconv.timing import Timing, compare

DENSE: Literal["dense"] = "dense"
Level = int | Literal["dense"]  # basis filters, or none
SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)  # of a layer's filters
REPEATS, LEAST_REPEATS, SECONDS = 20, 5, 20.0  # of each arm


class Costs(NamedTuple):
    """What each layer costs on each of its levels, and all else, in one unit."""

    layers: dict[str, dict[Level, float]]
    rest: float

    def total(self, chosen: Mapping[str, Level]) -> float:
        """The network's cost with each layer on a level, dense where none is named."""
        return self.rest + math.fsum(
            levels[chosen.get(name, DENSE)] for name, levels in self.layers.items()
        )

    def least(self) -> float:
        """The network's cost with each layer on its cheapest level."""
        return self.rest + math.fsum(min(levels.values()) for levels in self.layers.values())


@dataclass(frozen=True)
class Bench:
    """A dense network, what it is run with, and the basis form that layers of it get.

    Attributes:
        model: the network; it is left as it was.
        given: its input, as `observe.run` takes it.
        forward: likewise.
        device: where all of it is.
        empty: a plan without layers, of the wanted form.
    """

    model: nn.Module
    given: Any
    forward: Forward | None
    device: torch.device
    empty: Plan

    def replaced(self, filters: Mapping[str, int]) -> dict[nn.Module, nn.Module]:
        """New basis layers, by the dense ones: random, for values take no time."""
        found = convolutions(self.model)
        return {found[name]: self._basis(name, found[name], m) for name, m in filters.items()}

    def _basis(self, name: str, conv: Convolution, n_basis: int) -> BasisConv2d:
        assert isinstance(conv, nn.Conv2d)
        try:
            return BasisConv2d.from_conv2d(
                conv, n_basis, "random", self.empty.form, self.empty.coef_groups,
                generator=torch.Generator(),
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def compare(
        self,
        arms: Mapping[str, Mapping[nn.Module, nn.Module]],
        act: Callable[[str], object] | None = None,
    ) -> dict[str, Timing]:
        """Time forward passes with some layers replaced, interleaved.

        Each arm gets 20 passes, or as many as the slowest does in 20 s, but at least five.

        Args:
            arms: the layers that an arm replaces, with what it replaces them by.
            act: what is timed, given an arm's name; None for a forward pass.

        Raises:
            ValueError: on a device whose work cannot be waited for.
        """
        calls = {name: partial(act, name) if act else self.run for name in arms}
        with undisturbed(self.model), torch.inference_mode(), self._stage() as show:
            timed = partial(
                compare, calls, warmup=1, device=self.device, setup=lambda arm: show(arms[arm])
            )
            slowest = max(timing.median for timing in timed(repeats=1).values())
            wanted = int(SECONDS / slowest) if slowest > 0 else REPEATS
            return timed(repeats=max(LEAST_REPEATS, min(REPEATS, wanted)))

    def run(self) -> object:
        """One forward pass."""
        return run(self.model, self.given, self.forward)

    @contextmanager
    def _stage(self) -> Iterator[Callable[[Mapping[nn.Module, nn.Module]], None]]:
        """A function that replaces some layers, and those of its last call no more."""
        standing: dict[nn.Module, nn.Module] = {}

        def show(replaced: Mapping[nn.Module, nn.Module]) -> None:
            swap(self.model, {new: old for old, new in standing.items()})
            standing.clear()
            swap(self.model, replaced)
            standing.update(replaced)

        try:
            yield show
        finally:
            show({})


def measure_costs(bench: Bench, numbers: Mapping[str, Sequence[int]]) -> Costs:
    """Seconds of layers, dense and with any number of basis filters, inside a network.

    Args:
        bench: the network and its input.
        numbers: for each layer the numbers of basis filters that it may have. Measured are the
            nearest to `SHARES` of its filters; the others follow as `interpolated` says.

    Returns:
        Medians over passes; the rest is what is left of a dense pass.
    """
    found = convolutions(bench.model)
    levels: dict[str, dict[str, int]] = {DENSE: {}}
    for share in SHARES:
        levels[f"{share}"] = {
            name: min(own, key=lambda m: abs(m - share * found[name].out_channels))
            for name, own in numbers.items()
        }
    watch = _Watch(bench.device)
    with ExitStack() as hooks:
        # The hooks move with `swap` to whatever stands in a layer's place.
        for name in numbers:
            watch.follow(name, found[name], hooks)
        bench.compare(
            {level: bench.replaced(filters) for level, filters in levels.items()},
            lambda level: watch.time_pass(level, bench.run),
        )
    shares = watch.seconds()
    layers: dict[str, dict[Level, float]] = {}
    for name, own in numbers.items():
        samples: dict[Level, list[float]] = {}
        for level, filters in levels.items():
            samples.setdefault(filters.get(name, DENSE), []).extend(shares[level][name])
        medians = {m: statistics.median(values) for m, values in samples.items()}
        points = {m: seconds for m, seconds in medians.items() if isinstance(m, int)}
        layers[name] = {DENSE: medians[DENSE], **interpolated(points, own)}
    # Pass by pass: what else the machine does meanwhile mostly falls into layers, not the rest.
    parts = zip(*(shares[DENSE][name] for name in numbers), strict=True)
    rest = [whole - math.fsum(own) for whole, own in zip(shares[DENSE][_WHOLE], parts, strict=True)]
    return Costs(layers, statistics.median(rest))


_WHOLE = ""  # no layer's name
_WARMUP = 3  # passes that `Bench.compare` makes to find how many it has time for, and before them


class _Watch:
    """Times of layers' calls within passes of a network, in seconds."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"
        # Of each pass at each level, whose calls they were and the marks around each of them.
        self._passes: dict[str, list[list[tuple[str, Any, Any]]]] = {}
        self._calls: list[tuple[str, Any, Any]] = []
        self._starts: dict[str, Any] = {}
        self._followed: list[str] = []

    def follow(self, name: str, layer: nn.Module, hooks: ExitStack) -> None:
        """Time a layer's calls without the user's hooks on it, until the stack is left."""

        def before(*_: Any) -> None:
            self._starts[name] = self._mark()

        def after(*_: Any) -> None:
            self._calls.append((name, self._starts[name], self._mark()))

        self._followed.append(name)
        hooks.callback(layer.register_forward_pre_hook(before).remove)
        hooks.callback(layer.register_forward_hook(after, prepend=True).remove)

    def time_pass(self, level: str, act: Callable[[], object]) -> None:
        """One pass at a level."""
        self._calls = []
        self._passes.setdefault(level, []).append(self._calls)
        start = self._mark()
        act()
        self._calls.append((_WHOLE, start, self._mark()))

    def seconds(self) -> dict[str, dict[str, list[float]]]:
        """By level and layer, one value a pass, summed over its calls; warm-up is left out."""
        if self._cuda:
            torch.cuda.synchronize(self._device)
        found: dict[str, dict[str, list[float]]] = {}
        for level, passes in self._passes.items():
            sums = found.setdefault(level, {})
            for calls in passes[_WARMUP:]:
                spent = dict.fromkeys((_WHOLE, *self._followed), 0.0)
                for name, start, end in calls:
                    spent[name] += start.elapsed_time(end) / 1e3 if self._cuda else end - start
                for name, value in spent.items():
                    sums.setdefault(name, []).append(value)
        return found

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def interpolated(points: Mapping[int, float], numbers: Sequence[int]) -> dict[Level, float]:
    """Costs with some numbers of basis filters, from those with others.

    Made monotone (isotonic regression, equal weights), linear in between, and outside on the line
    through the two nearest, but not below zero.

    Args:
        points: cost by number of basis filters, at least one.
        numbers: the numbers asked for.
    """
    known = sorted(points)
    pools: list[list[float]] = []  # of neighbours that are out of order, to be averaged
    for m in known:
        pools.append([points[m]])
        while len(pools) > 1 and statistics.fmean(pools[-2]) > statistics.fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    heights = [statistics.fmean(pool) for pool in pools for _ in pool]

    def cost(m: int) -> float:
        if len(known) > 1 and not known[0] <= m <= known[-1]:
            i = 0 if m < known[0] else len(known) - 2
            slope = (heights[i + 1] - heights[i]) / (known[i + 1] - known[i])
            return max(0.0, heights[i] + slope * (m - known[i]))
        return float(np.interp(m, known, heights))

    return {m: cost(m) for m in numbers}

"""Timing that can be trusted: arms interleaved in one process, medians, ratios pair by pair.

The arms run in turn, each turn in a new order, so that neither a drift of the machine's pace
nor what the arm before leaves in the caches favours one of them (a fixed order was seen to be worth
3 to 5 % on a CPU), and each ratio is taken within one turn. On CUDA, events on the stream are
timed after a synchronise; on a CPU the clock is `time.perf_counter`.
"""

from __future__ import annotations

import math
import random
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_map_only

from basisconv.holders import check_unsharded
from basisconv.layer import MODES, BasisConv2d
from basisconv.observe import Input, Observed, arguments, observe
from basisconv.progress import progress
from basisconv.snapshot import put_back_on_error
from basisconv.surgery import check_replaceable, swap

# Seconds of a sample on CUDA: many launches, and many ticks of its events' clock.
_CUDA_SAMPLE = 5e-3


@dataclass(frozen=True)
class Timing:
    """One arm's samples, in seconds, in the order of the turns; warm-up is kept apart.

    It prints as its median and, but for the first arm of a comparison, how many times as fast as
    that it is: "0.146 s, 2.05× [2.01, 2.10]", median and quartiles over turns.
    """

    samples: tuple[float, ...]
    warmup: float
    first: Timing | None = field(default=None, compare=False)  # arm of the same comparison

    def __repr__(self) -> str:
        text = duration(self.median)
        if self.first is not None:
            median, low, high = self.speedup_over(self.first)
            text += f", {median:.2f}× [{low:.2f}, {high:.2f}]"
        return text

    @property
    def median(self) -> float:
        """Seconds."""
        return _quantile(self.samples, 0.5)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The 25 % and 75 % quantiles, in seconds."""
        return _quantile(self.samples, 0.25), _quantile(self.samples, 0.75)

    def speedup_over(self, other: Timing) -> tuple[float, float, float]:
        """How many times less than `other` this arm takes: median and quartiles over turns."""
        ratios = [b / a for a, b in zip(self.samples, other.samples, strict=True)]
        return _quantile(ratios, 0.5), _quantile(ratios, 0.25), _quantile(ratios, 0.75)


def compare(
    arms: Mapping[str, Callable[[], object]],
    repeats: int = 20,
    warmup: int = 3,
    device: torch.device | str = "cpu",
    setup: Callable[[str], object] | None = None,
) -> dict[str, Timing]:
    """Time several callables, interleaved.

    Args:
        arms: what to call, by name. Each should take a millisecond or more.
        repeats: turns that count.
        warmup: turns before them; their time (compilation, caches) is reported apart.
        device: where the work runs, "cpu" or "cuda"; on CUDA it is timed by events on the stream,
            so many calls at once that they take some milliseconds: launching them is hidden, as in
            training, as far as the host is the faster of the two.
        setup: called with an arm's name before each of its samples, which do not count it.

    Raises:
        ValueError: if there is nothing to time, or on a device whose work cannot be waited for
            here.
    """
    if not arms or repeats < 1:
        raise ValueError(f"Nothing to time: {len(arms)} arms, {repeats} repeats.")
    device = torch.device(device)
    if device.type == "cuda":
        # Events and synchronize are the current device's.
        with torch.cuda.device(device):
            return _interleaved(arms, repeats, warmup, _cuda_seconds, _CUDA_SAMPLE, setup)
    if device.type != "cpu":
        raise ValueError(f"Work is timed on a CPU or on CUDA, not on {device.type}.")
    return _interleaved(arms, repeats, warmup, _cpu_seconds, 0.0, setup)


def _interleaved(
    arms: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int,
    clock: Callable[[Callable[[], object], int], float],
    sample: float,
    setup: Callable[[str], object] | None,
) -> dict[str, Timing]:
    """`compare` by a clock; a sample repeats its call until it takes `sample` seconds."""
    warm, calls = {}, {}

    def seconds(name: str, calls: int) -> float:
        if setup is not None:
            setup(name)
        return clock(arms[name], calls)

    for name in arms:
        times = [seconds(name, 1) for _ in range(warmup)]
        warm[name] = sum(times)
        calls[name] = math.ceil(sample / times[-1]) if times and sample else 1
    samples: dict[str, list[float]] = {name: [] for name in arms}
    order, shuffle = list(arms), random.Random(0).shuffle
    for _ in range(repeats):
        shuffle(order)
        for name in order:
            samples[name].append(seconds(name, calls[name]) / calls[name])
    timings = {name: Timing(tuple(samples[name]), warm[name]) for name in arms}
    first, *others = arms
    return timings | {name: replace(timings[name], first=timings[first]) for name in others}


def forward_backward(
    module: nn.Module, x: Tensor, input_gradient: bool = True
) -> Callable[[], None]:
    """A callable that runs forward and backward of a module, as a step of a training does.

    Args:
        module: the layer or network.
        x: its input.
        input_gradient: whether the input, too, gets a gradient, as in all layers but the first.
            Without it a frozen layer has no backward pass.
    """
    x = x.detach().requires_grad_(input_gradient)
    gradient = torch.ones_like(module(x))

    def step() -> None:
        # Autocast keeps its casts of weights until it ends; a training step makes them again.
        torch.clear_autocast_cache()
        x.grad = None
        module.zero_grad(set_to_none=True)
        output = module(x)
        if output.requires_grad:
            output.backward(gradient)

    return step


@dataclass(frozen=True)
class TunedLayer:
    """What `tune` measured of a layer, forward and backward, in seconds (medians).

    `mode` is what it set: "factored", "rebuilt", or "dense" for a layer that it dropped.
    """

    name: str
    dense: float
    factored: float
    rebuilt: float
    mode: str

    @property
    def speedup(self) -> float:
        """Of the faster mode over dense; below 1 where nothing beats dense."""
        return self.dense / min(self.factored, self.rebuilt)


@torch.inference_mode(False)
@torch.enable_grad()
def tune(
    model: nn.Module, input: Input, repeats: int = 20, drop: bool = False
) -> tuple[TunedLayer, ...]:
    """Measure dense, factored and rebuilt for each basis layer, and set the faster mode.

    Each is measured with gradients, as training takes them, also under `torch.no_grad` or
    `torch.inference_mode`; and in eager mode, also where the model is compiled: `torch.compile`
    spares small layers part of their launches, so that they may gain more than this finds. A layer
    that the forward pass calls several times is measured with the input of each call.

    Args:
        model: a network with basis layers; their `mode` is set, nothing else changes.
        input: a batch of the size, dtype, device and memory format that will be trained with: a
            tensor, a tuple of arguments, a mapping of keyword arguments, or a shape for a batch
            of zeros; to train under autocast, call this under autocast. Layers that read it
            directly are timed without its gradient, which training does not need, unless it
            requires one.
        repeats: interleaved measurements of each.
        drop: put layers where nothing beats dense back into dense form, as `restore` does;
            make the optimizer afterwards.

    Returns:
        A row for each layer that the forward pass reaches in evaluation mode, its seconds summed
        over its calls; other layers are left as they are. Those with `speedup` below 1 gain
        nothing from their basis form.

    Raises:
        TypeError: for an input of no such kind.
        ValueError: for a layer whose kernel is not finite, sharded or not initialised; and if
            `drop` is set for a model that is itself a basis layer, or has one that cannot be
            replaced. The model is then unchanged, as it is after any other error.

    Warns:
        UserWarning: if the forward pass reaches no basis layer.
    """
    if drop and isinstance(model, BasisConv2d):
        raise ValueError("The model is itself a BasisConv2d: call its to_conv2d() instead.")
    check_unsharded(model)
    given = arguments(model, input)
    # Autograd keeps no inference tensor.
    given = tree_map_only(Tensor, lambda x: x.clone() if x.is_inference() else x, given)
    found = observe(model, given, (BasisConv2d,))
    if not found:
        warnings.warn("The forward pass reaches no basis layer: nothing to tune.", stacklevel=4)
    if drop:  # any of them may be
        check_replaceable(model, {name: seen.module for name, seen in found.items()})
    rows = []
    for name, seen in found.items():
        if any(is_traceable_wrapper_subclass(p) for p in seen.module.parameters()):
            kind = type(next(seen.module.parameters())).__name__
            raise ValueError(f"{name}: its parameters are {kind}s; tune first, shard then.")
    for name, seen in progress(found.items(), "tune"):
        try:
            row = _measure(name, seen, given.tensors(), repeats)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        rows.append(replace(row, mode="dense") if drop and row.speedup < 1 else row)
    layers = {row: found[row.name].module for row in rows}
    dense = {layer: layer.to_conv2d() for row, layer in layers.items() if row.mode == "dense"}
    with put_back_on_error(model):
        swap(model, dense)
        for row, layer in layers.items():
            if row.mode != "dense":
                layer.mode = row.mode
    return tuple(rows)


def _measure(name: str, seen: Observed, inputs: list[Tensor], repeats: int) -> TunedLayer:
    """Time a layer's dense form and both modes on the inputs of all its calls."""
    # Copies, so that no gradient, hook or flag of the model is touched.
    dense = seen.module.to_conv2d()
    arms: dict[str, nn.Module] = {"dense": dense}
    for mode in MODES:
        # Which values they have takes no time, and random ones are the quickest to make.
        config = {**seen.module.config(), "mode": mode, "init": "random"}
        arms[mode] = BasisConv2d.from_conv2d(dense, **config, generator=torch.Generator())
    distinct: dict[object, tuple[Tensor, bool]] = {}
    times = Counter[object]()
    for x, _ in seen.calls:
        # Of nn.DataParallel's replicas some ran elsewhere.
        wanted = x.requires_grad or not any(x is tensor for tensor in inputs)
        alike = (x.shape, x.stride(), x.dtype, wanted)
        distinct.setdefault(alike, (x.to(dense.weight.device), wanted))
        times[alike] += 1
    median = dict.fromkeys(arms, 0.0)
    for same, (x, wanted) in distinct.items():
        timings = compare(
            {arm: forward_backward(module, x, wanted) for arm, module in arms.items()},
            repeats=repeats,
            device=x.device,
        )
        for arm, timing in timings.items():
            median[arm] += times[same] * timing.median
    best = min(MODES, key=median.__getitem__)
    return TunedLayer(name, median["dense"], median["factored"], median["rebuilt"], best)


def _cpu_seconds(arm: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        arm()
    return time.perf_counter() - start


def _cuda_seconds(arm: Callable[[], object], calls: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        arm()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def _quantile(values: tuple[float, ...] | list[float], q: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(q))


def duration(seconds: float) -> str:
    """Three digits, in a unit that leaves no zeros in front: "0.146 s", "23.1 ms"."""
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 0.1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"

"""Whole networks, dense and in basis form: times of inference and of training steps, and memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from basisconv.cost import LayerCost, Summary, summary
from basisconv.decompose import FORMS
from basisconv.observe import observe
from basisconv.plan import Plan
from basisconv.planning import make_plan
from basisconv.study.timing.conditions import Conditions, timing_of, title
from basisconv.study.timing.machine import step_memory
from basisconv.study.timing.steps import (
    CLASSES,
    inference,
    initialised_network,
    random_images,
    training_step,
)
from basisconv.study.training.models import build_network
from basisconv.timing import Timing, forward_backward


def measure_network(
    name: str, width: int, ratios: Sequence[float], setting: Conditions
) -> Iterator[dict[str, Any]]:
    """A row for inference and for a training step with each form and ratio of basis filters."""
    dense = build_network(name, width, CLASSES)
    plans = {f"{form}, {f:g}": make_plan(dense, ratio=f, form=form)
             for f in ratios for form in FORMS}  # fmt: skip
    models = {
        key: initialised_network(name, width, plan)
        for key, plan in {"dense": Plan(), **plans}.items()
    }
    x = random_images(setting.batch_size)
    # The convolutions in basis form, the same ones in all plans; equal ones count once.
    observed = observe(models["dense"], x, (nn.Conv2d,))
    titles = {n: title(*observed[n][:2]) for n in plans[f"{FORMS[0]}, {ratios[0]:g}"].layers}
    alone = {what: observed[n] for n, what in titles.items()}
    before = summary(dense, x.shape)
    for what, backward in (("forward", False), ("training step", True)):
        step, layer = (training_step, forward_backward) if backward else (inference, inference)
        arms = {key: step(setting.running(model), x) for key, model in models.items()}
        arms |= {t: layer(setting.running(o.module), setting.input(o.input))
                 for t, o in alone.items()}  # fmt: skip
        timings = setting.compare(arms)
        for (f, form), key in zip(itertools.product(ratios, FORMS), plans, strict=True):
            after = summary(dense, x.shape, plans[key])
            timed = timing_of(timings[key], timings["dense"])
            expected = _amdahl(timings, titles, before, after, backward)
            yield {
                "network": name, "width": width, **setting.columns(), "arm": form, "ratio": f,
                "what": what, **timed, "bound_speedup": expected,
                "share": timed["speedup"] / expected,
                "macs_ratio": _executed(before, backward) / _executed(after, backward),
            }  # fmt: skip


def _amdahl(
    timings: Mapping[str, Timing],
    titles: Mapping[str, str],
    before: Summary,
    after: Summary,
    backward: bool,
) -> float:
    """The speed-up by Amdahl's law, if layers shrink by their MACs and the rest stays the same.

    It is not an upper bound: a layer may gain more than its MACs, and its time alone differs from
    its time in the network.
    """
    rest = 1.0
    for name, what in titles.items():
        # The layer's share of the dense network's time; it was timed alone in the same turns.
        share = timings["dense"].speedup_over(timings[what])[0]
        kept = _executed(after[name], backward) / _executed(before[name], backward)
        rest -= share * (1 - kept)
    return 1 / rest


def _executed(cost: Summary | LayerCost, backward: bool) -> int:
    return cost.macs + (cost.macs_backward if backward else 0)


def measure_memory(
    name: str, width: int, ratios: Sequence[float], setting: Conditions, threads: int
) -> Iterator[dict[str, Any]]:
    """The peak memory of training steps for each ratio, and that of the dense network."""
    dense = build_network(name, width, CLASSES)
    plans = {f: make_plan(dense, ratio=f) for f in ratios}
    peak = {
        f: step_memory(name, width, plan, setting.batch_size, setting.precision, threads)
        for f, plan in {1.0: Plan(), **plans}.items()
    }
    for f in ratios:
        yield {"network": name, "width": width, **setting.columns(), "ratio": f,
               "peak_mb": peak[f] / 1e6, "dense_peak_mb": peak[1.0] / 1e6}  # fmt: skip

"""The ways to cut a trained network, each to a share of what the dense one takes.

svd           basis filters in the 3×3 layers but the stem, one ratio, kernels kept close
responses     the same plan, fitted to what the layers compute
search        `basisconv.search`, fitted to what the layers compute
balf          BALF's rule, `balf.py`
tucker        three convolutions for one, `tucker.py`
pruning       channels removed, `pruning.py`
tensor_train  four convolutions for one, `tensor_train.py`; by its share of the parameters
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import basisconv
from basisconv.plan import Plan
from basisconv.study.compression import balf
from basisconv.study.compression.pruning import pruned
from basisconv.study.compression.runtime import Stopwatch, missing
from basisconv.study.compression.tensor_train import tensor_train
from basisconv.study.compression.tucker import tucker

Way = Literal["svd", "responses", "search", "balf", "tucker", "pruning", "tensor_train"]
Budget = Literal["time", "macs"]
Size = dict[str, Any]  # {"knob": 0.4}, or {"plan": {...}} of a search
NEEDS: dict[Way, str] = {"pruning": "torch_pruning", "tensor_train": "tltorch"}
"""The modules of packages that a user need not have installed."""
CLOSE, FAR, TRIES = 0.02, 0.05, 8  # misses that are as good as none, and too large; sizes tried


class OutOfReach(ValueError):
    """A way has no network of the size that was asked for."""


class Cutter:
    """Cuts one trained network.

    Args:
        dense: the network, on the CPU.
        batches: images that networks are fitted to, (n, c, h, w) each.
        budget: what shares are of: the time of a forward pass, or multiplications.
        watch: for the former.
    """

    def __init__(
        self, dense: nn.Module, batches: Sequence[Tensor], budget: Budget, watch: Stopwatch
    ) -> None:
        self.dense, self._batches = dense.eval(), list(batches)
        self._budget, self._watch = budget, watch
        self._image = self._batches[0][:1]
        self._macs, self._parameters = self.macs(dense), parameter_count(dense)

    def size(self, way: Way, target: float) -> Size:
        """The size whose share of the budget is nearest to a target.

        A tensor train is sized by parameters, for its time is far from what they promise.

        Raises:
            OutOfReach: if there is none, or a package is not installed.
        """
        if way in NEEDS and missing([NEEDS[way]]):
            raise OutOfReach(f"{NEEDS[way]} is not installed.")
        if way == "search":
            return {"plan": self._search(target).to_dict()}

        def share(knob: float) -> float:
            shape = self._shape(way, knob)
            if way == "tensor_train":
                return parameter_count(shape) / self._parameters
            return self._share(shape)

        return {"knob": bisect(share, target)}

    def build(self, way: Way, size: Size) -> nn.Module:
        """The network of a size that `size` gave; a copy."""
        if way not in ("svd", "responses", "search"):
            return self._shape(way, size["knob"])
        plan = Plan.from_dict(size["plan"]) if "plan" in size else self._plan(size["knob"])
        if way == "svd" or not plan.layers:
            return basisconv.apply_plan(self.dense, plan, init="svd").eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers wider than there are positions
            small = basisconv.apply_plan(self.dense, plan, init="responses", data=self._batches)
        return small.eval()

    def macs(self, model: nn.Module) -> int:
        """Multiplications of one image, by what is executed."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(self._image)
        return counter.get_total_flops() // 2

    def _share(self, model: nn.Module) -> float:
        if self._budget == "time":
            return self._watch.time(model).median
        return self.macs(model) / self._macs

    @cached_property
    def _spectra(self) -> dict[str, balf.Spectrum]:
        return balf.spectra(self.dense, self._batches)

    def _search(self, target: float) -> Plan:
        exported = self._budget == "time" and self._watch.runtime != "eager"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it misses the time, which is measured again
            try:
                return basisconv.search(
                    self.dense, self._batches, f"{self._budget}={target}",
                    input=self._watch.images, measure=self._share if exported else None,
                )  # fmt: skip
            except ValueError as error:
                raise OutOfReach(str(error)) from error

    def _shape(self, way: Way, knob: float) -> nn.Module:
        """A network that takes as much as that of the size; but for basis layers it is that one."""
        if way == "balf":
            return balf.truncated(self.dense, self._spectra, knob).eval()
        if way == "tucker":
            return tucker(self.dense, knob)
        if way == "pruning":
            return pruned(self.dense, knob, self._image)
        if way == "tensor_train":
            return tensor_train(self.dense, knob)
        plan, seeded = self._plan(knob), torch.Generator().manual_seed(0)
        return basisconv.apply_plan(self.dense, plan, "random", generator=seeded).eval()

    def _plan(self, ratio: float) -> Plan:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers that a ratio near 1 leaves dense
            try:
                return basisconv.make_plan(self.dense, ratio=ratio)
            except ValueError:
                return Plan()  # it leaves all of them dense


def parameter_count(model: nn.Module) -> int:
    """How many a network has."""
    return sum(p.numel() for p in model.parameters())


def bisect(share: Callable[[float], float], target: float) -> float:
    """The knob whose share is nearest to a target, of at most `TRIES`.

    Args:
        share: of a knob in (0, 1), and larger the higher it is.
        target: what it is to be.

    Raises:
        OutOfReach: if the nearest misses by more than 5 %.
    """
    low, high, knob = 0.0, 1.0, target
    found: dict[float, float] = {}

    def miss(knob: float) -> float:
        return abs(math.log(found[knob] / target))

    for _ in range(TRIES):
        found[knob] = share(knob)
        if miss(knob) <= CLOSE:
            return knob
        low, high = (low, knob) if found[knob] > target else (knob, high)
        knob = (low + high) / 2
    best = min(found, key=miss)
    if miss(best) > FAR:
        raise OutOfReach(f"The nearest to {target:g} that can be had is {found[best]:.3g}.")
    return best

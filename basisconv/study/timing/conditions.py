"""How the arms of a benchmark are run, and what is kept of their times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from basisconv.study.records.environment import device
from basisconv.study.records.run import Precision
from basisconv.study.timing.steps import Prepared, as_cuda_graphs
from basisconv.study.training.precision import convolution_precision
from basisconv.timing import Timing, compare


class Conditions(NamedTuple):
    """How the arms of one part of a benchmark are run."""

    precision: Precision
    batch_size: int
    repeats: int

    def running(self, module: nn.Module) -> nn.Module:
        return Prepared(module, self.precision, compiled=False)

    def compare(self, arms: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
        with convolution_precision(self.precision):
            return compare(as_cuda_graphs(arms), self.repeats, device=device())

    def input(self, x: Tensor) -> Tensor:
        """A layer's input in the format that it has inside a network."""
        dtype = torch.bfloat16 if self.precision == "bfloat16" else x.dtype
        return x.to(dtype, memory_format=torch.channels_last)

    def columns(self) -> dict[str, Any]:
        return {"precision": self.precision, "batch": self.batch_size}


def timing_of(arm: Timing, dense: Timing) -> dict[str, float]:
    """An arm's time in ms and its speed-up over dense: medians and quartiles."""
    median, low, high = arm.speedup_over(dense)
    first, third = arm.quartiles
    return {
        "median_ms": arm.median * 1e3, "iqr_ms": (third - first) * 1e3, "speedup": median,
        "speedup_low": low, "speedup_high": high,
    }  # fmt: skip


def title(conv: nn.Conv2d, x: Tensor) -> str:
    """A layer's name in tables, the same for all layers that cost the same."""
    stride = "" if conv.stride == (1, 1) else f", stride {conv.stride[0]}"
    kernel = "" if conv.kernel_size == (3, 3) else f", {conv.kernel_size[0]}×{conv.kernel_size[1]}"
    return f"{conv.in_channels}→{conv.out_channels}, {x.shape[2]}×{x.shape[3]}{kernel}{stride}"

"""Runs of a second or two of real training, on a few images of the embedded sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from basisconv.convert import plan_of
from basisconv.plan import Plan
from basisconv.study.data.sets import DIGESTS
from basisconv.study.records.run import Data, Phase, Run

BASIS = Plan({"layer2.0.conv2": 4, "layer4.1.conv2": 16})


def make_run(*phases: tuple[int, Plan], **changes: Any) -> Run:
    """Three steps of dense by default; an epoch has three steps."""
    settings: dict[str, Any] = {
        "width": 8, "learning_rate": 0.05, "seed": 0, "batch_size": 20,
        "data": Data(name="cifar10-sample", sha256=DIGESTS["cifar10-sample"], train_images=60),
        "phases": tuple(Phase(steps=n, plan=p) for n, p in phases or [(3, Plan())]),
    }  # fmt: skip
    return Run(**settings | changes)


def compiles_dense_alone(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """A torch.compile that fails for networks with basis layers; the plans it was asked for."""
    asked: list[Plan] = []

    def compile_(model: nn.Module, **options: Any) -> Callable[[Tensor], Tensor]:
        asked.append(plan_of(model))
        return model if asked[-1] == Plan() else broken

    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("no working compiler")

    monkeypatch.setattr(torch, "compile", compile_)
    return asked

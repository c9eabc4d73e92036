"""What is timed: networks and layers as they train and run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basisconv.convert import apply_plan
from basisconv.optim import Muon
from basisconv.plan import Plan
from basisconv.study.records.environment import device
from basisconv.study.records.run import Optimizer, Precision
from basisconv.study.training.compiling import compile_network
from basisconv.study.training.graphs import record_cuda
from basisconv.study.training.models import build_network, initialise
from basisconv.study.training.optimization import sgd
from basisconv.study.training.precision import autocast

CLASSES = 10


class Prepared(nn.Module):
    """A module in the precision that it runs in, compiled if asked.

    Args:
        module: the layer or network.
        precision: "bfloat16" is autocast; "float32" and "tf32" are the surrounding
            `convolution_precision`'s.
        compiled: whether it is compiled, at the first call.
    """

    def __init__(self, module: nn.Module, precision: Precision, compiled: bool) -> None:
        super().__init__()
        self.module, self._precision = module, precision
        self._forward = compile_network(module) if compiled else module

    def forward(self, x: Tensor) -> Tensor:
        with autocast(self._precision):
            return self._forward(x)


def as_cuda_graphs(arms: Mapping[str, Callable[[], object]]) -> dict[str, Callable[[], object]]:
    """On CUDA each call as one CUDA graph, which launches its kernels at once; else unchanged.

    Launched one by one, the kernels of small layers wait for the host, and two kernels lose to
    one whatever they compute. The kernels are eager ones: compiled training, which fuses some of
    them, may take another time.

    Args:
        arms: calls that do not synchronise. Their graphs share memory: a gradient or an output
            is valid until another arm is replayed.
    """
    if device().type != "cuda":
        return dict(arms)
    # Untyped in torch.
    pool = torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]
    return {name: record_cuda(call, pool) for name, call in arms.items()}


def random_images(batch_size: int, size: int = 32) -> Tensor:
    """A batch of noise of (size, size) pixels on the device, channels-last."""
    x = torch.randn(batch_size, 3, size, size, generator=torch.Generator().manual_seed(0))
    return x.to(device()).contiguous(memory_format=torch.channels_last)


def initialised_network(name: str, width: int, plan: Plan) -> nn.Module:
    """A network on the device that follows a plan, its weights drawn."""
    model = build_network(name, width, CLASSES)
    initialise(model, 0)
    # Any basis will do: the time of a step does not depend on the weights.
    return apply_plan(model, plan, init="qr", inplace=True).to(device())


def training_step(model: nn.Module, x: Tensor, kind: Optimizer = "sgd") -> Callable[[], None]:
    """A callable that takes a step as a Run does: forward, backward and update.

    Args:
        model: the network, which ends in training mode.
        x: a batch, where the network is; its labels are random.
        kind: the optimizer.
    """
    labels = torch.randint(CLASSES, (len(x),), generator=torch.Generator().manual_seed(0))
    labels = labels.to(x.device)
    optimizer = timing_optimizer(model.train(), kind)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x).float(), labels).backward()
        optimizer.step()

    return step


def timing_optimizer(module: nn.Module, kind: Optimizer) -> torch.optim.Optimizer:
    """An optimizer with a real step's arithmetic and a rate that hardly moves the weights."""
    if kind == "muon":
        return Muon(module, lr=1e-9, sgd_lr=1e-9)
    return sgd(module, learning_rate=1e-9, momentum=0.9, weight_decay=5e-4)


def with_muon_update(call: Callable[[], None], module: nn.Module) -> Callable[[], None]:
    """A callable that computes a module's gradients and then takes Muon's step."""
    optimizer = timing_optimizer(module, "muon")

    def step() -> None:
        call()
        optimizer.step()

    return step


def inference(module: nn.Module, x: Tensor) -> Callable[[], None]:
    """A callable that runs a module forward without gradients; it ends in evaluation mode."""
    module.eval()

    def run() -> None:
        with torch.no_grad():
            module(x)

    return run

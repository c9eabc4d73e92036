"""What is timed: networks as they train and run, and what this machine can do at its best."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basisconv.convert import apply_plan
from basisconv.optim import Muon
from basisconv.plan import Plan
from basisconv.study.records.environment import (
    configure_cpu,
    device,
    peak_memory_bytes,
    reset_peak_memory,
)
from basisconv.study.records.run import Optimizer, Precision
from basisconv.study.training.compiling import compile_network
from basisconv.study.training.models import build_network, initialise
from basisconv.study.training.optimization import sgd
from basisconv.study.training.precision import autocast, convolution_precision
from basisconv.timing import compare

CLASSES = 10

_EAGER_CALLS = 3


class Prepared(nn.Module):
    """A module as it is run: in a precision, and compiled if asked.

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
    """On CUDA each call as one CUDA graph, which launches its kernels at once; else as it is.

    Launched one by one, the kernels of small layers wait for the host, and a layer of two loses
    to one of one whatever they compute. The kernels are eager ones: compiled training, which
    fuses some of them, may take another time.

    Args:
        arms: calls that do not synchronise. Their graphs share memory: what a replay leaves (a
            gradient, an output) is there until another arm's replay.
    """
    if device().type != "cuda":
        return dict(arms)
    # torch has no types for these.
    pool = torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]
    graphs: dict[str, Callable[[], object]] = {}
    for name, call in arms.items():
        # Before it is recorded: cuDNN picks its kernels, an optimizer makes its buffers.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_EAGER_CALLS):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            call()
        graphs[name] = _Replay(graph, call)
    return graphs


@dataclass(frozen=True)
class _Replay:
    """A graph, and the call that was recorded: the graph reads its tensors, but keeps none."""

    graph: torch.cuda.CUDAGraph
    call: Callable[[], object]

    def __call__(self) -> None:
        self.graph.replay()


def random_images(batch_size: int) -> Tensor:
    """A batch of noise on the device, channels-last."""
    x = torch.randn(batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return x.to(device()).contiguous(memory_format=torch.channels_last)


def initialised_network(name: str, width: int, plan: Plan) -> nn.Module:
    """A network on the device that follows a plan, its weights drawn."""
    model = build_network(name, width, CLASSES)
    initialise(model, 0)
    # Any basis does: what a step takes does not hang on the weights.
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
    """An optimizer with a real step's arithmetic and a rate that leaves the weights in place."""
    if kind == "muon":
        return Muon(module, lr=1e-9, sgd_lr=1e-9)
    return sgd(module, learning_rate=1e-9, momentum=0.9, weight_decay=5e-4)


def with_muon_update(call: Callable[[], None], module: nn.Module) -> Callable[[], None]:
    """A callable that computes a module's gradients, with Muon's update behind it."""
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


@dataclass
class Roof:
    """A machine's roofline: the best that it showed whenever it was looked at.

    A machine that others share changes its pace within minutes, so one look, at the start, would
    leave layers that were timed in a better minute above the roof.

    Attributes:
        precision: of the matrix product.
        macs_per_second: of a matrix product, the roof; 0 before the first look.
        bytes_per_second: of a copy, read and written, the slope.
    """

    precision: Precision
    macs_per_second: float = 0.0
    bytes_per_second: float = 0.0

    def measure(self) -> None:
        """Measure both, in about a second."""
        self.macs_per_second = max(self.macs_per_second, arithmetic_rate(self.precision))
        self.bytes_per_second = max(self.bytes_per_second, memory_bandwidth())


def arithmetic_rate(precision: Precision = "float32", repeats: int = 3) -> float:
    """Multiply-accumulates a second of a matrix product at its best."""
    size = 8192 if device().type == "cuda" else 1536  # milliseconds, on either
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = torch.randn(2, size, size, device=device(), dtype=dtype)
    setting = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        product = compare({"product": lambda: a @ b}, repeats, device=device())["product"]
    finally:
        torch.set_float32_matmul_precision(setting)
    return size**3 / min(product.samples)


def memory_bandwidth(size: int = 2**26, repeats: int = 3) -> float:
    """Bytes a second of a copy that no cache holds, read and written, at its best."""
    source = torch.ones(size, device=device())
    target = torch.empty_like(source)
    copy = compare({"copy": lambda: target.copy_(source)}, repeats, device=device())["copy"]
    return 2 * source.numel() * source.element_size() / min(copy.samples)


def step_memory(
    name: str, width: int, plan: Plan, batch_size: int, precision: Precision, threads: int
) -> int:
    """Peak bytes of a few training steps: weights, gradients, momentum, activations.

    On CUDA as torch counts them; on a CPU by how much a process of its own grows. Of eager steps:
    what compiled ones hold depends on all else that was compiled in the process.
    """
    arguments = (name, width, plan, batch_size, precision, threads)
    if device().type == "cuda":
        return _growth(*arguments)
    # Spawned, so that nothing of this process is in the count.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_growth, *arguments).result()


def _growth(
    name: str, width: int, plan: Plan, batch_size: int, precision: Precision, threads: int
) -> int:
    configure_cpu(threads)
    before = reset_peak_memory()
    model = Prepared(initialised_network(name, width, plan), precision, compiled=False)
    step = training_step(model, random_images(batch_size))
    with convolution_precision(precision):  # the workspace of the kernels that train, too
        for _ in range(3):
            step()
    return peak_memory_bytes() - before

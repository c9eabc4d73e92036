"""What a machine can do at its best, and how much memory a training step takes."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch

from basisconv.plan import Plan
from basisconv.study.records.environment import (
    configure_cpu,
    device,
    peak_memory_bytes,
    reset_peak_memory,
)
from basisconv.study.records.run import Precision
from basisconv.study.timing.steps import (
    Prepared,
    initialised_network,
    random_images,
    training_step,
)
from basisconv.study.training.precision import convolution_precision
from basisconv.timing import compare

_REPEATS = 3  # of which the best counts


@dataclass
class Roof:
    """A machine's roofline: the best of several measurements.

    The speed of a shared machine changes within minutes. Measured once, layers that were timed in
    a better minute would lie above the roof.

    Attributes:
        precision: of the matrix product.
        macs_per_second: of a matrix product, the roof; 0 before it is measured.
        bytes_per_second: of a copy, read and written, the slope.
    """

    precision: Precision
    macs_per_second: float = 0.0
    bytes_per_second: float = 0.0

    def measure(self) -> None:
        """Measure both, in about a second."""
        self.macs_per_second = max(self.macs_per_second, arithmetic_rate(self.precision))
        self.bytes_per_second = max(self.bytes_per_second, memory_bandwidth())


def arithmetic_rate(precision: Precision) -> float:
    """Multiply-accumulates per second of a matrix product, at best."""
    size = 8192 if device().type == "cuda" else 1536  # milliseconds, on either
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = torch.randn(2, size, size, device=device(), dtype=dtype)
    setting = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        product = compare({"product": lambda: a @ b}, _REPEATS, device=device())["product"]
    finally:
        torch.set_float32_matmul_precision(setting)
    return size**3 / min(product.samples)


def memory_bandwidth(size: int = 2**26) -> float:
    """Bytes per second, read and written, of a copy larger than any cache, at best."""
    source = torch.ones(size, device=device())
    target = torch.empty_like(source)
    copy = compare({"copy": lambda: target.copy_(source)}, _REPEATS, device=device())["copy"]
    return 2 * source.numel() * source.element_size() / min(copy.samples)


def step_memory(
    name: str, width: int, plan: Plan, batch_size: int, precision: Precision, threads: int
) -> int:
    """Peak bytes of a few training steps: weights, gradients, momentum, activations.

    On CUDA as torch counts them, on a CPU by how much a separate process grows. Steps are eager:
    the memory of compiled ones depends on what else was compiled in the process.
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

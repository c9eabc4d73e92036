"""Several processes that train one Run, started by torchrun: torch's DistributedDataParallel.

Each gets a shard of every batch, and the gradients are averaged before a step, so all have the
same weights. Batch-norm uses the shard's statistics; its running statistics are each process's
own, and the evaluation uses those of the first.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The processes that train a Run together.

    Attributes:
        rank: of this process; the first, 0, writes the record.
        size: how many they are.
    """

    rank: int = 0
    size: int = 1

    def shard(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """This process's part of a batch."""
        n = len(labels) // self.size
        part = slice(self.rank * n, (self.rank + 1) * n)
        return images[part], labels[part]

    def wrap(self, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """A network, or its compiled form, whose backward pass averages all gradients.

        All processes get the weights of the first.
        """
        if self.size == 1:
            return forward
        assert isinstance(forward, nn.Module)
        wrapped: nn.Module = nn.parallel.DistributedDataParallel(forward, broadcast_buffers=False)
        return wrapped

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a value over all processes."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def any(self, value: bool) -> bool:
        """Whether the value is true in any process."""
        if self.size == 1:
            return value
        found = torch.tensor(value, dtype=torch.uint8)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def broadcast(self, value: T) -> T:
        """The first process's value, which is picklable."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


SINGLE_PROCESS = Group()


@contextmanager
def torchrun_group() -> Iterator[Group]:
    """The group in which torchrun started this process; without torchrun, this process alone.

    With CUDA each process has a GPU and gradients go over NCCL; else over gloo.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield SINGLE_PROCESS
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # Gloo for what is not on the GPU: over NCCL, `broadcast` would wait for the GPU.
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend)
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    finally:
        # A wrapper that outlives the group would end it in its destructor, holding a lock that the
        # group's threads may be waiting for.
        gc.collect()
        dist.destroy_process_group()

"""In which numbers a device computes: float32, TF32 or bfloat16.

float32 is IEEE's everywhere: on CUDA, where torch would run convolutions in TF32 on its own, that
has a name of its own. bfloat16 is autocast: weights, their gradients' sums and the statistics of
batch-norm stay float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from basisconv.study.records.environment import UnsuitableMachine, device, has_native_bfloat16
from basisconv.study.records.run import Precision


def is_native(precision: Precision) -> bool:
    """Whether this device computes in such numbers itself rather than emulating them."""
    if precision == "tf32":
        return device().type == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
    return precision == "float32" or has_native_bfloat16()


class EmulatedPrecision(UnsuitableMachine, ValueError):
    """This device computes a precision, but only by way of another."""


def check_native(precision: Precision) -> None:
    """Refuse an emulated precision.

    Raises:
        Emulated: if this device lacks it.
    """
    if not is_native(precision):
        raise EmulatedPrecision(
            f"precision={precision!r} asked for, but this device only emulates it, many times "
            "slower than float32. Use precision='float32' here."
        )


def autocast(precision: Precision) -> AbstractContextManager[None]:
    """For forward passes, losses apart: bfloat16 where it is asked for."""
    return torch.autocast(device().type, torch.bfloat16, enabled=precision == "bfloat16")


def convolution_precision(precision: Precision) -> AbstractContextManager[None]:
    """For a whole training: cuDNN computes so, by the kernels that it finds fastest."""
    # torch has no types for this context manager.
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(  # type: ignore[no-untyped-call]
        enabled=True, benchmark=True, allow_tf32=precision == "tf32"
    )
    return flags

"""The number format that a device computes in: float32, TF32 or bfloat16.

float32 is IEEE's on CUDA as well, where torch by default runs convolutions in TF32. bfloat16 is
autocast: weights, gradients and the statistics of batch-norm stay float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from basisconv.study.records.environment import UnsuitableMachine, device, has_native_bfloat16
from basisconv.study.records.run import Precision


def is_native(precision: Precision) -> bool:
    """Whether this device has instructions for a format, rather than emulating it."""
    if precision == "tf32":
        return device().type == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
    return precision == "float32" or has_native_bfloat16()


class EmulatedPrecision(UnsuitableMachine, ValueError):
    """This device only emulates a precision."""


def check_native(precision: Precision) -> None:
    """Refuse an emulated precision.

    Raises:
        EmulatedPrecision: if this device lacks it.
    """
    if not is_native(precision):
        raise EmulatedPrecision(
            f"precision={precision!r} asked for, but this device only emulates it, many times "
            "slower than float32. Use precision='float32' here."
        )


def autocast(precision: Precision) -> AbstractContextManager[None]:
    """For forward passes without their losses: bfloat16 if that is the precision."""
    return torch.autocast(device().type, torch.bfloat16, enabled=precision == "bfloat16")


def convolution_precision(precision: Precision) -> AbstractContextManager[None]:
    """For a whole training: cuDNN's precision, with the kernels that it finds fastest."""
    # torch has no types for this context manager.
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(  # type: ignore[no-untyped-call]
        enabled=True, benchmark=True, allow_tf32=precision == "tf32"
    )
    return flags

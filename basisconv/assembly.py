"""The dense kernel W = A · B from a layer's factors: A's rows put in order, then the product.

In the subset form A has the identity's rows where `passed` is 1 and those of the coefficients C
elsewhere. Which row goes where hardly ever changes, so a template that has the identity's rows
is kept, and each step writes C into a copy of it: two kernels of a GPU and one in the backward
pass, where finding the order takes eleven. The rows are those of `in_order`, bit for bit.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._C import _functorch


class _Template(NamedTuple):
    passed: Tensor  # itself, so that no other tensor can have its identity
    key: tuple[Any, ...]
    rows: Tensor  # (C_out, width): the identity's rows, zeros elsewhere
    places: Tensor  # (C_out - m,): the rows that C fills, in order


class Templates:
    """A layer's template, as long as it fits `passed`. No copy and no pickle has it."""

    def __init__(self) -> None:
        self._kept: _Template | None = None
        self._met: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Templates, ()

    def assemble(self, coef: Tensor, passed: Tensor, blocks: int, width: int) -> Tensor:
        """A with C's rows in their places: `in_order`, in fewer steps where that is safe.

        Args:
            coef: C, blocks stacked, (C_out - m, width).
            passed: (C_out,), above 1/2 where the output is a basis filter.
            blocks: of A's diagonal.
            width: basis filters of each block, m / blocks.
        """
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or not _plain(coef, passed):
            return in_order(coef, passed, blocks, width)
        key, kept = _key(passed, coef.dtype), self._kept
        if kept is None or kept.passed is not passed or kept.key != key:
            # Another tensor than before, once, is one of a functional call or of a replica's.
            if kept is not None and kept.passed is not passed and self._met is not passed:
                self._met = passed
                return in_order(coef, passed, blocks, width)
            kept = self._kept = _template(coef, passed, key, blocks, width)
        self._met = None
        if kept is None:
            return in_order(coef, passed, blocks, width)
        return kept.rows.index_copy(0, kept.places, coef)


def in_order(coef: Tensor, passed: Tensor, blocks: int, width: int) -> Tensor:
    """The same from `passed` alone, for whatever stands for the tensors."""
    eye = torch.eye(width, dtype=coef.dtype, device=coef.device)
    if blocks == 1:
        stacked = torch.cat([eye, coef])
    else:
        combined = coef.view(blocks, -1, width)
        eyes = eye.expand(blocks, width, width)
        stacked = torch.cat([eyes, combined], dim=1).flatten(0, 1)
    # Rows of a small matrix move here, never channels of an activation.
    return stacked.index_select(0, _rows(passed.view(blocks, -1) > 0.5, width))


def _plain(*tensors: Tensor) -> bool:
    """Whether these are real tensors, not proxies, batches, fakes or duals."""
    return all(
        type(t) in (Tensor, nn.Parameter)
        and not (t.is_meta or t.is_inference())
        and not _functorch.is_functorch_wrapped_tensor(t)
        for t in tensors
    )


def _key(passed: Tensor, dtype: torch.dtype) -> tuple[Any, ...]:
    """What changes when the values of `passed` do; on a GPU reading them would be a wait.

    `passed.data.copy_()` leaves no trace in `_version`: on a CPU the values themselves are
    compared.
    """
    pointer = passed.data_ptr()
    values = None
    if passed.device.type == "cpu" and passed.is_contiguous():
        values = ctypes.string_at(pointer, passed.nbytes)
    return passed._version, pointer, dtype, values


@torch.inference_mode(False)
@torch.no_grad()
def _template(
    coef: Tensor, passed: Tensor, key: tuple[Any, ...], blocks: int, width: int
) -> _Template | None:
    """The template, or None where there can be none: while a graph is captured, or is fake."""
    if passed.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    rows = _rows(passed.view(blocks, -1) > 0.5, width)
    taken = torch.arange(len(passed), device=passed.device)
    if type(rows) is not Tensor or not torch.equal(rows.sort().values, taken):
        return None  # an average of so many orders that it is none
    own = taken.view(blocks, -1)[:, width:].flatten()  # where C's rows stand in the stack
    zeros = torch.zeros(coef.shape, dtype=coef.dtype, device=coef.device)
    return _Template(passed, key, in_order(zeros, passed, blocks, width), rows.argsort()[own])


def _rows(passed: Tensor, width: int) -> Tensor:
    """Where each output stands when each block's basis filters are followed by its others.

    Args:
        passed: bool, (blocks, outputs of each).
        width: basis filters of each block.
    """
    blocks, outputs = passed.shape
    # Basis filters up to here, this one included. ONNX adds up no truth values.
    before = passed.long().cumsum(1)
    index = torch.arange(blocks * outputs, device=passed.device).view(blocks, outputs)
    # An output that combines comes after all basis filters, and no more after those before it.
    start = index[:, :1]
    return torch.where(passed, start + before - 1, index + width - before).flatten()


def multiplied(combine: Tensor, basis: Tensor, blocks: int) -> Tensor:
    """W = A · B, block by block.

    Args:
        combine: A, (C_out, m/blocks).
        basis: B, (m, C_in/groups, kH, kW).
        blocks: of A's diagonal.
    """
    width = len(basis) // blocks
    # Flattened in the order that the filters have in memory: nothing is copied on the way,
    # and the kernel has the basis's memory format.
    if last := memory_format(basis) == torch.channels_last:
        basis = basis.permute(0, 2, 3, 1)
    flat = basis.reshape(blocks, width, -1)
    kernel = (combine.view(blocks, -1, width) @ flat).reshape(-1, *basis.shape[1:])
    return kernel.permute(0, 3, 1, 2) if last else kernel


def memory_format(kernel: Tensor) -> torch.memory_format:
    """Channels-last or contiguous, by the strides of (rows, channels, height, width)."""
    # As conv2d itself decides: a kernel of one channel is contiguous in both.
    _, channels, _, width = kernel.shape
    last = kernel.stride()[1:] == (1, width * channels, channels)
    return torch.channels_last if last else torch.contiguous_format

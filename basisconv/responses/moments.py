"""Means and covariances of what layers compute, summed over batches without keeping them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

CHUNK = 64 * 2**20  # bytes of centred responses at once


class Moments:
    """Mean and covariance of a layer's responses, or of several that are paired, in each group.

    Each of S signals is a tensor of shape (N, C, H, W) or (C, H, W); position p of one is paired
    with position p of the others. With x the channels of one group of all signals, stacked, and a
    the mean over the first batch, what is summed is x - a and (x - a)(x - a)ᵀ: about a point near
    the mean nothing is lost to cancellation. Chunks are float64 on a CPU and float32, without
    TF32, elsewhere; sums are float64, on the CPU.

    Args:
        groups: groups of the convolution: between channels of different groups nothing is summed.

    Attributes:
        count: positions so far, over all samples.
    """

    def __init__(self, groups: int) -> None:
        self.groups, self.count = groups, 0
        self._shift: list[Tensor] = []  # (C,), of each signal
        self._sum = self._gram = torch.empty(0)  # of the size of the first batch's

    @torch.no_grad()
    def add(self, *signals: Tensor) -> None:
        """Add the positions of one batch, the same number in each signal."""
        flat = [s.detach().reshape(-1, *s.shape[-3:]).flatten(2) for s in signals]
        samples, channels, positions = flat[0].shape
        width = channels // self.groups
        if not self._shift:
            # Any point near the mean will do, so the responses' own precision is enough.
            self._shift = [s.mean((0, 2)) for s in flat]
            size = len(flat) * width
            self._sum = torch.zeros(self.groups, size, dtype=torch.float64)
            self._gram = torch.zeros(self.groups, size, size, dtype=torch.float64)
        device = flat[0].device
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        at_once = max(1, CHUNK // (len(flat) * channels * dtype.itemsize))
        rows, columns = max(1, at_once // max(1, positions)), min(at_once, max(1, positions))
        with _full_precision(device):
            for row in range(0, samples, rows):
                for column in range(0, positions, columns):
                    parts = [s[row : row + rows, :, column : column + columns] for s in flat]
                    n, _, p = parts[0].shape
                    shape = (self.groups, len(flat), width, n, p)
                    chunk = torch.empty(shape, dtype=dtype, device=device)
                    for i, (part, shift) in enumerate(zip(parts, self._shift, strict=True)):
                        grouped = part.unflatten(1, (self.groups, width)).permute(1, 2, 0, 3)
                        chunk[:, i].copy_(grouped)
                        chunk[:, i] -= shift.to(dtype).view(self.groups, width, 1, 1)
                    stacked = chunk.view(self.groups, len(flat) * width, n * p)
                    self._sum += stacked.sum(2).cpu().double()
                    self._gram += (stacked @ stacked.mT).cpu().double()
                    self.count += n * p

    def mean(self) -> Tensor:
        """Means of the signals, (S, C), float64, on the CPU."""
        offset = (self._sum / self.count).unflatten(1, (len(self._shift), -1))
        shift = torch.stack([shift.cpu().double() for shift in self._shift])
        return shift + offset.transpose(0, 1).flatten(1)

    def covariance(self) -> Tensor:
        """Covariances in each group, (S, S, groups, C/groups, C/groups), float64, on the CPU."""
        offset = self._sum / self.count
        centred = self._gram / self.count - offset[:, :, None] * offset[:, None, :]
        s = len(self._shift)
        return centred.unflatten(2, (s, -1)).unflatten(1, (s, -1)).permute(1, 3, 0, 2, 4)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Products of float32 matrices without TF32 and without autocast."""
    matmul = torch.backends.cuda.matmul
    was = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        matmul.fp32_precision = was

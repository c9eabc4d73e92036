"""Another network made of a model: its layers replaced and running means moved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from basisconv.snapshot import undone
from basisconv.surgery import swap, swapped


class Changes(NamedTuple):
    """What makes another network of a model."""

    layers: dict[nn.Module, nn.Module]  # new by old
    means: dict[nn.Module, Tensor]  # what is added to the running means of batch-norms


def apply_changes(model: nn.Module, changes: Changes) -> None:
    """Put the new layers in and add to running means."""
    swap(model, changes.layers)
    _shift_means(changes)


@torch.no_grad()
def _shift_means(changes: Changes) -> None:
    for norm, shift in changes.means.items():
        mean = norm.get_buffer("running_mean")
        with torch.inference_mode(mean.is_inference()):
            mean.add_(shift.to(mean.device, mean.dtype))


@contextmanager
def changed(model: nn.Module, changes: Changes) -> Iterator[None]:
    """The model with these changes for a while."""
    means = [(m, m.clone()) for m in (norm.get_buffer("running_mean") for norm in changes.means)]

    def put_back() -> None:
        for mean, was in means:
            with torch.no_grad(), torch.inference_mode(mean.is_inference()):
                mean.copy_(was)

    with swapped(model, changes.layers), undone(put_back):
        _shift_means(changes)
        yield

"""Whether a network computes the same with other layers of the same kernels in their places.

It need not: code that asks for a layer's class takes another branch for another class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from basisconv.observe import Input, arguments, run, undisturbed
from basisconv.surgery import swapped


def check_outputs(
    model: nn.Module, changed: Mapping[str, tuple[nn.Module, nn.Module]], example: Input
) -> None:
    """Raise ValueError, naming the layers, unless a model computes the same with others.

    Args:
        model: the network; it is left as it was.
        changed: layers by their names in it, each with another that has the same kernel.
        example: the input, as `observe.arguments` takes it.
    """
    given = arguments(model, example)

    def outputs(names: Iterable[str]) -> list[Any]:
        """What the model returns with some layers replaced; its layers are put back."""
        replaced = dict(changed[name] for name in names)
        with swapped(model, replaced), undisturbed(model, seed=0):
            returned = tree_leaves(run(model, given))
            return [y.clone() if isinstance(y, Tensor) else y for y in returned]

    want = outputs([])
    try:
        if alike(outputs(changed), want):
            return
        cause = None
    except Exception as error:
        cause = error
    guilty = []
    for name in changed:
        try:
            good = alike(outputs([name]), want)
        except Exception as error:
            good, cause = False, cause or error
        guilty += [] if good else [name]
    raise ValueError(
        f"With {', '.join(guilty or changed)} in another form of the same kernel the model "
        f"{'fails' if cause else 'computes something else'}: something asks what kind of layer it "
        f"is, or uses it otherwise than by calling it. Leave it out of the plan."
    ) from cause


def alike(got: list[Any], want: list[Any]) -> bool:
    """Whether two outputs are the same up to rounding, relative to the largest value."""
    if len(got) != len(want):
        return False
    for one, other in zip(got, want, strict=True):
        if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
            continue  # no numbers of the network's
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if one.is_floating_point() and one.numel() and not one.is_meta:
            scale = other[other.isfinite()].abs().max().item() if other.isfinite().any() else 1.0
            slack = math.sqrt(torch.finfo(one.dtype).eps) * scale
            if not torch.allclose(one, other, rtol=0, atol=slack, equal_nan=True):
                return False
    return True

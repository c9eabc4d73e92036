"""What a basis form may be, and which layers have one: arguments are checked before any work."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from basisconv.decompose import FORMS

if TYPE_CHECKING:
    from basisconv.layer import BasisConv2d


Init = Literal["svd", "qr", "random", "responses"]
INITS: tuple[Init, ...] = get_args(Init)
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class ConvRules(nn.Conv2d):
    """The rules that nn.Conv2d has for its arguments: on `meta` it takes no memory, nor time."""

    def reset_parameters(self) -> None:
        """Draws nothing."""


def unfit(conv: nn.Conv2d | BasisConv2d, kind: type[nn.Conv2d] | type[BasisConv2d]) -> str | None:
    """Why a layer made from this one's attributes and kernel would compute something else.

    None where it computes the same, up to the kernel's approximation.

    Args:
        conv: the layer.
        kind: the class that it has to compute like.
    """
    for method in ("__call__", "forward", "_conv_forward"):  # all by which both kinds compute
        if method in vars(conv) or getattr(type(conv), method) is not getattr(kind, method):
            return f"{type(conv).__name__} has a {method} of its own"
    if isinstance(conv, nn.Conv2d):
        if isinstance(conv.weight, UninitializedParameter):
            return "its weight is not initialised yet; run one batch first"
    dtype = (conv.weight if isinstance(conv, nn.Conv2d) else conv.basis).dtype
    if dtype not in _DTYPES:
        return f"its weight is {dtype}, not a real floating type that a convolution is computed in"
    try:
        fresh = ConvRules(**conv_arguments(conv, torch.empty(0, device="meta")))
    except (TypeError, ValueError) as error:
        return f"nn.Conv2d takes no such attributes: {str(error).rstrip('.')}"
    # It computes by its kernel alone: one for grey images may have been cut from one for colours.
    if isinstance(conv, nn.Conv2d) and conv.weight.shape != fresh.weight.shape:
        return (
            f"its weight is {tuple(conv.weight.shape)}, and by in_channels, out_channels, groups "
            f"and kernel_size it should be {tuple(fresh.weight.shape)}; set those to what the "
            f"weight has"
        )
    # What these modes pad by is fixed when a layer is made, whatever `padding` becomes later.
    pad, now = conv._reversed_padding_repeated_twice, fresh._reversed_padding_repeated_twice
    if conv.padding_mode != "zeros" and tuple(pad) != tuple(now):
        return (
            f"its padding became {conv.padding} after it was made, which "
            f"padding_mode={conv.padding_mode!r} ignores; make the layer with that padding"
        )
    return None


def check_alone(init: str) -> None:
    """Raise ValueError for an init that does not give one layer its factors from its kernel."""
    if init == "responses":
        raise ValueError(
            "init='responses' fits factors to what layers of a network compute on data: use "
            "basisconv.apply_plan(model, plan, init='responses', data=batches)."
        )
    if init not in INITS:
        raise ValueError(f"init={init!r} is unknown. Inits: {', '.join(INITS)}.")


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raise ValueError for a dtype that no convolution is computed in; None is torch's default."""
    if dtype is not None and dtype not in _DTYPES:
        names = ", ".join(str(known).removeprefix("torch.") for known in _DTYPES)
        raise ValueError(f"dtype={dtype!r} is none that a convolution is computed in: {names}.")


def check_basis(
    conv: nn.Conv2d | BasisConv2d,
    n_basis: int,
    form: str,
    coef_groups: int,
    coef_rank: int | None,
) -> None:
    """Raise ValueError unless a layer of `conv`'s shape has such a basis form."""
    if form not in FORMS:
        raise ValueError(f"form={form!r} is unknown. Forms: {', '.join(FORMS)}.")
    if whole(n_basis) is None or not 1 <= n_basis <= conv.out_channels:
        raise ValueError(
            f"n_basis={n_basis!r} is not a whole number from 1 to out_channels={conv.out_channels}."
        )
    if whole(coef_groups) is None or coef_groups < 1:
        raise ValueError(f"coef_groups={coef_groups!r} is not a whole number >= 1.")
    blocks = conv.groups * coef_groups
    if conv.out_channels % blocks or n_basis % blocks:
        raise ValueError(
            f"out_channels={conv.out_channels} and n_basis={n_basis} must be divisible by "
            f"groups * coef_groups = {conv.groups} * {coef_groups}."
        )
    width = n_basis // blocks
    if coef_rank is not None and (whole(coef_rank) is None or not 1 <= coef_rank <= width):
        raise ValueError(
            f"coef_rank={coef_rank!r} is not a whole number from 1 to {width}, the basis filters "
            f"of each of the {blocks} blocks."
        )


def whole(value: object) -> int | None:
    """A whole number of any kind, numpy's too, as an int; None for all else and for booleans."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    try:
        return operator.index(value)
    except TypeError:  # an array of several, a tensor of reals
        return None


def kernel_shape(conv: nn.Conv2d | BasisConv2d) -> tuple[int, int, int, int]:
    """(C_out, C_in/groups, kH, kW) of a layer's dense kernel, by its attributes."""
    size: Any = conv.kernel_size
    size = [size] if whole(size) is not None else list(size)
    inputs = conv.in_channels // conv.groups
    return int(conv.out_channels), int(inputs), int(size[0]), int(size[-1])


def conv_arguments(conv: nn.Conv2d | BasisConv2d, kernel: Tensor) -> dict[str, Any]:
    """What the constructors of both kinds of layer take, as `conv` has it."""
    names = (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
        "padding_mode",
    )  # fmt: skip
    own = {name: getattr(conv, name) for name in names}
    return own | {"bias": conv.bias is not None, "device": kernel.device, "dtype": kernel.dtype}

"""Making a model match a plan, whatever form it is in, and dense checkpoints in and out.

    small = apply_plan(model, plan)        # dense -> basis, basis -> dense, basis -> other basis
    dense = restore(small)                 # apply_plan with the empty plan

Everything is checked before anything is changed, so a plan that does not fit leaves the model
as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from basisconv.layer import INITS, MODES, BasisConv2d, Init
from basisconv.plan import Plan, check_plan
from basisconv.surgery import Convolution, check_replaceable, convolutions, swap


def apply_plan(
    model: nn.Module,
    plan: Plan,
    init: Init = "svd",
    inplace: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Make every convolution of a model match a plan, from whatever form it is in.

    Layers in the plan are decomposed, layers that are not become plain `nn.Conv2d` again
    (W = A · B, exact), layers in another basis form are multiplied out and decomposed anew,
    and layers that match already are left alone. Forward and backward hooks move to the new
    layers (one that writes to `weight` has no effect there, for `weight` is computed), and so do
    attributes of your own whose names do not begin with an underscore. Hooks on state dicts and
    on their loading do not move. Parameters are new, so make the optimizer afterwards.

    Args:
        model: the network.
        plan: what it should be; `Plan({})` for dense.
        init: "svd", "qr" or "random": see `BasisConv2d.from_conv2d`.
        inplace: change `model` itself rather than a deep copy, which a model that keeps an
            activation (a tensor with a history) does not have.
        generator: source of the random factors (`init="random"` alone uses it).

    Returns:
        The model that matches.

    Raises:
        TypeError: if `plan` is not a `Plan`.
        ValueError: for unknown layers, layers that have no basis form, n_basis that does not
            fit, and kernels that are not finite. The model is then unchanged.
    """
    basis = _basis_layers(model)
    if init not in INITS:
        raise ValueError(f"init={init!r} is unknown. Inits: {', '.join(INITS)}.")
    check_plan(model, plan)
    check_replaceable(model, {n: layer for n, layer in basis.items() if n not in plan.layers})
    if not inplace:
        model = copy.deepcopy(model)
    found = convolutions(model)
    replaced: dict[nn.Module, nn.Module] = {}
    for name, conv in found.items():
        if name not in plan.layers:
            if isinstance(conv, BasisConv2d):
                replaced[conv] = conv.to_conv2d()
            continue
        config = _config(plan, name, conv)
        if isinstance(conv, BasisConv2d) and _matches(conv, config):
            continue
        dense = conv.to_conv2d() if isinstance(conv, BasisConv2d) else conv
        replaced[conv] = _basis_form(name, dense, init=init, generator=generator, **config)
    swap(model, replaced)
    for name, conv in convolutions(model).items():
        if isinstance(conv, BasisConv2d):
            conv.mode = plan.modes.get(name, MODES[0])
    return model


def restore(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Plain `nn.Conv2d` everywhere, with the same function: `apply_plan` with `Plan({})`."""
    return apply_plan(model, Plan({}), inplace=inplace)


def plan_of(model: nn.Module) -> Plan:
    """The plan that a model matches.

    Raises:
        ValueError: if its basis layers differ in what a plan's layers share.
    """
    found = {n: c for n, c in convolutions(model).items() if isinstance(c, BasisConv2d)}
    if not found:
        return Plan({})
    first = next(iter(found.values()))
    ranks = [c.coef_rank for c in found.values() if c.coef_rank is not None]
    plan = Plan(
        {n: c.n_basis for n, c in found.items()},
        first.form,
        first.coef_groups,
        max(ranks, default=None),
        {n: c.mode for n, c in found.items()},
    )
    unlike = [n for n, c in found.items() if not _matches(c, _config(plan, n, c))]
    if unlike:
        raise ValueError(
            f"No plan describes this model: form, coef_groups or coef_rank of "
            f"{', '.join(unlike)} differ from the other basis layers'."
        )
    return plan


def dense_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the dense network with the same function, in memory of its own.

    Of a network in DistributedDataParallel give its `.module`.

    Raises:
        ValueError: for basis layers that cannot be replaced.
    """

    def write(layer: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        assert isinstance(layer, BasisConv2d)
        _replace_entries(state, prefix, layer.to_conv2d())

    layers = _basis_layers(model)
    check_replaceable(model, layers, keep=True)
    # Each layer writes for itself, so that a network that has what cannot be copied will do, and
    # so will modules that rename their entries.
    with ExitStack() as hooks:
        for layer in layers.values():
            hooks.enter_context(layer.register_state_dict_post_hook(write))
        state = model.state_dict()
    return copy.deepcopy(state)


def load_dense_state_dict(
    model: nn.Module, state_dict: Mapping[str, Tensor], init: Init = "svd"
) -> None:
    """Load a dense network's checkpoint into a model with basis layers, decomposing on the way.

    Of a network in DistributedDataParallel give its `.module`.

    Raises:
        ValueError: for missing, unknown or wrong-shaped entries, and for basis layers that
            cannot be replaced. The model is then unchanged.
    """

    def read(
        layer: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict[str, Any],
        *report: Any,
    ) -> None:  # fmt: skip
        assert isinstance(layer, BasisConv2d)
        dense = layer.to_conv2d()
        dense._load_from_state_dict(state, prefix, metadata, *report)  # which tells what is amiss
        basis = _basis_form(prefix.removesuffix("."), dense, init=init, **layer.config())
        _replace_entries(state, prefix, basis)

    layers = _basis_layers(model)
    check_replaceable(model, layers, keep=True)
    # As tensors: through a state dict the model's own hooks, which may fail, would run once more.
    before = [(held, held.detach().clone()) for held in (*model.parameters(), *model.buffers())]
    try:
        with ExitStack() as hooks:
            for layer in layers.values():
                hooks.enter_context(layer.register_load_state_dict_pre_hook(read))
            model.load_state_dict(state_dict)
    except Exception as error:
        with torch.no_grad():  # torch loads what it can before it tells what is amiss
            for held, was in before:
                held.copy_(was)
        if not isinstance(error, RuntimeError):
            raise
        raise ValueError(
            f"The checkpoint is not one of this model's dense form. {error}"
        ) from error


def _basis_layers(model: nn.Module) -> dict[str, BasisConv2d]:
    if isinstance(model, BasisConv2d):
        raise ValueError("The model is itself a BasisConv2d: call its to_conv2d() instead.")
    return {n: c for n, c in convolutions(model).items() if isinstance(c, BasisConv2d)}


def _replace_entries(state: dict[str, Tensor], prefix: str, layer: nn.Module) -> None:
    """Put another layer's entries in a state dict in place of those of one."""
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]
    state.update({prefix + name: value for name, value in layer.state_dict().items()})


def _config(plan: Plan, name: str, conv: Convolution) -> dict[str, Any]:
    """The arguments of `from_conv2d` that give a layer of the plan its basis form."""
    m, rank = plan.layers[name], plan.coef_rank
    if rank is not None:
        rank = min(rank, m // (conv.groups * plan.coef_groups))
    return {
        "n_basis": m,
        "form": plan.form,
        "coef_groups": plan.coef_groups,
        "coef_rank": rank,
    }


def _basis_form(name: str, conv: nn.Conv2d, **settings: Any) -> BasisConv2d:
    try:
        return BasisConv2d.from_conv2d(conv, **settings)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _matches(layer: BasisConv2d, config: dict[str, Any]) -> bool:
    return layer.config() | config == layer.config()

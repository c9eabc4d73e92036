"""Finding a model's convolutions and replacing them, with hooks and shared modules kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType

from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from basisconv.holders import adapted, holders, hooked, memory, wrapped
from basisconv.layer import BasisConv2d
from basisconv.snapshot import undone
from basisconv.validity import unfit

Convolution = nn.Conv2d | BasisConv2d

# What nn.Module keeps of hooks on calls. The dictionaries themselves move, so that handles
# given out before still remove their hooks.
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks",
    "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip

# Plain layers of each kind, for what they hold of their own: anything else is the user's.
_PLAIN: dict[type[Convolution], list[Convolution]] = {
    nn.Conv2d: [nn.Conv2d(1, 1, 1, device="meta")],
    BasisConv2d: [BasisConv2d(1, 1, 1, 1, coef_rank=q, device="meta") for q in (None, 1)],
}
_HELD = {
    kind: {name for conv in convs for name in (*conv._parameters, *conv._buffers)}
    for kind, convs in _PLAIN.items()
}
_OWN = {kind: {name for conv in convs for name in vars(conv)} for kind, convs in _PLAIN.items()}
_ATTRIBUTES = set().union(*_OWN.values())
# Methods and properties, too; what every module has may be the user's on any of them.
_TAKEN = {
    name for convs in _PLAIN.values() for conv in convs for name in dir(conv) if name[0] != "_"
} - set(dir(nn.Module()))
# Names that others may use: what a subclass has besides them is missing in what replaces it.
_KNOWN = {kind: set(dir(kind)) for kind in _PLAIN}


def convolutions(model: nn.Module) -> dict[str, Convolution]:
    """Every Conv2d (subclasses too) and BasisConv2d by its first name, in the model's order."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | BasisConv2d)}


def untouchable(
    model: nn.Module, found: Mapping[str, Convolution], keep: bool = False
) -> dict[str, str]:
    """Why some of a model's convolutions must stay as they are, by name; the rest may be replaced.

    Args:
        model: the network.
        found: the layers asked about, by their names in it.
        keep: whether their parameters stay and only their values change.
    """
    held, inside, merging = holders(model), wrapped(model), adapted(model)
    owners = dict[int, list[nn.Module]]()
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            owners.setdefault(memory(tensor), []).append(module)

    def why(name: str, conv: Convolution) -> str | None:
        if name == "":
            return "it is the model itself; use BasisConv2d.from_conv2d"
        if reason := inside.get(id(conv)):
            return reason
        if reason := _peculiar(conv):
            return reason
        if holder := held.get(id(conv)):
            return f"{holder} holds it, too; use an nn.ModuleList, or call it by its name"
        if isinstance(conv, nn.Conv2d) and (adapter := merging.get(id(conv))):
            return f"a {adapter} merges into its weight, which a basis layer computes"
        for parameter_name, parameter in conv.named_parameters(recurse=False):
            for module in owners[memory(parameter)]:
                if module is not conv:
                    return f"it shares a parameter with a {type(module).__name__}"
            if not keep and hooked(parameter):
                return f"a hook is registered on its {parameter_name}, which a new one lacks"
            if not keep and (holder := held.get(memory(parameter))):
                return f"{holder} holds its {parameter_name}, which a new layer would not use"
        return None

    return {name: reason for name, conv in found.items() if (reason := why(name, conv))}


def check_replaceable(
    model: nn.Module, found: Mapping[str, Convolution], keep: bool = False
) -> None:
    """Raise ValueError if one of some named layers must stay as it is: see `untouchable`."""
    for name, why in untouchable(model, found, keep).items():
        raise ValueError(f"{name} cannot be replaced: {why}.")


def _peculiar(conv: Convolution) -> str | None:
    """What in a layer itself would not outlive its replacement, or None."""
    # These two first: to read a weight that is computed may change what it is computed from.
    if is_parametrized(conv):
        return "a parametrization computes its parameters; remove that first"
    if isinstance(conv, nn.Conv2d) and conv._parameters.get("weight") is None:
        return "its weight is computed by a hook"
    if why := unfit(conv, BasisConv2d if isinstance(conv, BasisConv2d) else nn.Conv2d):
        return why
    kind = BasisConv2d if isinstance(conv, BasisConv2d) else nn.Conv2d
    held = conv._parameters.keys() | conv._buffers.keys() | conv._modules.keys()
    if extra := held - _HELD[kind]:
        return f"it also holds {', '.join(sorted(extra))}, which its hooks may need"
    if any(is_traceable_wrapper_subclass(p) for p in conv.parameters()):
        return f"its parameters are {type(next(conv.parameters())).__name__}s; apply the plan first"
    if own := {n for n in set(dir(type(conv))) - _KNOWN[kind] if _used(type(conv), n)}:
        names = ", ".join(sorted(own))
        return f"others may use what a {type(conv).__name__} has of its own: {names}"
    if taken := (vars(conv).keys() - _OWN[kind]) & _TAKEN:
        return f"a basis or a dense layer needs the name of its {', '.join(sorted(taken))} itself"
    return None


def _used(kind: type, name: str) -> bool:
    """Whether a class's attribute is for others: of those that Python itself makes, functions."""
    return not name.startswith("__") or isinstance(getattr(kind, name), FunctionType)


def swap(model: nn.Module, replaced: Mapping[nn.Module, nn.Module]) -> None:
    """Put new layers wherever old ones stand, with the old ones' hooks and own attributes.

    Args:
        model: the network.
        replaced: the new layer by the old one.
    """
    for old, new in replaced.items():  # which an attribute's setter may refuse
        for attribute in _HOOKS:
            setattr(new, attribute, getattr(old, attribute))
        for attribute in vars(old).keys() - _ATTRIBUTES:
            if not attribute.startswith("_"):
                setattr(new, attribute, getattr(old, attribute))
    _place(model, replaced)


def _place(model: nn.Module, replaced: Mapping[nn.Module, nn.Module]) -> None:
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None and child in replaced:
                module._modules[name] = replaced[child]


@contextmanager
def swapped(model: nn.Module, replaced: Mapping[nn.Module, nn.Module]) -> Iterator[None]:
    """`swap`, undone when the block is left."""
    back = {new: old for old, new in replaced.items()}
    with undone(lambda: _place(model, back)):
        swap(model, replaced)
        yield

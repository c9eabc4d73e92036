"""Finding a model's convolutions and replacing them, with hooks and shared modules kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from functools import partial
from types import MethodType

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import is_parametrized

from basisconv.layer import BasisConv2d, unfit

Convolution = nn.Conv2d | BasisConv2d

# What nn.Module keeps of hooks on calls. The dictionaries themselves move, so that handles
# given out before still remove their hooks.
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks",
    "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip

# Plain layers of each kind, for what they hold of their own: anything beside is the user's.
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
_MODULE_ATTRIBUTES = vars(nn.Module()).keys()
# What may lead to a layer that it holds; of a long list of other things none is looked at.
_LEADING = (dict, list, tuple, set, frozenset, deque, partial, MethodType, nn.Module)


def convolutions(model: nn.Module) -> dict[str, Convolution]:
    """Every Conv2d (subclasses too) and BasisConv2d by its first name, in the model's order."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | BasisConv2d)}


def untouchable(model: nn.Module, found: Mapping[str, Convolution]) -> dict[str, str]:
    """Why some of a model's convolutions must stay as they are, by name; the rest may be replaced.

    Args:
        model: the network.
        found: the layers asked about, by their names in it.
    """
    replicated, holders, owners = set[int](), _holders(model), dict[int, list[nn.Module]]()
    for module in model.modules():
        if isinstance(module, DistributedDataParallel):
            replicated |= {id(inner) for inner in module.modules()}
        for parameter in module._parameters.values():
            owners.setdefault(id(parameter), []).append(module)

    def why(name: str, conv: Convolution) -> str | None:
        if name == "":
            return "it is the model itself; use BasisConv2d.from_conv2d"
        if reason := _peculiar(conv):
            return reason
        if id(conv) in replicated:
            # Its reducer would never average the new layer's parameters over the replicas.
            return "a DistributedDataParallel holds it; change its .module, then wrap that anew"
        if holder := holders.get(id(conv)):
            return f"{holder} holds it, too; use an nn.ModuleList, or call it by its name"
        for parameter in conv.parameters():
            for module in owners[id(parameter)]:
                if module is not conv:
                    return f"it shares a parameter with a {type(module).__name__}"
        return None

    return {name: reason for name, conv in found.items() if (reason := why(name, conv))}


def check_replaceable(model: nn.Module, found: Mapping[str, Convolution]) -> None:
    """Raise ValueError if one of some named layers must stay as it is."""
    for name, why in untouchable(model, found).items():
        raise ValueError(f"{name} cannot be replaced: {why}.")


def _peculiar(conv: Convolution) -> str | None:
    """What in a layer itself would not outlive its replacement, or None."""
    # These two first: to read a weight that is computed may change what it is computed from.
    if is_parametrized(conv):
        return "a parametrization computes its parameters; remove that first"
    if isinstance(conv, nn.Conv2d) and conv._parameters.get("weight") is None:
        return "its weight is computed by a hook"
    if why := unfit(conv):
        return why
    kind = BasisConv2d if isinstance(conv, BasisConv2d) else nn.Conv2d
    held = conv._parameters.keys() | conv._buffers.keys() | conv._modules.keys()
    if extra := held - _HELD[kind]:
        return f"it also holds {', '.join(sorted(extra))}, which its hooks may need"
    if taken := (vars(conv).keys() - _OWN[kind]) & _TAKEN:
        return f"a basis or a dense layer needs the name of its {', '.join(sorted(taken))} itself"
    return None


def _holders(model: nn.Module) -> dict[int, str]:
    """Where else layers are held, by the layer's id: from there they would go on being called.

    As in "blocks of a Stage". Looked through are containers, partials, bound methods and modules
    that are not registered.
    """
    found: dict[int, str] = {}
    # Registered modules are looked at in their turn.
    seen = {id(module) for module in model.modules()}
    for module in model.modules():
        for attribute, value in vars(module).items():
            within = [] if attribute in _MODULE_ATTRIBUTES else [value]
            while within:
                item = within.pop()
                if isinstance(item, Convolution):
                    found.setdefault(id(item), f"{attribute} of a {type(module).__name__}")
                if id(item) not in seen:
                    seen.add(id(item))
                    within += [inner for inner in _inside(item) if isinstance(inner, _LEADING)]
    return found


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return (*value.keys(), *value.values())
    if isinstance(value, list | tuple | set | frozenset | deque):
        return value
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    if isinstance(value, MethodType):
        return (value.__self__,)
    return (vars(value),) if isinstance(value, nn.Module) else ()


def module_aliases(model: nn.Module) -> dict[int, list[str]]:
    """Every name of every module, by the module's id: shared modules have several."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return names


def swap(model: nn.Module, old: nn.Module, new: nn.Module, aliases: dict[int, list[str]]) -> None:
    """Put `new` wherever `old` stands, with the hooks and the users' own attributes of `old`."""
    for attribute in _HOOKS:
        setattr(new, attribute, getattr(old, attribute))
    for attribute in vars(old).keys() - _ATTRIBUTES:
        if not attribute.startswith("_"):
            setattr(new, attribute, getattr(old, attribute))
    for name in aliases[id(old)]:
        model.set_submodule(name, new)

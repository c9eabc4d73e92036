"""Finding a model's convolutions and replacing them, with hooks and shared modules kept."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.parameter import UninitializedParameter

from basisconv.layer import BasisConv2d

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
_ATTRIBUTES = {name for convs in _PLAIN.values() for conv in convs for name in vars(conv)}
_MODULE_ATTRIBUTES = vars(nn.Module()).keys()


def convolutions(model: nn.Module) -> dict[str, Convolution]:
    """Every Conv2d (subclasses too) and BasisConv2d by its first name, in the model's order."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | BasisConv2d)}


def untouchable(model: nn.Module, name: str, conv: Convolution) -> str | None:
    """Why a convolution must stay as it is, or None where it may be replaced."""
    if name == "":
        return "it is the model itself; use BasisConv2d.from_conv2d"
    for module in model.modules():
        if holder := _plain_holder(module, conv):
            return f"{holder} of a {type(module).__name__} holds it, too; use an nn.ModuleList"
    if isinstance(conv, BasisConv2d):
        return _extra(conv, BasisConv2d)
    kind = type(conv)
    inherited = kind.forward is nn.Conv2d.forward and (
        kind._conv_forward is nn.Conv2d._conv_forward
    )
    if not inherited or "forward" in vars(conv):
        return f"{kind.__name__} has a forward of its own"
    if conv._parameters.get("weight") is None:
        return "its weight is computed by a parametrization or a hook"
    if isinstance(conv.weight, UninitializedParameter):
        return "its weight is not initialised yet; run one batch first"
    if not conv.weight.is_floating_point():
        return f"its weight is {conv.weight.dtype}, not a real floating type"
    if why := _extra(conv, nn.Conv2d):
        return why
    own = {id(p) for p in conv.parameters()}
    for module in model.modules():
        if module is not conv and any(id(p) in own for p in module._parameters.values()):
            return f"it shares a parameter with a {type(module).__name__}"
    return None


def check_replaceable(model: nn.Module, found: Mapping[str, Convolution]) -> None:
    """Raise ValueError if one of some named layers must stay as it is."""
    for name, conv in found.items():
        if why := untouchable(model, name, conv):
            raise ValueError(f"{name} cannot be replaced: {why}.")


def _extra(conv: Convolution, kind: type[Convolution]) -> str | None:
    """Why a layer that holds more than its kind does must stay: pruned ones do, for one."""
    extra = (conv._parameters.keys() | conv._buffers.keys()) - _HELD[kind]
    return f"it also holds {', '.join(sorted(extra))}, which its hooks may need" if extra else None


def _plain_holder(module: nn.Module, conv: Convolution) -> str | None:
    """The attribute through which a module would go on calling a layer that was replaced."""
    for name, value in vars(module).items():
        if name in _MODULE_ATTRIBUTES:
            continue
        held = value.values() if isinstance(value, dict) else value
        if held is conv or (
            isinstance(value, dict | list | tuple | set) and any(item is conv for item in held)
        ):
            return name
    return None


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

"""Who else holds a layer: whatever would go on using the old one after it is replaced.

Looked at is what a module's attributes lead to: containers, partials, bound methods and modules
that are not registered to any depth; closures, default arguments and attributes of plain objects
up to three of these from the attribute. Not looked through are optimizers, whose parameters
change with the layers by rule, and objects that hold the model itself, as a trainer does.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from basisconv.layer import BasisConv2d

_STEPS = 3  # functions and plain objects from a module's attribute to what holds the layer
# What holds others in the open; of a long list of other things none is looked at.
_OPEN = (dict, list, tuple, set, frozenset, deque, partial, MethodType, nn.Module)
_OPAQUE = (type, ModuleType, Tensor, Optimizer)
_MODULE_ATTRIBUTES = vars(nn.Module()).keys()


def holders(model: nn.Module) -> dict[int, str]:
    """Where else layers and their parameters are held, by their ids, as in "blocks of a Stage"."""
    registered = list(model.modules())
    layers = [m for m in registered if isinstance(m, nn.Conv2d | BasisConv2d)]
    sought = {id(held) for m in layers for held in (m, *m._parameters.values())} - {id(None)}
    seen = {id(module) for module in registered}
    found: dict[int, str] = {}
    level = deque(
        (value, module, attribute)
        for module in registered
        for attribute, value in vars(module).items()
        if attribute not in _MODULE_ATTRIBUTES
    )
    for step in range(_STEPS + 1):
        further = deque[tuple[Any, nn.Module, str]]()
        while level:
            item, module, attribute = level.popleft()
            if id(item) in sought:
                found.setdefault(id(item), f"{attribute} of a {type(module).__name__}")
            if id(item) in seen:
                continue
            seen.add(id(item))
            if isinstance(item, _OPEN):
                inner, towards = _inside(item), level
            elif step < _STEPS and _leads(item):
                inner, towards = _behind(item, model), further
            else:
                continue
            for value in inner:
                if isinstance(value, _OPEN) or id(value) in sought or _leads(value):
                    towards.append((value, module, attribute))
        level = further
    return found


def wrapped(model: nn.Module) -> dict[int, str]:
    """Why layers must stay that a wrapper holds the parameters of, by the layers' ids."""
    why: dict[type, str] = {
        DistributedDataParallel: "a DistributedDataParallel holds it; change its .module, then "
        "wrap that again"
    }
    # Importing it takes a second, and who has a sharded model has imported it.
    if fsdp := sys.modules.get("torch.distributed.fsdp"):
        for name in ("FullyShardedDataParallel", "FSDPModule"):
            if kind := getattr(fsdp, name, None):
                why[kind] = "FSDP shards it; apply the plan first, shard then"
    return {
        id(inner): reason
        for module in model.modules()
        for kind, reason in why.items()
        if isinstance(module, kind)
        for inner in module.modules()
    }


def adapted(model: nn.Module) -> dict[int, str]:
    """Names of adapters, as LoRA layers, that write to the weight of layers inside, by their ids.

    An adapter has a `merge` or a `merged`; where the layer is no child of its, an `unmerge` too.
    """
    found: dict[int, str] = {}
    for module in model.modules():
        own = {n for n in ("merge", "unmerge", "merged") if _has(module, n)}
        if not own & {"merge", "merged"}:
            continue
        deep = own & {"unmerge", "merged"}
        for inner in module.modules() if deep else module.children():
            found.setdefault(id(inner), type(module).__name__)
    return found


def hooked(parameter: Tensor) -> bool:
    """Whether a hook is registered on a parameter itself."""
    after = getattr(parameter, "_post_accumulate_grad_hooks", None)
    return bool(parameter._backward_hooks or after)


def _has(module: nn.Module, name: str) -> bool:
    return name in vars(module) or hasattr(type(module), name)


def _leads(value: object) -> bool:
    """Whether it is a function or a plain object, that may hold something out of sight."""
    if isinstance(value, FunctionType):
        return True
    return type(value).__dictoffset__ != 0 and not isinstance(value, _OPAQUE)


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return (*value.keys(), *value.values())
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    if isinstance(value, MethodType):
        return value.__self__, value.__func__
    if isinstance(value, nn.Module):
        return (vars(value),)
    return value if isinstance(value, Iterable) else ()


def _behind(value: object, model: nn.Module) -> Iterator[object]:
    if isinstance(value, FunctionType):
        yield from map(_content, value.__closure__ or ())
        yield from value.__defaults__ or ()
        yield from (value.__kwdefaults__ or {}).values()
    held = vars(value)
    if all(inner is not model for inner in held.values()):  # else it is the model's trainer
        yield from held.values()


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None

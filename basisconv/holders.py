"""Who else holds a layer: whatever would go on using the old one after it is replaced.

Looked at is what the attributes of a module, its class and its own methods lead to: containers,
iterators, partials, bound methods, weak references and modules that are not registered to any
depth; closures, default arguments and attributes of plain objects up to three of these from the
attribute. Tensors that begin at the same place in memory are one. Of hooks on calls their own
closures, arguments and objects are looked at, and no further, for they collect what they see. Not
looked through are optimizers, whose parameters change with the layers by rule, and objects that
hold the model itself, as a trainer does.
"""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cache, partial
from types import (
    CellType,
    FunctionType,
    GeneratorType,
    MappingProxyType,
    MethodType,
    ModuleType,
)
from typing import Any
from weakref import ref

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from basisconv.layer import BasisConv2d

_STEPS = 3  # functions and plain objects from a module's attribute to what holds the layer
# What holds others in the open; of a long list of other things none is looked at.
_VIEWS = (MappingProxyType, *map(type, (iter(()), iter([]), {}.keys(), {}.values(), {}.items())))
_OPEN = (
    dict, list, tuple, set, frozenset, deque, partial, MethodType, ref, nn.Module, property,
    staticmethod, classmethod, GeneratorType, map, zip, filter, enumerate, reversed, *_VIEWS,
)  # fmt: skip
_OPAQUE = (type, ModuleType, Tensor, Optimizer)
_MERGING = (
    "merge", "_merge", "merge_adapter", "merge_lora", "merge_weights", "fuse_lora", "_fuse_lora",
)  # fmt: skip
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_MODULE_ATTRIBUTES = vars(nn.Module()).keys()


def holders(model: nn.Module) -> dict[int, str]:
    """Where else layers and their parameters are held, by their ids, as in "blocks of a Stage"."""
    registered = list(model.modules())
    layers = [m for m in registered if isinstance(m, nn.Conv2d | BasisConv2d)]
    sought = {id(layer) for layer in layers}
    sought |= {memory(p) for layer in layers for p in layer._parameters.values() if p is not None}
    seen = {id(module) for module in registered}
    found: dict[int, str] = {}
    level = deque(
        (value, module, attribute)
        for module in registered
        for attribute, value in vars(module).items()
        if attribute not in _MODULE_ATTRIBUTES
    )
    for module in registered:
        for hook in _hooks(module):
            for value in _behind(hook, model):
                if memory(value) in sought:
                    found.setdefault(memory(value), f"a hook of a {type(module).__name__}")
    for module in {type(module): module for module in registered}.values():
        for kind in type(module).__mro__:
            if not kind.__module__.startswith(("torch.", "builtins")):
                level.extend((value, module, name) for name, value in vars(kind).items())
    for step in range(_STEPS + 1):
        further = deque[tuple[Any, nn.Module, str]]()
        while level:
            item, module, attribute = level.popleft()
            if memory(item) in sought:
                found.setdefault(memory(item), f"{attribute} of a {type(module).__name__}")
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
                if isinstance(value, _OPEN) or memory(value) in sought or _leads(value):
                    towards.append((value, module, attribute))
        level = further
    return found


def wrapped(model: nn.Module) -> dict[int, str]:
    """Why layers must stay that a wrapper holds the parameters of, by the layers' ids."""
    why: dict[type, str] = {
        DistributedDataParallel: "a DistributedDataParallel holds it; change its .module, then "
        "wrap that again"
    }
    # Importing these takes a second, and who has such a model has imported them.
    fsdp = "FSDP shards it; apply the plan first, shard then"
    for where, name, reason in (
        ("fsdp", "FullyShardedDataParallel", fsdp),
        ("fsdp", "FSDPModule", fsdp),
        ("_composable.replicate", "DDP", "replicate() holds it; apply the plan first, then that"),
    ):
        if kind := getattr(sys.modules.get(f"torch.distributed.{where}"), name, None):
            why[kind] = reason
    return {
        id(inner): reason
        for module in model.modules()
        for kind, reason in why.items()
        if isinstance(module, kind)
        for inner in module.modules()
    }


def check_unsharded(model: nn.Module) -> None:
    """Raise ValueError for a model of which FullyShardedDataParallel leaves each process a part."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", ())
    for name, module in model.named_modules():
        if isinstance(module, kind):
            raise ValueError(
                f"{name or 'The model'} is sharded by FullyShardedDataParallel, which leaves each "
                f"process a part of its layers: measure the model first, shard then."
            )


def adapted(model: nn.Module) -> dict[int, str]:
    """Names of adapters, as LoRA layers, that write to the weight of layers inside, by their ids.

    An adapter has a `merged` or a method that merges (`_MERGING`); where the layer is no child of
    its, a `merged` or an `unmerge`, too.
    """
    found: dict[int, str] = {}
    for module in model.modules():
        own = {n for n in (*_MERGING, "unmerge", "merged") if _has(module, n)}
        if not own - {"unmerge"}:
            continue
        deep = own & {"unmerge", "merged"}
        kind = type(module)
        # As adapters of convolutions may be named like these.
        name = f"{kind.__module__}.{kind.__name__}" if hasattr(nn, kind.__name__) else kind.__name__
        for inner in module.modules() if deep else module.children():
            found.setdefault(id(inner), name)
    return found


def hooked(parameter: Tensor) -> bool:
    """Whether a hook is registered on a parameter itself."""
    after = getattr(parameter, "_post_accumulate_grad_hooks", None)
    return bool(parameter._backward_hooks or after)


def memory(value: object) -> int:
    """Where a tensor's values begin, for a view is the same tensor; of anything else its id."""
    if isinstance(value, Tensor) and type(value) in (Tensor, nn.Parameter):
        return value.data_ptr() or id(value)
    return id(value)


def _hooks(module: nn.Module) -> list[object]:
    return [hook for table in _HOOKS if (hooks := vars(module)[table]) for hook in hooks.values()]


def _has(module: nn.Module, name: str) -> bool:
    return name in vars(module) or hasattr(type(module), name)


def _leads(value: object) -> bool:
    """Whether it is a function or a plain object, that may hold something out of sight."""
    if isinstance(value, FunctionType):
        return True
    return _has_attributes(type(value))  # type: ignore[arg-type]


@cache
def _has_attributes(kind: type) -> bool:
    kept = kind.__dictoffset__ != 0 or any("__slots__" in vars(base) for base in kind.__mro__)
    return kept and not issubclass(kind, _OPAQUE)


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return (*value.keys(), *value.values())
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    if isinstance(value, MethodType):
        return value.__self__, value.__func__
    if isinstance(value, ref):  # a handle's leads to all hooks
        return (held,) if isinstance(held := value(), nn.Conv2d | BasisConv2d | Tensor) else ()
    if isinstance(value, nn.Module):
        return (vars(value),)
    if isinstance(value, dict | list | tuple | set | frozenset | deque):
        return value
    return gc.get_referents(value)  # which uses up no iterator


def _behind(value: object, model: nn.Module) -> Iterator[object]:
    if isinstance(value, FunctionType):
        yield from map(_content, value.__closure__ or ())
        yield from value.__defaults__ or ()
        yield from (value.__kwdefaults__ or {}).values()
    if isinstance(value, MethodType | partial):
        for inner in _inside(value):
            yield from _inside(inner) if type(inner) in (tuple, dict) else (inner,)
        value = getattr(value, "__self__", None)
    held = [*getattr(value, "__dict__", {}).values()]
    if "<locals>" in type(value).__qualname__:  # its methods may have closures
        held += vars(type(value)).values()
    for kind in type(value).__mro__:
        held += [getattr(value, name, None) for name in vars(kind).get("__slots__", ())]
    if all(inner is not model for inner in held):  # else it is the model's trainer
        yield from held


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None

"""What a model holds, kept so that it can be put back after a call that may have changed it."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType, MemberDescriptorType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_CONTAINERS = (dict, OrderedDict, defaultdict, Counter, list, set, deque)
_OPAQUE = (type, ModuleType, FunctionType, Optimizer)
_STEPS = 3  # plain objects, each an attribute of the one before


class Snapshot:
    """What modules hold: attributes, containers and plain objects in them, buffers, other tensors.

    Containers are followed to any depth, plain objects up to three of them and not through one
    that holds the model itself, as a trainer does.

    Args:
        model: the network.
        parameters: those of its parameters whose values are kept, too.
    """

    def __init__(self, model: nn.Module, parameters: Iterable[nn.Parameter] = ()) -> None:
        self._containers: list[tuple[Any, Any]] = []
        self._slots: list[tuple[Any, dict[str, Any]]] = []
        self._arrays: list[tuple[np.ndarray, np.ndarray]] = []
        self._lazy: list[tuple[Any, type, torch.dtype]] = []
        self._tensors: list[tuple[Tensor, Tensor, Tensor]] = []  # with its metadata and values
        for parameter in parameters:
            self._keep(parameter)
        seen = {id(item) for item in (*model.modules(), *model.parameters())}
        level = deque[Any](vars(module) for module in model.modules())
        for step in range(_STEPS + 1):
            further = deque[Any]()
            while level:
                item = level.popleft()
                if id(item) in seen:
                    continue
                seen.add(id(item))
                if isinstance(item, Tensor):
                    if type(item) in (Tensor, nn.Parameter) or is_lazy(item):
                        self._keep(item)
                elif isinstance(item, np.ndarray):
                    self._arrays.append((item, item.copy()))
                elif type(item) in _CONTAINERS:
                    self._containers.append((item, item.copy()))
                    level.extend(item.values() if isinstance(item, dict) else item)
                elif isinstance(item, tuple):
                    level.extend(item)
                elif step < _STEPS and _plain(item):
                    held, slots = getattr(item, "__dict__", {}), _slots(item)
                    if all(value is not model for value in (*held.values(), *slots.values())):
                        self._slots.append((item, slots))
                        further.extend((held, *slots.values()))
            level = further

    def tensors(self) -> set[int]:
        """Ids of the tensors whose values are kept."""
        return {id(tensor) for tensor, _, _ in self._tensors}

    def put_back(self) -> None:
        """What differs from what it was, as it was."""
        for container, items in self._containers:
            _refill(container, items)
        for item, slots in self._slots:
            for name, value in slots.items():
                object.__setattr__(item, name, value)
        for array, was in self._arrays:
            if not np.array_equal(array, was):
                array[...] = was
        for tensor, kind, dtype in self._lazy:
            if not is_lazy(tensor):
                tensor.data = torch.empty(0, device=tensor.device, dtype=dtype)
                tensor.__class__ = kind
        for tensor, form, values in self._tensors:
            if _freed(form):
                continue
            if _form(tensor) != _form(form):
                tensor.data = form
            with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                core = _without_repeats(tensor)
                if not torch.equal(core, values):
                    core.copy_(values)

    def _keep(self, tensor: Tensor) -> None:
        if is_lazy(tensor):
            self._lazy.append((tensor, type(tensor), tensor.dtype))
        elif not tensor.is_meta and tensor.layout == torch.strided and not _freed(tensor):
            form = tensor.detach()
            self._tensors.append((tensor, form, _without_repeats(form).clone()))


@contextmanager
def put_back_on_error(model: nn.Module, parameters: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """A model as a `Snapshot` has it if an error or an interrupt leaves the block."""
    kept = Snapshot(model, parameters)
    try:
        yield
    except BaseException:
        kept.put_back()
        raise


@contextmanager
def undone(undo: Callable[[], None]) -> Iterator[None]:
    """Call `undo` when the block is left; after an error twice, for an interrupt may cut it off."""
    try:
        try:
            yield
        finally:
            undo()
    except BaseException:
        undo()
        raise


def _plain(item: object) -> bool:
    """Whether it has attributes that a pass may write to: modules that are not registered, too."""
    held = type(item).__dictoffset__ != 0 or bool(_slots(item))
    return held and not isinstance(item, _OPAQUE)


def _slots(item: object) -> dict[str, Any]:
    """Attributes that an object keeps in slots."""
    return {
        name: member.__get__(item)
        for kind in type(item).__mro__
        if "__slots__" in vars(kind)
        for name, member in vars(kind).items()
        if isinstance(member, MemberDescriptorType) and hasattr(item, name)
    }


def _form(tensor: Tensor) -> tuple[Any, ...]:
    if is_traceable_wrapper_subclass(tensor):  # it has no memory of its own
        return ()
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.data_ptr()


def _freed(tensor: Tensor) -> bool:
    """Whether its memory was given back, as FSDP does: to read it would be a crash."""
    if is_traceable_wrapper_subclass(tensor) or not tensor.numel():
        return False
    return not tensor.untyped_storage().nbytes()


def _without_repeats(tensor: Tensor) -> Tensor:
    """The part of an expanded tensor that is in memory, which takes a copy."""
    for dimension, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if size > 1 and stride == 0:
            tensor = tensor.narrow(dimension, 0, 1)
    return tensor


def _refill(container: Any, items: Any) -> None:
    if isinstance(container, dict):
        same = list(container) == list(items) and all(container[k] is items[k] for k in items)
    elif isinstance(container, set):
        same = container == items
    else:
        same = len(container) == len(items) and all(map(lambda a, b: a is b, container, items))
    if not same:
        container.clear()
        (container.extend if isinstance(container, list | deque) else container.update)(items)

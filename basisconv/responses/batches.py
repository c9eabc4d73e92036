"""What a network's layers compute on data: batches of it, and forward passes that leave no trace.

A layer's *responses* are its outputs at all positions of all samples. Passes run in evaluation
mode without gradients and leave the network and all random streams as they were.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from basisconv.holders import wrapped
from basisconv.observe import Arguments, Forward, run, streams_kept, undisturbed
from basisconv.responses.followers import Hook
from basisconv.surgery import Convolution, convolutions
from basisconv.validity import whole


class Stop(BaseException):
    """Ends a forward pass early. No Exception, which a model's own code may catch."""


def take_batches(data: object, samples: int, forward: Forward | None = None) -> list[Any]:
    """The first batches of some data, held in a list for several passes over them.

    Args:
        data: an iterable of batches. A batch is a tensor, `model(batch)`; a mapping of names,
            `model(**batch)`; or a tuple or list whose first element is one of these, as a
            DataLoader gives it. A tensor or a mapping alone is one batch.
        samples: the most that are taken, counted along the first dimension of a batch's first
            tensor. A tensor is cut where it would be more; other batches are taken whole or not.
        forward: calls the model otherwise, `forward(model, batch)`; a batch is then anything.

    Returns:
        The batches: what `observe.arguments` takes or, with `forward`, as they came.

    Raises:
        TypeError: for data that is not iterable, or batches of no such kind.
        ValueError: if there is no batch, the first alone has more than `samples`, or `samples` is
            no whole number above zero.

    Warns:
        UserWarning: if there is more data than was taken.
    """
    if (whole(samples) or 0) < 1:
        raise ValueError(f"samples={samples!r} is not a whole number >= 1.")
    if isinstance(data, Tensor | Mapping):
        data = [data]
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        raise TypeError(f"data is an iterable of batches, not a {type(data).__name__}.")
    taken: list[Any] = []
    count, left = 0, False
    with streams_kept():
        for item in data:
            if left := count >= samples:
                break
            batch = _as_arguments(item) if forward is None else item
            size = _samples(batch)
            if left := count + size > samples:
                if forward is None and batch.positional:
                    # A copy: a view would hold all of the tensor.
                    first = batch.positional[0][: samples - count].clone()
                    taken.append(Arguments((first,), {}))
                    count = samples
                break
            taken.append(batch)
            count += size
    if not taken:
        raise ValueError(
            f"The first batch has more than samples={samples}: make batches smaller or give a "
            f"larger samples=."
            if left
            else "data holds no batch."
        )
    if left:
        warnings.warn(
            f"data holds more than samples={samples}: {count} in {len(taken)} batches were taken, "
            f"the rest was left.",
            stacklevel=3,
        )
    return taken


def _as_arguments(item: object) -> Arguments:
    if isinstance(item, Arguments):  # taken before
        return item
    batch = item[0] if isinstance(item, tuple | list) and item else item
    if isinstance(batch, Tensor):
        return Arguments((batch,), {})
    if isinstance(batch, Mapping) and all(isinstance(name, str) for name in batch):
        return Arguments((), dict(batch))
    raise TypeError(
        f"A batch is a tensor, a mapping of keyword arguments, or a tuple or list that begins with "
        f"one, not a {type(batch).__name__}. Tell how to call the model with "
        f"forward=lambda model, batch: ..."
    )


def _samples(batch: object) -> int:
    """The first dimension of a batch's first tensor; a batch without one counts as a sample."""
    leaves = tree_leaves(tuple(batch) if isinstance(batch, Arguments) else batch)
    return next((len(t) for t in leaves if isinstance(t, Tensor) and t.ndim), 1)


def held_out(count: int) -> set[int]:
    """The batches that nothing is fitted to: every fifth, of fewer the last, of one none."""
    return set(range(4, count, 5)) or set(range(1, count)[-1:])


def check_whole(model: nn.Module) -> None:
    """Raise ValueError for a model whose layers run as shards or replicas."""
    reasons = list(wrapped(model).values())
    if any(isinstance(module, nn.DataParallel) for module in model.modules()):
        reasons.append("a DataParallel runs copies of its layers; use its .module")
    if reasons:
        raise ValueError(f"This model's responses cannot be collected: {reasons[0]}.")


def forward_pass(
    model: nn.Module,
    batch: Any,
    forward: Forward | None,
    hooks: Mapping[nn.Module, Hook],
    seed: int = 0,
) -> Any:
    """What a model returns for a batch, in evaluation mode; None if a hook raised `Stop`.

    The model and the random streams are left as they were (see `undisturbed`), and so is the
    batch, which the model gets a copy of. Compiled models run eagerly.

    Args:
        model: the network.
        batch: one that `take_batches` gave.
        forward: as `take_batches` takes it.
        hooks: called after each call of some modules, before the user's hooks. What a hook
            returns, unless it is None, replaces the module's output.
        seed: passes with the same seed draw the same random numbers.
    """

    def register(module: nn.Module, hook: Hook) -> Any:
        return module.register_forward_hook(
            lambda _, args, kwargs, output: hook((*args, *kwargs.values()), output),
            prepend=True,
            with_kwargs=True,
        )

    # Inference tensors count no versions, which tell whether one was written to.
    with torch.inference_mode(False), undisturbed(model, seed), ExitStack() as stack:
        for module, hook in hooks.items():
            stack.callback(register(module, hook).remove)
        try:
            returned = run(model, tree_map_only(Tensor, torch.clone, batch), forward)
            # It may be a buffer of the model's, which is about to be put back.
            return tree_map_only(Tensor, torch.clone, returned)
        except Stop:
            return None


def layers_named(model: nn.Module, names: Iterable[str]) -> dict[str, Convolution]:
    """Convolutions of a model by their names.

    Raises:
        ValueError: for a name that is none's.
    """
    found, names = convolutions(model), list(names)
    if unknown := [name for name in names if name not in found]:
        raise ValueError(
            f"The model has no convolutions {', '.join(map(repr, unknown))}. Available: "
            f"{', '.join(found) or 'none'}."
        )
    return {name: found[name] for name in names}


def check_reached(missed: Sequence[str]) -> None:
    """Raise ValueError for layers that no batch reached."""
    if missed:
        raise ValueError(
            f"The data never reach {', '.join(missed)}: give data that do, or leave these layers "
            f"out."
        )


def check_finite(name: str, values: Tensor) -> None:
    """Raise ValueError unless a layer's moments are finite numbers."""
    if not values.isfinite().all():
        raise ValueError(f"{name}: its responses to the data are not finite numbers.")

"""One forward pass of a network, to see what its layers are given, which leaves it as it was."""

from __future__ import annotations

import inspect
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from basisconv.snapshot import Snapshot, undone
from basisconv.validity import whole

# A shape, a tensor, positional arguments, or keyword arguments.
Input = Tensor | Sequence[Any] | Mapping[str, Any]
# How to call a network on a batch that it does not take as it is.
Forward = Callable[[nn.Module, Any], object]


class Observed(NamedTuple):
    """A layer with what it was given and what it returned in one forward pass."""

    module: Any
    input: Tensor  # of the last call
    output: Tensor
    calls: tuple[tuple[Tensor, Tensor], ...]  # input and output of every call, the last included


class Arguments(NamedTuple):
    """What a network is called with."""

    positional: tuple[Any, ...]
    named: dict[str, Any]

    def tensors(self) -> list[Tensor]:
        """All tensors among them, at any depth."""
        return [leaf for leaf in tree_leaves(tuple(self)) if isinstance(leaf, Tensor)]


def arguments(model: nn.Module, given: Input) -> Arguments:
    """What to call a network with.

    Args:
        model: whose device and dtype an input of a stated shape has.
        given: a shape (whole numbers), for a tensor of zeros; a tensor; a tuple or list of
            positional arguments; or a mapping of keyword arguments. (A network that takes one dict
            gets it in a tuple.)

    Raises:
        TypeError: for anything else.
    """
    if isinstance(given, Arguments):
        return given
    if isinstance(given, Tensor):
        return Arguments((given,), {})
    if isinstance(given, Mapping) and all(isinstance(name, str) for name in given):
        return Arguments((), dict(given))
    if isinstance(given, Sequence) and not isinstance(given, str | bytes):
        if any(isinstance(size, Tensor) or whole(size) is None for size in given):
            return Arguments(tuple(given), {})
        real = (p for p in model.parameters() if p.is_floating_point())
        like = next(real, torch.empty(0))
        sizes = [int(size) for size in given]
        return Arguments((torch.zeros(sizes, device=like.device, dtype=like.dtype),), {})
    raise TypeError(
        f"A network's input is a shape, a tensor, a tuple of arguments or a mapping of keyword "
        f"arguments, not a {type(given).__name__}."
    )


def run(model: nn.Module, given: Any, forward: Forward | None = None) -> object:
    """What a network returns.

    Args:
        model: the network.
        given: as `arguments` takes it; with `forward`, anything.
        forward: calls the network on it otherwise: `forward(model, given)`.

    Raises:
        TypeError: for an input of no kind that `arguments` takes, or that the network does not.
    """
    if forward is not None:
        return forward(model, given)
    positional, named = arguments(model, given)
    try:
        return model(*positional, **named)
    except TypeError as error:
        try:
            inspect.signature(model.forward).bind(*positional, **named)
        except TypeError:
            raise TypeError(
                f"{error}. Give several inputs as a tuple of arguments or as a mapping of keyword "
                f"arguments; where they are a batch of data, of which a tuple or list counts by "
                f"its first element, with forward=lambda model, batch: ..."
            ) from error
        raise


def observe(
    model: nn.Module, given: Any, kinds: tuple[type, ...], forward: Forward | None = None
) -> dict[str, Observed]:
    """Run a model once and keep what its layers of some kinds were given and returned.

    The model runs under `undisturbed`. Layers appear in the order of their first call, also those
    that run as replicas of `nn.DataParallel`; a call that takes or returns no tensor itself, as a
    tuple, is passed over.

    Args:
        model: the network.
        given: as `run` takes it.
        kinds: the classes of layers.
        forward: likewise.

    Raises:
        TypeError: for an input of no kind that `arguments` takes.
        ValueError: for a model with parameters that are not initialised.
    """
    given = given if forward is not None else arguments(model, given)
    modules = dict[str, nn.Module](model.named_modules())
    modules = {name: module for name, module in modules.items() if isinstance(module, kinds)}
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def hook(
        name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        if x is not None and isinstance(output, Tensor):
            calls.setdefault(name, []).append((x, output))

    with undisturbed(model):
        handles = [
            # By name: a replica runs the hooks of the layer that it is a copy of.
            m.register_forward_hook(partial(hook, name), with_kwargs=True)
            for name, m in modules.items()
        ]
        try:
            run(model, given, forward)
        finally:
            for handle in handles:
                handle.remove()
    return {n: Observed(modules[n], *made[-1], tuple(made)) for n, made in calls.items()}


@contextmanager
def undisturbed(model: nn.Module, seed: int | None = None) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards all is as it was before.

    Args:
        model: the network.
        seed: what random streams start from, as `streams_kept` takes it.

    Put back are random streams, modes (through `train()`, which adapters do their merging in), what
    a `Snapshot` keeps, and the parameters of modules with a `train` of their own. What hooks write
    elsewhere is not.

    Raises:
        ValueError: for a model with parameters that are not initialised, for a forward pass would
            make them.

    Warns:
        UserWarning: where a forward pass has written to another parameter.
    """
    modules = list(model.named_modules())
    for name, module in modules:
        if any(map(is_lazy, (*module._parameters.values(), *module._buffers.values()))):
            raise ValueError(
                f"{name or 'The model'} has parameters that are not initialised yet: run one "
                f"batch first."
            )
    versions = [(n, p, _version(p)) for n, p in model.named_parameters()]
    own = {p for _, m in modules if type(m).train is not nn.Module.train for p in m.parameters()}
    kept = Snapshot(model, [p for p in own if type(p) is nn.Parameter])
    training = [(m, m.training) for _, m in modules]

    def put_back() -> None:
        for module, mode in training:  # from the outermost inwards
            if module.training != mode:
                module.train(mode)
        kept.put_back()

    with streams_kept(seed), undone(put_back):
        model.eval()
        # What is compiled runs as it was written: the work of hooks is not for a compiler.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    copied = kept.tensors()
    written = [n for n, p, was in versions if id(p) not in copied and _version(p) != was]
    if written:
        warnings.warn(f"The forward pass has written to {', '.join(written)}.", stacklevel=3)


@contextmanager
def streams_kept(seed: int | None = None) -> Iterator[None]:
    """Random streams, torch's, numpy's and Python's, go on afterwards as if nothing was drawn.

    Args:
        seed: what they start from meanwhile; None for where they are.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
                if devices:
                    torch.cuda.manual_seed_all(seed)
                random.seed(seed)
                np.random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version

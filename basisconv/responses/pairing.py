"""Layers fitted, in the order in which they run, to what a network's own layers compute.

For each layer two forward passes of every batch are paired call by call: y, the responses of the
network as it was, and z, those of the layer's dense kernel to the input that it gets now, after the
layers before it were converted: the asymmetric form of Zhang et al., *Accelerating Very Deep
Convolutional Networks* (2015).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from basisconv.agreement import alike
from basisconv.layer import BasisConv2d
from basisconv.observe import Forward
from basisconv.progress import progress
from basisconv.responses.batches import Stop, check_reached, forward_pass, held_out
from basisconv.responses.changes import Changes, changed
from basisconv.responses.fitting import ENOUGH, FitReport, LayerFit, best_fit
from basisconv.responses.followers import Followers, Hook, channel_weights, variance
from basisconv.responses.moments import Moments
from basisconv.surgery import Convolution


class Pending(NamedTuple):
    """A layer to be fitted."""

    old: Convolution  # the model's
    dense: nn.Conv2d  # its dense form, which may be itself
    svd: BasisConv2d  # the best approximation of its kernel, in the form that is wanted


def fit_layers(
    model: nn.Module,
    pending: Mapping[str, Pending],
    others: Mapping[nn.Module, nn.Module],
    batches: Sequence[Any],
    forward: Forward | None,
) -> tuple[Changes, FitReport]:
    """Fit layers to the responses of a model, which is left as it was.

    Every batch is passed forward once, then twice for each layer, up to that layer's last call;
    the first batch three times more, or more often where batch-norms share what they get, and
    those that are held out three times.

    Args:
        model: the network.
        pending: the layers to be fitted, by name.
        others: layers that change otherwise, with those that replace them.
        batches: what `take_batches` gave. Every fifth is held out, of fewer the last, of one none.
        forward: as `take_batches` takes it.

    Returns:
        What is to be changed, `others` included, and what that reaches.

    Raises:
        ValueError: for layers that the data never reach or whose responses are not finite.

    Warns:
        UserWarning: for layers with few positions, for which the ridge is raised.
    """
    network = _Network(model, batches, forward)
    calls, followers = network.calls({name: p.old for name, p in pending.items()})
    check_reached([name for name in pending if name not in calls])
    norms = {name: followers.of(name, p.old.out_channels) for name, p in pending.items()}
    absorbing = network.absorbing(
        {
            name: (p.old, norms[name])
            for name, p in pending.items()
            if p.old.bias is None and norms[name] and calls[name][0]
        }
    )
    # So far the dense forms stand where layers are still to be fitted.
    now = Changes({**others}, {})
    now.layers.update((p.old, p.dense) for p in pending.values() if p.old is not p.dense)
    rows: list[LayerFit] = []
    raised: list[str] = []
    for name in progress(list(calls), "responses"):
        old, layer, svd = pending[name]
        d = channel_weights(norms[name], old.out_channels)
        moments = network.moments(old, layer, calls[name], now)
        paired = moments is not None
        fitting, held = moments or network.own_moments(old, calls[name])
        best = best_fit(name, layer, svd, d, fitting, held, paired)
        if name in absorbing:
            now.means.update(dict.fromkeys(norms[name], -best.bias))
        else:
            _set_bias(best.layer, best.bias)
        now.layers[old] = best.layer
        rows.append(best.row)
        raised += [name] if best.raised else []
    if raised:
        warnings.warn(
            f"The data have fewer than {ENOUGH} positions for each output of {', '.join(raised)}: "
            f"they are fitted with a larger ridge, nearer to their kernels. Give more data.",
            stacklevel=3,
        )
    by_svd = Changes({**others}, {})
    by_svd.layers.update((p.old, p.svd) for p in pending.values())
    error, error_svd = network.output_errors(now, by_svd)
    unseen = len(network.held_out)
    return now, FitReport(tuple(rows), error, error_svd, len(batches) - unseen, unseen)


def _set_bias(layer: BasisConv2d, bias: Tensor) -> None:
    if layer.bias is None:
        layer._add_bias()
    assert layer.bias is not None
    with torch.no_grad():
        layer.bias.copy_(bias)


class _Network:
    """A model and the batches that are passed through it, each from a random state of its own."""

    def __init__(self, model: nn.Module, batches: Sequence[Any], forward: Forward | None) -> None:
        self.model, self.batches, self.forward = model, batches, forward
        self.held_out = held_out(len(batches))

    def outputs(self, batch: int, hooks: Mapping[nn.Module, Hook], changes: Changes) -> list[Any]:
        """What the model, with changes, returns for a batch."""
        with changed(self.model, changes):
            returned = forward_pass(self.model, self.batches[batch], self.forward, hooks, batch)
        return tree_leaves(returned)

    def calls(self, layers: Mapping[str, nn.Module]) -> tuple[dict[str, list[int]], Followers]:
        """How often each batch calls each layer that is reached, in the order of first calls."""
        followers = Followers(self.model, layers)
        hooks = followers.hooks()
        calls: dict[str, list[int]] = {}

        def counting(name: str, batch: int) -> Hook:
            inner = hooks[layers[name]]

            def hook(args: tuple[Any, ...], output: Any) -> None:
                inner(args, output)
                calls.setdefault(name, [0] * len(self.batches))[batch] += 1

            return hook

        for batch in range(len(self.batches)):
            counted = {layer: counting(name, batch) for name, layer in layers.items()}
            self.outputs(batch, {**hooks, **counted}, Changes({}, {}))
        return calls, followers

    def absorbing(
        self, candidates: Mapping[str, tuple[Convolution, Sequence[nn.Module]]]
    ) -> set[str]:
        """The layers whose bias can go into the running means of the batch-norms behind them.

        The same values, added to a layer's output and to these means, must not change what the
        model returns for the first batch, and must do so when the means are left.
        """

        def outputs(names: Iterable[str], means: bool) -> list[Any]:
            hooks, shifts = dict[nn.Module, Hook](), dict[nn.Module, Tensor]()
            for seed, name in enumerate(names):
                layer, norms = candidates[name]
                # Far larger than responses are, so that weak branches tell, too, with signs of the
                # layer's own.
                signs = torch.randn(
                    layer.out_channels, generator=torch.Generator().manual_seed(seed)
                ).sign()
                bias = 32 * variance(norms[0]).sqrt() * signs
                hooks[layer] = _adding(bias)
                shifts.update(dict.fromkeys(norms, bias) if means else {})
            return self.outputs(0, hooks, Changes({}, shifts))

        if not candidates:
            return set()
        want = outputs([], False)

        def proven(names: Iterable[str]) -> bool:
            return alike(outputs(names, True), want) and not alike(outputs(names, False), want)

        return set(candidates) if proven(candidates) else {n for n in candidates if proven([n])}

    def moments(
        self, old: Convolution, now: nn.Module, calls: Sequence[int], changes: Changes
    ) -> tuple[Moments, Moments] | None:
        """Moments of (y, z) of the batches to fit to, and of those held out.

        Args:
            old: the layer in the model as it was, which answers y.
            now: the layer in its place in the changed model, which answers z.
            calls: how often each batch calls it; a pass stops after that many.
            changes: to the model.

        Returns:
            None where z has fewer calls, or calls of other shapes.
        """
        fitting, held = Moments(old.groups), Moments(old.groups)
        for batch, count in enumerate(calls):
            if not count:
                continue
            ys = self._responses(old, batch, count, Changes({}, {}))
            zs = self._responses(now, batch, count, changes)
            if [y.shape for y in ys] != [z.shape for z in zs]:
                return None
            for y, z in zip(ys, zs, strict=True):
                (held if batch in self.held_out else fitting).add(y, z)
        return _both(fitting, held)

    def own_moments(self, old: Convolution, calls: Sequence[int]) -> tuple[Moments, Moments]:
        """The same of (y, y)."""
        fitting, held = Moments(old.groups), Moments(old.groups)
        for batch, count in enumerate(calls):
            for y in self._responses(old, batch, count, Changes({}, {})) if count else []:
                (held if batch in self.held_out else fitting).add(y, y)
        return _both(fitting, held)

    def _responses(
        self, layer: nn.Module, batch: int, count: int, changes: Changes
    ) -> list[Tensor]:
        """What a layer's first `count` calls return; the pass stops after them."""
        found: list[Tensor] = []

        def hook(_: tuple[Any, ...], output: Tensor) -> None:
            if len(found) + 1 < count:
                found.append(output.clone())  # what follows may write to it
                return
            if len(found) < count:
                found.append(output)
            raise Stop

        self.outputs(batch, {layer: hook}, changes)
        return found

    def output_errors(self, *networks: Changes) -> list[float]:
        """Relative errors of the outputs of changed networks, on what is held out."""
        missed, total = [0.0] * len(networks), 0.0
        for batch in self.held_out or range(len(self.batches)):
            want = self.outputs(batch, {}, Changes({}, {}))
            real = [y for y in want if isinstance(y, Tensor) and y.is_floating_point()]
            total += sum(_energy(y - y.float().mean()) for y in real)
            for i, changes in enumerate(networks):
                missed[i] += _distance(self.outputs(batch, {}, changes), want)
        return [m / total if total > 0 else math.nan for m in missed]


def _both(fitting: Moments, held: Moments) -> tuple[Moments, Moments]:
    """Both; of a layer that one kind of batches alone reaches, the moments of that kind twice."""
    reached = [m for m in (fitting, held) if m.count]
    return reached[0], reached[-1]


def _adding(bias: Tensor) -> Hook:
    def hook(_: tuple[Any, ...], output: Tensor) -> Tensor:
        return output + bias.to(output.device, output.dtype)[:, None, None]

    return hook


def _distance(got: list[Any], want: list[Any]) -> float:
    """The squared distance of two outputs' floating-point tensors; NaN where shapes differ."""
    if len(got) != len(want):
        return math.nan
    distance = 0.0
    for one, other in zip(got, want, strict=True):
        if isinstance(other, Tensor) and other.is_floating_point():
            if not isinstance(one, Tensor) or one.shape != other.shape:
                return math.nan
            distance += _energy(one - other)
    return distance


def _energy(values: Tensor) -> float:
    return values.float().square().sum().item()

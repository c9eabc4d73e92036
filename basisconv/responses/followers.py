"""The batch-norms that follow a network's layers, and how much they make of each channel."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# What a hook on a module's calls is given: the arguments and the output. What it returns, unless it
# is None, replaces the output.
Hook = Callable[[tuple[Any, ...], Any], Any]

_FLOOR = 1e-3  # least weight of a channel, relative to the largest


class Followers:
    """Finds the normalisations that get a layer's output as it is, in passes with `hooks`.

    A normalisation is a module with buffers `running_mean` and `running_var` and an `eps`:
    batch-norms of torch and frozen ones of torchvision.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        self._layers = layers
        self._norms = [m for m in model.modules() if _normalises(m)]
        # Of each call of a layer, the normalisations that got its output.
        self._calls: dict[str, list[list[nn.Module]]] = {name: [] for name in layers}
        self._latest: dict[int, tuple[Any, int, list[nn.Module]]] = {}

    def hooks(self) -> dict[nn.Module, Hook]:
        """Hooks for `forward_pass`, on layers and normalisations."""

        def called(name: str) -> Hook:
            def hook(_: tuple[Any, ...], output: Any) -> None:
                receivers: list[nn.Module] = []
                self._calls[name].append(receivers)
                # No reference is held, or all outputs would stay in memory. The version tells a
                # tensor that an operation in place has changed since.
                self._latest[id(output)] = weakref.ref(output), output._version, receivers

            return hook

        def normalised(norm: nn.Module) -> Hook:
            def hook(args: tuple[Any, ...], _: Any) -> None:
                x = next((v for v in args if isinstance(v, Tensor)), None)
                found, version, receivers = self._latest.get(id(x), (lambda: None, 0, []))
                if x is not None and found() is x and x._version == version:
                    receivers.append(norm)

            return hook

        return {layer: called(name) for name, layer in self._layers.items()} | {
            norm: normalised(norm) for norm in self._norms
        }

    def of(self, name: str, channels: int) -> list[nn.Module]:
        """The normalisations of a layer's outputs; none if one call's output goes to none."""
        calls = self._calls[name]
        norms = list(dict.fromkeys(norm for receivers in calls for norm in receivers))
        fit = all(len(variance(norm)) == channels for norm in norms)
        return norms if fit and all(calls) else []


def _normalises(module: nn.Module) -> bool:
    statistics = [module._buffers.get(name) for name in ("running_mean", "running_var")]
    return all(value is not None for value in statistics) and "eps" in vars(module)


def variance(norm: nn.Module) -> Tensor:
    """σ² + ε of a normalisation, float64, on the CPU."""
    variance = norm.get_buffer("running_var").detach().cpu().double()
    return variance + float(vars(norm)["eps"])


def channel_weights(norms: Sequence[nn.Module], channels: int) -> Tensor:
    """How much a layer's following batch-norm makes of each channel: |γ|/√(σ² + ε).

    Args:
        norms: the normalisations of the layer's outputs: of several the root mean square, of none
            ones.
        channels: the layer's outputs.

    Returns:
        (channels,), float64, on the CPU; at least a thousandth of the largest.
    """
    squares = torch.zeros(channels, dtype=torch.float64)
    for norm in norms:
        scale = getattr(norm, "weight", None)
        gamma = torch.ones(()) if scale is None else scale.detach()
        squares += gamma.cpu().double() ** 2 / variance(norm)
    weights = squares.sqrt()
    if not (norms and weights.isfinite().all() and weights.any()):
        return torch.ones(channels, dtype=torch.float64)
    return (weights / len(norms) ** 0.5).clamp_min(_FLOOR * weights.max().item())

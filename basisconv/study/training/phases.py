"""From one phase of training to the next: weights and momentum when a layer changes its form.

Write W(θ) for a layer's dense kernel as a function of its parameters θ (W itself for a dense
layer, basis and coefficients for a basis layer), and M for a momentum buffer.

    to dense        M_W = dW/dθ · M_θ     (= A·M_B + M_A·B: a heuristic)
    to basis        M_θ = (dW/dθ)ᵀ · M_W  (= AᵀM_W and M_W·Bᵀ: the chain rule)

Both are one call of automatic differentiation, which covers every form and rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from basisconv.convert import apply_plan
from basisconv.decompose import pivoted_rows
from basisconv.layer import BasisConv2d
from basisconv.study.data.sets import CLASSES
from basisconv.study.records.checkpoint import checkpoint_files, read_checkpoint
from basisconv.study.records.run import Run
from basisconv.study.records.store import Store
from basisconv.study.training.models import build_network, initialise, initialise_layer
from basisconv.study.training.rng import generator
from basisconv.surgery import Convolution, convolutions

Buffers = dict[str, Tensor]  # momentum by the parameter's name in the network


def initial_network(run: Run, classes: int) -> nn.Module:
    """The network at the start of a run's first phase, on the CPU."""
    model = build_network(run.network, run.width, classes)
    initialise(model, run.seed)
    plan = run.phases[0].plan
    if run.init != "random":
        return apply_plan(model, plan, init=run.init, inplace=True)
    kernels = {name: layer.weight for name, layer in convolutions(model).items()}
    apply_plan(model, plan, init="random", inplace=True)  # they are drawn next
    for name, layer in convolutions(model).items():
        if isinstance(layer, BasisConv2d):
            initialise_layer(layer, generator(run.seed, "weights", name))
            _pass_pivots(layer, kernels[name])
    return model


@torch.no_grad()
def _pass_pivots(layer: BasisConv2d, kernel: Tensor) -> None:
    """Make the drawn basis filters the outputs that QR picks of a kernel, in that order.

    Any outputs would do; published Runs have these.
    """
    if layer.passed is None:
        return
    width = layer.n_basis // layer.blocks
    basis = layer.basis.unflatten(0, (layer.blocks, width))
    # The matrix on the basis filters' side, block by block.
    coef = layer.coef if layer.coef_rank is None else layer.coef_in
    passed, coefs = layer.passed.view(layer.blocks, -1), coef.view(layer.blocks, -1, width)
    flat = kernel.to(torch.float64).reshape(*passed.shape, -1)
    for block in range(layer.blocks):
        picked = pivoted_rows(flat[block], width)
        passed[block] = 0
        passed[block, picked] = 1
        order = picked.argsort()
        basis[block] = basis[block, order]
        coefs[block] = coefs[block][:, order]


def restored_network(
    run: Run, phase: int, classes: int, weights: Mapping[str, Tensor]
) -> nn.Module:
    """The network of a phase with given weights, on the CPU.

    The tensors are used without a copy, so their strides stay the same.

    Args:
        run: the Run.
        phase: index of the phase.
        classes: outputs.
        weights: its state dict.

    Raises:
        ValueError: if there is no such phase, or these are not its network's weights.
    """
    if not 0 <= phase < len(run.phases):
        raise ValueError(f"There is no phase {phase}: the run has {len(run.phases)}.")
    model = build_network(run.network, run.width, classes)
    apply_plan(model, run.phases[phase].plan, init="random", inplace=True)
    try:
        model.load_state_dict(weights, assign=True)
    except (RuntimeError, TypeError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"These are not the weights of phase {phase}: {why}") from error
    return model


def trained_network(run: Run, store: Store) -> nn.Module:
    """The network at the end of a run whose final weights were kept, on the CPU.

    Raises:
        LookupError: if the store has no such weights.
        DamagedFile: if their file is not what was written, or another run's.
    """
    files = checkpoint_files(store.weights(run.run_id))
    if not files:
        raise LookupError(
            f"{store.weights(run.run_id)} has no final weights. They stay only where the profile's "
            f"keep_weights named an arm of run {run.run_id} while it was trained: delete its "
            f"record and have it trained again, or put its weights back there."
        )
    weights = read_checkpoint(files[0], run.run_id).weights
    return restored_network(run, len(run.phases) - 1, CLASSES[run.data.name], weights)


def switch_plan(
    model: nn.Module, run: Run, phase: int, buffers: Buffers, images: Tensor | None = None
) -> Buffers:
    """Change a network in place to the plan of `run.phases[phase]`.

    With `run.carry == "exact"` dense layers become the best basis form (SVD) and basis layers
    are multiplied out; with "responses" dense layers are fitted to their responses on images
    instead; with "reinit" only the converted layers are drawn again.

    Args:
        model: the network as the last phase left it.
        run: the Run.
        phase: index of the phase that begins.
        buffers: momentum of the parameters, by name.
        images: what "responses" fits to: a batch of the network's input.

    Returns:
        The momentum to begin with: empty unless `run.momentum_carry == "carried"`.
    """
    before, plan = convolutions(model), run.phases[phase].plan
    if run.carry == "responses" and plan.layers:
        apply_plan(model, plan, init="responses", data=images, inplace=True)
    else:
        apply_plan(model, plan, inplace=True)
    converted = {n: m for n, m in convolutions(model).items() if m is not before[n]}
    if run.carry == "reinit":
        for name, layer in converted.items():
            stream = generator(run.seed, "weights", f"phase {phase}", name)
            cpu = layer.to("cpu")  # where the stream is
            initialise_layer(cpu, stream)
            layer.to(next(iter(before[name].parameters())).device)
    if run.momentum_carry == "fresh" or not buffers:  # SGD without momentum has no buffers
        return {}
    carried = {n: b for n, b in buffers.items() if n.rpartition(".")[0] not in converted}
    if run.carry != "reinit":
        for name, layer in converted.items():
            old = {n: buffers[f"{name}.{n}"] for n, _ in before[name].named_parameters()}
            kernel = kernel_momentum(before[name], old)
            new = parameter_momentum(layer, kernel)
            carried |= {f"{name}.{n}": b for n, b in new.items()}
            if layer.bias is not None:
                carried[f"{name}.bias"] = old["bias"]
    return carried


def kernel_momentum(layer: Convolution, buffers: Buffers) -> Tensor:
    """M_W, of the kernel's shape, from the momentum of a layer's own parameters."""
    if not isinstance(layer, BasisConv2d):
        return buffers["weight"]
    tangents = {n: b for n, b in buffers.items() if n != "bias"}
    primals = {n: p.detach() for n, p in layer.named_parameters() if n != "bias"}

    def kernel(parameters: dict[str, Tensor]) -> Any:
        named = {f"layer.{n}": p for n, p in parameters.items()}
        return torch.func.functional_call(_Kernel(layer), named, ())

    return torch.func.jvp(kernel, (primals,), (tangents,))[1]


def parameter_momentum(layer: Convolution, kernel: Tensor) -> Buffers:
    """Momentum of a layer's own parameters, the bias apart, from M_W."""
    if not isinstance(layer, BasisConv2d):
        return {"weight": kernel.clone()}
    names = [n for n, _ in layer.named_parameters() if n != "bias"]
    parameters = [layer.get_parameter(n) for n in names]
    with torch.enable_grad():
        gradients = torch.autograd.grad((layer.weight * kernel).sum(), parameters)
    return dict(zip(names, gradients, strict=True))


class _Kernel(nn.Module):
    """A layer whose output is its dense kernel, for `torch.func.functional_call`."""

    def __init__(self, layer: BasisConv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> Tensor:
        return self.layer.weight

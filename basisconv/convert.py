"""Making a model match a plan, whatever form it is in, and dense checkpoints in and out.

    small = apply_plan(model, plan)        # dense -> basis, basis -> dense, basis -> other basis
    dense = restore(small)                 # apply_plan with the empty plan

Everything is checked before anything is changed, so a plan that does not fit leaves the model
as it was.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from basisconv.agreement import check_outputs
from basisconv.layer import MODES, BasisConv2d
from basisconv.observe import Forward, Input
from basisconv.plan import Plan, check_plan, warn_costly
from basisconv.responses.batches import check_whole, take_batches
from basisconv.responses.changes import Changes, apply_changes
from basisconv.responses.pairing import Pending, fit_layers
from basisconv.snapshot import put_back_on_error
from basisconv.surgery import Convolution, check_replaceable, convolutions
from basisconv.validity import INITS, Init, check_alone


def apply_plan(
    model: nn.Module,
    plan: Plan,
    init: Init = "svd",
    inplace: bool = False,
    generator: torch.Generator | None = None,
    example: Input | None = None,
    data: object = None,
    forward: Forward | None = None,
    samples: int = 512,
) -> nn.Module:
    """Make every convolution of a model match a plan, from whatever form it is in.

    Layers in the plan are decomposed, layers that are not become plain `nn.Conv2d` again
    (W = A · B, exact), layers in another basis form are multiplied out and decomposed again,
    and layers that match already are left alone. Forward and backward hooks move to the new
    layers (one that writes to `weight` has no effect there, for `weight` is computed), and so do
    attributes of your own whose names do not begin with an underscore. Hooks on state dicts and
    on their loading do not move. Parameters are new, so make the optimizer afterwards.

    Code that asks for a layer's class, as `isinstance(layer, nn.Conv2d)` in a forward method, takes
    another branch for a `BasisConv2d`, without an error; `example` finds that out. What writes to
    a basis layer's `weight` in place has no effect: see `BasisConv2d`.

    With `init="responses"` each new layer is fitted, in the order in which they run, to what the
    layer in its place computes on `data` in the model that is given, for the input that the new one
    gets: reduced-rank regression of those responses (see `basisconv.responses.regression`). Layers
    that match the plan already are left alone. A fit needs a bias. Where nothing but a batch-norm
    receives the layer's output, which outputs for one batch prove, it goes into that one's running
    mean; a layer in another place gets one if it has none, so that the result, and what `restore`
    makes of it, have parameters that the model's class has not. A fifth of the batches is held out.
    On these a fit that is worse than projecting the original's own responses gives way to that, and
    errors are measured: the result's attribute `fit_report` is a `FitReport` and prints as a table.
    All passes run in evaluation mode without gradients; a model that is compiled runs eagerly.

    Args:
        model: the network.
        plan: what it should be; `Plan({})` for dense.
        init: "svd" for a trained network, whose kernels it keeps as close as this rank can; "qr"
            to keep real filters of them; "random" for training from scratch (see
            `BasisConv2d.from_conv2d`); "responses" for a trained network and `data`, of which it
            keeps what the layers compute.
        inplace: change `model` itself rather than a deep copy, which a model that keeps an
            activation (a tensor with a history) does not have.
        generator: source of the random factors (`init="random"` alone uses it).
        example: an input, as `summary` takes it. The model's outputs for it are compared with those
            that it has with every layer of the plan in a basis form of full rank, which must be the
            same: in evaluation mode, three or more forward passes. None for no comparison.
        data: for `init="responses"`, batches of the network's usual input, on its device: an
            iterable of tensors, `model(batch)`; of mappings, `model(**batch)`; or of tuples or
            lists whose first element is one of these, as a DataLoader gives them. A few hundred
            images do, without labels.
        forward: for other batches, `forward(model, batch)` calls the model.
        samples: the most that are taken of `data`, and held in memory.

    Returns:
        The model that matches.

    Raises:
        TypeError: if `plan` is not a `Plan`, `example` no input, or `data` no batches.
        ValueError: for unknown layers, layers that have no basis form, n_basis that does not
            fit, kernels that are not finite, and outputs that differ at full rank; for
            `init="responses"` without data or data without it; and for layers that the data never
            reach, responses that are not finite, and models in DataParallel,
            DistributedDataParallel or FSDP. The model is then unchanged, as it is after any error.

    Warns:
        UserWarning: for layers with all their filters in the basis, which saves nothing; for data
            that are left, layers with few positions in the data, and where no layer is left to be
            fitted.
    """
    basis = _basis_layers(model)
    if init not in INITS:
        raise ValueError(f"init={init!r} is unknown. Inits: {', '.join(INITS)}.")
    if init == "responses" and data is None:
        raise ValueError("init='responses' fits layers to what they compute: give data=batches.")
    if init != "responses" and not (data is None and forward is None):
        raise ValueError(f"data= and forward= are for init='responses', not for init={init!r}.")
    check_plan(model, plan)
    check_replaceable(model, {n: layer for n, layer in basis.items() if n not in plan.layers})
    batches: list[Any] = []
    if init == "responses":
        check_whole(model)
        batches = take_batches(data, samples, forward)
    if not inplace:
        model = copy.deepcopy(model)
    warn_costly(model, plan, only_full=True)
    if example is not None:
        check_outputs(model, _at_full_rank(model, plan), example)
    replaced: dict[nn.Module, nn.Module] = {}
    pending: dict[str, Pending] = {}
    for name, conv in convolutions(model).items():
        if name not in plan.layers:
            if isinstance(conv, BasisConv2d):
                replaced[conv] = conv.to_conv2d()
            continue
        config = _config(plan, name, conv)
        if isinstance(conv, BasisConv2d) and _matches(conv, config):
            continue
        dense = conv.to_conv2d() if isinstance(conv, BasisConv2d) else conv
        if init != "responses":
            replaced[conv] = _basis_form(name, dense, init=init, generator=generator, **config)
        elif dense.weight.is_meta:
            raise ValueError(f"{name}: on the device meta it has no responses.")
        else:
            pending[name] = Pending(conv, dense, _basis_form(name, dense, init="svd", **config))
    changes, report = Changes(replaced, {}), None
    if pending:
        changes, report = fit_layers(model, pending, replaced, batches, forward)
    elif init == "responses":
        warnings.warn("Every layer of the plan matches it: nothing is fitted.", stacklevel=2)
    with put_back_on_error(model):
        apply_changes(model, changes)
        vars(model).pop("fit_report", None)  # of a fit that this model is no longer
        if report is not None:
            vars(model)["fit_report"] = report
        for name, conv in convolutions(model).items():
            if isinstance(conv, BasisConv2d):
                conv.mode = plan.modes.get(name, MODES[0])
    return model


def _at_full_rank(model: nn.Module, plan: Plan) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Each layer that a plan changes, with one of the same kernel in the form it will have."""
    pairs: dict[str, tuple[nn.Module, nn.Module]] = {}
    for name, conv in convolutions(model).items():
        if name in plan.layers:
            dense = conv.to_conv2d() if isinstance(conv, BasisConv2d) else conv
            full = _basis_form(name, dense, n_basis=conv.out_channels, form=plan.form)
            pairs[name] = conv, full
        elif isinstance(conv, BasisConv2d):
            pairs[name] = conv, conv.to_conv2d()
    return pairs


def restore(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Plain `nn.Conv2d` everywhere, with the same function: `apply_plan` with `Plan({})`."""
    return apply_plan(model, Plan({}), inplace=inplace)


def plan_of(model: nn.Module) -> Plan:
    """The plan that a model matches.

    Raises:
        ValueError: if its basis layers differ in what a plan's layers share.
    """
    found = {n: c for n, c in convolutions(model).items() if isinstance(c, BasisConv2d)}
    if not found:
        return Plan({})
    first = next(iter(found.values()))
    ranks = [c.coef_rank for c in found.values() if c.coef_rank is not None]
    plan = Plan(
        {n: c.n_basis for n, c in found.items()},
        first.form,
        first.coef_groups,
        max(ranks, default=None),
        {n: c.mode for n, c in found.items()},
    )
    unlike = [n for n, c in found.items() if not _matches(c, _config(plan, n, c))]
    if unlike:
        raise ValueError(
            f"No plan describes this model: form, coef_groups or coef_rank of "
            f"{', '.join(unlike)} differ from the other basis layers'."
        )
    return plan


def dense_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the dense network with the same function, in memory of its own.

    Of a network in DistributedDataParallel give its `.module`.

    Raises:
        ValueError: for basis layers that cannot be replaced.
    """

    def write(layer: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        assert isinstance(layer, BasisConv2d)
        _replace_entries(state, prefix, layer.to_conv2d())

    layers = _basis_layers(model)
    check_replaceable(model, layers, keep=True)
    # Each layer writes for itself, so that a network that has what cannot be copied will do, and
    # so will modules that rename their entries.
    with ExitStack() as hooks:
        for layer in layers.values():
            hooks.enter_context(layer.register_state_dict_post_hook(write))
        state = model.state_dict()
    return copy.deepcopy(state)


def load_dense_state_dict(
    model: nn.Module, state_dict: Mapping[str, Tensor], init: Init = "svd"
) -> None:
    """Load a dense network's checkpoint into a model with basis layers, decomposing on the way.

    Of a network in DistributedDataParallel give its `.module`.

    Args:
        model: the network; its parameters stay the same objects.
        state_dict: of the dense network. Fitting to responses adds biases (see `apply_plan`): a
            basis layer without a bias for which it has one gets a new parameter, and a layer that
            got one so reads zeros where it has none.
        init: "svd" or "qr" (see `BasisConv2d.from_conv2d`); "random" makes new factors of each
            kernel's size.

    Raises:
        ValueError: for missing, unknown or wrong-shaped entries, for kernels that are not finite,
            and for basis layers that cannot be replaced. The model is then unchanged, as it is
            after any error, down to buffers and extra states.
    """

    def read(
        layer: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict[str, Any],
        *report: Any,
    ) -> None:  # fmt: skip
        assert isinstance(layer, BasisConv2d)
        key = prefix + "bias"
        if layer.bias is not None and layer._took_bias and key not in state:
            state[key] = torch.zeros_like(layer.bias)
        dense = layer.to_conv2d()
        dense._load_from_state_dict(state, prefix, metadata, *report)  # which tells what is amiss
        basis = _basis_form(prefix.removesuffix("."), dense, init=init, **layer.config())
        _replace_entries(state, prefix, basis)

    check_alone(init)
    layers = _basis_layers(model)
    check_replaceable(model, layers, keep=True)
    with _put_back_on_error(model):
        try:
            with ExitStack() as hooks:
                for layer in layers.values():
                    hooks.enter_context(layer.register_load_state_dict_pre_hook(read))
                model.load_state_dict(state_dict)
        except RuntimeError as error:  # torch loads what it can before it raises this
            raise ValueError(
                f"The checkpoint is not one of this model's dense form. {error}"
            ) from error


@contextmanager
def _put_back_on_error(model: nn.Module) -> Iterator[None]:
    """All that the model holds, extra states too, as it was if an error leaves the block."""
    # As tensors: through a state dict the model's own hooks, which may fail, would run once more.
    extra = [
        (m, copy.deepcopy(m.get_extra_state()))
        for m in model.modules()
        if type(m).get_extra_state is not nn.Module.get_extra_state
    ]
    with put_back_on_error(model, model.parameters()):
        try:
            yield
        except BaseException:
            for module, state in extra:
                module.set_extra_state(state)
            raise


def _basis_layers(model: nn.Module) -> dict[str, BasisConv2d]:
    if isinstance(model, BasisConv2d):
        raise ValueError("The model is itself a BasisConv2d: call its to_conv2d() instead.")
    return {n: c for n, c in convolutions(model).items() if isinstance(c, BasisConv2d)}


def _replace_entries(state: dict[str, Tensor], prefix: str, layer: nn.Module) -> None:
    """Put another layer's entries in a state dict in place of those of one."""
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]
    state.update({prefix + name: value for name, value in layer.state_dict().items()})


def _config(plan: Plan, name: str, conv: Convolution) -> dict[str, Any]:
    """The arguments of `from_conv2d` that give a layer of the plan its basis form."""
    m, rank = plan.layers[name], plan.coef_rank
    if rank is not None:
        rank = min(rank, m // (conv.groups * plan.coef_groups))
    return {
        "n_basis": m,
        "form": plan.form,
        "coef_groups": plan.coef_groups,
        "coef_rank": rank,
    }


def _basis_form(name: str, conv: nn.Conv2d, **settings: Any) -> BasisConv2d:
    try:
        return BasisConv2d.from_conv2d(conv, **settings)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:  # as of memory, or of what no decomposition converges for
        error.add_note(f"This was in layer {name}.")
        raise


def _matches(layer: BasisConv2d, config: dict[str, Any]) -> bool:
    return layer.config() | config == layer.config()

"""What a model costs, layer by layer: parameters, multiply-accumulates (MACs), bytes.

Two counts of MACs are kept apart. *Executed* MACs are what forward runs: in both forms a
k×k convolution to m channels and a 1×1 from m to C_out. *Parameters'* MACs count every
weight once for each position it is used at, which credits the subset form with the outputs
that pass through; nothing runs that fast, so the clock is held against the executed ones.

    dense               P · C_out · N             N = C_in/groups · kH · kW,  P = batch · H' · W'
    factored            P · (m · N + C_out · m/blocks)         executed, both forms
                        P · (m · N + (C_out - m) · m/blocks)   by parameters, subset form
    rebuilt             P · C_out · N + C_out · m/blocks · N   executed

The backward pass costs the forward pass twice, once for the weights and once for the input. The
first layer of the forward pass, and no other, is taken to be fed by the network's own input, which
needs no gradient, and pays once: a second stem is counted for a gradient that nobody asks for. Nor
is it looked at which parameters are frozen. A layer that is called several times in a forward pass
costs the sum of its calls.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_leaves

from basisconv.holders import check_unsharded
from basisconv.layer import BasisConv2d
from basisconv.observe import Forward, Input, Observed, arguments, observe
from basisconv.plan import Plan, check_plan
from basisconv.surgery import Convolution, convolutions
from basisconv.validity import kernel_shape

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class LayerCost:
    """One layer's cost for the input that it was measured with.

    Attributes:
        name: the layer's name in the model.
        kind: "Conv2d", "BasisConv2d", "Linear", or another convolution's.
        input_shape: (N, C_in, H, W), or that of the other kinds; of the last call.
        output_shape: likewise.
        n_basis: basis filters, None for a dense layer.
        parameters: trained numbers, the bias included.
        macs: executed by one forward pass.
        macs_by_parameters: one for each use of a weight; equal to `macs` for a dense layer.
        macs_backward: executed by one backward pass that trains every weight, with the input's
            gradient in every row but the first.
        bytes_moved: read and written by one forward pass if every tensor moves once: inputs,
            weights, outputs, and the basis output twice.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    n_basis: int | None
    parameters: int
    macs: int
    macs_by_parameters: int
    macs_backward: int
    bytes_moved: int

    @property
    def intensity(self) -> float:
        """MACs for each byte moved: the horizontal axis of a roofline."""
        return self.macs / self.bytes_moved

    def roofline_seconds(self, macs_per_second: float, bytes_per_second: float) -> float:
        """The least time of the forward pass (Williams, Waterman & Patterson, 2009)."""
        return max(self.macs / macs_per_second, self.bytes_moved / bytes_per_second)


@dataclass(frozen=True)
class Summary:
    """The costs of a model. Print it, call `to_frame()`, or show it in a notebook.

    Attributes:
        rows: the convolutions and linear layers in the order of the forward pass.
        parameters: of the whole model, layers without a row (batch-norm) included.
        input_size: shape of what it was measured with, the first tensor of several.
        dense: the same with every layer dense; None where every layer is.
    """

    rows: tuple[LayerCost, ...]
    parameters: int
    input_size: tuple[int, ...]
    dense: Summary | None = None

    @property
    def macs(self) -> int:
        """Executed by one forward pass."""
        return sum(row.macs for row in self.rows)

    @property
    def macs_by_parameters(self) -> int:
        """One for each use of a weight."""
        return sum(row.macs_by_parameters for row in self.rows)

    @property
    def macs_backward(self) -> int:
        """Executed by one backward pass that trains every weight."""
        return sum(row.macs_backward for row in self.rows)

    def __getitem__(self, name: str) -> LayerCost:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"No layer {name!r}. There are: {', '.join(r.name for r in self.rows)}.")

    def to_frame(self) -> pandas.DataFrame:
        """One row a layer, as a pandas DataFrame."""
        import pandas

        columns = [field.name for field in fields(LayerCost)]
        rows = [asdict(row) for row in self.rows]
        return pandas.DataFrame(rows, columns=columns).set_index("name")

    def _table(self) -> list[tuple[str, ...]]:
        """Head, one row a layer, and the total; the last column is the share of dense's MACs."""
        dense = self if self.dense is None else self.dense
        table: list[tuple[str, ...]] = [
            ("layer", "kind", "output", "n_basis", "parameters", "MACs", "by parameters",
             "of dense")
        ]  # fmt: skip
        for r, before in zip(self.rows, dense.rows, strict=True):
            size = "×".join(map(str, r.output_shape[1:]))
            basis = "" if r.n_basis is None else f"{r.n_basis}"
            table.append(
                (r.name, r.kind, size, basis, f"{r.parameters:,}", f"{r.macs:,}",
                 f"{r.macs_by_parameters:,}", _share(r.macs, before.macs))
            )  # fmt: skip
        table.append(
            ("total", "", "", "", f"{self.parameters:,}", f"{self.macs:,}",
             f"{self.macs_by_parameters:,}", _share(self.macs, dense.macs))
        )  # fmt: skip
        return table

    def _saved(self) -> str:
        """What dense costs, and how many times as much that is."""
        if self.dense is None:
            return ""
        parameters, macs = self.dense.parameters, self.dense.macs
        return (
            f"dense: {parameters:,} parameters ({_times(parameters, self.parameters)}), "
            f"{macs:,} MACs ({_times(macs, self.macs)})"
        )

    def __str__(self) -> str:
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                c.ljust(w) if i < 3 else c.rjust(w)
                for i, (c, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in table
        ]
        rule = "-" * len(lines[0])
        parts = [f"input {self.input_size}", lines[0], rule, *lines[1:-1], rule, lines[-1]]
        return "\n".join([*parts, saved] if (saved := self._saved()) else parts)

    def _repr_html_(self) -> str:
        try:
            import pandas
        except ModuleNotFoundError:  # the library does without pandas
            return f"<pre>{html.escape(str(self))}</pre>"
        head, *rows = self._table()
        table = pandas.DataFrame(rows, columns=list(head)).to_html(index=False, border=0)
        return f"{table}<p>{html.escape(self._saved())}</p>"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else ""


def _times(dense: int, now: int) -> str:
    return f"{dense / now:.2f}×" if now else "–"


def summary(model: nn.Module, input_size: Input, plan: Plan | None = None) -> Summary:
    """Measure shapes with one forward pass and count what each layer costs, over all its calls.

    Convolutions of all kinds and linear layers have a row. One that the forward pass does not call
    has none, be it that it is not reached in evaluation mode (an auxiliary head) or that another
    layer uses its weight without calling it (`out_proj` of `nn.MultiheadAttention`); nor has one
    that returns no tensor itself.

    Args:
        model: the network; it runs in evaluation mode and is left as it was.
        input_size: the shape of the input, (N, C, H, W), for an input of zeros; or the input
            itself: a tensor, a tuple of arguments, or a mapping of keyword arguments. MACs and
            bytes are for the whole batch.
        plan: count as if this plan had been applied, which decomposes nothing. None counts
            the model as it stands.

    Raises:
        TypeError: if `plan` is not a `Plan`, or the input of no such kind.
        ValueError: if the plan does not fit the model, a layer is not initialised yet, or the model
            is in FullyShardedDataParallel.
    """
    if plan is not None:
        check_plan(model, plan)
    count = counter(model, input_size)
    counted, dense = count(plan), count(Plan({}))
    return counted if counted == dense else replace(counted, dense=dense)


def counter(
    model: nn.Module, input_size: Any, forward: Forward | None = None
) -> Callable[[Plan | None], Summary]:
    """One forward pass, then `summary` for any plan that fits, but for what dense costs.

    Args:
        model: the network.
        input_size: as `summary` takes it; with `forward`, anything.
        forward: calls the model on it otherwise: `forward(model, input_size)`.
    """
    check_unsharded(model)
    given = arguments(model, input_size) if forward is None else input_size
    tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
    seen = observe(model, given, (_ConvNd, BasisConv2d, nn.Linear), forward)
    size = tuple(tensors[0].shape) if tensors else ()
    return lambda plan: _counted(model, seen, plan, tensors, size)


def _counted(
    model: nn.Module,
    seen: Mapping[str, Observed],
    plan: Plan | None,
    given: list[Tensor],
    size: tuple[int, ...],
) -> Summary:
    rows: list[LayerCost] = []
    for name, layer in seen.items():
        calls: list[LayerCost] = []
        for x, y in layer.calls:
            # Fed by the network's own input: the first call, and others of the same layer.
            spared = not rows and (not calls or any(x is tensor for tensor in given))
            shapes = tuple(x.shape), tuple(y.shape)
            if isinstance(layer.module, nn.Conv2d | BasisConv2d):
                cost = _convolution(name, layer.module, plan, *shapes, x.element_size(), spared)
            else:
                cost = _dense(name, layer.module, *shapes, x.element_size(), spared)
            calls.append(cost)
        sums = {what: sum(getattr(cost, what) for cost in calls) for what in _PER_CALL}
        rows.append(replace(calls[-1], **sums))
    parameters = sum(p.numel() for p in model.parameters())
    # A layer may hold more than its form does, and it need not be reached: only its form changes.
    for name, conv in convolutions(model).items():
        parameters += _weights(conv, _form_of(name, conv, plan))
        parameters -= _weights(conv, _form_of(name, conv, None))
    return Summary(tuple(rows), parameters, size)


_PER_CALL = ("macs", "macs_by_parameters", "macs_backward", "bytes_moved")


def _dense(
    name: str,
    layer: nn.Linear | _ConvNd,
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    itemsize: int,
    first: bool,
) -> LayerCost:
    """A layer that has no basis form: each weight is used once at each position."""
    if isinstance(layer, nn.Linear):
        kind, uses = "Linear", math.prod(outputs) // int(layer.out_features)
    elif isinstance(layer, _ConvTransposeNd):  # its positions are the input's
        kind, uses = layer._get_name(), math.prod(inputs) // int(layer.in_channels)
    else:
        kind, uses = layer._get_name(), math.prod(outputs) // int(layer.out_channels)
    macs = uses * layer.weight.numel()
    parameters = sum(p.numel() for p in layer.parameters())
    moved = (math.prod(inputs) + math.prod(outputs) + parameters) * itemsize
    backward = macs if first else 2 * macs
    return LayerCost(name, kind, inputs, outputs, None, parameters, macs, macs, backward, moved)


def _convolution(
    name: str,
    conv: Convolution,
    plan: Plan | None,
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    itemsize: int,
    first: bool,
) -> LayerCost:
    rows, *shape = kernel_shape(conv)
    columns = math.prod(shape)
    positions = math.prod(outputs) // rows
    bias = rows if conv.bias is not None else 0
    form = _form_of(name, conv, plan)
    passes = 1 if first else 2  # gradients of the weights and, but for the stem, of the input
    ends = math.prod(inputs) + math.prod(outputs)
    if form is None:
        macs, weights = positions * rows * columns, rows * columns
        return LayerCost(
            name, "Conv2d", inputs, outputs, None, weights + bias, macs, macs, passes * macs,
            (ends + weights + bias) * itemsize,
        )  # fmt: skip
    m, width, combined, q = form.n_basis, form.width, form.combined, form.rank
    basis, coef = m * columns, form.coefficients
    by_parameters = positions * (basis + coef)
    # Matrices multiplied out once a step, whatever the batch: A of a subset form with a
    # coef_rank, and the kernel of a rebuilt layer.
    assembled = 0 if q is None else combined * q * width
    if form.mode == "rebuilt":
        assembled += rows * width * columns
        main, moved = positions * rows * columns, ends + basis + coef + bias
        backward = passes * main + 2 * assembled
    else:
        if form.subset or q is None:
            one_by_one = positions * rows * width
        else:
            one_by_one, assembled = positions * coef, 0
        main = positions * basis + one_by_one
        moved = ends + basis + coef + bias + 2 * positions * m
        backward = passes * positions * basis + 2 * one_by_one + 2 * assembled
    return LayerCost(
        name, "BasisConv2d", inputs, outputs, m, basis + coef + bias, main + assembled,
        by_parameters, backward, moved * itemsize,
    )  # fmt: skip


@dataclass(frozen=True)
class _Basis:
    """A layer's basis form, of the layer itself or of a plan for it."""

    n_basis: int
    subset: bool
    blocks: int
    rank: int | None
    mode: str
    rows: int

    @property
    def width(self) -> int:
        return self.n_basis // self.blocks

    @property
    def combined(self) -> int:
        return self.rows - self.n_basis if self.subset else self.rows

    @property
    def coefficients(self) -> int:
        if self.rank is None:
            return self.combined * self.width
        return self.combined * self.rank + self.blocks * self.rank * self.width


def _weights(conv: Convolution, form: _Basis | None) -> int:
    """Numbers in a layer's kernel, or in the factors of it."""
    rows, *shape = kernel_shape(conv)
    columns = math.prod(shape)
    if form is None:
        return rows * columns
    return form.n_basis * columns + form.coefficients


def _form_of(name: str, conv: Convolution, plan: Plan | None) -> _Basis | None:
    if plan is None:
        if not isinstance(conv, BasisConv2d):
            return None
        m, form, rank = conv.n_basis, conv.form, conv.coef_rank
        blocks, mode = conv.blocks, str(conv.mode)
    else:
        if name not in plan.layers:
            return None
        m, form = plan.layers[name], plan.form
        blocks, mode = int(conv.groups) * plan.coef_groups, plan.modes.get(name, "factored")
        rank = None if plan.coef_rank is None else min(plan.coef_rank, m // blocks)
    return _Basis(m, form == "subset", blocks, rank, mode, int(conv.out_channels))

"""BasisConv2d: a convolution that trains a few basis filters and combines them into the rest.

              basis (m filters, k×k)             A (C_out × m, 1×1)
    x ───────────────────────────────▶ z ───────────────────────────▶ y      mode "factored"
                                       m channels

    x ──────────────────────────────────────────────────────────────▶ y      mode "rebuilt"
                        W = A · basis (C_out filters, k×k)

    subset form:  m of the outputs are basis filters, A's rows of the identity, the rest combine
                  them by C
    full form:    A free, every output combines them

With `groups` the convolution, and with `coef_groups` the coefficients too, fall into
blocks = groups · coef_groups blocks of C_out/blocks outputs, each with its own m/blocks basis
filters; A is block-diagonal over them and runs as one grouped 1×1 convolution.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from basisconv.assembly import Templates, memory_format, multiplied
from basisconv.decompose import Factors, Form, Method, decompose, low_rank
from basisconv.validity import (
    ConvRules,
    Init,
    check_alone,
    check_basis,
    check_dtype,
    conv_arguments,
    unfit,
)

torch.fx.wrap("multiplied")  # it asks for strides, which a symbolic trace does not have

Mode = Literal["factored", "rebuilt"]
MODES: tuple[Mode, ...] = get_args(Mode)


class BasisConv2d(nn.Module):
    """A 2-d convolution with `n_basis` trained filters and a matrix that combines them.

    The arguments are those of `torch.nn.Conv2d`, and:

    Args:
        n_basis: trained filters m, from 1 to `out_channels`, a multiple of
            `groups * coef_groups`.
        form: "subset" (m outputs are the basis filters themselves) or "full".
        coef_groups: blocks of the coefficient matrix within each group of the convolution;
            it has `coef_groups` times fewer coefficients.
        coef_rank: channels, a block, through which the coefficients are a product of two
            matrices; None for a plain matrix.
        mode: "factored" (two convolutions: usually the faster; see `tune`) or "rebuilt" (the
            dense kernel, then one convolution: saves parameters, hardly time). May be set at any
            time.

    Attributes:
        basis: parameter of shape (m, in_channels/groups, kH, kW).
        coef: parameter of shape (R, m/blocks) with R = out_channels in the full form and
            out_channels - m in the subset form; absent when `coef_rank` is set, then
        coef_out: (R, coef_rank) and
        coef_in: (blocks * coef_rank, m/blocks).
        passed: buffer of shape (out_channels,), subset form alone: 1 where the output is a basis
            filter, in the order of `basis`, and 0 where it combines them, in that of `coef`. A
            real number, so that an average of several models or steps (EMA, SWA) keeps it. Write
            to it as to any tensor, but on a GPU not through `.data`, which leaves no trace.
        weight: the dense kernel, computed at each access. It cannot be assigned. Writing to it in
            place (`weight.data += d`, `nn.init.zeros_(weight)`, the merging of LoRA adapters)
            changes a tensor that nobody reads again, which no code can see: make the layer dense
            first, by `to_conv2d` or `basisconv.restore`.

    A layer without a bias takes one, as a new parameter, from a state dict that has it.

    With n_basis = out_channels the subset form has no coefficients: `coef` (or `coef_out`) is then
    an empty buffer and no parameter. Libraries that refuse buffers in layers that train, as
    Opacus does, take form="full", which has none.

    Raises:
        ValueError: for any of these out of its range, naming the range.
    """

    basis: nn.Parameter
    coef: nn.Parameter
    coef_out: nn.Parameter
    coef_in: nn.Parameter
    bias: nn.Parameter | None
    passed: Tensor | None
    _took_bias = False  # it was made without one
    transposed, output_padding = False, (0, 0)  # what nn.Conv2d says of itself

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        n_basis: int,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        form: Form = "subset",
        coef_groups: int = 1,
        coef_rank: int | None = None,
        mode: Mode = "factored",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        conv = ConvRules(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device="meta",
        )  # fmt: skip
        check_basis(conv, n_basis, form, coef_groups, coef_rank)
        check_dtype(dtype)
        # Whole numbers of any kind, numpy's too.
        in_channels, out_channels, groups, n_basis, coef_groups = map(
            operator.index, (in_channels, out_channels, groups, n_basis, coef_groups)
        )
        coef_rank = None if coef_rank is None else operator.index(coef_rank)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = conv.kernel_size, conv.stride
        self.padding, self.dilation, self.groups = conv.padding, conv.dilation, groups
        self.padding_mode = padding_mode
        # What F.pad takes for the padding modes other than zeros; nn.Conv2d's name for it.
        self._reversed_padding_repeated_twice = conv._reversed_padding_repeated_twice
        self.n_basis, self.form = n_basis, form
        self.coef_groups, self.coef_rank = coef_groups, coef_rank
        self.mode = mode
        self._templates = Templates()
        blocks = self.blocks
        combined = out_channels - n_basis if form == "subset" else out_channels

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.basis = parameter(n_basis, in_channels // groups, *self.kernel_size)
        if coef_rank is None:
            factors = {"coef": (combined, n_basis // blocks)}
        else:
            factors = {
                "coef_out": (combined, coef_rank),
                "coef_in": (blocks * coef_rank, n_basis // blocks),
            }
        for name, shape in factors.items():
            if 0 in shape:  # optimizers divide by the size of what they train
                self.register_buffer(name, torch.empty(shape, device=device, dtype=dtype))
            else:
                self.register_parameter(name, parameter(*shape))
        self.register_parameter("bias", parameter(out_channels) if bias else None)
        passed = torch.empty(out_channels, device=device, dtype=dtype)
        self.register_buffer("passed", passed if form == "subset" else None)
        self.reset_parameters()

    def __setattr__(self, name: str, value: Any) -> None:
        _check_stored(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        _check_stored(name)
        super().__delattr__(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As of any module; `weight` is none."""
        _check_stored(name)
        super().register_parameter(name, param)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """As of any module; `weight` is none."""
        _check_stored(name)
        super().register_buffer(name, tensor, persistent)

    @property
    def blocks(self) -> int:
        """Diagonal blocks of the coefficient matrix: groups * coef_groups."""
        return self.groups * self.coef_groups

    @property
    def mode(self) -> Mode:
        """How forward runs: "factored" or "rebuilt"."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        if mode not in MODES:
            raise ValueError(f"mode={mode!r} is unknown. Modes: {', '.join(MODES)}.")
        self._mode = mode

    def reset_parameters(
        self, std: float | None = None, generator: torch.Generator | None = None
    ) -> None:
        """New random factors whose product W has the variance of a dense layer's kernel.

        Args:
            std: standard deviation of the product; by default that of a kernel of
                `torch.nn.Conv2d`, 1/sqrt(3 · fan_in) with fan_in = C_in/groups · kH · kW.
            generator: of any device; None for torch's own. The draws do not depend on the
                memory format.

        Each of the m/blocks products that make an entry of W adds v/(m/blocks), so the basis
        filters have variance v = std² and the coefficients blocks/m. Basis filters that pass
        through, the first of each block, are then an ordinary layer's filters.
        """
        fan_in = self.basis[0].numel()
        if self.basis.is_meta:  # it holds no values
            return
        with torch.no_grad():
            self.basis.copy_(
                _draw(torch.randn, self.basis, generator)
                * ((3 * fan_in) ** -0.5 if std is None else std)
            )
            matrices = [self.coef] if self.coef_rank is None else [self.coef_out, self.coef_in]
            for matrix in matrices:
                matrix.copy_(_draw(torch.randn, matrix, generator) * matrix.shape[1] ** -0.5)
            if self.passed is not None:
                self.passed.zero_().view(self.blocks, -1)[:, : self.n_basis // self.blocks] = 1
            if self.bias is not None:
                uniform = 2 * _draw(torch.rand, self.bias, generator) - 1
                self.bias.copy_(uniform * fan_in**-0.5)

    @property
    def combine(self) -> Tensor:
        """The assembled coefficients A, blocks stacked: (C_out, m/blocks), differentiable."""
        return self._coefficients(self.basis.dtype)

    @property
    def weight(self) -> Tensor:
        """The dense kernel W = A · B, (C_out, C_in/groups, kH, kW), differentiable."""
        return self._kernel(self.basis.dtype)

    def _coefficients(self, dtype: torch.dtype) -> Tensor:
        width = self.n_basis // self.blocks
        if self.coef_rank is None:
            coef = self.coef.to(dtype)
        else:
            outer = self.coef_out.to(dtype).view(self.blocks, -1, self.coef_rank)
            inner = self.coef_in.to(dtype).view(self.blocks, self.coef_rank, width)
            coef = (outer @ inner).flatten(0, 1)
        if self.passed is None:
            return coef
        return self._templates.assemble(coef, self.passed, self.blocks, width)

    def _kernel(self, dtype: torch.dtype) -> Tensor:
        return multiplied(self._coefficients(dtype), self.basis.to(dtype), self.blocks)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C_in, H, W) or (C_in, H, W) -> the same as `nn.Conv2d` with kernel `weight`."""
        if self.mode == "rebuilt":
            return self._conv_forward(input, self.weight, self.bias)
        z = self._conv_forward(input, self.basis, None)
        if self.coef_rank is not None and self.form == "full":
            z = F.conv2d(z, _as_1x1(self.coef_in), groups=self.blocks)
            return F.conv2d(z, _as_1x1(self.coef_out), self.bias, groups=self.blocks)
        return F.conv2d(z, _as_1x1(self.combine), self.bias, groups=self.blocks)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Named and called as nn.Conv2d's, which other modules call with kernels of their own.
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        return F.conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)

    @classmethod
    def from_conv2d(
        cls,
        conv: nn.Conv2d,
        n_basis: int,
        init: Init = "svd",
        form: Form = "subset",
        coef_groups: int = 1,
        coef_rank: int | None = None,
        mode: Mode = "factored",
        generator: torch.Generator | None = None,
    ) -> BasisConv2d:
        """The basis form of a dense layer: same device, dtype, memory format and training flag.

        Args:
            conv: the layer to decompose; it is not changed, and its bias is copied.
            n_basis: trained filters.
            init: "svd", for trained layers: the best kernel of rank n_basis. "qr", for trained
                layers whose filters should stay real ones: n_basis of them and a least-squares fit
                of the others (see `basisconv.decompose`). "random", for training from scratch: new
                factors whose product has the mean square of the kernel; an untrained kernel's SVD
                would have less. On the device `meta` no factor has values. With
                `coef_groups` each block is decomposed by itself, which is the best
                block-diagonal approximation; with `coef_rank` the coefficients are then cut
                to that rank with the least error in the kernel. "responses" takes a network and
                data: see `basisconv.apply_plan`.
            form: "subset" or "full".
            coef_groups: as in the class.
            coef_rank: as in the class.
            mode: as in the class.
            generator: source of the random factors (`init="random"` alone uses it).

        Raises:
            TypeError: for what is no `nn.Conv2d`, as a transposed or a 1-d convolution.
            ValueError: for arguments out of range, for a kernel that is not finite, not
                initialised or of another shape than the layer's attributes say, and for a layer
                that computes in a way of its own.
        """
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"from_conv2d takes an nn.Conv2d, not a {type(conv).__name__}.")
        if why := unfit(conv, nn.Conv2d):
            raise ValueError(f"This layer has no basis form: {why}.")
        if not (conv.weight.is_meta or torch.isfinite(conv.weight.detach()).all()):
            raise ValueError("Only a kernel of finite real numbers has a decomposition.")
        check_alone(init)
        # skip_init: nothing is drawn from torch's generator for values that are replaced.
        layer: BasisConv2d = skip_init(
            cls, **conv_arguments(conv, conv.weight), n_basis=n_basis, form=form,
            coef_groups=coef_groups, coef_rank=coef_rank, mode=mode,
        )  # fmt: skip
        with torch.no_grad():
            if conv.weight.is_meta:
                pass  # no values in, none out
            elif init == "random":
                # Half precision has no room for squares of large or small kernels.
                kernel = conv.weight.to(torch.promote_types(conv.weight.dtype, torch.float32))
                layer.reset_parameters(kernel.square().mean().sqrt().item(), generator)
            else:
                rows = layer.out_channels // layer.blocks
                flat = conv.weight.detach().reshape(layer.blocks, rows, -1)
                method: Method = "qr" if init == "qr" else "svd"
                parts = [decompose(w, n_basis // layer.blocks, method, form) for w in flat]
                layer._fill(parts, [] if coef_rank is None else [
                    low_rank(p.coef, p.basis, coef_rank) for p in parts
                ])  # fmt: skip
            if layer.bias is not None and conv.bias is not None:
                layer.bias.copy_(conv.bias)
        _match_format(layer.basis, conv.weight)
        for name, parameter in layer.named_parameters():
            given = conv.bias if name == "bias" else conv.weight
            parameter.requires_grad_(given is not None and given.requires_grad)
        return layer.train(conv.training)

    def _fill(self, parts: Sequence[Factors], pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take each block's factors; with a `coef_rank`, its coefficients as two matrices."""
        self.basis.copy_(torch.cat([p.basis for p in parts]).view_as(self.basis))
        if self.coef_rank is None:
            self.coef.copy_(torch.cat([p.coef for p in parts]))
        else:
            self.coef_out.copy_(torch.cat([outer for outer, _ in pairs]))
            self.coef_in.copy_(torch.cat([inner for _, inner in pairs]))
        if self.passed is not None:
            self.passed.copy_(torch.cat([p.passed for p in parts if p.passed is not None]))

    def _add_bias(self) -> None:
        """A bias of zeros, which trains if the basis does."""
        zeros = self.basis.new_zeros(self.out_channels)
        self.bias = nn.Parameter(zeros, requires_grad=self.basis.requires_grad)
        self._took_bias = True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *further: Any) -> None:
        # Fitting to responses may have given the layer a bias that the network's class has not.
        if self.bias is None and prefix + "bias" in state_dict:
            self._add_bias()
        super()._load_from_state_dict(state_dict, prefix, *further)

    def to_conv2d(self) -> nn.Conv2d:
        """The dense layer with kernel `weight`: same function, device, dtype and memory format."""
        conv: nn.Conv2d = skip_init(nn.Conv2d, **conv_arguments(self, self.basis))
        with torch.no_grad():
            conv.weight.copy_(self.dense_kernel())
            if self.bias is not None and conv.bias is not None:
                conv.bias.copy_(self.bias)
                conv.bias.requires_grad_(self.bias.requires_grad)
        factors = [p for n, p in self.named_parameters() if n != "bias"]
        conv.weight.requires_grad_(any(p.requires_grad for p in factors))
        _match_format(conv.weight, self.basis)
        return conv.train(self.training)

    @torch.no_grad()
    def dense_kernel(self) -> Tensor:
        """`weight`, detached and multiplied out in float64, then rounded once to the dtype."""
        return self._kernel(torch.float64).to(self.basis.dtype)

    def config(self) -> dict[str, Any]:
        """The arguments of `from_conv2d`, but the dense layer, that make a layer like this one."""
        names = ("n_basis", "form", "coef_groups", "coef_rank", "mode")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        """The arguments, as `nn.Conv2d` prints its own."""
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"n_basis={self.n_basis}, stride={self.stride}"
        )
        optional = {
            "padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros",
            "form": "subset", "coef_groups": 1, "coef_rank": None, "mode": "factored",
        }  # fmt: skip
        shown = {k: getattr(self, k) for k, default in optional.items()}
        text += "".join(f", {k}={v}" for k, v in shown.items() if v != optional[k])
        return text + (", bias=False" if self.bias is None else "")


def _check_stored(name: str) -> None:
    # "weight_orig": pruning stores the kernel that it masks.
    if name in ("weight", "combine", "weight_orig"):
        raise AttributeError(
            f"{name.removesuffix('_orig')} of a BasisConv2d is computed from its factors and "
            f"cannot be set. Make the layer dense first: basisconv.restore(model), or "
            f"to_conv2d() of the layer."
        )


def _as_1x1(matrix: Tensor) -> Tensor:
    return matrix[:, :, None, None]


def _match_format(parameter: Tensor, like: Tensor) -> None:
    parameter.data = parameter.data.to(memory_format=memory_format(like))


def _draw(source: Callable[..., Tensor], like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return source(like.shape, generator=generator, device=device, dtype=like.dtype)

"""BasisConv2d against F.conv2d with a kernel that the tests rebuild themselves."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from basisconv import BasisConv2d
from basisconv.decompose import FORMS
from basisconv.layer import MODES
from basisconv.validity import INITS

# PyTorch's own remark on what padding="same" costs.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
PROPERTY = settings(max_examples=120, deadline=None, derandomize=True)
SAME_ARGUMENTS = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
    "padding_mode",
)  # fmt: skip


@st.composite
def basis_arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Any valid arguments of a small BasisConv2d, but mode, device and dtype."""
    pair = st.tuples(st.integers(1, 2), st.integers(1, 2))
    groups = draw(st.integers(1, 3))
    coef_groups = draw(st.integers(1, 2))
    blocks = groups * coef_groups
    width = draw(st.integers(1, 4))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(
        st.sampled_from(["same", "valid"]) | st.tuples(st.integers(0, 2), st.integers(0, 2))
    )
    return {
        "in_channels": groups * draw(st.integers(1, 3)),
        "out_channels": blocks * draw(st.integers(width, 5)),
        "kernel_size": kernel,
        "n_basis": blocks * width,
        "stride": 1 if padding == "same" else draw(st.integers(1, 3) | pair),
        "padding": padding,
        "dilation": draw(st.integers(1, 2) | pair),
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
        "form": draw(st.sampled_from(FORMS)),
        "coef_groups": coef_groups,
        "coef_rank": draw(st.none() | st.integers(1, width)),
    }


def shuffled(layer: BasisConv2d) -> BasisConv2d:
    """The layer with its outputs in another order within each block, as from_conv2d leaves it."""
    if layer.passed is not None:
        for block in layer.passed.view(layer.blocks, -1):
            block.copy_(block[torch.randperm(len(block))])
    return layer


def rebuilt_kernel(layer: BasisConv2d) -> Tensor:
    """W = A · B block by block in numpy, straight from the definition of the parameters."""
    blocks, m = layer.blocks, layer.n_basis // layer.blocks
    rows = layer.out_channels // blocks
    combined = rows - m if layer.form == "subset" else rows
    basis = layer.basis.detach().double().numpy().reshape(layer.n_basis, -1)
    kernel = []
    for i in range(blocks):
        if layer.coef_rank is None:
            coef = layer.coef.detach().double().numpy()[i * combined : (i + 1) * combined]
        else:
            q = layer.coef_rank
            outer = layer.coef_out.detach().double().numpy()[i * combined : (i + 1) * combined]
            coef = outer @ layer.coef_in.detach().double().numpy()[i * q : (i + 1) * q]
        filters = basis[i * m : (i + 1) * m]
        block = coef @ filters
        if layer.passed is not None:
            sources = {1.0: iter(filters), 0.0: iter(block)}
            block = np.stack([next(sources[p]) for p in layer.passed[i * rows :][:rows].tolist()])
        kernel.append(block)
    shape = (layer.out_channels, *layer.basis.shape[1:])
    return torch.from_numpy(np.concatenate(kernel)).reshape(shape)


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None, arguments: dict[str, Any]) -> Tensor:
    """F.conv2d with the padding written out."""
    stride, padding, dilation = (arguments[n] for n in ("stride", "padding", "dilation"))
    d = (dilation, dilation) if isinstance(dilation, int) else dilation
    if padding == "valid":
        before = after = (0, 0)
    elif padding == "same":
        total = [d[i] * (kernel.shape[2 + i] - 1) for i in range(2)]
        before = tuple(t // 2 for t in total)
        after = tuple(t - t // 2 for t in total)
    else:
        before = after = padding
    pad = (before[1], after[1], before[0], after[0])
    mode = arguments["padding_mode"]
    x = F.pad(x, pad, mode="constant" if mode == "zeros" else mode)
    return F.conv2d(x, kernel, bias, stride, 0, dilation, arguments["groups"])


@PROPERTY
@given(
    arguments=basis_arguments(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    batch=st.sampled_from([None, 1, 2]),
    channels_last=st.booleans(),
    size=st.tuples(st.integers(5, 7), st.integers(5, 7)),
    seed=st.integers(0, 2**31),
)
def test_both_modes_are_a_convolution_with_the_rebuilt_kernel(
    arguments, dtype, batch, channels_last, size, seed
):
    torch.manual_seed(seed)
    layer = shuffled(BasisConv2d(**arguments, dtype=dtype))
    kernel = rebuilt_kernel(layer)
    shape = (arguments["in_channels"], *size)
    x = torch.randn(shape if batch is None else (batch, *shape), dtype=dtype)
    bias = None if layer.bias is None else layer.bias.double()
    expected = convolve(x.double(), kernel, bias, arguments)
    layout = torch.contiguous_format
    if channels_last and batch is not None:
        layout = torch.channels_last
        layer, x = layer.to(memory_format=layout), x.to(memory_format=layout)
    # One input channel with other padding than zeros: F.pad itself forgets the layout.
    forgotten = arguments["in_channels"] == 1 and arguments["padding_mode"] != "zeros"
    tolerance = {torch.float32: 2e-5, torch.float64: 1e-12}[dtype]
    for mode in MODES:
        layer.mode = mode
        y = layer(x)
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=layout) or forgotten
        torch.testing.assert_close(y.double(), expected, rtol=0, atol=tolerance)
    assert layer.weight.is_contiguous(memory_format=layout)
    torch.testing.assert_close(layer.weight.double(), kernel, rtol=0, atol=tolerance)


@PROPERTY
@given(arguments=basis_arguments(), seed=st.integers(0, 2**31))
def test_every_layer_becomes_the_dense_layer_of_its_kernel(arguments, seed):
    torch.manual_seed(seed)
    layer = shuffled(BasisConv2d(**arguments))
    dense = layer.to_conv2d()
    expected = rebuilt_kernel(layer)
    torch.testing.assert_close(dense.weight.double(), expected, rtol=1e-6, atol=1e-7)
    assert [getattr(dense, n) for n in SAME_ARGUMENTS] == [
        getattr(layer, n) for n in SAME_ARGUMENTS
    ]
    x = torch.randn(1, arguments["in_channels"], 6, 5)
    torch.testing.assert_close(dense(x), layer(x), rtol=0, atol=2e-5)
    again = BasisConv2d.from_conv2d(dense, **layer.config())
    assert again.config() == layer.config()
    if layer.coef_rank is None:  # the blocks of the kernel have rank n_basis/blocks: exact
        torch.testing.assert_close(again.weight, dense.weight, rtol=0, atol=1e-5)


@PROPERTY
@given(arguments=basis_arguments(), init=st.sampled_from(["svd", "qr"]), seed=st.integers(0, 99))
def test_a_dense_layer_with_all_its_filters_keeps_its_function(arguments, init, seed):
    torch.manual_seed(seed)
    form, coef_groups = arguments.pop("form"), arguments.pop("coef_groups")
    del arguments["n_basis"], arguments["coef_rank"]
    conv = nn.Conv2d(**arguments, dtype=torch.float64)
    layer = BasisConv2d.from_conv2d(conv, conv.out_channels, init, form, coef_groups)
    x = torch.randn(2, arguments["in_channels"], 5, 7, dtype=torch.float64)
    for mode in MODES:
        layer.mode = mode
        torch.testing.assert_close(layer(x), conv(x), rtol=0, atol=1e-11)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("coef_rank", [None, 2])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("groups", "coef_groups"), [(1, 1), (2, 1), (1, 2)])
def test_gradients_of_input_and_every_parameter(groups, coef_groups, form, coef_rank, mode):
    torch.manual_seed(0)
    layer = shuffled(
        BasisConv2d(
            4,
            6,
            (3, 2),
            4,
            stride=(2, 1),
            padding=1,
            groups=groups,
            padding_mode="circular",
            form=form,
            coef_groups=coef_groups,
            coef_rank=coef_rank,
            mode=mode,
            dtype=torch.float64,
        )  # fmt: skip
    )
    names = [name for name, _ in layer.named_parameters()]

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(layer, named, (x,))

    x = torch.randn(1, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (x, *layer.parameters()))


# n_basis = 1 and one input channel are where a tensor is in both memory formats at once.
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("coef_rank", [None, 1])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("inputs", "n_basis"), [(8, 4), (8, 1), (1, 4), (1, 1)])
def test_channels_last_stays_channels_last(inputs, n_basis, form, coef_rank, mode):
    layer = BasisConv2d(inputs, 16, 3, n_basis, padding=1, form=form, coef_rank=coef_rank)
    layer = layer.to(memory_format=torch.channels_last)
    layer.mode = mode
    x = torch.randn(2, inputs, 6, 6).to(memory_format=torch.channels_last)
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last) and not y.is_contiguous()


def test_empty_batch():
    layer = BasisConv2d(3, 8, 3, 4)
    assert layer(torch.empty(0, 3, 5, 5)).shape == (0, 8, 3, 3)


# Random initialisation.


def mean_square_ratio(kernels: Tensor, variance: float) -> tuple[float, float]:
    """Mean square over the draws by the variance, and its standard error."""
    squares = kernels.square().flatten(1).mean(dim=1) / variance
    return squares.mean().item(), (squares.std() / math.sqrt(len(squares))).item()


@pytest.mark.parametrize("coef_rank", [None, 3])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("groups", "coef_groups"), [(1, 1), (2, 1), (2, 2)])
def test_the_random_product_has_the_variance_of_a_dense_kernel(
    groups, coef_groups, form, coef_rank
):
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"groups": groups, "bias": False, "dtype": torch.float64}
    basis = {"form": form, "coef_groups": coef_groups, "coef_rank": coef_rank}
    conv = nn.Conv2d(8, 48, 3, **arguments)
    draws = 400
    layer = BasisConv2d(8, 48, 3, 16, **arguments, **basis)
    kernels, like_conv, with_std = [], [], []
    for _ in range(draws):
        layer.reset_parameters()
        kernels.append(layer.weight.detach())
        layer.reset_parameters(std=3.0)
        with_std.append(layer.weight.detach())
        random = BasisConv2d.from_conv2d(conv, 16, "random", **basis)
        like_conv.append(random.weight.detach())
    dense = torch.stack([nn.Conv2d(8, 48, 3, **arguments).weight.detach() for _ in range(draws)])
    ours = torch.stack(kernels)
    for kernel, variance in (
        (ours, dense.var().item()),
        (torch.stack(with_std), 9.0),
        (torch.stack(like_conv), conv.weight.square().mean().item()),
    ):
        ratio, error = mean_square_ratio(kernel, variance)
        assert error < 0.02
        assert abs(ratio - 1) < 5 * error + 0.005  # the dense variance is a sample's, too
        assert abs(kernel.mean().item()) < 0.02 * math.sqrt(variance)


@pytest.mark.parametrize("std", [7e-5, 700.0])
def test_random_factors_of_a_half_precision_kernel_have_its_size(std):
    # Squares of the one vanish in float16, those of the other overflow.
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 32, 3, bias=False, dtype=torch.float16)
    nn.init.normal_(conv.weight, std=std)
    random = BasisConv2d.from_conv2d(conv, 32, "random")
    assert random.basis.float().std().item() == pytest.approx(std, rel=0.1)


def test_a_kernel_of_another_shape_than_the_layer_says_is_refused():
    conv = nn.Conv2d(3, 8, 3)
    conv.weight = nn.Parameter(conv.weight[:, :1].detach().clone())  # runs on grey images
    with pytest.raises(ValueError, match=r"weight is \(8, 1, 3, 3\), .* be \(8, 3, 3, 3\)"):
        BasisConv2d.from_conv2d(conv, 4, "random")


def test_a_generator_alone_decides_the_draws_whatever_the_memory_format():
    layer = BasisConv2d(4, 8, 3, 4)
    other = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    state = torch.get_rng_state()
    layer.reset_parameters(generator=torch.Generator().manual_seed(5))
    other.reset_parameters(generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)
    for one, two in zip(layer.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    other.reset_parameters(generator=torch.Generator().manual_seed(6))
    assert not torch.equal(layer.basis, other.basis)


# From a dense layer and back.


@pytest.mark.parametrize("form", FORMS)
def test_the_best_kernel_of_each_group_of_filters(form):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 24, 3, groups=2, dtype=torch.float64)
    layer = BasisConv2d.from_conv2d(conv, 8, "svd", form, coef_groups=2)
    left = 0.0
    for block in conv.weight.detach().numpy().reshape(4, 6, -1):
        left += (np.linalg.svd(block, compute_uv=False)[2:] ** 2).sum()
    error = (layer.weight - conv.weight).norm().item()
    assert error == pytest.approx(math.sqrt(left), rel=1e-10)


def test_coefficients_of_low_rank_in_the_full_form_give_the_best_kernel_of_that_rank():
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 24, 3, dtype=torch.float64)
    layer = BasisConv2d.from_conv2d(conv, 12, "svd", "full", coef_rank=5)
    values = np.linalg.svd(conv.weight.detach().numpy().reshape(24, -1), compute_uv=False)
    error = (layer.weight - conv.weight).norm().item()
    assert error == pytest.approx(math.sqrt((values[5:] ** 2).sum()), rel=1e-10)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_tucker_with_all_input_and_kernel_ranks_is_the_same_kernel(form):
    tltorch = pytest.importorskip("tltorch")
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 12, (3, 2), padding=1, dtype=torch.float64)
    tucker = tltorch.FactorizedConv.from_conv(
        conv, rank=(4, 5, 3, 2), factorization="tucker", implementation="reconstructed"
    )
    layer = BasisConv2d.from_conv2d(conv, 4, "svd", form)
    torch.testing.assert_close(layer.weight, tucker.weight.to_tensor(), rtol=0, atol=1e-12)
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(x), tucker(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("init", [init for init in INITS if init != "responses"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_what_a_layer_takes_over_from_the_dense_one_and_gives_back(dtype, init):
    conv = nn.Conv2d(4, 8, 3, dtype=dtype).to(memory_format=torch.channels_last).eval()
    conv.weight.requires_grad_(False)
    before = copy.deepcopy(conv.state_dict())
    layer = BasisConv2d.from_conv2d(conv, 4, init)
    for one in (layer, layer.to_conv2d()):
        assert not one.training
        assert one.weight.dtype == dtype
        assert one.weight.is_contiguous(memory_format=torch.channels_last)
        assert one.bias is not None and torch.equal(one.bias, conv.bias)
        needs = {n: p.requires_grad for n, p in one.named_parameters()}
        assert needs.pop("bias") and not any(needs.values())
    assert all(torch.equal(before[n], v) for n, v in conv.state_dict().items())


def test_a_kernel_with_one_trained_factor_is_trained_when_dense():
    layer = BasisConv2d(3, 8, 3, 4)
    layer.basis.requires_grad_(False)
    assert layer.to_conv2d().weight.requires_grad


@pytest.mark.parametrize("coef_rank", [None, 8])
def test_the_dense_kernel_is_rounded_once_even_under_autocast(coef_rank):
    torch.manual_seed(0)
    layer = BasisConv2d(8, 32, 3, 16, coef_rank=coef_rank)
    with torch.autocast("cpu", torch.bfloat16):
        kernel = layer.to_conv2d().weight
    assert torch.equal(kernel, rebuilt_kernel(layer).float())


def test_bad_arguments_name_what_was_asked_and_what_there_is():
    for changed, message in [
        ({"n_basis": 0}, "n_basis=0 is not a whole number from 1 to out_channels=12"),
        ({"n_basis": -3}, "n_basis=-3 is not"),
        ({"n_basis": 13}, "n_basis=13 is not"),
        ({"n_basis": 4.0}, r"n_basis=4\.0 is not"),
        ({"groups": 2, "n_basis": 3}, r"n_basis=3 must be divisible by .* 2 \* 1"),
        ({"coef_groups": 5, "n_basis": 5}, r"out_channels=12 .* divisible by .* 1 \* 5"),
        ({"coef_groups": 0}, "coef_groups=0 is not a whole number >= 1"),
        ({"coef_groups": 1.0}, r"coef_groups=1\.0 is not a whole number >= 1"),
        ({"coef_rank": 0}, r"coef_rank=0 is not a whole number from 1 to 4"),
        ({"coef_rank": 5}, r"coef_rank=5 is not a whole number from 1 to 4"),
        ({"form": "ful"}, "form='ful' is unknown. Forms: subset, full"),
        ({"mode": "fast"}, "mode='fast' is unknown. Modes: factored, rebuilt"),
        ({"groups": 5}, "divisible by groups"),
        ({"padding": "sane"}, "sane"),
        ({"padding_mode": "zeroes"}, "zeroes"),
        ({"padding": "same", "stride": 2}, "same"),
    ]:
        arguments = {"in_channels": 4, "out_channels": 12, "kernel_size": 3, "n_basis": 4}
        with pytest.raises(ValueError, match=message):
            BasisConv2d(**{**arguments, **changed})


def test_mode_can_be_set_but_not_misspelt():
    layer = BasisConv2d(4, 8, 3, 4)
    with pytest.raises(ValueError, match="mode='rebuild' is unknown"):
        layer.mode = "rebuild"
    assert layer.mode == "factored"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_kernel_that_is_not_finite_is_refused(value):
    conv = nn.Conv2d(4, 8, 3)
    with torch.no_grad():
        conv.weight[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="finite"):
        BasisConv2d.from_conv2d(conv, 4)


def test_other_refusals_of_from_conv2d():
    with pytest.raises(ValueError, match="init='SVD' is unknown. Inits: svd, qr, random"):
        BasisConv2d.from_conv2d(nn.Conv2d(4, 8, 3), 4, "SVD")
    with pytest.raises(ValueError, match="real"):
        BasisConv2d.from_conv2d(nn.Conv2d(4, 8, 3, dtype=torch.complex64), 4)


class Doubled(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (nn.ConvTranspose2d(4, 8, 3), TypeError, "takes an nn.Conv2d, not a ConvTranspose2d"),
        (nn.Conv1d(4, 8, 3), TypeError, "takes an nn.Conv2d, not a Conv1d"),
        (BasisConv2d(4, 8, 3, 4), TypeError, "takes an nn.Conv2d, not a BasisConv2d"),
        (nn.LazyConv2d(8, 3), ValueError, "not initialised yet; run one batch first"),
        (Doubled(4, 8, 3), ValueError, "Doubled has a forward of its own"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_is_no_plain_convolution_is_refused(layer, error, message):
    with pytest.raises(error, match=message):
        BasisConv2d.from_conv2d(layer, 4)


def test_repr_shows_what_differs_from_the_defaults():
    assert repr(BasisConv2d(4, 8, 3, 2)) == (
        "BasisConv2d(4, 8, kernel_size=(3, 3), n_basis=2, stride=(1, 1))"
    )
    layer = BasisConv2d(4, 8, 3, 2, padding="same", bias=False, form="full", coef_rank=1)
    assert repr(layer) == (
        "BasisConv2d(4, 8, kernel_size=(3, 3), n_basis=2, stride=(1, 1), padding=same, "
        "form=full, coef_rank=1, bias=False)"
    )


@pytest.mark.parametrize(
    "write",
    [
        lambda layer: delattr(layer, "weight"),
        lambda layer: layer.register_parameter("weight", nn.Parameter(torch.ones(8, 3, 3, 3))),
        lambda layer: layer.register_buffer("combine", torch.ones(8, 4)),
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ],
)
def test_nothing_takes_the_place_of_the_computed_kernel(write: Any) -> None:
    layer = BasisConv2d(3, 8, 3, n_basis=4)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(AttributeError, match="Make the layer dense first"):
        write(layer)
    after = layer.state_dict()
    assert after.keys() == before.keys() and not layer._forward_pre_hooks
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_layer_says_what_a_convolution_says_of_itself() -> None:
    dense, ours = nn.Conv2d(3, 8, 3), BasisConv2d(3, 8, 3, n_basis=4)
    assert (ours.transposed, ours.output_padding) == (dense.transposed, dense.output_padding)

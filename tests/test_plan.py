"""Plans: what they name, what they refuse, and that a model is changed whole or not at all."""

from __future__ import annotations

import copy
import gc
import json
import re
import warnings
from collections import deque
from dataclasses import FrozenInstanceError
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize, prune

import basisconv as bc
from basisconv import BasisConv2d, Plan
from basisconv.study.data.vision import torchvision


class Doubled(nn.Conv2d):
    """A convolution with a forward of its own, which must stay as it is."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Called(nn.Conv2d):
    """Another, whose way of its own is how it is called."""

    def __call__(self, input: Tensor) -> Tensor:
        return 2 * super().__call__(input)


class Labelled(nn.Conv2d):
    """A subclass that leaves forward alone: as good as any nn.Conv2d."""


def network() -> nn.Module:
    """Stem, plain, strided, grouped, depthwise and 1×1 convolutions, with a shared module."""
    torch.manual_seed(0)
    body = nn.Sequential()
    body.plain = nn.Conv2d(8, 12, 3, padding=1, bias=False)
    body.norm = nn.BatchNorm2d(12)
    body.strided = Labelled(12, 16, 3, stride=2, padding=1)
    body.grouped = nn.Conv2d(16, 20, 3, padding=1, groups=4)
    body.depthwise = nn.Conv2d(20, 20, 3, padding=1, groups=20)
    body.pointwise = nn.Conv2d(20, 8, 1)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), body, nn.ReLU(), body.plain).eval()


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
NORMAL = ["1.plain", "1.strided", "1.grouped"]


def cifar_resnet18() -> nn.Module:
    model = torchvision().models.resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class Frozen:
    """A picture of a model, to show that it was not touched: modules, values, modes."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.state = {n: (v, v.clone()) for n, v in model.state_dict(keep_vars=True).items()}
        self.text = repr(model)

    def same(self, model: nn.Module) -> bool:
        now = model.state_dict(keep_vars=True)
        return (
            self.modules == dict(model.named_modules(remove_duplicate=False))
            and self.text == repr(model)
            and now.keys() == self.state.keys()
            and all(now[n] is v and torch.equal(v, was) for n, (v, was) in self.state.items())
        )


# Facts about the network of the paper.


def test_parameters_of_the_cifar_resnet18():
    model = cifar_resnet18()
    assert len(bc.layers(model)) == 20
    assert parameters(model) == 11_173_962
    for ratio, form, expected in [
        (0.25, "full", 3_283_018),
        (0.25, "subset", 3_195_978),
        (0.5, "full", 6_377_546),
        (0.5, "subset", 6_029_386),
    ]:
        plan = bc.make_plan(model, ratio=ratio, form=form)
        assert len(plan.layers) == 16 and not any("downsample" in n for n in plan.layers)
        assert parameters(bc.apply_plan(model, plan, init="random")) == expected


# Which layers a plan names.


def test_layers_lists_what_a_plan_may_name_in_the_models_order():
    assert list(bc.layers(network())) == ["0", *NORMAL, "1.depthwise", "1.pointwise"]


@pytest.mark.parametrize(
    ("layers", "skip", "expected"),
    [
        (None, None, NORMAL),
        ("1.*", None, NORMAL),
        (["1.p*"], None, ["1.plain"]),
        (["1.s*", "1.plain"], None, ["1.plain", "1.strided"]),
        (["0", "1.pointwise"], None, ["0", "1.pointwise"]),
        (["*", "1.depthwise"], None, [*NORMAL, "1.depthwise"]),
        (None, "1.str*", ["1.plain", "1.grouped"]),
        (["1.*", "0"], ["0", "1.plain"], ["1.strided", "1.grouped"]),
        (lambda name, conv: conv.in_channels < 9, None, ["0", "1.plain"]),
        (lambda name, conv: True, lambda name, conv: conv.groups > 1,
         ["0", "1.plain", "1.strided", "1.pointwise"]),
    ],
)  # fmt: skip
def test_matching(layers, skip, expected):
    plan = bc.make_plan(network(), ratio=1.0, layers=layers, skip=skip)
    assert list(plan.layers) == expected


def test_a_model_in_basis_form_can_be_planned_again():
    model = bc.apply_plan(network(), bc.make_plan(network(), ratio=0.5, layers=["0", "1.*"]))
    assert list(bc.make_plan(model, ratio=0.25).layers) == NORMAL  # the stem is still the stem


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"ratio": 0.25}, [3, 4, 8]),  # 12/4, 16/4, 20/4 up to a multiple of 4 groups
        ({"ratio": 0.01}, [1, 1, 4]),
        ({"ratio": 1}, [12, 16, 20]),
        ({"ratio": 0.25, "multiple_of": 8}, [8, 8, 8]),
        ({"ratio": 0.25, "multiple_of": 3}, [3, 6, 12]),
        ({"ratio": 0.25, "coef_groups": 2, "skip": "1.grouped"}, [4, 4]),
        ({"n_basis": 4}, [4, 4, 4]),
        ({"n_basis": 4, "multiple_of": 3}, [6, 6, 12]),
        ({"n_basis": 12, "multiple_of": 32}, [12, 16, 20]),
        ({"n_basis": 4, "coef_rank": 2, "form": "full"}, [4, 4, 4]),
    ],
)
def test_rounding_of_n_basis(arguments, expected):
    plan = bc.make_plan(network(), **arguments)
    assert list(plan.layers.values()) == expected
    bc.apply_plan(network(), plan)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Give one of ratio=, n_basis= and macs="),
        ({"ratio": 0.5, "n_basis": 4}, "Give one of ratio=, n_basis= and macs="),
        ({"ratio": 0.5, "macs": 0.5, "input_size": X.shape}, "Give one of"),
        ({"macs": 0.5}, "macs= and input_size= together"),
        ({"ratio": 0.5, "input_size": X.shape}, "macs= and input_size= together"),
        ({"macs": 1.0, "input_size": X.shape}, r"macs=1\.0 is outside"),
        ({"macs": 0.01, "input_size": X.shape}, r"macs=0\.01 is out of reach"),
        ({"ratio": {}}, "No Conv2d is left"),
        ({"ratio": {"1.*": 0.5, "layer9": 0.5}}, "No Conv2d matches"),
        ({"ratio": {"1.*": 0.0}}, r"ratio=0\.0 is outside"),
        ({"ratio": {"1.*": 0.5}, "layers": "1.*"}, "leave layers= out"),
        ({"ratio": 0.99, "layers": "1.plain"}, "No layer is left for the plan: 1.plain: .*12"),
        ({"ratio": 0.0}, r"ratio=0\.0 is outside \(0, 1\]"),
        ({"ratio": -0.5}, r"outside \(0, 1\]"),
        ({"ratio": 1.01}, r"ratio=1\.01 is outside \(0, 1\]"),
        ({"ratio": float("nan")}, "ratio=nan is outside"),
        ({"n_basis": 0}, "1.plain: n_basis=0 is not a whole number from 1 to out_channels=12"),
        ({"n_basis": -1}, "n_basis=-1 is not"),
        ({"n_basis": 2.5}, r"n_basis=2\.5 is not"),
        ({"n_basis": 13}, "1.plain: n_basis=13 is not a whole number from 1 to out_channels=12"),
        ({"n_basis": 13, "multiple_of": 4}, "n_basis=13"),
        ({"n_basis": 6}, r"1.grouped: .*n_basis=6 must be divisible by .* = 4 \* 1"),
        ({"n_basis": 6, "multiple_of": 4}, "1.grouped: .*n_basis=6 must be divisible"),
        ({"ratio": 0.5, "coef_groups": 5}, "1.plain: out_channels=12 .* divisible .* 5"),
        ({"ratio": 0.5, "coef_groups": 0}, "coef_groups"),
        ({"ratio": 0.5, "coef_rank": 0}, "coef_rank"),
        ({"ratio": 0.5, "multiple_of": 0}, "multiple_of=0"),
        ({"ratio": 0.5, "form": "sub"}, "form='sub' is unknown. Forms: subset, full"),
        ({"ratio": 0.5, "layers": ["layer9.*"]},
         r"No Conv2d matches layers=\['layer9\.\*'\]. Available: 0, 1.plain, .*layers\(model\)"),
        ({"ratio": 0.5, "skip": "1.plian"}, r"No Conv2d matches skip=\['1\.plian'\]. Available: 0"),
        ({"ratio": 0.5, "layers": []}, "No Conv2d is left .*Available: 0, 1.plain"),
        ({"ratio": 0.5, "layers": "1.d*"}, "No Conv2d is left .*only when named"),
        ({"ratio": 0.5, "layers": lambda name, conv: False}, "No Conv2d is left"),
        ({"ratio": 0.5, "skip": "*"}, "No Conv2d is left"),
    ],
)  # fmt: skip
def test_what_make_plan_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        bc.make_plan(network(), **arguments)


def test_layers_may_come_from_a_generator():
    chosen = ["0", "1.plain"]  # the stem, too, which counts as it is named
    assert list(bc.make_plan(network(), ratio=0.5, layers=(n for n in chosen)).layers) == chosen


def test_where_no_layer_may_change_the_first_reason_is_given():
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(6)))
    for conv in model[1:]:
        parametrizations.weight_norm(conv)
    why = "a parametrization computes its parameters; remove that first"
    told = f"put in basis form. 1: {why}; 2: {why}; 3: {why}; and 2 more."
    with warnings.catch_warnings(), pytest.raises(ValueError, match=re.escape(told)):
        warnings.simplefilter("error")
        bc.make_plan(model, ratio=0.5)


@pytest.mark.parametrize("plan", [{"1": 2}, "plan.json"])
@pytest.mark.parametrize("ask", [bc.apply_plan, lambda m, p: bc.summary(m, (1, 4, 9, 9), p)])
def test_what_is_not_a_plan_gets_a_hint_how_to_make_one(ask, plan):
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    with pytest.raises(TypeError, match="is not a Plan: make one with Plan.*make_plan.*Plan.load"):
        ask(model, plan)


def test_a_model_without_convolutions():
    with pytest.raises(ValueError, match="Available: none"):
        bc.make_plan(nn.Linear(3, 3), ratio=0.5)


def test_wasted_basis_filters_are_reported():
    with pytest.warns(UserWarning, match=r"wasted in 0 \(n_basis=48, of which 27 can be"):
        plan = bc.make_plan(nn.Sequential(nn.Conv2d(3, 64, 3)), ratio=0.75, layers="0")
    assert plan.layers == {"0": 48}


@pytest.mark.filterwarnings("error")
def test_basis_filters_that_groups_can_use_are_not_called_wasted():
    # 12 in each group of 4·9 = 36 weights, 12 in each of 2 blocks of 27.
    bc.make_plan(nn.Sequential(nn.Conv2d(16, 64, 3, groups=4)), ratio=0.66, layers="0")
    bc.make_plan(nn.Sequential(nn.Conv2d(3, 64, 3)), ratio=0.3, layers="0", coef_groups=2)


def test_a_layer_that_rounding_gives_all_of_its_filters_is_left_dense():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 20, 3), nn.Conv2d(20, 1, 3))
    with pytest.warns(UserWarning, match="Left dense: 2: .*all of its 1 filters"):
        assert bc.make_plan(model, ratio=0.25).layers == {"1": 5}
    with pytest.warns(UserWarning, match="Left dense: 2: .*"):
        assert bc.make_plan(model, ratio=0.5, multiple_of=16, form="full").layers == {"1": 16}


@pytest.mark.parametrize("arguments", [{"ratio": 1.0}, {"ratio": 1}, {"n_basis": 16}])
def test_all_filters_are_planned_as_asked_with_a_warning(arguments: dict[str, Any]):
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3))
    saves_nothing = r"save no multiplications: 1 \(n_basis=16 of 16, 1\.11 times dense\)"
    with pytest.warns(UserWarning, match=saves_nothing):
        plan = bc.make_plan(model, **arguments)
    with pytest.warns(UserWarning, match=saves_nothing):
        assert bc.apply_plan(model, plan)[1].n_basis == 16


def test_a_form_that_costs_more_than_dense_is_reported_when_it_is_planned():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 20, 3))
    with pytest.warns(UserWarning, match=r"1 \(n_basis=19 of 20, 1\.0\d times dense\)"):
        plan = bc.make_plan(model, ratio=0.95)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bc.apply_plan(model, plan)
        bc.make_plan(model, ratio=0.85)


@pytest.mark.parametrize("coef_rank", [None, 2])
def test_no_parameter_is_empty_and_keys_stay(coef_rank: int | None):
    arguments = {"form": "subset", "coef_rank": coef_rank}
    layer = BasisConv2d(3, 4, 3, 4, **arguments)
    less = BasisConv2d(3, 4, 3, 2, **arguments)
    assert all(p.numel() for p in layer.parameters())
    assert layer.state_dict().keys() == less.state_dict().keys()
    for optimizer in (torch.optim.Adafactor(layer.parameters()), bc.Muon(layer)):
        layer(X).square().mean().backward()
        optimizer.step()
    other = BasisConv2d(3, 4, 3, 4, **arguments)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(X), layer(X))
    torch.testing.assert_close(layer.to_conv2d()(X), layer(X))
    assert bc.plan_of(nn.Sequential(layer)) == Plan({"0": 4}, coef_rank=coef_rank)


def test_a_ratio_for_each_glob():
    ratio = {"1.*": 0.5, "1.s*": 0.25, "1.plain": 0.75, "0": 0.5}
    plan = bc.make_plan(network(), ratio=ratio, skip="1.grouped")
    assert plan.layers == {"0": 4, "1.plain": 9, "1.strided": 4}
    # An exact name counts wherever it stands.
    again = bc.make_plan(network(), ratio=dict(reversed(ratio.items())), skip="1.grouped")
    assert again.layers == {"0": 4, "1.plain": 9, "1.strided": 8}


@pytest.mark.parametrize("macs", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("options", [{}, {"form": "full", "multiple_of": 4}, {"layers": ["1.*"]}])
def test_a_share_of_the_multiplications(macs: float, options: dict[str, Any]):
    torch.manual_seed(0)
    wide = nn.Sequential()
    wide.stem = nn.Conv2d(3, 16, 3)
    wide.add_module("1", nn.Sequential(nn.Conv2d(16, 64, 3), nn.Conv2d(64, 64, 3)))
    size = (1, 3, 20, 20)
    dense = bc.summary(wide, size).macs
    plan = bc.make_plan(wide, macs=macs, input_size=size, **options)
    spent = bc.summary(wide, size, plan).macs
    assert spent <= macs * dense
    step = options.get("multiple_of", 1)
    more = Plan({n: m + step for n, m in plan.layers.items()}, plan.form)
    assert bc.summary(wide, size, more).macs > macs * dense


# Numbers from elsewhere.


def test_numpy_integers_are_whole_numbers():
    widths = np.array([16, 20])
    net = nn.Sequential(nn.Conv2d(3, widths[0], 3), nn.Conv2d(widths[0], widths[1], 3))
    plain = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 20, 3))
    for arguments in ({"ratio": 0.5}, {"n_basis": np.int64(8), "multiple_of": np.int32(4)},
                      {"ratio": np.float32(0.5), "coef_groups": np.int64(2)}):  # fmt: skip
        plan = bc.make_plan(net, **arguments)
        assert plan == bc.make_plan(plain, **arguments)
        assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
        assert bc.summary(net, np.array([1, 3, 9, 9]).tolist(), plan) == bc.summary(
            plain, (1, 3, 9, 9), plan
        )
        small = bc.apply_plan(net, plan)
        assert bc.plan_of(small) == plan and type(small[1].n_basis) is int
        assert type(bc.restore(small)[1]) is nn.Conv2d
        assert type(bc.summary(small, (1, 3, 9, 9))["1"].macs) is int
    assert Plan({"1": np.int64(4)}, "full", np.int64(2), np.int64(1)) == Plan(
        {"1": 4}, "full", 2, 1
    )
    layer = BasisConv2d(np.int64(3), np.int64(8), np.int64(3), np.int64(4), groups=np.int64(1))
    assert layer(X).shape == (2, 8, 6, 6)
    for bad in (4.0, np.float64(4), np.bool_(True), np.array([4, 4]), "4"):
        with pytest.raises(ValueError):
            Plan({"1": bad})
        with pytest.raises(ValueError):
            BasisConv2d(3, 8, 3, bad)


def test_a_kernel_size_that_is_one_number():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    net[1].kernel_size, net[1].stride = 3, 1
    plan = bc.make_plan(net, ratio=0.5)
    assert plan.layers == {"1": 4}
    small = bc.apply_plan(net, Plan({"1": 7}))
    assert small(X).shape == net(X).shape
    assert bc.summary(net, X.shape, plan) == bc.summary(bc.apply_plan(net, plan), X.shape)


# Devices and dtypes.


@pytest.mark.parametrize("init", ["svd", "qr", "random"])
@pytest.mark.parametrize("form", ["subset", "full"])
def test_on_meta_a_model_has_the_form_and_no_values(form: Any, init: Any):
    plan = Plan({"1": 4}, form)
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
        small = bc.apply_plan(model, bc.make_plan(model, ratio=0.5, form=form), init)
    assert bc.plan_of(small) == plan and all(p.is_meta for p in small.parameters())
    assert bc.restore(small)[1].weight.is_meta
    assert small(X.to("meta")).shape == (2, 8, 4, 4)
    real = bc.apply_plan(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), plan)
    small.load_state_dict(real.state_dict(), assign=True)
    assert torch.equal(small(X), real(X))
    assert bc.summary(model, X.shape).macs == bc.summary(real, X.shape).dense.macs


def test_dtypes_without_convolutions_are_left():
    model = network()
    model[1].plain.to(torch.float8_e4m3fn)
    with pytest.warns(UserWarning, match="Left dense: 1.plain: its weight is torch.float8_e4m3fn"):
        assert list(bc.make_plan(model, ratio=0.5).layers) == ["1.strided", "1.grouped"]
    with pytest.raises(ValueError, match="^1.plain cannot .*float8"):
        bc.apply_plan(model, Plan({"1.plain": 4}))


# Outputs at full rank.


class Asking(nn.Module):
    """It treats convolutions otherwise than other layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)])
        self.calls = 0

    def forward(self, x: Tensor) -> dict[str, Any]:
        self.calls += 1
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                x = x.relu()
        return {"x": [x + 0 * torch.rand(1)], "calls": self.calls}


class Using(nn.Sequential):
    """It uses a convolution's attribute that a basis layer has not."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 if self[1].output_padding else 2)


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize(
    ("model", "name", "why"),
    [(Asking(), "layers.1", "computes something else"),
     (Using(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)), "1", "fails")],
)  # fmt: skip
def test_an_example_shows_that_a_model_asks_for_a_layers_class(model, name, why, inplace):
    model.train()
    other = "2" if name == "1" else "layers.0"
    was, state = Frozen(model), torch.get_rng_state()
    with pytest.raises(ValueError, match=f"^With {name} in another form .*{why}"):
        bc.apply_plan(model, Plan({name: 4}), inplace=inplace, example=X)
    assert was.same(model) and model.training and getattr(model, "calls", 0) == 0
    assert torch.equal(torch.get_rng_state(), state)
    if other == "2":
        small = bc.apply_plan(model, Plan({other: 4}), example=X.shape)
        assert isinstance(small[2], BasisConv2d)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("first", [Plan({}), Plan({"1.plain": 5, "0": 3}, "full")])
def test_an_example_that_agrees_changes_nothing_in_the_result(first: Plan, dtype: torch.dtype):
    plan = Plan({"1.plain": 5, "1.strided": 4, "1.grouped": 8})
    start = bc.apply_plan(network(), first).to(dtype)
    want = bc.apply_plan(start, plan)
    got = bc.apply_plan(start, plan, example=(X.to(dtype),))
    assert bc.plan_of(got) == plan and torch.equal(got(X.to(dtype)), want(X.to(dtype)))
    assert bc.plan_of(bc.apply_plan(start, Plan({}), example=X.to(dtype))) == Plan({})


def test_an_example_that_is_no_input():
    with pytest.raises(TypeError, match="a shape, a tensor"):
        bc.apply_plan(network(), Plan({"1.plain": 5}), example=3)


# Convolutions that cannot change.


def tied(model: nn.Module) -> nn.Module:
    model[1].weight = model[2].weight
    return model


def own_forward(model: nn.Module) -> nn.Module:
    model[1].forward = lambda x: x
    return model


def with_hook(model: nn.Module) -> nn.Module:
    prune.random_unstructured(model[1], "weight", amount=0.5)
    return model


def normalised(model: nn.Module) -> nn.Module:
    parametrizations.weight_norm(model[1])
    return model


def with_bounded_bias(model: nn.Module) -> nn.Module:
    parametrize.register_parametrization(model[1], "bias", nn.Tanh())
    return model


def cut_to_grey(model: nn.Module) -> nn.Module:
    model[1].weight = nn.Parameter(model[1].weight[:, :1].detach().clone())
    return model


def with_pruned_bias(model: nn.Module) -> nn.Module:
    prune.random_unstructured(model[1], "bias", amount=0.5)
    return model


def with_mask(model: nn.Module) -> nn.Module:
    model[1].register_buffer("mask", torch.ones(4, 4, 3, 3))
    return model


def in_a_list(model: nn.Module) -> nn.Module:
    model.taps = [nn.ReLU(), model[1]]
    return model


def in_a_private_dict(model: nn.Module) -> nn.Module:
    model[2]._before = {"one": model[1]}
    return model


def held_in(how):
    """The layer in an attribute of the model, wrapped in some plain values."""

    def change(model: nn.Module) -> nn.Module:
        model.taps = how(model[1])
        return model

    return change


def in_a_circle(conv: nn.Module) -> list[Any]:
    circle: list[Any] = [3]
    circle += [circle, (circle, conv)]
    return circle


def setting(name: str, value: Any):
    def change(model: nn.Module) -> nn.Module:
        setattr(model[1], name, value)
        return model

    return change


def with_own_convolution(model: nn.Module) -> nn.Module:
    model[1]._conv_forward = MethodType(lambda conv, *given: 2 * given[0], model[1])
    return model


def compiled(model: nn.Module) -> nn.Module:
    model.taps = torch.compile(model[1], backend="eager")  # it calls the layer that it was given
    return model


def replaced(layer: nn.Module):
    def change(model: nn.Module) -> nn.Module:
        model[1] = layer
        return model

    return change


UNTOUCHABLE = [
    (replaced(Doubled(4, 4, 3)), "Doubled has a forward of its own"),
    (own_forward, "has a forward of its own"),
    (tied, "shares a parameter with a Conv2d"),
    (with_hook, "its weight is computed by a hook"),
    (normalised, "a parametrization computes its parameters"),
    (with_bounded_bias, "a parametrization computes its parameters"),
    (cut_to_grey, r"its weight is \(4, 1, 3, 3\), and by .* it should be \(4, 4, 3, 3\)"),
    (with_pruned_bias, "also holds bias_mask, bias_orig, which its hooks may need"),
    (with_mask, "also holds mask, which"),
    (in_a_list, "taps of a Sequential holds it, too"),
    (in_a_private_dict, "_before of a Conv2d holds it, too"),
    (replaced(Called(4, 4, 3)), "Called has a __call__ of its own"),
    (with_own_convolution, "Conv2d has a _conv_forward of its own"),
    (compiled, "of a OptimizedModule holds it, too"),
    *[
        (held_in(how), "taps of a Sequential holds it, too")
        for how in (
            lambda conv: [(conv, nn.ReLU())],
            lambda conv: {"one": [conv]},
            lambda conv: {conv: 0.5},
            lambda conv: deque([conv]),
            lambda conv: frozenset([conv]),
            lambda conv: partial(conv),
            lambda conv: partial(torch.compile, model=conv),
            lambda conv: conv.forward,
            lambda conv: [partial(map, conv.forward)],
            lambda conv: [nn.Sequential(conv)],
            in_a_circle,
        )
    ],
    (setting("groups", 3), "takes no such attributes: in_channels must be divisible by groups"),
    (setting("norm", nn.BatchNorm2d(4)), "also holds norm, which"),
    *[
        (setting(name, value), f"needs the name of its {name} itself")
        for name, value in (
            ("mode", "same"),
            ("blocks", 2),
            ("combine", None),
            ("coef", 0.5),
            ("coef_in", 0.5),
            ("passed", True),
            ("config", {}),
            ("dense_kernel", 3),
            ("basis", "cubic"),
            ("form", "round"),
            ("n_basis", 3),
            ("from_conv2d", None),
        )
    ],
    (replaced(nn.LazyConv2d(4, 3)), "not initialised yet"),
    (replaced(nn.Conv2d(4, 4, 3, dtype=torch.complex64)), "not a real floating type"),
]


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize(("change", "why"), UNTOUCHABLE)
def test_convolutions_that_cannot_change_are_left_alone_and_reported(change, why):
    model = change(nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(4))))
    assert "1" not in bc.layers(model) and {"0", "3"} <= bc.layers(model).keys()
    with pytest.warns(UserWarning, match=f"Left dense: 1: .*{why}"):
        plan = bc.make_plan(model, ratio=0.5)
    assert "1" not in plan.layers and "3" in plan.layers
    with pytest.raises(ValueError, match=f"1 cannot be put in basis form: .*{why}"):
        bc.make_plan(model, ratio=0.5, layers=["1"])
    was = list(model)
    with pytest.raises(ValueError, match=f"1 cannot be put in basis form: .*{why}"):
        bc.apply_plan(model, Plan({"3": 2, "1": 2}), inplace=True)
    assert list(model) == was
    kept = model[1]
    assert bc.apply_plan(model, plan, inplace=True)[1] is kept


@pytest.mark.parametrize("plan", [Plan({"1": 4}), Plan({})])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "circular"])
def test_a_padding_that_changed_later_is_kept_or_the_layer_is(padding_mode, plan):
    # torch pads by the new number with zeros alone: in its other modes by the one it began with.
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1, padding_mode=padding_mode))
    if not plan.layers:
        model = bc.apply_plan(model, Plan({"1": 4}))
    model[1].padding = (0, 0)
    want = model(X)
    assert want.shape[-1] == (6 if padding_mode == "zeros" else 8)
    if padding_mode == "zeros":
        torch.testing.assert_close(bc.apply_plan(model, plan)(X), want)
    else:
        with pytest.raises(ValueError, match=r"1 cannot be .* its padding became \(0, 0\) after"):
            bc.apply_plan(model, plan)


@pytest.mark.parametrize("plan", [Plan({}), Plan({"1": 3})])
@pytest.mark.parametrize(
    ("change", "why"), [(lambda m: prune.l1_unstructured(m[1], "basis", 0.5), "basis_mask"),
                        (in_a_list, "taps of a Sequential"),
                        (own_forward, "has a forward of its own"),
                        (setting("_conv_forward", lambda *given: given[0]),
                         "has a _conv_forward of its own"),
                        (setting("transposed", True), "needs the name of its transposed itself"),
                        (setting("config", {}), "needs the name of its config itself"),
                        (setting("norm", nn.ReLU()), "also holds norm"),
                        (lambda m: parametrizations.spectral_norm(m[1], "basis"),
                         "a parametrization computes its parameters"),
                        (lambda m: setattr(m[2], "bias", m[1].bias),
                         "shares a parameter with a Conv2d")],
)  # fmt: skip
def test_a_basis_layer_that_cannot_change_is_not_replaced(change, why, plan):
    model = bc.apply_plan(nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(3))), Plan({"1": 2}))
    change(model)
    was = list(model)
    with pytest.raises(ValueError, match=f"^1 cannot be .*{why}"):
        bc.apply_plan(model, plan, inplace=True)
    assert list(model) == was


@pytest.mark.parametrize("plan", [Plan({}), Plan({"module.1": 3})])
def test_inside_ddp_nothing_is_replaced(plan):
    # Its reducer would not average what it has never seen, and the replicas would drift apart.
    model = bc.apply_plan(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3)), Plan({"1": 2}))

    def replicate() -> None:
        wrapped = DistributedDataParallel(model)
        with pytest.raises(ValueError, match=r"module.1 cannot be .* change its \.module"):
            bc.apply_plan(wrapped, plan, inplace=True)
        assert wrapped.module[1] is model[1]
        pair = nn.ModuleList([DistributedDataParallel(nn.Conv2d(2, 4, 3)), nn.Conv2d(4, 4, 3)])
        assert isinstance(bc.apply_plan(pair, Plan({"1": 2}))[1], BasisConv2d)  # outside of it
        bc.apply_plan(wrapped.module, Plan({"1": 3}), inplace=True)
        DistributedDataParallel(wrapped.module)(torch.ones(1, 2, 9, 9)).sum().backward()

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        replicate()
    finally:
        gc.collect()  # a wrapper that goes last takes the group with it, and may wait for ever
        torch.distributed.destroy_process_group()
    assert all(p.grad is not None for p in model[1].parameters())


def test_a_layer_of_the_users_own_attributes_keeps_them():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    model[1].gain, model[1]._secret = ["0.5"], 3
    small = bc.apply_plan(model, Plan({"1": 2}))
    assert not hasattr(small[1], "_secret")
    assert small[1].gain == ["0.5"] and bc.restore(small)[1].gain == ["0.5"]
    assert not hasattr(small[1], "transposed") and not hasattr(bc.restore(small)[1], "n_basis")


def test_a_model_that_is_one_convolution():
    conv = nn.Conv2d(4, 8, 3)
    with pytest.raises(ValueError, match="it is the model itself; use BasisConv2d.from_conv2d"):
        bc.make_plan(conv, ratio=0.5, layers=[""])
    with pytest.raises(ValueError, match="itself a BasisConv2d: call its to_conv2d"):
        bc.restore(BasisConv2d.from_conv2d(conv, 4))


# Applying plans.

PLANS = [
    Plan({"1.plain": 5, "1.grouped": 8}),
    Plan({"1.plain": 5, "1.grouped": 8}, "full"),
    Plan({"1.strided": 4, "1.plain": 6}, "full", 2, 2, {"1.strided": "rebuilt"}),
    Plan({"0": 3, "1.depthwise": 20, "1.pointwise": 4}, coef_rank=2),
    Plan({}),
]


@pytest.mark.parametrize("second", PLANS)
@pytest.mark.parametrize("first", PLANS)
def test_a_model_matches_the_last_plan_from_whatever_form_it_is_in(first, second):
    model = network()
    once = bc.apply_plan(model, first)
    kernels = {n: c.weight for n, c in bc.layers(once).items()}
    twice = bc.apply_plan(once, second)
    for name, conv in bc.layers(twice).items():
        assert isinstance(conv, BasisConv2d) == (name in second.layers)
        if name not in second.layers:
            assert type(conv) in (nn.Conv2d, Labelled)
            torch.testing.assert_close(conv.weight, kernels[name], rtol=1e-5, atol=1e-6)
    assert bc.plan_of(twice) == second
    assert twice[3] is twice[1].plain  # a shared module is still one
    assert bc.plan_of(once) == first and bc.plan_of(model) == Plan({})


@pytest.mark.parametrize("form", ["subset", "full"])
def test_all_filters_keep_the_function_and_restore_gives_it_back(form):
    model = network().double()
    x = X.double()
    plan = bc.make_plan(model, ratio=1.0, layers=lambda name, conv: True, form=form)
    basis = bc.apply_plan(model, plan)
    dense = bc.restore(basis)
    for other in (basis, dense):
        torch.testing.assert_close(other(x), model(x), rtol=0, atol=1e-12)
    assert {type(c) for c in bc.layers(dense).values()} == {nn.Conv2d}
    assert dense.state_dict().keys() == model.state_dict().keys()


def test_inplace_changes_the_model_and_otherwise_a_copy():
    model = network()
    was = Frozen(model)
    plan = bc.make_plan(model, ratio=0.5)
    assert bc.apply_plan(model, plan) is not model
    assert was.same(model)
    assert bc.apply_plan(model, plan, inplace=True) is model
    assert bc.plan_of(model) == plan


def test_layers_that_match_are_left_alone_and_modes_follow_the_plan():
    model = bc.apply_plan(network(), Plan({"1.plain": 5, "1.strided": 4}))
    plain, depthwise = model[1].plain, model[1].depthwise
    bc.apply_plan(
        model, Plan({"1.plain": 5, "1.strided": 8}, modes={"1.plain": "rebuilt"}), inplace=True
    )
    assert model[1].plain is plain and model[1].depthwise is depthwise
    assert plain.mode == "rebuilt" and model[1].strided.n_basis == 8
    bc.apply_plan(model, Plan({"1.plain": 5}), inplace=True)
    assert plain.mode == "factored" and type(model[1].strided) is nn.Conv2d


def test_random_factors_come_from_the_generator():
    plan = Plan({"1.plain": 5, "1.grouped": 8})
    state = torch.get_rng_state()
    first, again, other = (
        bc.apply_plan(network(), plan, "random", generator=torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    )
    torch.set_rng_state(state)
    assert torch.equal(first(X), again(X)) and not torch.equal(first(X), other(X))


@pytest.mark.parametrize("init", ["svd", "qr"])
def test_decompositions_draw_nothing_from_the_global_generator(init):
    model = network()
    state = torch.get_rng_state()
    bc.restore(bc.apply_plan(model, bc.make_plan(model, ratio=0.5), init))
    assert torch.equal(torch.get_rng_state(), state)


BAD_PLANS = [
    (Plan({"1.plain": 5, "layer9.conv": 2}), "svd",
     r"The plan names 'layer9\.conv', which the model does not have. Available: 0, 1\.plain"),
    (Plan({"1.plain": 5, "1.norm": 2}), "svd", r"names '1\.norm', which the model does not have"),
    (Plan({"1.plain": 5, "1.strided": 17}), "svd", "1.strided: n_basis=17 .* out_channels=16"),
    (Plan({"1.plain": 5, "1.grouped": 6}), "svd", "1.grouped: .*n_basis=6 must be divisible"),
    (Plan({"1.plain": 5}, coef_groups=5), "svd", r"1.plain: .*divisible"),
    (Plan({"1.plain": 5}), "SVD", "init='SVD' is unknown. Inits: svd, qr, random"),
]  # fmt: skip


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize(("plan", "init", "message"), BAD_PLANS)
def test_a_plan_that_does_not_fit_leaves_the_model_as_it_was(plan, init, message, inplace):
    for model in (network(), bc.apply_plan(network(), Plan({"1.strided": 4}))):
        was = Frozen(model)
        with pytest.raises(ValueError, match=message):
            bc.apply_plan(model, plan, init, inplace=inplace)
        assert was.same(model)


@pytest.mark.parametrize("bad", ["1.plain", "1.grouped"])
def test_a_kernel_that_is_not_finite_is_named_and_nothing_is_changed(bad):
    model = network()
    with torch.no_grad():
        model.get_submodule(bad).weight[0] = torch.nan
    names = Frozen(model).modules
    with pytest.raises(ValueError, match=f"{bad}: Only a kernel of finite real numbers"):
        bc.apply_plan(model, bc.make_plan(model, ratio=0.5), inplace=True)
    assert names == dict(model.named_modules(remove_duplicate=False))


# Plans as values.


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    layers=st.dictionaries(st.text(max_size=5), st.integers(1, 10**6), max_size=4),
    form=st.sampled_from(["subset", "full"]),
    coef_groups=st.integers(1, 8),
    coef_rank=st.none() | st.integers(1, 64),
    data=st.data(),
)
def test_a_plan_survives_json(layers, form, coef_groups, coef_rank, data):
    mode = st.sampled_from(["factored", "rebuilt"])
    modes = {n: data.draw(mode) for n in layers if data.draw(st.booleans())}
    plan = Plan(layers, form, coef_groups, coef_rank, modes)
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan and hash(again) == hash(plan)
    assert len({plan, again}) == 1


def test_files(tmp_path: Path):
    plan = Plan({"layer1.0.conv1": 16}, "full", 2, 4, {"layer1.0.conv1": "rebuilt"})
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    text = (tmp_path / "plan.json").read_text()
    for damaged in (text[:-9], "", "[]", "3", text.replace("coef_rank", "coef_ranks"),
                    text.replace("16", "0"), text.replace("full", "ful"),
                    "[" * 100_000):  # fmt: skip
        (tmp_path / "damaged.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"damaged\.json is not a plan: "):
            Plan.load(tmp_path / "damaged.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary\.json is not a plan"):
        Plan.load(tmp_path / "binary.json")


def test_equality_hash_and_order():
    a, b = Plan({"x": 1, "y": 2}), Plan({"y": 2, "x": 1})
    assert a == b and hash(a) == hash(b)
    assert Plan({"x": 1}, modes={"x": "factored"}) == Plan({"x": 1})
    assert a != Plan({"x": 1, "y": 2}, "full")


def test_a_plan_does_not_change_with_what_it_was_made_from():
    layers: dict[str, int] = {"x": 1}
    plan = Plan(layers)
    layers["y"] = 2
    plan.to_dict()["layers"]["z"] = 3
    assert plan == Plan({"x": 1})
    with pytest.raises(FrozenInstanceError):
        plan.form = "full"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layer": {"x": 1}}, "A plan has the keys layers, form, coef_groups, coef_rank, modes"),
        ([], "A plan has the keys"),
        ({"layers": ["x"]}, r"\['x'\] does not"),
        ({"layers": {"x": 1}, "modes": 3}, "3 does not"),
        ({"layers": {"x": 0}}, "'x' to 0"),
        ({"layers": {"x": "4"}}, "'x' to '4'"),
        ({"layers": {"x": True}}, "'x' to True"),
        ({"layers": {"x": 1.5}}, r"'x' to 1\.5"),
        ({"form": "Subset"}, "form='Subset' is unknown. Forms: subset, full"),
        ({"form": ["subset"]}, "is unknown"),
        ({"coef_groups": 0}, "not 0"),
        ({"coef_groups": None}, "not None"),
        ({"coef_rank": -2}, "not -2"),
        ({"layers": {"x": 1}, "modes": {"y": "rebuilt"}}, r"modes\['y'\]"),
        ({"layers": {"x": 1}, "modes": {"x": "fast"}}, "factored, rebuilt"),
    ],
)
def test_values_that_are_not_a_plan(values: Any, message: str):
    with pytest.raises(ValueError, match=message):
        Plan.from_dict(values)


def test_only():
    plan = Plan({"x": 1, "y": 2, "z": 3}, "full", 2, 4, {"x": "rebuilt", "y": "rebuilt"})
    assert plan.only(["z", "x"]) == Plan({"x": 1, "z": 3}, "full", 2, 4, {"x": "rebuilt"})
    with pytest.raises(ValueError, match=r"\['w'\] are not in the plan. It has: x, y, z"):
        plan.only(["x", "w"])


def test_only_takes_globs():
    plan = Plan({"layer1.a": 1, "layer1.b": 2, "layer2.a": 3}, modes={"layer1.b": "rebuilt"})
    assert plan.only("layer1.*") == Plan(
        {"layer1.a": 1, "layer1.b": 2}, modes={"layer1.b": "rebuilt"}
    )
    assert plan.only(["*.a"]) == Plan({"layer1.a": 1, "layer2.a": 3})
    assert plan.only(n for n in ["layer2.a"]) == Plan({"layer2.a": 3})
    assert plan.only([]) == Plan({})
    with pytest.raises(ValueError, match=r"\['layer3\.\*'\] are not in the plan"):
        plan.only(["layer1.*", "layer3.*"])


def test_plans_join_and_the_right_one_wins():
    left = Plan({"a": 1, "b": 2, "c": 3}, "full", 2, 4, {"a": "rebuilt", "b": "rebuilt"})
    right = Plan({"b": 5, "d": 6}, "full", 2, 4, {"d": "rebuilt"})
    modes = {"a": "rebuilt", "d": "rebuilt"}
    assert left | right == Plan({"a": 1, "b": 5, "c": 3, "d": 6}, "full", 2, 4, modes)
    assert left | Plan({}) == left == Plan({}) | left
    for other in (Plan({"x": 1}), Plan({"x": 1}, "full"), Plan({"x": 1}, "full", 2)):
        with pytest.raises(ValueError, match="Plans of different forms"):
            left | other
    with pytest.raises(TypeError):
        left | {"a": 1}  # type: ignore[operator]


def test_plan_of_a_model_that_no_plan_describes():
    for other in ({"form": "full"}, {"coef_groups": 2}, {"coef_rank": 1}):
        model = nn.Sequential(BasisConv2d(4, 8, 3, 4), BasisConv2d(8, 8, 3, 4, **other))
        with pytest.raises(ValueError, match="No plan describes this model: .* of 0|1 differ"):
            bc.plan_of(model)
    # Ranks that are cut to a layer's own width are one plan; others are not.
    narrow, wide = BasisConv2d(4, 8, 3, 2, coef_rank=2), BasisConv2d(8, 8, 3, 6, coef_rank=4)
    assert bc.plan_of(nn.Sequential(narrow, wide)) == Plan({"0": 2, "1": 6}, coef_rank=4)
    with pytest.raises(ValueError, match="No plan describes"):
        bc.plan_of(nn.Sequential(BasisConv2d(4, 8, 3, 6, coef_rank=2), wide))


# Dense checkpoints.


@pytest.mark.parametrize("form", ["subset", "full"])
def test_a_dense_checkpoint_loads_into_a_model_in_basis_form(form):
    trained = network()
    for parameter in trained.parameters():
        nn.init.normal_(parameter, std=0.1)
    trained[1].norm.running_mean.fill_(0.3)
    plan = bc.make_plan(trained, ratio=1.0, form=form, layers=lambda name, conv: True)
    model = bc.apply_plan(network(), plan)
    held = dict(model.named_parameters())
    bc.load_dense_state_dict(model, trained.state_dict())
    torch.testing.assert_close(model(X), trained(X), rtol=1e-4, atol=1e-5)
    assert all(held[n] is p for n, p in model.named_parameters())  # an optimizer's still
    dense = bc.dense_state_dict(model)
    assert dense.keys() == trained.state_dict().keys()
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(dense[name], value, rtol=1e-4, atol=1e-5)


def test_a_dense_checkpoint_loaded_by_qr_keeps_real_filters():
    trained = network()
    for parameter in trained.parameters():
        nn.init.normal_(parameter, std=0.1)
    model = bc.apply_plan(network(), Plan({"1.plain": 5, "1.strided": 4, "1.grouped": 8}))
    bc.load_dense_state_dict(model, trained.state_dict(), init="qr")
    for name in bc.plan_of(model).layers:
        layer = model.get_submodule(name)
        passed = layer.passed.bool()
        assert passed.sum() == layer.n_basis
        assert torch.equal(layer.basis, trained.get_parameter(f"{name}.weight")[passed])


class Holding(nn.Module):
    """With what a checkpoint or its failure meets: buffers of all kinds and an extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)
        grid = torch.linspace(0, 1, 8)[:, None].expand(8, 8)
        self.register_buffer("grid", grid, persistent=False)
        self.register_buffer("step", torch.tensor(3))
        self.register_buffer("none", None)
        self.extra = {"seen": [1]}

    def get_extra_state(self) -> dict[str, list[int]]:
        return self.extra

    def set_extra_state(self, state: dict[str, list[int]]) -> None:
        self.extra = state

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.bn(self.a(x)))


@pytest.mark.parametrize("lacking", ["a.bias", "b.weight", "a.weight", "bn.running_var", "step"])
def test_a_checkpoint_that_lacks_something_changes_neither_buffers_nor_extra_states(lacking: str):
    donor = Holding()
    donor(X)
    donor.step.fill_(7)
    donor.extra = {"seen": [1, 2]}
    checkpoint = {k: v + 1 if isinstance(v, Tensor) else v for k, v in donor.state_dict().items()}
    model = bc.apply_plan(Holding(), Plan({"b": 4}))
    was, extra = [(t, t.clone()) for t in (*model.parameters(), *model.buffers())], model.extra
    full = dict(checkpoint)
    del checkpoint[lacking]
    with pytest.raises(ValueError, match=lacking):
        bc.load_dense_state_dict(model, checkpoint)
    assert all(torch.equal(tensor, value) for tensor, value in was)
    assert model.extra == extra == {"seen": [1]} and torch.equal(model.grid, Holding().grid)
    bc.load_dense_state_dict(model, full)
    assert model.step == 8 and model.extra == {"seen": [1, 2]}


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_checkpoint_fills_lazy_parameters_or_leaves_them_lazy():
    def lazy() -> nn.Module:
        convs = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        return nn.Sequential(*convs, nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2))

    donor = lazy()
    donor(X)
    model, state = bc.apply_plan(lazy(), Plan({"1": 8}), inplace=True), donor.state_dict()
    held, kinds = dict(model.named_parameters()), {n: type(p) for n, p in model.named_parameters()}
    lacking = {name: value for name, value in state.items() if name != "4.bias"}
    with pytest.raises(ValueError, match=r"4\.bias"):
        bc.load_dense_state_dict(model, lacking)
    assert {n: type(p) for n, p in model.named_parameters()} == kinds
    assert all(held[n] is p for n, p in model.named_parameters())
    bc.load_dense_state_dict(model, state)
    torch.testing.assert_close(model.eval()(X), donor.eval()(X), rtol=1e-4, atol=1e-4)


def test_an_error_of_no_checkpoints_names_the_layer(monkeypatch: pytest.MonkeyPatch):
    def failing(*given: Any, **named: Any) -> Any:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr("basisconv.layer.decompose", failing)
    model = network()
    was = Frozen(model)
    with pytest.raises(torch.linalg.LinAlgError) as caught:
        bc.apply_plan(model, Plan({"1.plain": 5}), inplace=True)
    assert "1.plain" in caught.value.__notes__[0] and was.same(model)


def test_a_checkpoint_from_before_batches_were_counted_loads():
    old = {n: v for n, v in network().state_dict().items() if "num_batches" not in n}
    bc.load_dense_state_dict(bc.apply_plan(network(), Plan({"1.plain": 12})), old)


def keeping(model: nn.Module) -> nn.Module:
    """After a forward pass that kept an activation: torch copies no tensor with a history."""
    model.kept = [model(X)]
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    return model


def renaming(model: nn.Module) -> nn.Module:
    """With a wrapper whose entries have other names than its modules."""
    model[1].strided = checkpoint_wrapper(model[1].strided)
    return model


@pytest.mark.parametrize("change", [keeping, renaming])
def test_dense_checkpoints_need_no_copy_of_the_network(change):
    model = change(bc.apply_plan(network(), Plan({"1.plain": 5, "1.strided": 4, "1.grouped": 8})))
    state, dense = bc.dense_state_dict(model), network()
    assert list(state) == list(dense.state_dict())
    dense.load_state_dict(state)
    want = model(X).detach()
    torch.testing.assert_close(dense(X), want)
    assert torch.equal(state["3.weight"], state["1.plain.weight"])
    for value in state.values():
        value.add_(1)  # it is the caller's own
    torch.testing.assert_close(model(X), want)
    bc.load_dense_state_dict(model, {k: 2 * v for k, v in dense.state_dict().items()})
    dense.load_state_dict({k: 2 * v for k, v in dense.state_dict().items()})
    torch.testing.assert_close(model(X), dense(X), rtol=1e-4, atol=1e-4)
    assert not any(m._state_dict_hooks or m._load_state_dict_pre_hooks for m in convolutions(model))


def convolutions(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, BasisConv2d | nn.Conv2d)]


def test_an_error_of_the_models_own_while_loading_leaves_it_as_it_was():
    model = bc.apply_plan(network(), Plan({"1.plain": 5}))
    state = {k: v + 1 for k, v in network().state_dict().items()}

    def refuse(module: nn.Module, entries: dict[str, Tensor], prefix: str, *_: Any) -> None:
        if torch.equal(entries[f"{prefix}weight"], state["1.pointwise.weight"]):
            raise KeyError("mine")

    model[1].pointwise.register_load_state_dict_pre_hook(refuse)
    was = Frozen(model)
    with pytest.raises(KeyError, match="mine"):
        bc.load_dense_state_dict(model, state)
    assert was.same(model)


def test_what_a_hook_renames_is_put_back_too_where_the_checkpoint_does_not_fit():
    """A model's own hook may take entries by their old names, which only the checkpoint has."""
    model = bc.apply_plan(network(), Plan({"1.plain": 5}))
    state = {k: v + 1 for k, v in network().state_dict().items()}
    state["1.pointwise.old"] = state.pop("1.pointwise.weight")

    def rename(module: nn.Module, entries: dict[str, Tensor], prefix: str, *_: Any) -> None:
        entries[f"{prefix}weight"] = entries.pop(f"{prefix}old")

    model[1].pointwise.register_load_state_dict_pre_hook(rename)
    was = Frozen(model)
    lacking = {name: value for name, value in state.items() if name != "1.plain.weight"}
    with pytest.raises(ValueError, match="1.plain.weight"):
        bc.load_dense_state_dict(model, lacking)
    assert was.same(model)
    bc.load_dense_state_dict(model, state)
    assert torch.equal(model[1].pointwise.weight, state["1.pointwise.old"])


def test_what_a_model_holds_is_walked_through_once_and_to_any_depth():
    class Vocabulary(dict[int, str]):
        walks = 0

        def values(self) -> Any:
            self.walks += 1
            return super().values()

    model = nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(12)))
    model.vocabulary = Vocabulary({0: "a"})
    assert list(bc.layers(model)) == [str(i) for i in range(12)]
    assert model.vocabulary.walks == 1
    nested: Any = model[7]
    for _ in range(3000):  # more than Python's calls go
        nested = (nested,)
    model.nested = nested
    assert list(bc.layers(model)) == [str(i) for i in range(12) if i != 7]


def missing(state: dict[str, Tensor]) -> None:
    del state["1.plain.weight"]


def unknown(state: dict[str, Tensor]) -> None:
    state["layer9.weight"] = torch.zeros(3)


def misshapen(state: dict[str, Tensor]) -> None:
    state["1.plain.weight"] = torch.zeros(12, 8, 5, 5)


def not_a_number(state: dict[str, Tensor]) -> None:
    state["1.strided.weight"] = torch.full((16, 12, 3, 3), torch.nan)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing, r"(?s)dense form.*Missing key.*1\.plain\.weight"),
        (unknown, r"(?s)dense form.*Unexpected key.*layer9\.weight"),
        (misshapen, r"(?s)dense form.*1\.plain\.weight.*\[12, 8, 5, 5\].*\[12, 8, 3, 3\]"),
        (not_a_number, r"1\.strided: Only a kernel of finite"),
    ],
)
def test_a_checkpoint_that_does_not_fit_leaves_the_model_as_it_was(damage, message):
    model = bc.apply_plan(network(), Plan({"1.plain": 5, "1.strided": 4}))
    state = copy.deepcopy(network().state_dict())
    for value in state.values():
        value.add_(1)
    damage(state)
    was = Frozen(model)
    with pytest.raises(ValueError, match=message):
        bc.load_dense_state_dict(model, state)
    assert was.same(model)


def test_a_parametrized_layer_takes_no_checkpoint_and_keeps_what_it_has():
    model = bc.apply_plan(network(), Plan({"1.plain": 5}))
    parametrizations.weight_norm(model[1].plain, "basis")
    state = {k: v + 1 for k, v in network().state_dict().items()}
    was = Frozen(model)
    with pytest.raises(ValueError, match=r"1\.plain cannot be .* a parametrization .* remove that"):
        bc.load_dense_state_dict(model, state)
    assert was.same(model)


def test_a_checkpoint_in_basis_form_is_not_a_dense_one():
    model = bc.apply_plan(network(), Plan({"1.plain": 5}))
    with pytest.raises(ValueError, match=r"(?s)dense form.*1\.plain\.coef"):
        bc.load_dense_state_dict(model, model.state_dict())

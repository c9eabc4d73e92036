"""make_plan: which layers it names, how it rounds, and what it refuses."""

from __future__ import annotations

import json
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import X, network
from torch import nn
from torch.nn.utils import parametrizations

import basisconv as bc
from basisconv import BasisConv2d, Plan

NORMAL = ["1.plain", "1.strided", "1.grouped"]

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
        ({"ratio": "0.5"}, r"ratio='0\.5' is outside"),
        ({"ratio": "much"}, "ratio='much' is outside"),
        ({"ratio": {2: 0.5}}, "names and globs to ratios, not 2"),
        ({"ratio": torch.tensor([0.5, 0.5])}, "is outside"),
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


@pytest.mark.parametrize("ratio", [np.float32(0.5), torch.tensor(0.5), np.array(0.5)], ids=repr)
def test_a_ratio_of_another_kind_of_number(ratio: Any):
    want = bc.make_plan(network(), ratio=0.5)
    assert bc.make_plan(network(), ratio=ratio) == want
    assert bc.make_plan(network(), ratio=dict.fromkeys(want.layers, ratio)) == want


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


@pytest.mark.parametrize("size", [3, np.int64(3), [3, 3], np.array([3, 3])], ids=repr)
def test_a_kernel_size_of_another_kind(size: Any):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    net[1].kernel_size, net[1].stride = size, 1
    plan = bc.make_plan(net, ratio=0.5)
    assert plan.layers == {"1": 4}
    small = bc.apply_plan(net, Plan({"1": 7}))
    assert small(X).shape == net(X).shape
    assert bc.summary(net, X.shape, plan) == bc.summary(bc.apply_plan(net, plan), X.shape)

"""apply_plan: a model matches the plan, or is left whole as it was."""

from __future__ import annotations

import copy
import gc
from collections import deque
from functools import partial
from types import MethodType
from typing import Any

import pytest
import torch
from small_networks import Frozen, Labelled, X, network
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize, prune

import basisconv as bc
from basisconv import BasisConv2d, Plan, surgery, timing


class Doubled(nn.Conv2d):
    """A convolution with a forward of its own, which must stay as it is."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Called(nn.Conv2d):
    """Another, whose way of its own is how it is called."""

    def __call__(self, input: Tensor) -> Tensor:
        return 2 * super().__call__(input)


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


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64, torch.int8])
def test_a_basis_layer_of_a_dtype_without_convolutions_is_refused(dtype: torch.dtype):
    with pytest.raises(ValueError, match="dtype.*float32"):
        BasisConv2d(3, 8, 3, 4, dtype=dtype)
    small = bc.apply_plan(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), Plan({"1": 4}))
    for tensor in (*small[1].parameters(), small[1].passed):
        tensor.requires_grad_(False).data = tensor.data.to(dtype)
    with pytest.raises(ValueError, match=f"^1 cannot .*{dtype}"):
        bc.restore(small)


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
        return super().forward(x) * len(self[1].__constants__)


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
    assert "transposed" not in vars(small[1]) and not hasattr(bc.restore(small)[1], "n_basis")


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


class InterruptOnce:
    """Puts the first layer in its place, and is then interrupted; later it puts all."""

    def __init__(self) -> None:
        self.place, self.cut_off = surgery._place, False

    def __call__(self, model: nn.Module, replaced: Any) -> None:
        if self.cut_off:
            return self.place(model, replaced)
        self.cut_off = True
        self.place(model, dict([next(iter(replaced.items()))]))
        raise KeyboardInterrupt


@pytest.mark.parametrize("change", ["apply", "restore", "tune", "for a while", "back"])
def test_an_interrupt_between_two_layers_leaves_the_model(change, monkeypatch):
    model = network()
    if change in ("restore", "tune"):
        bc.apply_plan(model, bc.make_plan(model, ratio=0.5), inplace=True)
    layers = dict(model.named_modules())
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    dense = {c: copy.deepcopy(c) for c in model.modules() if isinstance(c, nn.Conv2d)}
    with pytest.raises(KeyboardInterrupt):
        if change == "back":
            with surgery.swapped(model, dense):
                monkeypatch.setattr(surgery, "_place", InterruptOnce())
        monkeypatch.setattr(surgery, "_place", InterruptOnce())
        if change == "apply":
            bc.apply_plan(model, bc.make_plan(model, ratio=0.5), inplace=True)
        elif change == "restore":
            bc.restore(model, inplace=True)
        elif change == "tune":
            monkeypatch.setattr(timing.TunedLayer, "speedup", 0.5)
            bc.tune(model, X, repeats=1, drop=True)
        else:
            with surgery.swapped(model, dense):
                pass
    assert dict(model.named_modules()) == layers
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())

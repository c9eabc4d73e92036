"""Dense checkpoints in and out of a model in basis form, whole or not at all."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from small_networks import Frozen, X, network
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations

import basisconv as bc
from basisconv import BasisConv2d, Plan

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
        self.register_buffer("range", torch.zeros(0))
        self.register_buffer("edges", torch.tensor(math.nan).expand(8, 8), persistent=False)
        self.extra, self.loads = {"seen": [1]}, {"n": [0]}

    def get_extra_state(self) -> dict[str, list[int]]:
        return self.extra

    def set_extra_state(self, state: dict[str, list[int]]) -> None:
        self.extra = state

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        self.range.resize_(state[prefix + "range"].shape)  # as observers of quantisation do
        self.loads["n"].append(1)
        super()._load_from_state_dict(state, prefix, *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.bn(self.a(x)))


@pytest.mark.parametrize(
    "lacking", ["a.bias", "b.weight", "b.bias", "a.weight", "bn.running_var", "step"]
)
def test_a_checkpoint_that_lacks_something_changes_neither_buffers_nor_extra_states(lacking: str):
    donor = Holding()
    donor(X)
    donor.step.fill_(7)
    donor.range.resize_(3).fill_(1)
    donor.extra = {"seen": [1, 2]}
    checkpoint = {k: v + 1 if isinstance(v, Tensor) else v for k, v in donor.state_dict().items()}
    model = bc.apply_plan(Holding(), Plan({"b": 4}))
    was, extra = [(t, t.clone()) for t in (*model.parameters(), *model.buffers())], model.extra
    full = dict(checkpoint)
    del checkpoint[lacking]
    with pytest.raises(ValueError, match=lacking):
        bc.load_dense_state_dict(model, checkpoint)
    assert all(t.shape == v.shape and torch.allclose(t, v, 0, 0, True) for t, v in was)
    assert (
        model.loads == {"n": [0]}
        and model.extra == extra == {"seen": [1]}
        and torch.equal(model.grid, Holding().grid)
    )
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

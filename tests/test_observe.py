"""Looking at a network, whatever it is fed and does, changes nothing in it."""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import basisconv as bc
from basisconv import timing

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LOOKS: list[Callable[[nn.Module], object]] = [
    lambda model: bc.summary(model, X.shape),
    lambda model: bc.tune(model, X, repeats=1),
]


class Adapter(nn.Linear):
    """Merges its two small matrices into its weight in evaluation mode, as LoRA layers do."""

    def __init__(self) -> None:
        super().__init__(8, 4)
        self.a, self.b = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(4, 2))
        self.merged, self.merges = False, 0

    def train(self, mode: bool = True) -> Adapter:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * self.b @ self.a
            self.merged, self.merges = not mode, self.merges + 1
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.merged else y + x @ self.a.T @ self.b.T


class Meter:
    """What a network counts with."""

    def __init__(self) -> None:
        self.total, self.values = 0, []


class Slotted:
    """The same without a dictionary."""

    __slots__ = ("total", "values")

    def __init__(self) -> None:
        self.total, self.values = 0, []


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slotted = Slotted()
        self.meter, self.stages = Meter(), {"a": {"b": []}}
        self.counter, self.sums = Counter(), defaultdict(int)
        self.array, self.tensors = np.zeros(2), [torch.zeros(2)]
        self.apart = [nn.BatchNorm2d(3)]
        grid = torch.tensor([1.0, math.nan, 3.0])[:, None, None].expand(3, 8, 8)
        self.register_buffer("grid", grid, persistent=False)
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), Adapter()
        self.calls, self.log, self.seen = 0, [3], {"n": 0}
        self.last = deque([1], maxlen=1)
        self.register_buffer("count", torch.zeros(()))
        self.scale = torch.ones(1)

    def forward(self, x: Tensor) -> Tensor:
        self.meter.total += 1
        self.meter.values.append(x)
        self.slotted.total += 1
        self.slotted.values.append(x)
        self.stages["a"]["b"].append(x)
        self.counter["calls"] += 1
        self.sums["calls"] += 1
        self.array += 1
        self.tensors[0] += 1
        x = self.apart[0](x + torch.rand_like(x) * float(np.random.rand()) * random.random())
        self.calls += 1
        self.log.append(self.calls)
        self.seen["n"] += 1
        self.last.append(self.calls)
        self.count += 1
        self.scale.data *= 2
        self.cache = x
        return self.fc(self.b(self.a(x)).mean((2, 3)))


def picture(model: Net) -> dict[str, Any]:
    flags = {n: m.training for n, m in model.named_modules()}
    plain = (model.calls, list(model.log), dict(model.seen), list(model.last))
    plain += (vars(model.meter) | {"values": len(model.meter.values)}, len(model.stages["a"]["b"]))
    plain += (model.slotted.total, len(model.slotted.values))
    plain += (dict(model.counter), dict(model.sums), model.array.tolist())
    plain += (model.tensors[0].tolist(), model.apart[0].running_mean.tolist())
    streams = (torch.get_rng_state().tolist(), np.random.get_state()[2], random.getstate())
    adapter = (model.fc.merged, model.fc.merges, hasattr(model, "cache"), model.scale.tolist())
    state = {n: v.tolist() for n, v in model.state_dict().items()}
    return {"flags": flags, "plain": plain, "adapter": adapter, "state": state, "streams": streams}


@pytest.mark.parametrize("evaluated", [(), ("fc",), ("b",), ("", "a", "b", "fc")], ids=str)
@pytest.mark.parametrize("look", LOOKS)
def test_looking_leaves_modes_counts_and_merges_as_they_were(
    look: Callable[[nn.Module], object], evaluated: tuple[str, ...]
):
    torch.manual_seed(0)
    model = bc.apply_plan(Net(), bc.Plan({"b": 4}))
    model.fc.train(False).train(True)
    for name in evaluated:
        model.get_submodule(name).train(False)
        if not name:
            break
    was = picture(model)
    look(model)
    assert picture(model) == was
    if not evaluated:
        model(X).sum().backward()
        assert model.fc.a.grad is not None


@pytest.mark.parametrize("look", LOOKS)
def test_memory_that_was_given_back_is_not_read(look: Callable[[nn.Module], object]):
    class Freeing(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            self.held.untyped_storage().resize_(0)
            return super().forward(x)

    model = bc.apply_plan(Freeing(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), bc.Plan({"1": 4}))
    model.freed, model.held = torch.ones(2**20), torch.ones(2**20)
    model.freed.untyped_storage().resize_(0)
    look(model)
    assert not model.held.untyped_storage().nbytes() and model.freed.shape == (2**20,)


@pytest.mark.parametrize("look", LOOKS)
def test_looking_at_a_model_that_fails_leaves_it_as_it_was(look: Callable[[nn.Module], object]):
    model = bc.apply_plan(Net(), bc.Plan({"b": 4}))
    model.fc.in_features = 8
    model.a.register_forward_hook(lambda *call: 1 / 0)
    was = picture(model)
    with pytest.raises(ZeroDivisionError):
        look(model)
    assert picture(model) == was


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("look", LOOKS)
def test_a_layer_that_is_not_initialised_is_named_and_stays_so(
    look: Callable[[nn.Module], object],
):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2)).train()
    with pytest.raises(ValueError, match="^2 has parameters that are not initialised"):
        look(model)
    assert isinstance(model[2].weight, nn.UninitializedParameter) and model.training


def test_a_forward_pass_that_writes_to_a_parameter_is_reported():
    class Clipping(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            self[0].weight.clamp_(-0.1, 0.1)
            return super().forward(x)

    with pytest.warns(UserWarning, match=r"written to 0\.weight"):
        bc.summary(Clipping(nn.Conv2d(3, 4, 3)), X.shape)


class Pyramid(nn.Module):
    """One head on all levels, as in RetinaNet; it is fed by the stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        return [self.head(F.adaptive_avg_pool2d(x, size)) for size in (8, 4, 2, 4)]


def test_a_shared_layer_costs_the_sum_of_its_calls():
    model = Pyramid()
    for now in (model, bc.apply_plan(model, bc.Plan({"head": 4}))):
        with FlopCounterMode(display=False) as forward:
            loss = sum(y.sum() for y in now(X))
        with FlopCounterMode(display=False) as backward:
            loss.backward()
        costs = bc.summary(now, X.shape)
        assert costs.macs == forward.get_total_flops() / 2
        assert costs.macs_backward == backward.get_total_flops() / 2
        assert costs.parameters == sum(p.numel() for p in now.parameters())
    one = bc.summary(nn.Sequential(model.head), (2, 8, 2, 2)).rows[0]
    assert bc.summary(model, X.shape)["head"].bytes_moved > 4 * one.bytes_moved


def test_a_stem_on_two_images_never_pays_for_their_gradient():
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 2, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.last(self.stem(x) + self.stem(y) + self.stem(self.stem(x)))

    model = Siamese()
    loss = model(X, X.clone()).sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    costs = bc.summary(model, (X, X.clone()))
    assert costs.macs_backward == backward.get_total_flops() / 2


def test_a_shared_layer_is_tuned_by_all_its_calls(monkeypatch: pytest.MonkeyPatch):
    # Basis form gains on the large maps and loses on the last one, which is small.
    def fake(arms: dict[str, Any], **_: Any) -> dict[str, timing.Timing]:
        size = sizes.pop(0)
        seconds = {"dense": size**2, "factored": size**2 / 4 + 5, "rebuilt": size**2 + 5}
        return {arm: timing.Timing((float(seconds[arm]),), 0.0) for arm in arms}

    sizes = [8, 4, 2]  # each distinct one once
    monkeypatch.setattr(timing, "compare", fake)
    model = bc.apply_plan(Pyramid(), bc.Plan({"head": 4}))
    (row,) = bc.tune(model, X, drop=True)
    assert (row.dense, row.factored) == (64 + 2 * 16 + 4, 64 / 4 + 2 * 16 / 4 + 4 / 4 + 4 * 5)
    assert row.mode == "factored" and isinstance(model.head, bc.BasisConv2d)


# What networks are fed, and what layers return.


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, sample: Tensor, timestep: int = 1, *, mask: dict[str, Tensor] | None = None):
        y = self.b(input=self.a(sample)) * timestep
        return {"y": y if mask is None else y * mask["m"]}


@pytest.mark.parametrize(
    "given",
    [
        X.shape,
        [2, 3, 8, 8],
        X,
        (X,),
        (X, 3),
        [X, torch.tensor(3)],
        {"sample": X, "timestep": 3},
        {"sample": X, "mask": {"m": torch.ones(1)}},
    ],
    ids=lambda given: type(given).__name__,
)
def test_a_shape_a_tensor_arguments_or_keywords(given: Any):
    model = bc.apply_plan(Several(), bc.Plan({"b": 4}))
    costs = bc.summary(model, given)
    assert costs == bc.summary(model, tuple(X.shape)) and costs.input_size == (2, 3, 8, 8)
    assert [row.name for row in bc.tune(model, given, repeats=1)] == ["b"]


@pytest.mark.parametrize(
    "look",
    [
        bc.summary,
        bc.tune,
        lambda model, x: bc.apply_plan(model, bc.Plan({"b": 4}), init="responses", data=[(x, 3)]),
        lambda model, x: bc.search(model, [(x, 3)], "macs=0.9"),
    ],
)
def test_an_input_that_lacks_an_argument_is_told_how_to_give_it(look: Callable[..., object]):
    class Strict(Several):
        def forward(self, sample: Tensor, timestep: int) -> Tensor:
            return self.b(self.a(sample)) * timestep

    model = Strict()
    if look is bc.tune:
        model = bc.apply_plan(model, bc.Plan({"b": 4}))
    with pytest.raises(TypeError, match=r"missing.*timestep.*mapping of keyword.*forward=lambda"):
        look(model, X)


def test_an_example_of_a_network_that_draws_is_compared_on_the_same_draws():
    class Drawing(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * float(np.random.rand()) * random.random())

    bc.apply_plan(Drawing(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), bc.Plan({"1": 4}), example=X)


@pytest.mark.parametrize("given", [3, None, "1333", {1: X}])
@pytest.mark.parametrize("look", [bc.summary, bc.tune])
def test_what_is_no_input(look: Callable[..., object], given: Any):
    with pytest.raises(TypeError, match="a shape, a tensor, a tuple of arguments or a mapping"):
        look(Several(), given)


def test_the_networks_own_inputs_get_no_gradient(monkeypatch: pytest.MonkeyPatch):
    wanted: list[bool] = []
    real = timing.forward_backward

    def spy(module: nn.Module, x: Tensor, input_gradient: bool) -> object:
        wanted.append(input_gradient)
        return real(module, x, input_gradient)

    monkeypatch.setattr(timing, "forward_backward", spy)
    model = bc.apply_plan(Several(), bc.Plan({"a": 4}))
    bc.tune(model, {"sample": X}, repeats=1)
    assert wanted == [False] * 3


def test_layers_that_return_no_tensor_are_passed_over():
    class Partial(nn.Conv2d):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), x[:, :1]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.b = Partial(3, 8, 3), nn.Conv2d(8, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.first(x)[0])

    small = bc.apply_plan(Model(), bc.Plan({"b": 2}))
    assert [row.name for row in bc.tune(small, X, repeats=1)] == ["b"]
    assert [row.name for row in bc.summary(small, X.shape).rows] == ["b"]


def test_replicas_are_counted_as_the_layer_that_they_copy():
    class Replicating(nn.Module):
        """What nn.DataParallel does: hooks run on copies of the layers."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            parts = []
            for part in self.a(x).chunk(2):
                copied = self.b._replicate_for_data_parallel()
                for name, value in {**self.b._parameters, **self.b._buffers}.items():
                    object.__setattr__(copied, name, value)
                parts.append(copied(part))
            return torch.cat(parts)

    small = bc.apply_plan(Replicating(), bc.Plan({"b": 4}))
    plain = nn.Sequential(small.a, small.b)
    assert bc.summary(small, X.shape).macs == bc.summary(plain, X.shape).macs
    (row,) = bc.tune(small, X, repeats=1)
    assert row.name == "b" and bc.plan_of(small).layers == {"b": 4}


# All or nothing.


def test_tune_that_meets_a_bad_kernel_changes_nothing_and_names_the_layer():
    model = bc.apply_plan(
        nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(3))),
        bc.Plan({"0": 2, "1": 2, "2": 2}, modes=dict.fromkeys("012", "rebuilt")),
    )
    with torch.no_grad():
        model[1].basis[0] = torch.nan
    was = list(model)
    for drop in (True, False):
        with pytest.raises(ValueError, match="^1: .*finite"):
            bc.tune(model, X, repeats=1, drop=drop)
        assert list(model) == was and [layer.mode for layer in model] == ["rebuilt"] * 3


def test_tune_that_is_interrupted_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    model = bc.apply_plan(
        nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)),
        bc.Plan({"0": 2, "1": 2}, modes={"0": "rebuilt"}),
    )
    left = iter([{arm: timing.Timing((1.0,), 0.0) for arm in ("dense", "factored", "rebuilt")}])

    def fake(*_: Any, **__: Any) -> dict[str, timing.Timing]:
        try:
            return next(left)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(timing, "compare", fake)
    with pytest.raises(KeyboardInterrupt):
        bc.tune(model, X)
    assert [layer.mode for layer in model] == ["rebuilt", "factored"]


def test_tuning_a_dense_model_says_so():
    model = nn.Sequential(nn.Conv2d(3, 3, 3))
    with pytest.warns(UserWarning, match="reaches no basis layer"):
        assert bc.tune(model, X) == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bc.tune(bc.apply_plan(model, bc.Plan({"0": 2})), X, repeats=1)


def test_a_comparison_prints_its_median_and_ratio():
    first = timing.Timing((0.3, 0.3, 0.3), 0.0)
    other = timing.Timing((0.15, 0.1, 0.2), 0.0, first)
    assert (str(first), str(other)) == ("0.3 s", "0.15 s, 2.00× [1.75, 2.50]")
    result = bc.compare({"a": lambda: None, "b": lambda: None}, repeats=3)
    assert "×" not in str(result["a"]) and "×" in str(result["b"])
    assert str(timing.Timing((0.01234,), 0.0)) == "12.3 ms"
    assert str(timing.Timing((0.00001,), 0.0)) == "10 µs"

"""`apply_plan(..., init="responses")`: networks whose layers keep what they compute."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import basisconv as bc
from basisconv import BasisConv2d, Plan
from basisconv.allocation.directions import directions
from basisconv.responses import fitting, moments, regression
from basisconv.responses.batches import take_batches

fit = dict[str, Any](init="responses")


def images(batches: int, size: int = 8, seed: int = 0, channels: int = 3) -> list[Tensor]:
    """Smooth ones, whose patches have a spectrum that falls, as those of photographs."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batches, size, channels, 13, 11, generator=generator)
    return list(F.avg_pool2d(noise.flatten(0, 1), 3, 1).unflatten(0, (batches, size)))


class Residual(nn.Module):
    """A stem and two residual blocks with batch-norms, then a pooled classifier."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(5))
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(4)
        )
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bns[0](self.stem(x)).relu()
        for i in (0, 2):
            y = self.bns[i + 1](self.convs[i](x)).relu()
            x = (x + self.bns[i + 2](self.convs[i + 1](y))).relu()
        return self.fc(x.mean((2, 3)))


def trained(model: nn.Module, channels: int = 3) -> nn.Module:
    """With statistics, scales and kernels that are not those of a start."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.2, 2)
            nn.init.normal_(module.bias, std=0.3)
    with torch.no_grad():
        for batch in images(30, seed=9, channels=channels):
            model(batch)
    return model.eval()


def error(small: nn.Module, model: nn.Module, x: Tensor | None = None) -> float:
    """The oracle of a report's last line: on new images, relative to the variance."""
    x = torch.cat(images(6, seed=5)) if x is None else x
    with torch.no_grad():
        want = model(x)
        return ((small(x) - want).square().sum() / (want - want.mean()).square().sum()).item()


def plan_for(model: nn.Module, m: int, **given: Any) -> Plan:
    return Plan({f"convs.{i}": m for i in range(4)}, **given)


# What it is for.


FORMS: list[dict[str, Any]] = [
    {}, {"form": "full"}, {"coef_groups": 2}, {"coef_rank": 2}, {"form": "full", "coef_rank": 3}
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_fitted_network_answers_more_like_the_original_than_one_by_svd(
    form: dict[str, Any],
) -> None:
    model = trained(Residual())
    plan = plan_for(model, 4, **form)
    small = bc.apply_plan(model, plan, data=images(5), **fit)
    assert bc.plan_of(small) == plan
    assert error(small, model) < 0.5 * error(bc.apply_plan(model, plan), model)


@pytest.mark.parametrize("form", ["subset", "full"])
def test_at_full_rank_it_is_the_same_function(form: Any) -> None:
    model = trained(Residual())
    plan = plan_for(model, 8, form=form) | Plan({"stem": 8}, form=form)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it saves nothing
        small = bc.apply_plan(model, plan, data=images(10), **fit)
    x = torch.cat(images(2, seed=3))
    torch.testing.assert_close(small(x), model(x), rtol=1e-3, atol=1e-3)


def test_full_rank_of_groups_strides_and_a_depthwise_layer() -> None:
    model = trained(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(inplace=True),
            nn.Conv2d(6, 12, (3, 1), groups=3, padding_mode="reflect", padding=(1, 0)), nn.SiLU(),
            nn.Conv2d(12, 12, 3, groups=12, dilation=2, padding="same"),
        )
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = bc.apply_plan(model, Plan({"0": 6, "2": 12, "4": 12}), data=images(5), **fit)
        part = bc.apply_plan(model, Plan({"0": 6, "2": 6, "4": 12}), data=images(5), **fit)
    x = torch.cat(images(2, seed=3))
    torch.testing.assert_close(small(x), model(x), rtol=1e-3, atol=1e-4)
    assert 1e-4 < error(part, model) < 0.5


def test_responses_of_low_rank_are_met_where_kernels_are_not() -> None:
    # Inputs in three directions: responses have rank 3 times 9 taps, filters have full rank.
    first, second = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 20, 1)
    model = nn.Sequential(first, second)
    plan = Plan({"1": 3})
    small = bc.apply_plan(model, plan, data=images(10), **fit)
    assert error(small, model) < 1e-6 < 1e-2 < error(bc.apply_plan(model, plan), model)


class Maps(nn.Module):
    """Residual blocks without batch-norms, whose outputs are what their last layer answers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
        for conv in self.convs:
            conv.weight.data *= 3

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in (0, 2):
            x = x + 3 * self.convs[i + 1](self.convs[i](x.relu()).relu())
        return x


def test_order_matters() -> None:
    """Each layer is fitted for the input that it gets: alone, they make up for nothing."""
    model = Maps()
    plan, apart = plan_for(model, 3), copy.deepcopy(model)
    for i, name in enumerate(plan.layers):
        apart.convs[i] = bc.apply_plan(model, plan.only(name), data=images(5), **fit).convs[i]
    small = bc.apply_plan(model, plan, data=images(5), **fit)
    assert error(small, model) < 0.95 * error(apart, model)


def test_the_same_data_in_other_batches_give_the_same_network() -> None:
    model, data = trained(Residual()), images(5)
    whole = bc.apply_plan(model, plan_for(model, 4), data=data, **fit)
    # Ten batches, of which the fifth and the tenth are held out: the last batch above.
    halves = [half for batch in data[:4] for half in batch.chunk(2)]
    held = list(data[4].chunk(2))
    other = bc.apply_plan(
        model, plan_for(model, 4), data=[*halves[:4], held[0], *halves[4:], held[1]], **fit
    )
    x = torch.cat(images(2, seed=3))
    torch.testing.assert_close(other(x), whole(x), rtol=1e-3, atol=1e-3)


# The report.


def test_the_report_is_of_held_out_batches() -> None:
    model, data = trained(Residual()), images(10)
    plan = plan_for(model, 4)
    small = bc.apply_plan(model, plan, data=data, **fit)
    report, svd = small.fit_report, bc.apply_plan(model, plan)
    held = torch.cat([data[4], data[9]])
    assert [row.name for row in report.layers] == list(plan.layers)
    assert (report.batches, report.held_out) == (8, 2)
    totals = [((y - y.mean()).square().sum()).item() for y in map(model, (data[4], data[9]))]
    want = [(m(held) - model(held)).square().sum().item() / sum(totals) for m in (small, svd)]
    assert [report.output, report.svd] == pytest.approx(want, rel=1e-4)
    # The first layer's, from its responses.
    seen: list[Tensor] = []
    for network in (model, small, svd):
        handle = network.convs[0].register_forward_hook(lambda m, a, y: seen.append(y))
        network(held)
        handle.remove()
    y, fitted, by_svd = (v.double().transpose(0, 1).flatten(1) for v in seen)
    bn, shifted = model.bns[1], small.bns[1]
    d = (bn.weight / (bn.running_var + bn.eps).sqrt()).double()[:, None]
    total = (d * (y - y.mean(1, keepdim=True))).square().sum()
    fitted = fitted + (bn.running_mean - shifted.running_mean).double()[:, None]
    row = report.layers[0]
    assert row.error == pytest.approx(((d * (fitted - y)).square().sum() / total).item(), rel=1e-4)
    assert row.svd == pytest.approx(((d * (by_svd - y)).square().sum() / total).item(), rel=1e-4)
    assert not row.projected and row.error < row.svd
    text = str(report)
    assert all(name in text for name in (*plan.layers, "output", f"{row.error:.4f}"))
    assert not hasattr(bc.restore(small), "fit_report")


@pytest.mark.parametrize(("batches", "held"), [(1, 0), (2, 1), (4, 1), (5, 1), (9, 1), (10, 2)])
def test_a_fifth_is_held_out(batches: int, held: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    small = bc.apply_plan(model, Plan({"0": 2}), data=images(batches), **fit)
    assert (small.fit_report.batches, small.fit_report.held_out) == (batches - held, held)
    assert 0 < small.fit_report.layers[0].error < 1


# Passes.


class Counting(nn.Module):
    """Counts, outside of itself, what runs."""

    def __init__(self, inner: nn.Module, log: list[str]) -> None:
        super().__init__()
        self.inner, self.log = inner, lambda name: log.append(name)
        for name, module in inner.named_children():
            module.register_forward_pre_hook(lambda m, a, name=name: log.append(name))

    def forward(self, x: Tensor) -> Tensor:
        self.log("start")
        y: Tensor = self.inner(x)
        return y


def test_two_passes_a_layer_that_stop_behind_it() -> None:
    log: list[str] = []
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)]
    model = Counting(nn.Sequential(*layers), log)
    plan = Plan({"inner.2": 2, "inner.0": 2})
    bc.apply_plan(model, plan, data=images(5), inplace=True, **fit)
    # To find the order, then two layers, and three networks on what is held out.
    assert log.count("start") == 5 + 2 * 2 * 5 + 3
    assert log.count("4") == log.count("3") == 5 + 3 and log.count("1") == 5 + 2 * 5 + 3
    del log[:]
    bc.apply_plan(
        trained(Counting(Residual(), log)), Plan({"inner.convs.0": 2}), data=images(5), **fit
    )
    assert log.count("start") == 30 + 5 + 3 + 2 * 5 + 3  # three prove where the bias goes


def test_no_code_of_the_model_catches_the_end_of_a_pass() -> None:
    caught: list[str] = []

    class Careful(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            try:
                return super().forward(x)
            except Exception as error:
                caught.append(str(error))
                return x

    model = Careful(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    bc.apply_plan(model, Plan({"0": 2, "1": 2}), data=images(5), **fit)
    assert not caught


# Where the bias goes.


def test_a_bias_goes_into_the_batch_norm_and_no_parameter_is_added() -> None:
    model = trained(Residual())
    was = copy.deepcopy(model.state_dict())
    small = bc.apply_plan(model, plan_for(model, 4), data=images(5), **fit)
    assert all(conv.bias is None for conv in small.convs)
    assert small.state_dict().keys() == bc.apply_plan(model, plan_for(model, 4)).state_dict().keys()
    assert not torch.equal(small.bns[1].running_mean, model.bns[1].running_mean)
    assert torch.equal(small.bns[0].running_mean, model.bns[0].running_mean)
    assert all(torch.equal(v, was[n]) for n, v in model.state_dict().items())
    Residual().load_state_dict(bc.restore(small).state_dict())


class Elsewhere(nn.Module):
    """Something other than the batch-norm gets each layer's output, but for that of `good`."""

    def __init__(self) -> None:
        super().__init__()
        self.good, self.good_bn = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.also, self.also_bn = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.one, self.two = (nn.Conv2d(3, 6, 3, bias=False) for _ in range(2))
        self.both = nn.BatchNorm2d(6)
        self.own = nn.Conv2d(3, 6, 3)
        self.own_bn = nn.BatchNorm2d(6, track_running_stats=False)
        self.bare = nn.Conv2d(3, 6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.also(x)
        y = self.good_bn(self.good(x)) + self.also_bn(y) + 0.01 * y
        return (
            y
            + self.both(self.one(x))
            + self.both(self.two(x))
            + self.own_bn(self.own(x))
            + self.bare(x)
        )


@pytest.mark.parametrize("silent", [False, True])
def test_it_goes_nowhere_else_unless_outputs_prove_it(silent: bool) -> None:
    model = trained(Elsewhere())
    names = ["good", "also", "one", "two", "own", "bare"]
    plan = Plan(dict.fromkeys(names, 3))
    forward = (lambda m, b: m(b).argmax(1)) if silent else None
    small = bc.apply_plan(model, plan, data=images(5), forward=forward, **fit)
    # Class numbers prove nothing.
    assert {n for n in names if getattr(small, n).bias is None} == (set() if silent else {"good"})
    means = {n: getattr(small, n).running_mean for n in ("good_bn", "also_bn", "both")}
    moved = {n for n, v in means.items() if not torch.equal(v, getattr(model, n).running_mean)}
    assert moved == (set() if silent else {"good_bn"})
    alone = bc.apply_plan(model, Plan({"good": 3}), data=images(5), **fit)
    x = torch.cat(images(2, seed=3))
    y, z = (m.good_bn(m.good(x)) for m in (small, alone))
    torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-5)


def test_a_bias_that_the_class_has_not_goes_round() -> None:
    model = trained(Elsewhere())
    plan = Plan({"also": 3, "own": 3, "good": 3})
    small = bc.apply_plan(model, plan, data=images(5), **fit).eval()
    assert small.also.bias is not None
    x = torch.cat(images(2, seed=3))
    want = small(x)
    # A checkpoint of basis layers, and a dense one, into a model without that bias.
    for given in ("basis", "dense", "assigned"):
        other = bc.apply_plan(Elsewhere(), plan, init="random").eval()
        assert other.also.bias is None
        if given == "dense":
            bc.load_dense_state_dict(other, bc.dense_state_dict(small))
        else:
            other.load_state_dict(small.state_dict(), assign=given == "assigned")
        torch.testing.assert_close(other(x), want, rtol=1e-4, atol=1e-5)
        assert isinstance(other.also.bias, nn.Parameter) and other.also.bias.requires_grad
    # The original's checkpoint into the model with it.
    bc.load_dense_state_dict(small, model.state_dict())
    assert small.also.bias.eq(0).all() and small.own.bias.ne(0).any()
    # Dense, with the bias.
    small = bc.apply_plan(model, plan, data=images(5), **fit).eval()
    dense = bc.restore(small)
    assert type(dense.also) is nn.Conv2d and torch.equal(dense.also.bias, small.also.bias)
    torch.testing.assert_close(dense(x), want, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="also.bias"):
        Elsewhere().load_state_dict(dense.state_dict())


def test_a_checkpoint_that_fails_takes_the_new_bias_back() -> None:
    donor = Elsewhere()
    donor.also = nn.Conv2d(3, 6, 3)
    state = {n: v for n, v in donor.state_dict().items() if n != "good.weight"}
    model = bc.apply_plan(Elsewhere(), Plan({"also": 3}))
    with pytest.raises(ValueError, match=r"good\.weight"):
        bc.load_dense_state_dict(model, state)
    assert model.also.bias is None and "also.bias" not in model.state_dict()


class Pyramid(nn.Module):
    """One head on maps of three sizes, each followed by a batch-norm of its own."""

    def __init__(self, norms: bool) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bns = nn.ModuleList(nn.BatchNorm2d(6) if norms else nn.Identity() for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = [F.adaptive_avg_pool2d(x, size) for size in (8, 4, 6)]
        return [
            F.relu(bn(self.head(x)), inplace=True) for bn, x in zip(self.bns, levels, strict=True)
        ]


@pytest.mark.parametrize("norms", [False, True])
def test_a_layer_that_is_called_several_times_is_fitted_to_all_calls(norms: bool) -> None:
    model, data = trained(Pyramid(norms)), images(5)
    small = bc.apply_plan(model, Plan({"head": 3}), data=data, **fit)
    assert (small.head.bias is None) == norms
    d = torch.ones(6, dtype=torch.float64)
    if norms:  # the root mean square of three
        scales = [(bn.weight / (bn.running_var + bn.eps).sqrt()).double() for bn in model.bns]
        d = torch.stack(scales).square().mean(0).sqrt()
        means = [small.bns[i].running_mean - model.bns[i].running_mean for i in range(3)]
        torch.testing.assert_close(means[0], means[1])
        torch.testing.assert_close(means[0], means[2])

    def values(head: nn.Module, shift: Any) -> Tensor:
        levels = [F.adaptive_avg_pool2d(data[4], size) for size in (8, 4, 6)]
        return torch.cat([head(x).transpose(0, 1).flatten(1) - shift for x in levels], 1).double()

    y, fitted = values(model.head, 0), values(small.head, means[0][:, None] if norms else 0)
    total = (d[:, None] * (y - y.mean(1, keepdim=True))).square().sum()
    want = ((d[:, None] * (y - fitted)).square().sum() / total).item()
    assert small.fit_report.layers[0].error == pytest.approx(want, rel=1e-4)


# Where a fit is not to be had.


def test_a_fit_that_is_worse_on_held_out_batches_gives_way() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 12, 3))
    data = [torch.randn(1, 3, 6, 6), 3 * torch.randn(8, 3, 9, 9)]
    with pytest.warns(UserWarning, match="fewer than 10 positions for each output of 0, 2"):
        small = bc.apply_plan(model, Plan({"0": 3, "2": 10}), data=data, **fit)
    assert [row.projected for row in small.fit_report.layers][1]
    assert "projected" in str(small.fit_report)


class Branching(nn.Module):
    """How often, and on what, its last layer is called hangs on the values."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.a, self.b, self.what, self.calls = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), what, 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if type(self.a) is nn.Conv2d:
            return self.b(y).mean() + self.b(y).mean()
        return (
            self.b(y).mean()
            if self.what == "calls"
            else self.b(y[:, :, 1:]).mean() + self.b(y).mean()
        )


@pytest.mark.parametrize("what", ["calls", "shape"])
def test_calls_that_differ_are_not_paired(what: str) -> None:
    model = Branching(what)
    small = bc.apply_plan(model, Plan({"a": 2, "b": 3}), data=images(5), **fit)
    assert [row.projected for row in small.fit_report.layers] == [False, True]
    # What stands there is the projection of the original's own responses.
    alone = bc.apply_plan(model, Plan({"b": 3}), data=images(5), **fit)
    torch.testing.assert_close(small.b.weight, alone.b.weight, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(small.b.bias, alone.b.bias, rtol=1e-3, atol=1e-3)


def test_a_layer_that_few_positions_reach_shrinks_to_its_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ridges: list[float] = []

    def spy(*given: Any) -> Any:
        ridges.append(given[-1])
        return regression.fit(*given)

    monkeypatch.setattr(fitting, "fit", spy)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3))
    data = [torch.randn(2, 3, 6, 6), torch.randn(2, 3, 6, 6)]
    with pytest.warns(UserWarning, match="output of 1: .*Give more data"):
        bc.apply_plan(model, Plan({"1": 4}), data=data, **fit)
    # Eight positions for eight outputs: a tenth of what is enough. The projection is first.
    assert ridges == [1e-3, pytest.approx(1e-2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bc.apply_plan(model, Plan({"1": 4}), data=images(2), **fit)
    assert ridges[2:] == [1e-3, 1e-3]


# Manners.


class Bare(nn.Module):
    """Catches what it can, draws, and keeps state: what passes must not be misled by."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)
        self.drop, self.spare, self.calls = nn.Dropout(0.5), nn.Conv2d(3, 3, 1), 0
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.steps += 1
        try:
            y = self.b(self.drop(self.a(x) + random.random() * torch.rand_like(x[:, :1, 2:, 2:])))
        except Exception:
            return x
        return y * self.steps


def picture(model: nn.Module) -> Any:
    return (
        [(n, type(m), id(m), m.training, len(m._forward_hooks)) for n, m in model.named_modules()],
        {
            n: (id(v), v.clone().tolist())
            for n, v in (*model.named_parameters(), *model.named_buffers())
        },
        getattr(model, "calls", None),
        torch.get_rng_state().tolist(),
        random.getstate(),
    )


@pytest.mark.parametrize("inplace", [False, True])
def test_a_model_that_draws_counts_and_catches_is_fitted_and_left_as_it_was(inplace: bool) -> None:
    model = Bare().train()
    model.a.eval()
    given = copy.deepcopy(model) if inplace else model
    was, log = picture(model), list[str]()
    model.b.register_forward_hook(lambda m, a, y: log.append("user"))
    del model.b._forward_hooks[next(iter(model.b._forward_hooks))]
    small = bc.apply_plan(given, Plan({"b": 3}), data=images(5), inplace=inplace, **fit)
    assert picture(model) == was
    assert small.training and not small.a.training and small.b.training and small.drop.training
    assert small.calls == 0 and small.steps == 0 and (small is given) == inplace
    # The same draws on both sides: the fit is as good as on a network that draws nothing.
    assert small.fit_report.layers[0].error < 0.3 and not small.fit_report.layers[0].projected
    small(images(1)[0]).sum().backward()
    assert small.b.basis.grad is not None and small.b.basis.requires_grad


def test_hooks_of_the_user_come_after() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3))
    plan, data = Plan({"1": 3}), images(5)
    want = bc.apply_plan(model, plan, data=data, **fit)
    model[1].register_forward_hook(lambda m, a, y: y * 0 + 1)
    got = bc.apply_plan(model, plan, data=data, **fit)
    torch.testing.assert_close(got[1].weight, want[1].weight)
    torch.testing.assert_close(got[1].bias, want[1].bias)
    assert got(data[0]).eq(1).all()


class Failing(nn.Module):
    """Raises at its n-th call; `when` is outside of what a pass puts back."""

    def __init__(self, when: list[int], error: type[BaseException]) -> None:
        super().__init__()
        self.when, self.error = lambda: when, error
        self.a, self.bn = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        when = self.when()
        when[0] -= 1
        y = self.bn(self.a(x))
        if when[0] <= 0:
            raise self.error("now")
        return self.b(y)


def test_whatever_fails_the_model_is_as_it_was() -> None:
    when, passes = [99], 0
    error: type[BaseException] = KeyboardInterrupt
    while True:
        passes += 1
        when[0] = 99
        model = Failing(when, error)
        # One layer is restored, one is fitted with a bias in a batch-norm, one with its own.
        model = bc.apply_plan(model, Plan({"a": 4}))
        when[0], was = passes, picture(model)
        try:
            bc.apply_plan(model, Plan({"a": 2, "b": 2}), data=images(2), inplace=True, **fit)
        except error:
            assert picture(model) == was
            error = RuntimeError if error is KeyboardInterrupt else KeyboardInterrupt
        else:
            break
    assert passes == 2 + 3 + 2 * 2 * 2 + 3 + 1


def test_a_model_in_another_form_is_its_own_reference() -> None:
    model = bc.apply_plan(trained(Residual()), plan_for(Residual(), 6, form="full")).eval()
    x = torch.cat(images(2, seed=3))
    before = model(x)
    plan = Plan({"convs.0": 6, "convs.1": 3, "convs.2": 6}, form="full")
    small = bc.apply_plan(model, plan, data=images(5), **fit)
    assert torch.equal(model(x), before)
    assert [row.name for row in small.fit_report.layers] == ["convs.1"]
    assert torch.equal(small.convs[0].basis, model.convs[0].basis)
    assert type(small.convs[3]) is nn.Conv2d
    assert 0 < error(small, model) < error(bc.apply_plan(model, plan), model)
    with pytest.warns(UserWarning, match="nothing is fitted"):
        again = bc.apply_plan(small, plan, data=images(5), **fit)
    assert torch.equal(again(x), small(x)) and not hasattr(again, "fit_report")


def peak(run: Callable[[], object]) -> int:
    """The most bytes of tensors at once that a call adds to those there were."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def test_memory_is_three_times_that_of_a_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "CHUNK", 2**18)
    layers = [nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(8)]
    parts = [m for conv in layers for m in (conv, nn.BatchNorm2d(8), nn.ReLU(inplace=True))]
    model = nn.Sequential(*parts).eval()
    x = torch.randn(8, 8, 48, 48)
    with torch.no_grad():
        plain = peak(lambda: model(x))
    assert plain > 2 * x.nbytes
    plan, data = Plan({"3": 4, "18": 4}), [x, x.clone()]
    assert peak(lambda: bc.apply_plan(model, plan, data=data, **fit)) < 3 * plain
    batches = take_batches(data, 99)
    blocks = dict.fromkeys(["0", "3", "6", "9", "12", "18"], 1)
    assert peak(lambda: directions(model, batches, blocks)) < 3 * plain
    pair = x, x.clone()
    assert peak(lambda: moments.Moments(1).add(*pair)) < 1.25 * 2**18 < x.nbytes


def test_a_compiled_model_runs_eagerly() -> None:
    def backend(*given: Any) -> Any:
        raise AssertionError("compiled")

    model = trained(Residual())
    want = bc.apply_plan(model, plan_for(model, 4), data=images(5), **fit)
    compiled = torch.compile(copy.deepcopy(model), backend=backend)
    compiled.convs.compile(backend=backend)
    compiled.bns[0].compile(backend=backend)
    plan = Plan({f"_orig_mod.{name}": m for name, m in plan_for(model, 4).layers.items()})
    got = bc.apply_plan(compiled, plan, data=images(5), **fit)._orig_mod
    for name, value in want.state_dict().items():
        torch.testing.assert_close(got.state_dict()[name], value)


def test_under_inference_mode_and_autocast() -> None:
    model = trained(Residual())
    want = bc.apply_plan(model, plan_for(model, 4), data=images(5), **fit)
    with torch.inference_mode():
        got = bc.apply_plan(model, plan_for(model, 4), data=images(5), **fit)
        torch.testing.assert_close(got.convs[3].weight, want.convs[3].weight)
    with torch.autocast("cpu", torch.bfloat16):
        got = bc.apply_plan(model, plan_for(model, 4), data=images(5), **fit)
    assert error(got, want) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_and_formats(dtype: torch.dtype) -> None:
    model = trained(Residual()).to(dtype).to(memory_format=torch.channels_last)
    data = [x.to(dtype, memory_format=torch.channels_last) for x in images(5)]
    small = bc.apply_plan(model, plan_for(model, 4), data=data, **fit)
    assert small.convs[0].basis.dtype == dtype and small.bns[1].running_mean.dtype == dtype
    assert small.convs[0].basis.is_contiguous(memory_format=torch.channels_last)
    x = torch.cat(data)
    assert error(small, model, x) < 0.7 * error(bc.apply_plan(model, plan_for(model, 4)), model, x)


# Data, and what is refused.


def test_what_the_data_may_be() -> None:
    model, plan, data = nn.Sequential(nn.Conv2d(3, 6, 3)), Plan({"0": 3}), images(5)
    want = bc.apply_plan(model, plan, data=data, **fit).state_dict()
    ways: list[dict[str, Any]] = [
        {"data": ((x, torch.zeros(8)) for x in data)},
        {"data": [{"input": x} for x in data]},
        {"data": [{"image": x} for x in data], "forward": lambda m, batch: m(batch["image"])},
        {"data": torch.utils.data.DataLoader(torch.cat(data), 8)},
    ]
    for way in ways:
        got = bc.apply_plan(model, plan, **way, **fit).state_dict()
        assert all(torch.equal(got[name], value) for name, value in want.items())
    with pytest.warns(UserWarning, match="samples=16: 16 in 2 batches"):
        small = bc.apply_plan(model, plan, data=data, samples=16, **fit)
    assert (small.fit_report.batches, small.fit_report.held_out) == (1, 1)


def fitted(model: nn.Module, layer: str, data: Any) -> nn.Module:
    return bc.apply_plan(model, Plan({layer: 2}), data=data, **fit)


REFUSED: list[tuple[Callable[[nn.Module], Any], str]] = [
    (lambda m: fitted(m, "a", None), "data=batches"),
    (lambda m: bc.apply_plan(m, Plan({"a": 3}), data=images(1)), "are for init='responses'"),
    (lambda m: bc.apply_plan(m, Plan({"a": 3}), forward=print), "are for init='responses'"),
    (lambda m: fitted(m, "spare", images(2)), "never reach spare"),
    (lambda m: fitted(m, "b", [torch.full((2, 3, 9, 9), 3e38)]), "^b: .*not finite"),
    (lambda m: fitted(m, "b", []), "no batch"),
    (lambda m: BasisConv2d.from_conv2d(m.a, 3, "responses"), r"apply_plan\(.*data=batches"),
    (lambda m: bc.load_dense_state_dict(m, m.state_dict(), "responses"), r"apply_plan\(.*data="),
    (lambda m: fitted(m.to("meta"), "a", images(1)), "^a: .*meta"),
]


@pytest.mark.parametrize(("call", "match"), REFUSED)
def test_refused(call: Callable[[nn.Module], Any], match: str) -> None:
    model = Bare()
    with pytest.raises(ValueError, match=match):
        call(model)


@pytest.mark.usefixtures("process_group")
def test_replicas_and_shards_are_refused() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    class Around(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.conv, self.inner = nn.Conv2d(3, 3, 1), inner

        def forward(self, x: Tensor) -> Any:
            return self.inner(self.conv(x))

    sharded = nn.Sequential(nn.Conv2d(3, 3, 1))
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    parallel = nn.parallel.DistributedDataParallel(nn.Conv2d(3, 3, 1))
    for inner, match in ((nn.DataParallel(nn.Conv2d(3, 3, 1)), "DataParallel"),
                         (parallel, "DistributedDataParallel"), (sharded, "FSDP")):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            bc.apply_plan(Around(inner), Plan({"conv": 2}), data=images(1), inplace=True, **fit)

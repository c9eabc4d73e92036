"""A's rows put in order by a kept template: few launches, the same bits, never a stale order."""

from __future__ import annotations

import copy
import ctypes
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

from basisconv import BasisConv2d
from basisconv.assembly import in_order

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
KINDS = [{}, {"groups": 2}, {"coef_groups": 2}, {"coef_rank": 2}, {"groups": 2, "coef_rank": 1}]
# Of 6 outputs 4 are basis filters, two of each half.
ORDERS = ([1, 0, 1, 0, 1, 1], [0, 1, 1, 1, 1, 0])


def layer(order: int = 0, **options: Any) -> BasisConv2d:
    torch.manual_seed(order)
    made = BasisConv2d(4, 6, 3, 4, **options)
    made.passed.copy_(torch.tensor(ORDERS[order]))
    return made


def plainly(made: BasisConv2d, dtype: torch.dtype | None = None) -> Tensor:
    """A from `passed` as it is now, with nothing kept."""
    coef = (
        made.coef
        if made.coef_rank is None
        else (made.coef_out.view(made.blocks, -1, made.coef_rank)
              @ made.coef_in.view(made.blocks, made.coef_rank, -1)).flatten(0, 1)
    )  # fmt: skip
    width = made.n_basis // made.blocks
    return in_order(coef.to(dtype or coef.dtype), made.passed, made.blocks, width)


def agrees(made: BasisConv2d) -> bool:
    return all(torch.equal(made.combine, plainly(made)) for _ in range(3))


class Launches(TorchDispatchMode):
    """Counts operators that write a result: views launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func is not torch.ops.aten.detach.default:
            # A copy of the template, then the rows.
            self.seen += [str(func)] * (2 if "index_copy" in str(func) else 1)
        return result


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"coef_groups": 2}], ids=str)
def test_the_subset_form_launches_two_more_forward_and_one_backward(options: dict[str, int]):
    counts = {}
    for form in ("full", "subset"):
        made = BasisConv2d(4, 6, 3, 4, form=form, **options)
        made(X)  # the first call looks for the order
        with Launches() as forward:
            y = made(X)
        with Launches() as backward:
            y.backward(torch.ones_like(y))
        counts[form] = len(forward.seen), len(backward.seen)
    assert counts["subset"][0] <= counts["full"][0] + 2
    assert counts["subset"][1] <= counts["full"][1] + 1


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_coefficients_and_gradients_have_the_same_bits(options: dict[str, int], order: int):
    made = layer(order, **options)
    weights = torch.randn(6, 4 // made.blocks)
    for _ in range(2):
        got = torch.autograd.grad((made.combine * weights).sum(), made.get_parameter("basis"),
                                  allow_unused=True)  # fmt: skip
        assert got == (None,)
        factors = [p for n, p in made.named_parameters() if n.startswith("coef")]
        got = torch.autograd.grad((made.combine * weights).sum(), factors)
        want = torch.autograd.grad((plainly(made) * weights).sum(), factors)
        assert agrees(made) and all(map(torch.equal, got, want))


def by_copy(made: BasisConv2d, values: Tensor) -> None:
    made.passed.copy_(values)


def by_data(made: BasisConv2d, values: Tensor) -> None:
    made.passed.data.copy_(values)


def by_another_memory(made: BasisConv2d, values: Tensor) -> None:
    made.passed.data = values.clone()


def by_state_dict(made: BasisConv2d, values: Tensor) -> None:
    made.load_state_dict({**made.state_dict(), "passed": values})


def by_assigned_state_dict(made: BasisConv2d, values: Tensor) -> None:
    made.load_state_dict({**made.state_dict(), "passed": values.clone()}, assign=True)


def by_attribute(made: BasisConv2d, values: Tensor) -> None:
    made.passed = values.clone()


def by_foreach(made: BasisConv2d, values: Tensor) -> None:
    torch._foreach_copy_([made.passed], [values])


def by_state_dict_entries(made: BasisConv2d, values: Tensor) -> None:
    """As in ultralytics' ModelEMA."""
    for name, value in made.state_dict().items():
        if name == "passed":
            value *= 0
            value += values


def by_average(made: BasisConv2d, values: Tensor) -> None:
    made.passed.mul_(0.1).add_(values, alpha=0.9)


CHANGES = [by_copy, by_data, by_another_memory, by_state_dict, by_assigned_state_dict,
           by_attribute, by_foreach, by_state_dict_entries, by_average]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_new_order_counts_at_once(
    options: dict[str, int], change: Callable[[BasisConv2d, Tensor], None]
):
    made = layer(**options)
    assert agrees(made)
    was = made.combine
    with torch.no_grad():
        change(made, torch.tensor(ORDERS[1], dtype=torch.float32))
    now = made.combine
    assert torch.equal(now, plainly(made)) and not torch.equal(now, was)
    assert agrees(made)


@pytest.mark.parametrize("change", [c for c in CHANGES if c is not by_data])
def test_without_looking_at_values_as_on_a_gpu(
    change: Callable[[BasisConv2d, Tensor], None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ctypes, "string_at", lambda *given: b"")
    test_a_new_order_counts_at_once({}, change)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_one_after_the_other(dtype: torch.dtype):
    made = layer()
    for now in (torch.float32, dtype, torch.float32):
        made.to(now)
        assert agrees(made) and made.combine.dtype == now
        assert torch.equal(made.dense_kernel().double().flatten(1),
                           (plainly(made, torch.float64) @ made.basis.double().flatten(1))
                           .to(now).double())  # fmt: skip
        assert agrees(made)


@pytest.mark.parametrize(
    "again",
    [
        copy.deepcopy,
        lambda made: pickle.loads(pickle.dumps(made)),
        lambda made: torch.load(saved(made), weights_only=False),
    ],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_a_copy_has_an_order_of_its_own(again: Callable[[BasisConv2d], BasisConv2d]):
    made = layer()
    assert agrees(made)
    other = again(made)
    assert made._templates._kept is not None and other._templates._kept is None
    by_data(other, torch.tensor(ORDERS[1], dtype=torch.float32))
    assert agrees(other) and agrees(made)
    assert not torch.equal(other.combine, made.combine)


def saved(made: BasisConv2d) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(made, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_averages_of_models_with_two_orders(share: float):
    averaged = AveragedModel(
        layer(0), avg_fn=lambda a, p, _: share * a + (1 - share) * p, use_buffers=True
    )
    for order in (0, 1, 1, 0):
        averaged.update_parameters(layer(order))
        assert agrees(averaged.module)


def test_an_average_of_many_orders_that_is_none_computes_or_fails_as_before():
    made = layer()
    assert agrees(made)
    for order in ([1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0]):
        made.passed.copy_(torch.tensor(order))
        if sum(order) >= 4:
            assert agrees(made)
        else:
            for _ in range(2):
                with pytest.raises(IndexError):
                    made(X)


def test_functional_calls_use_the_order_that_they_are_given():
    one, other = layer(0), layer(1)
    state = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    for _ in range(4):
        torch.testing.assert_close(functional_call(one, state, (X,)), other(X), rtol=0, atol=0)
        assert agrees(one)
        kept = one._templates._kept
        functional_call(one, {k: v.clone() for k, v in state.items()}, (X,))
        assert one._templates._kept is kept  # a tensor met once is not kept
    first = torch.func.grad(lambda p: functional_call(one, p, (X,)).sum())(state)
    second = torch.autograd.grad(other(X).sum(), list(other.parameters()))
    for (name, _), want in zip(other.named_parameters(), second, strict=True):
        torch.testing.assert_close(first[name], want)


def test_stacked_states_of_different_orders():
    models = [layer(0), layer(1)]
    for made in models:
        assert agrees(made)
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
    base = copy.deepcopy(models[0]).to("meta")
    got = vmap(lambda p, b, x: functional_call(base, (p, b), (x,)), in_dims=(0, 0, None))(
        parameters, buffers, X
    )
    torch.testing.assert_close(got, torch.stack([made(X) for made in models]))
    # Of the parameters alone, with the layer's own order.
    got = vmap(lambda p: functional_call(models[0], p, (X,)))(parameters)
    models[1].passed.copy_(models[0].passed)
    torch.testing.assert_close(got, torch.stack([made(X) for made in models]))
    assert all(map(agrees, models))


def test_per_sample_gradients():
    made = layer()
    assert agrees(made)
    parameters = dict(made.named_parameters())

    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(made, p, (x[None],)).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, X)
    whole = torch.autograd.grad(made(X).square().sum(), list(made.parameters()))
    for (name, _), want in zip(made.named_parameters(), whole, strict=True):
        torch.testing.assert_close(each[name].sum(0), want, rtol=1e-4, atol=1e-4)


def test_made_and_used_in_inference_mode_then_trained():
    with torch.inference_mode():
        inside = layer()
        want = inside(X)
    made = layer()
    with torch.inference_mode():
        torch.testing.assert_close(made(X), want)
    made(X).sum().backward()
    assert made.coef.grad is not None


def test_traces_take_nothing_that_is_kept():
    made = layer()
    assert agrees(made)
    traced = torch.jit.trace(made, X)
    symbolic = torch.fx.symbolic_trace(nn.Sequential(made))
    exported = torch.export.export(made, (X,))
    by_copy(made, torch.tensor(ORDERS[1], dtype=torch.float32))
    state = {k: v.clone() for k, v in made.state_dict().items()}
    traced.load_state_dict(state)
    for program in (traced, exported.module()):
        program.load_state_dict(state)
        torch.testing.assert_close(program(X), made(X))
    assert symbolic(X).shape == made(X).shape


def test_no_fake_tensor_is_kept():
    from torch._subclasses.fake_tensor import FakeTensorMode

    made = layer()
    with FakeTensorMode(allow_non_fake_inputs=True):
        made(torch.empty(2, 4, 6, 6))
    assert agrees(made) and type(made(X)) is Tensor
    graph = make_fx(lambda x: made(x))(X)
    torch.testing.assert_close(graph(X), made(X))


def test_a_replicas_order_is_its_own():
    made = layer()
    assert agrees(made)
    kept = made._templates._kept
    replica = made._replicate_for_data_parallel()  # type: ignore[operator]
    for name, value in {**layer(1)._parameters, **layer(1)._buffers}.items():
        object.__setattr__(replica, name, value)
    torch.testing.assert_close(replica(X), layer(1)(X))
    assert made._templates._kept is kept and agrees(made)


def test_shared_memory_that_another_process_writes():
    made = layer().share_memory()
    assert agrees(made)
    view = torch.from_numpy(made.passed.numpy())  # another tensor over the same memory
    view.copy_(torch.tensor(ORDERS[1]))
    assert agrees(made)


def test_all_tensors_on_meta():
    made = layer()
    assert agrees(made)
    assert made.to("meta")(X.to("meta")).shape == (2, 6, 4, 4)
    assert BasisConv2d(4, 6, 3, 4, device="meta")(X.to("meta")).shape == (2, 6, 4, 4)

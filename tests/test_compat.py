"""What PyTorch users do with a network keeps working once layers are in basis form."""

from __future__ import annotations

import copy
import io
import pickle
import shutil
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import basisconv as bc
from basisconv import BasisConv2d


class Block(nn.Module):
    """A basic block of a ResNet with a strided shortcut (He et al., 2016)."""

    def __init__(self, inputs: int = 8, outputs: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


# Four that hold every pair of settings.
KINDS = [
    {},
    {"form": "full", "coef_rank": 2},
    {"coef_rank": 2, "mode": "rebuilt"},
    {"form": "full", "mode": "rebuilt"},
]


def block(form="subset", coef_rank=None, mode="factored", coef_groups=1) -> nn.Module:
    torch.manual_seed(0)
    dense = Block().to(memory_format=torch.channels_last)
    plan = bc.make_plan(
        dense, n_basis=4, layers=["conv*"], form=form, coef_rank=coef_rank, coef_groups=coef_groups
    )
    assert list(plan.layers) == ["conv2"]  # conv1 is the stem unless named
    plan = bc.Plan(
        {"conv1": 4, "conv2": 4}, form, coef_groups, coef_rank, {"conv1": mode, "conv2": mode}
    )
    return bc.apply_plan(dense, plan)


def images(batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 8, 8, 8, generator=generator)
    return x.to(memory_format=torch.channels_last)


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(x).square().mean().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "pickle"],
)
def test_copies_compute_the_same_and_share_nothing(again, kind):
    model = block(**kind).eval()
    copied = again(model)
    assert bc.plan_of(copied) == bc.plan_of(model)
    torch.testing.assert_close(copied(images()), model(images()), rtol=0, atol=0)
    with torch.no_grad():
        copied.conv1.basis.zero_()
    assert model.conv1.basis.abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_state_dict_loads_into_a_network_of_the_same_plan(kind):
    model = block(**kind).eval()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    # Another decomposition: other factors, and in the subset form another order of outputs.
    torch.manual_seed(7)
    other = bc.apply_plan(Block(), bc.plan_of(model), init="qr").eval()
    assert not torch.equal(other(images()), model(images()))
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(other(images()), model(images()))


def test_hooks_move_to_the_new_layer_and_their_handles_still_remove_them():
    model = Block().train()
    calls: list[tuple[str, type]] = []

    def note(what: str) -> Callable[..., None]:
        return lambda module, *rest, **named: calls.append((what, type(module)))

    conv = model.conv2
    handles = [
        conv.register_forward_pre_hook(note("before")),
        conv.register_forward_hook(note("after"), with_kwargs=True),
        conv.register_forward_hook(note("always"), always_call=True),
        conv.register_full_backward_pre_hook(note("backward before")),
        conv.register_full_backward_hook(note("backward after")),
    ]
    plan = bc.Plan({"conv2": 4})
    for change, kind in (
        (plan, BasisConv2d),
        (bc.Plan({"conv2": 6}, "full"), BasisConv2d),
        (bc.Plan({}), nn.Conv2d),
        (plan, BasisConv2d),
    ):
        bc.apply_plan(model, change, inplace=True)
        calls.clear()
        gradients(model, images())
        names = ["before", "after", "always", "backward before", "backward after"]
        assert calls == [(name, kind) for name in names]
    for handle in handles:
        handle.remove()
    calls.clear()
    gradients(model, images())
    assert calls == []


def test_a_hook_that_is_always_called_still_is_where_the_new_layer_fails():
    model = bc.apply_plan(Block(), bc.Plan({"conv1": 4}))
    calls: list[type] = []
    for conv in (model.conv1, model.conv2):
        conv.register_forward_hook(lambda m, *call: calls.append(type(m)), always_call=True)
    bc.apply_plan(model, bc.Plan({"conv2": 4}), inplace=True)
    for conv in (model.conv1, model.conv2):
        with pytest.raises(RuntimeError, match="channels"):
            conv(torch.zeros(1, 3, 8, 8))
    assert calls == [nn.Conv2d, BasisConv2d]


def test_hooks_of_a_copy_are_its_own():
    model = Block()
    handle = model.conv2.register_forward_hook(lambda *call: torch.zeros(1))
    copied = bc.apply_plan(model, bc.Plan({"conv2": 4}))
    assert len(copied.conv2._forward_hooks) == 1
    copied.conv2._forward_hooks.clear()
    assert len(model.conv2._forward_hooks) == 1
    handle.remove()


def test_a_shared_module_stays_shared():
    shared = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(8, 8, 1), shared, nn.Sequential(nn.ReLU(), shared))
    inner = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1))
    model.twice = nn.ModuleList([inner, inner])  # what holds the convolution is shared, too
    model.twice.forward = lambda x: inner(inner(x))
    model = model.eval()
    basis = bc.apply_plan(model, bc.make_plan(model, ratio=1.0), inplace=True)
    assert basis[1] is basis[2][1] and isinstance(basis[1], BasisConv2d)
    assert basis.twice[0] is basis.twice[1] and isinstance(basis.twice[0][0], BasisConv2d)
    assert sum(isinstance(m, BasisConv2d) for m in basis.modules()) == 2
    dense = bc.restore(basis)
    assert dense[1] is dense[2][1] and type(dense[1]) is nn.Conv2d


def test_the_training_flag_and_requires_grad_are_kept():
    model = Block()
    model.conv1.eval()
    model.conv1.weight.requires_grad_(False)
    basis = bc.apply_plan(model, bc.Plan({"conv1": 4, "conv2": 4}))
    assert not basis.conv1.training and basis.conv2.training
    grads = gradients(basis, images())
    assert not any(n.startswith("conv1") for n in grads)
    assert {"conv2.basis", "conv2.coef"} <= grads.keys()
    dense = bc.restore(basis)
    assert not dense.conv1.training and not dense.conv1.weight.requires_grad
    assert dense.conv2.training and dense.conv2.weight.requires_grad
    assert not basis.eval().conv2.training


@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_lowers_the_loss(kind):
    model = block(**kind).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    target = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(3)).relu()
    losses = []
    for _ in range(15):
        loss = F.mse_loss(model(images()), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_casting_a_network_leaves_the_order_of_outputs_alone(dtype):
    model = block().eval()
    cast = copy.deepcopy(model).to(dtype)
    assert torch.equal(cast.conv1.passed.float(), model.conv1.passed)
    tolerance = {torch.float64: 1e-5, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(
        cast(images().to(dtype)).float(), model(images()), rtol=tolerance, atol=tolerance
    )


AVERAGES = {
    # As torchvision's references and timm do, buffers and all.
    **{f"ema {d}": partial(AveragedModel, avg_fn=lambda a, p, _, d=d: d * a + (1 - d) * p)
       for d in (0.9, 0.9999, 0.99998)},
    "torch's ema": partial(AveragedModel, multi_avg_fn=get_ema_multi_avg_fn(0.999)),
    "swa": partial(AveragedModel),
}  # fmt: skip


@pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES.keys())
def test_the_average_of_one_network_is_that_network(average):
    model = block().eval()
    averaged = average(model, use_buffers=True)
    for _ in range(60):
        averaged.update_parameters(model)
    torch.testing.assert_close(averaged(images()), model(images()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("share", [0.9, 0.1])
def test_the_average_of_two_orders_of_outputs_has_that_of_the_larger_share(share):
    one, other = BasisConv2d(3, 8, 3, 3), BasisConv2d(3, 8, 3, 3)
    one.passed.copy_(torch.tensor([1, 0, 0, 1, 0, 0, 0, 1]))
    other.passed.copy_(torch.tensor([0, 1, 0, 1, 0, 1, 0, 0]))
    averaged = AveragedModel(
        one, avg_fn=lambda a, p, _: share * a + (1 - share) * p, use_buffers=True
    )
    averaged.update_parameters(one)
    averaged.update_parameters(other)
    basis, coef = (
        share * p + (1 - share) * q for p, q in ((one.basis, other.basis), (one.coef, other.coef))
    )
    kernel = torch.empty(8, 3, 3, 3)
    passed = [0, 3, 7] if share > 0.5 else [1, 3, 5]
    kernel[passed] = basis.detach()
    combined = torch.einsum("om,mchw->ochw", coef, basis).detach()
    kernel[[i for i in range(8) if i not in passed]] = combined
    torch.testing.assert_close(averaged.module.weight, kernel)


def test_a_network_of_averaged_state_dicts_has_the_same_form():
    model = block()
    twice = {k: (0.7 * v + 0.3 * v).to(v.dtype) for k, v in model.state_dict().items()}
    other = block()
    other.load_state_dict(twice)
    torch.testing.assert_close(other.eval()(images()), model.eval()(images()))


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_in_bfloat16(kind):
    model = block(**kind).train()
    exact = gradients(model, images(8))
    expected = model(images(8))
    with torch.autocast("cpu", torch.bfloat16):
        convolved = model.conv1(images(8))
        output = model(images(8))
        model.zero_grad()
        output.float().square().mean().backward()
    assert convolved.dtype == torch.bfloat16
    assert convolved.is_contiguous(memory_format=torch.channels_last)
    assert F.cosine_similarity(output.float().flatten(), expected.flatten(), 0) > 0.999
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32 and parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        if parameter.ndim > 1:
            cosine = F.cosine_similarity(parameter.grad.flatten(), exact[name].flatten(), 0)
            assert cosine > 0.98


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def check_compiled(model: nn.Module, backend: str, tolerance: float) -> None:
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    expected, got = gradients(model, images()), gradients(compiled, images())
    for name, value in expected.items():
        torch.testing.assert_close(got[f"_orig_mod.{name}"], value, rtol=tolerance, atol=tolerance)
    y = compiled(images())
    torch.testing.assert_close(y, model(images()), rtol=tolerance, atol=tolerance)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("kind", KINDS)
def test_torch_compile_captures_one_graph_and_its_gradients(kind):
    check_compiled(block(**kind), "aot_eager", 1e-5)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler: no g++")
def test_torch_compile_to_machine_code():
    model = block("subset", None, "factored")
    bc.apply_plan(
        model, bc.Plan({"conv1": 4, "conv2": 4}, modes={"conv2": "rebuilt"}), inplace=True
    )
    check_compiled(model, "inductor", 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_symbolic_trace_computes_the_same(kind):
    model = block(**kind).eval()
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(images()), model(images()), rtol=0, atol=1e-6)


def test_a_traced_graph_adds_up_no_truth_values():
    # ONNX's CumSum takes none, and its older exporter writes the operators as they are called.
    graph = torch.export.export(block("subset", None, "factored").eval(), (images(),)).graph
    sums = [node for node in graph.nodes if node.target is torch.ops.aten.cumsum.default]
    assert sums and all(node.args[0].meta["val"].dtype is torch.int64 for node in sums)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_export(kind):
    model = block(**kind).eval()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (images(),), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(images(5)), model(images(5)), rtol=0, atol=1e-6)
    assert {"conv1.basis", "conv2.basis"} <= program.state_dict.keys()

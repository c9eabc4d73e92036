"""What trained networks are cut by, against independent reconstructions."""

from __future__ import annotations

import base64
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import make_run
from torch import Tensor, nn

import basisconv as bc
from basisconv.study.compression import balf, cutting, pruning, runtime, tucker
from basisconv.study.compression.cutting import Cutter
from basisconv.study.compression.epoch import evaluate, train_epoch
from basisconv.study.compression.runtime import Stopwatch
from basisconv.study.compression.tensor_train import tensor_train
from basisconv.study.data.sets import load
from basisconv.study.training.models import build_network, initialise

IMAGE = (1, 3, 32, 32)


def network(width: int = 8) -> nn.Module:
    """A small ResNet whose batch-norms have seen data."""
    model = build_network("resnet18", width, 10)
    initialise(model, 0)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()


def images(n: int = 6, seed: int = 2) -> Tensor:
    return torch.randn(n, *IMAGE[1:], generator=torch.Generator().manual_seed(seed))


# BALF.


class Two(nn.Module):
    """A strided layer with a bias, and a 1×1 on inputs that are correlated."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 10, 3, stride=2, padding=1)
        self.b = nn.Conv2d(10, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


def whitened(conv: nn.Conv2d, x: Tensor, m: int) -> Tensor:
    """The kernel as the paper has it: SVD of the kernel times a root of its patches' moments."""
    patches = F.unfold(x.double(), conv.kernel_size, padding=conv.padding, stride=conv.stride)
    p = patches.movedim(1, 0).flatten(1)
    values, vectors = torch.linalg.eigh(p @ p.T)
    root = vectors * values.clamp_min(0).sqrt()
    u, s, vh = torch.linalg.svd(conv.weight.detach().double().flatten(1) @ root)
    cut = (u[:, :m] * s[:m]) @ vh[:m]
    return (cut @ torch.linalg.pinv(root)).view_as(conv.weight)


def test_balf_is_the_whitened_truncation_of_the_paper() -> None:
    torch.manual_seed(0)
    model, x = Two().eval(), images()
    with torch.no_grad():
        inputs = {"a": x, "b": torch.relu(model.a(x))}
    found = balf.spectra(model, list(x.split(4)))
    small = balf.truncated(model, found, 0.5)
    chosen = dict(bc.plan_of(small).layers)
    assert chosen == balf.ranks(found, 0.5) and chosen
    for name, m in chosen.items():
        conv, layer = getattr(model, name), getattr(small, name)
        assert torch.allclose(
            layer.weight.double(), whitened(conv, inputs[name], m), atol=1e-5, rtol=1e-4
        )
        assert torch.equal(layer.bias, conv.bias)
    # Energies are those of what the layers answer.
    z = F.conv2d(x, model.a.weight, None, 2, 1).movedim(1, 0).flatten(1).double()
    energies = torch.linalg.svdvals(z).square()
    assert torch.allclose(found["a"].energies, energies / energies.sum(), atol=1e-6)


@pytest.mark.parametrize("share", [0.35, 0.6])
def test_balf_keeps_the_most_energy_that_the_multiplications_allow(share: float) -> None:
    rng = np.random.default_rng(3)
    found = {}
    for i, rows in enumerate((8, 8, 6)):
        energies = torch.from_numpy(np.sort(rng.exponential(size=rows))[::-1].copy())
        cost = float(rng.uniform(1, 4))
        found[f"{i}"] = balf.Spectrum(
            torch.eye(rows), energies / energies.sum(), cost, 0.9 * rows * cost
        )

    def kept(chosen: dict[str, int]) -> float:
        return sum(float(s.energies[: chosen.get(n, 99)].sum()) for n, s in found.items())

    def cost(chosen: dict[str, int]) -> float:
        return sum(
            min(chosen[n] * s.cost, s.dense) if n in chosen else s.dense for n, s in found.items()
        )

    budget = share * cost({})
    got = balf.ranks(found, share)
    assert cost(got) <= budget
    every = [
        {"0": a, "1": b, "2": c} for a in range(1, 9) for b in range(1, 9) for c in range(1, 7)
    ]
    # The Lagrangian finds the best of all plans that cost no more than its own.
    best = max(kept(plan) for plan in every if cost(plan) <= cost(got) * (1 + 1e-12))
    assert kept(got) == pytest.approx(best)


def test_balf_at_nearly_all_multiplications_is_the_network_itself() -> None:
    model, x = network(), images()
    found = balf.spectra(model, [x])
    small = balf.truncated(model, found, 0.999999)
    with torch.no_grad():
        assert torch.allclose(small(x), model(x), atol=2e-2)


# Tucker.


def test_tucker_factors_are_the_best_that_alternating_finds() -> None:
    kernel = torch.randn(9, 7, 3, 3, generator=torch.Generator().manual_seed(0))
    u, core, v = tucker.factors(kernel, 4, 3)
    assert torch.allclose(u.T @ u, torch.eye(4).double(), atol=1e-9)
    assert torch.allclose(v.T @ v, torch.eye(3).double(), atol=1e-9)
    rebuilt = torch.einsum("or,rskl,is->oikl", u, core, v)
    error = float((rebuilt - kernel).square().sum())
    tensorly = pytest.importorskip("tensorly")
    from tensorly.decomposition import partial_tucker

    (c, fs), _ = partial_tucker(
        tensorly.tensor(kernel.double().numpy()), rank=[4, 3], modes=[0, 1], n_iter_max=200
    )
    theirs = np.einsum("or,rskl,is->oikl", fs[0], np.asarray(c), fs[1])
    assert error <= float(np.square(theirs - kernel.numpy()).sum()) * 1.01


def test_tucker_replaces_layers_by_three_with_the_kernel_that_its_factors_have() -> None:
    model, x = network(16), images(2)
    small = tucker.tucker(model, 0.4)
    dense = dict(model.named_modules())
    with torch.no_grad():
        expected = tucker.tucker(model, 0.999)  # which has the size of dense: nothing is replaced
        assert torch.equal(expected(x), model(x))
        conv, three = dense["layer3.1.conv1"], small.get_submodule("layer3.1.conv1")
        u, core, v = tucker.factors(conv.weight, 26, 26)
        kernel = torch.einsum("or,rskl,is->oikl", u, core, v).float()
        y = torch.randn(2, 64, 8, 8)
        assert torch.allclose(three(y), F.conv2d(y, kernel, padding=1), atol=1e-4)
        strided = small.get_submodule("layer2.0.conv1")
        assert strided(torch.randn(1, 16, 8, 8)).shape == (1, 32, 4, 4)
    assert isinstance(small.get_submodule("conv1"), nn.Conv2d)
    assert isinstance(small.get_submodule("layer2.0.downsample.0"), nn.Conv2d)
    assert bc.summary(small, IMAGE).macs < 0.5 * bc.summary(model, IMAGE).macs


def test_an_exact_tucker_kernel_gives_the_same_function() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, 3, padding=1)
    with torch.no_grad():
        u, core, v = torch.randn(16, 4), torch.randn(4, 4, 3, 3), torch.randn(16, 4)
        conv.weight.copy_(torch.einsum("or,rskl,is->oikl", u, core, v))
    model, x = nn.Sequential(nn.Conv2d(3, 16, 3), conv), images(2)
    small = tucker.tucker(model, 0.25)
    assert isinstance(small[1], nn.Sequential)
    with torch.no_grad():
        assert torch.allclose(small(x), model(x), atol=1e-3, rtol=1e-4)


# Tensor trains.


def test_a_kernel_that_is_a_tensor_train_gives_the_same_function() -> None:
    pytest.importorskip("tltorch")
    torch.manual_seed(0)
    conv = nn.Conv2d(12, 16, 3, stride=2, padding=1)
    with torch.no_grad():
        one, two = torch.randn(12, 4), torch.randn(4, 3, 6)
        three, four = torch.randn(6, 3, 4), torch.randn(4, 16)
        conv.weight.copy_(torch.einsum("ip,pyq,qxr,ro->oiyx", one, two, three, four))
    model, x = nn.Sequential(nn.Conv2d(3, 12, 3), conv), images(2)
    small = tensor_train(model, 0.5)  # ranks 6, 9 and 8
    assert small[0].weight.equal(model[0].weight)
    assert sum(p.numel() for p in small[1].parameters()) == 72 + 162 + 216 + 128 + 16
    with torch.no_grad():
        assert torch.allclose(small(x), model(x), atol=1e-3, rtol=1e-4)


# Pruning.


def test_pruning_removes_channels_and_keeps_the_classes() -> None:
    pytest.importorskip("torch_pruning")
    model = network(16)
    small = pruning.pruned(model, 0.5, images(1))
    assert small(images(3)).shape == (3, 10)
    share = bc.summary(small, IMAGE).macs / bc.summary(model, IMAGE).macs
    assert 0.1 < share < 0.6
    assert model.layer4[1].conv1.weight.shape[0] == 128


# Sizes and times.


def test_bisection_finds_the_knob_whose_share_is_wanted() -> None:
    asked: list[float] = []

    def share(knob: float) -> float:
        asked.append(knob)
        return 0.2 + 0.8 * knob**2

    assert share(cutting.bisect(share, 0.6)) == pytest.approx(0.6, rel=cutting.CLOSE)
    assert len(asked) <= cutting.TRIES + 1
    # Steps that are too wide for the wanted miss are met as nearly as can be.
    steps = cutting.bisect(lambda knob: 0.52 if knob < 0.5 else 0.58, 0.5)
    assert steps < 0.5
    with pytest.raises(cutting.OutOfReach, match=r"nearest to 0\.35 that can be had is 0\.7"):
        cutting.bisect(lambda knob: 0.7 + 0.3 * knob, 0.35)


@pytest.mark.parametrize("way", ["svd", "responses", "search", "balf", "tucker"])
def test_each_way_gives_a_network_of_the_share_of_multiplications(way: Any) -> None:
    model = network(16)
    watch = Stopwatch(model, images(1), "eager", 1, 1)
    cutter = Cutter(model, images(32).split(8), "macs", watch)
    small = cutter.build(way, cutter.size(way, 0.5))
    share = bc.summary(small, IMAGE).macs / bc.summary(model, IMAGE).macs
    assert share == pytest.approx(0.5, rel=cutting.FAR)
    assert cutter.macs(small) == bc.summary(small, IMAGE).macs
    assert all(isinstance(m, nn.Conv2d) for m in bc.layers(model).values())


def test_ways_without_their_package_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in cutting.NEEDS.values():
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert runtime.available("onnxruntime") == "eager"
    model = network()
    watch = Stopwatch(model, images(1), "eager", 1, 1)
    cutter = Cutter(model, [images(1)], "macs", watch)
    with pytest.raises(cutting.OutOfReach, match="torch_pruning is not installed"):
        cutter.size("pruning", 0.5)


@pytest.mark.parametrize("name", ["eager", "onnxruntime"])
def test_a_network_of_half_the_width_takes_less_time(name: Any) -> None:
    if runtime.available(name) != name:
        pytest.skip("onnxruntime is not installed")
    torch.set_num_threads(1)
    watch = Stopwatch(network(32), images(8), name, repeats=5, threads=1)
    time = watch.time(network(8))
    assert time.low <= time.median <= time.high and time.median < 0.7


def test_an_exported_network_with_basis_layers_computes_the_same() -> None:
    if runtime.available("onnxruntime") == "eager":
        pytest.skip("onnxruntime is not installed")
    model = network(16)
    small, x = bc.apply_plan(model, bc.make_plan(model, ratio=0.5)), images(4)
    (got,) = runtime.session_of(small, x, 1).run(None, {"images": x.numpy()})
    with torch.no_grad():
        assert np.allclose(got, small(x).numpy(), atol=1e-4)


# After the cut.


def test_an_epoch_trains_and_evaluating_counts_what_is_right() -> None:
    data = load("cifar10-sample", 100)
    model = network()
    before, _ = evaluate(model, data.test)
    run = make_run(batch_size=20, optimizer="muon", momentum=0.6, weight_decay=0.05, warmup=0.2)
    weights = model.conv1.weight.clone()
    for _ in range(4):
        train_epoch(model, run, 0.05, data.train)
    assert not torch.equal(weights, model.conv1.weight)
    after, bits = evaluate(model, data.test)
    right = np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8))[: len(data.test)]
    assert right.mean() == pytest.approx(after) and after > before
    with pytest.raises(ArithmeticError, match="rate of 1e"):
        train_epoch(model, make_run(batch_size=20), 1e20, data.train)

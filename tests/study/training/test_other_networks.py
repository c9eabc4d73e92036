"""Networks of the study counted by hand: layer by layer, as their papers have them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import basisconv as bc
from basisconv.study.training.models import build_network, initialise

CONV = tuple[int, int, int, int, int]  # inputs, outputs, kernel, groups, size of the output


def wide_resnet(w: int) -> list[CONV]:
    """Zagoruyko & Komodakis (2016), table 1: N = 2 blocks a group, k = 4."""
    convs = [(3, w // 4, 3, 1, 32)]
    before = w // 4
    for outputs, size in ((w, 32), (2 * w, 16), (4 * w, 8)):
        convs += [(before, outputs, 3, 1, size)] + [(outputs, outputs, 3, 1, size)] * 3
        convs += [(before, outputs, 1, 1, size)]
        before = outputs
    return convs


def mobilenet() -> list[CONV]:
    """Sandler et al. (2018), table 2, with the stem's and the first stride left out."""
    convs, before, size = [(3, 32, 3, 1, 32)], 32, 32
    for t, c, n, s in ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                       (6, 160, 3, 2), (6, 320, 1, 1)):  # fmt: skip
        for i in range(n):
            inner = t * before
            convs += [(before, inner, 1, 1, size)] if t > 1 else []
            size //= s if i == 0 else 1
            convs += [(inner, inner, 3, inner, size), (inner, c, 1, 1, size)]
            before = c
    return [*convs, (320, 1280, 1, 1, size)]


def weights(convs: list[CONV]) -> int:
    return sum(i // g * o * k * k for i, o, k, g, _ in convs)


def macs(convs: list[CONV]) -> int:
    return sum(i // g * o * k * k * s * s for i, o, k, g, s in convs)


def counted(network: str, width: int = 64) -> tuple[int, int, nn.Module]:
    """Parameters, and MACs by the hooks of this test, not by the library."""
    model, found = build_network(network, width, 10), [0]

    def hook(module: nn.Module, given: tuple[torch.Tensor], made: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            found[0] += made[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            found[0] += made[0].numel() * module.in_features

    for module in model.modules():
        module.register_forward_hook(hook)
    model.eval()(torch.zeros(1, 3, 32, 32))
    return sum(p.numel() for p in model.parameters()), found[0], model


@pytest.mark.parametrize("width", [64, 16])
def test_wide_resnet_16_4_is_as_published(width: int) -> None:
    convs = wide_resnet(width)
    # Batch-norm: before each 3×3 of a block, and at the end.
    norms = 2 * (sum(i for i, _, k, *_ in convs[1:] if k == 3) + 4 * width)
    parameters, executed, model = counted("wide_resnet16_4", width)
    assert parameters == weights(convs) + norms + (4 * width + 1) * 10
    assert executed == macs(convs) + 4 * width * 10
    assert width != 64 or parameters == 2_748_890  # the paper: 2.7 M
    assert len(bc.make_plan(model, ratio=0.25).layers) == 12


def test_mobilenet_v2_is_as_published_and_has_nothing_to_convert() -> None:
    convs = mobilenet()
    parameters, executed, model = counted("mobilenet_v2")
    norms = 2 * sum(o for _, o, *_ in convs)
    assert parameters == weights(convs) + norms + 1281 * 10
    assert executed == macs(convs) + 1280 * 10
    with pytest.raises(ValueError, match="No Conv2d is left.*depthwise"):
        bc.make_plan(model, ratio=0.25)


def test_convnext_pico_is_as_published_but_for_its_stem() -> None:
    channels, blocks = (64, 128, 256, 512), (2, 2, 6, 2)
    weighed, executed = 3 * 64 * 4 + 64 + 2 * 64, 3 * 64 * 4 * 16 * 16
    for i, (c, n) in enumerate(zip(channels, blocks, strict=True)):
        size = 16 >> i
        # 7×7 depthwise, norm, c → 4c → c, and the scale of the block.
        weighed += n * (49 * c + c + 2 * c + 4 * c * c + 4 * c + 4 * c * c + c + c)
        executed += n * (49 * c + 8 * c * c) * size * size
        if i < 3:
            weighed += 2 * c + 2 * c * 4 * c + 2 * c
            executed += 2 * c * 4 * c * (size // 2) ** 2
    found = counted("convnext_pico")
    assert found[:2] == (weighed + 2 * 512 + 513 * 10, executed + 512 * 10)
    # The three 2×2 between stages alone.
    plan = bc.make_plan(found[2], ratio=0.25)
    assert [found[2].get_submodule(n).kernel_size for n in plan.layers] == [(2, 2)] * 3


@pytest.mark.parametrize("network", ["wide_resnet16_4", "mobilenet_v2", "convnext_pico"])
def test_they_train_at_any_width_and_their_weights_are_drawn_by_name(network: str) -> None:
    one, two = (build_network(network, 5, 7) for _ in range(2))
    initialise(one, 3)
    torch.manual_seed(99)
    initialise(two, 3)
    ours, theirs = one.state_dict(), two.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    loss = one(torch.randn(2, 3, 32, 32)).square().sum()
    loss.backward()
    assert loss.isfinite() and loss.shape == ()
    assert next(one.parameters()).is_contiguous(memory_format=torch.channels_last)

"""Torchvision's networks: from dense to basis and back, all convolutions at once, same output."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import basisconv as bc
from basisconv import BasisConv2d
from basisconv.decompose import FORMS, Form
from basisconv.plan import Convolution
from basisconv.study.data.vision import torchvision

# What a callable names decides alone: the stem, 1×1 and depthwise convolutions too.
NETWORKS = {
    "resnet18": lambda name, conv: True,
    # Decomposing its widest 1×1 convolutions takes 10 seconds.
    "resnet50": lambda name, conv: conv.kernel_size != (1, 1) or conv.out_channels <= 256,
    "vgg16_bn": lambda name, conv: True,
    "mobilenet_v2": lambda name, conv: True,
    "densenet121": lambda name, conv: True,
    "efficientnet_b0": lambda name, conv: True,
    "convnext_tiny": lambda name, conv: True,
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 32, 32, generator=generator, dtype=torch.float64)


def dense_network(name: str) -> nn.Module:
    """In float64, with activations of ordinary size all the way through."""
    torch.manual_seed(0)
    options = {"init_weights": False} if name == "vgg16_bn" else {}
    model = getattr(torchvision().models, name)(num_classes=10, **options)
    if name == "vgg16_bn":
        model.classifier = nn.Linear(512 * 7 * 7, 10)  # for its own, of 120 M weights
    for module in model.modules():
        if isinstance(getattr(module, "layer_scale", None), nn.Parameter):
            nn.init.ones_(module.layer_scale)  # at 1e-6 no convolution would count
        if isinstance(module, torchvision().models.resnet.Bottleneck):
            # At 1, an untrained resnet50 makes 1e-4 out of float32's rounding all by itself.
            nn.init.constant_(module.bn3.weight, 0.25)
    return model.double().eval()


def group_ranks(conv: Convolution) -> int:
    """A rank for each group's kernel: a quarter of its filters, and what its columns allow."""
    rows = conv.out_channels // conv.groups
    columns = conv.in_channels // conv.groups * conv.kernel_size[0] * conv.kernel_size[1]
    return max(1, min(rows // 4, columns))


def cut_rank(conv: nn.Conv2d) -> None:
    """A kernel of exactly `group_ranks` in every group, with its size unchanged."""
    weight = conv.weight.detach().view(conv.groups, conv.out_channels // conv.groups, -1)
    rank = group_ranks(conv)
    product = torch.randn(*weight.shape[:2], rank).double() @ torch.randn(
        conv.groups, rank, weight.shape[2], dtype=torch.float64
    )
    weight.copy_(product * weight.std() / rank**0.5)


def settle_statistics(model: nn.Module) -> None:
    """Batch statistics of some images, without which deep activations vanish.

    Of too few, they would blow rounding up: the last layers see one position an image.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    model(images(16))
    model.eval()


def low_rank_network(name: str, form: Form) -> tuple[nn.Module, bc.Plan]:
    """Kernels of rank r < C_out with n_basis from r to C_out; every fifth of full rank."""
    model = dense_network(name)
    named = bc.make_plan(model, ratio=1.0, layers=NETWORKS[name]).layers
    n_basis = {}
    with torch.no_grad():
        for i, (layer, conv) in enumerate(bc.layers(model).items()):
            if layer not in named:
                continue
            rows, rank = conv.out_channels // conv.groups, group_ranks(conv)
            if i % 5 == 4:
                n_basis[layer] = conv.out_channels
            else:
                cut_rank(conv)
                share = (i + FORMS.index(form)) % 4 / 3  # from the rank itself to all filters
                n_basis[layer] = conv.groups * round(rank + share * (rows - rank))
        settle_statistics(model)
    return model, bc.Plan(n_basis, form)


@pytest.mark.filterwarnings("ignore:Basis filters are wasted")
@pytest.mark.parametrize(
    ("name", "form"), [(name, FORMS[i % 2]) for i, name in enumerate(NETWORKS)]
)
@torch.no_grad()
def test_round_trip(name: str, form: Form):
    model, plan = low_rank_network(name, form)
    for dtype, tolerance in TOLERANCE.items():
        model, x = model.to(dtype), images(2).to(dtype)
        expected = model(x)
        assert expected.std() > 1e-3
        basis = bc.apply_plan(model, plan)
        assert sum(isinstance(m, BasisConv2d) for m in basis.modules()) == len(plan.layers) > 12
        dense = bc.restore(basis)
        assert not any(isinstance(m, BasisConv2d) for m in dense.modules())
        assert dense.state_dict().keys() == model.state_dict().keys()
        for other in (basis, dense):
            error = (other(x) - expected).abs().max() / expected.abs().max()
            assert error.item() < tolerance, f"{name} {form} {dtype}"

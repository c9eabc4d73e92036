"""The networks: shapes, counts, and weights keyed by layer."""

from __future__ import annotations

import pytest
import torch

import basisconv as bc
from basisconv.study.training import models
from basisconv.study.training.models import build_network, initialise, initialise_layer
from basisconv.study.training.rng import generator


def test_width_64_is_torchvisions_resnet18_for_cifar() -> None:
    from basisconv.study.data.vision import torchvision

    reference = torchvision().models.resnet18(num_classes=10)
    reference.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = torch.nn.Identity()
    ours = build_network("resnet18", 64, 10)
    assert sum(p.numel() for p in ours.parameters()) == 11_173_962
    ours.load_state_dict(reference.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(x), reference.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [5, 8])
def test_stages_scale_with_the_width(width: int) -> None:
    model = build_network("resnet18", width, 7)
    assert model.layer4[1].conv2.weight.shape == (8 * width, 8 * width, 3, 3)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("network", ["resnet18", "resnet50"])
def test_shortcuts_of_very_narrow_networks_are_the_same_function_unstrided(network: str) -> None:
    """Strided, they corrupt memory on AVX2."""
    narrow = build_network(network, 4, 10)
    initialise(narrow, 0)
    convs = bc.layers(narrow)
    shortcuts = {n: c for n, c in convs.items() if "downsample" in n}
    assert len(shortcuts) >= 3 and all(c.stride == (1, 1) for c in shortcuts.values())
    # The strided originals, in float64, with the same state dict.
    models._NARROWEST, before = 0, models._NARROWEST
    try:
        strided = build_network(network, 4, 10)
    finally:
        models._NARROWEST = before
    assert any(c.stride == (2, 2) for n, c in bc.layers(strided).items() if "downsample" in n)
    strided.load_state_dict(narrow.state_dict())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(narrow.double().eval()(x), strided.double().eval()(x))
    wide = [c for n, c in bc.layers(build_network(network, 8, 10)).items() if "downsample" in n]
    assert any(c.stride == (2, 2) for c in wide)


@pytest.mark.parametrize(
    ("network", "parameters", "convolutions"),
    # The counts that CIFAR implementations of these networks report.
    [("resnet50", 23_520_842, 53), ("vgg16_bn", 14_728_266, 13)],
)
def test_other_networks_have_their_published_size_and_scale(
    network: str, parameters: int, convolutions: int
) -> None:
    model = build_network(network, 64, 10)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(bc.layers(model)) == convolutions
    small = build_network(network, 8, 7)
    initialise(small, 0)
    assert small(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    widths = [c.out_channels for c in bc.layers(small).values()]
    assert widths == [c.out_channels // 8 for c in bc.layers(model).values()]


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(ValueError, match="resnet19.*resnet18"):
        build_network("resnet19", 8, 10)


def test_weights_depend_only_on_seed_and_layer_name() -> None:
    one, two = build_network("resnet18", 8, 10), build_network("resnet18", 8, 100)
    initialise(one, 3)
    torch.manual_seed(99)
    initialise(two, 3)
    shared = one.state_dict().keys() - {"fc.weight", "fc.bias"}
    assert all(torch.equal(one.state_dict()[k], two.state_dict()[k]) for k in shared)
    initialise(two, 4)
    assert not torch.equal(one.conv1.weight, two.conv1.weight)


def test_a_basis_layers_product_has_the_dense_layers_variance() -> None:
    torch.manual_seed(0)
    dense = torch.nn.Conv2d(64, 128, 3, padding=1, bias=False)
    for form in ("subset", "full"):
        layer = bc.BasisConv2d.from_conv2d(dense, 32, form=form)
        variances = []
        for seed in range(8):
            initialise_layer(layer, generator(seed, "test"))
            variances.append(layer.weight.var().item())
        # He et al.: 2 / (C_out · k²). Products of 32 terms scatter more than one draw does.
        mean = sum(variances) / len(variances)
        assert mean == pytest.approx(2 / (128 * 9), rel=0.05)


def test_biases_of_convolutions_start_at_zero_in_either_form() -> None:
    model = build_network("vgg16_bn", 8, 10)
    bc.apply_plan(model, bc.Plan({"features.3": 4, "features.7": 8}, "full"), inplace=True)
    biases = [conv.bias for conv in bc.layers(model).values()]
    assert len(biases) == 13
    for bias in biases:
        torch.nn.init.ones_(bias)
    initialise(model, 0)
    assert not any(bias.any() for bias in biases)
    assert model.classifier.bias.abs().min() > 0

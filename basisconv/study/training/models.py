"""Networks for 32×32 images, dense, of any width, with initial weights keyed by layer name."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basisconv.layer import BasisConv2d
from basisconv.study.data.vision import torchvision
from basisconv.study.training.rng import generator

# torch 2.13's oneDNN writes past its buffers in the weight gradient of a strided, channels-last 1×1
# convolution with fewer input channels than this, the width of an AVX2 register.
_NARROWEST = 8


def build_network(network: str, width: int, classes: int) -> nn.Module:
    """A dense network, channels-last, its weights not yet drawn (see `initialise`).

    Args:
        network: "resnet18" or "resnet50": torchvision's, with a 3×3 stride-1 stem and no
            max-pooling, as is usual on CIFAR (He et al., 2016, section 4.2); "resnet18_5x5" and
            "resnet18_7x7": the same with larger kernels in place of 3×3; "vgg16_bn":
            torchvision's convolutions with a single linear layer behind them; "wide_resnet16_4";
            "mobilenet_v2": torchvision's, with its first two strides left out; "convnext_pico":
            torchvision's blocks, with a 2×2 stem.
        width: channels of the first stage; 64 is the published network, and all stages have that
            share of its channels.
        classes: outputs.

    Raises:
        ValueError: for another network.
    """
    if network not in NETWORKS:
        raise ValueError(f"network={network!r} is unknown. There are: {', '.join(NETWORKS)}.")
    model = NETWORKS[network](width, classes)
    # torch's own stubs do not know this keyword.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


@lru_cache(maxsize=8)
def shared_network(network: str, width: int, classes: int) -> nn.Module:
    """As `build_network`, for names and shapes only: it is shared, so do not change it.

    Raises:
        ValueError: as `build_network`.
    """
    return build_network(network, width, classes)


def check_images(network: str, size: int) -> None:
    """Refuse images of a size that a network cannot take.

    Raises:
        ValueError: for these, and as `build_network`.
    """
    model = build_network(network, 8, 10).eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, size, size))
    except RuntimeError as error:
        raise ValueError(f"Images of {size}×{size} do not fit {network}: {error}.") from error


def _resnet(
    block: str, stages: tuple[int, ...], width: int, classes: int, kernel: int = 3
) -> nn.Module:
    resnet = torchvision().models.resnet

    class CifarResNet(resnet.ResNet):  # type: ignore[misc, name-defined]
        """torchvision's ResNet with every stage's channels scaled by width/64."""

        def _make_layer(self, block: type, planes: int, *args: int, **kwargs: int) -> nn.Module:
            if planes == 64:
                self.inplanes = width  # torchvision fixes the stem's channels at 64
            layer: nn.Module = super()._make_layer(block, planes * width // 64, *args, **kwargs)
            return layer

    kind = getattr(resnet, block)
    model: nn.Module = CifarResNet(kind, list(stages))
    model.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
    model.bn1 = nn.BatchNorm2d(width)
    model.maxpool = nn.Identity()
    model.fc = nn.Linear(8 * width * kind.expansion, classes)
    for conv in model.modules() if kernel != 3 else ():
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
            conv.kernel_size, conv.padding = (kernel, kernel), (kernel // 2, kernel // 2)
            conv.weight = nn.Parameter(
                conv.weight.new_empty(*conv.weight.shape[:2], kernel, kernel)
            )
    if width < _NARROWEST:
        for module in model.modules():
            if isinstance(module, kind) and module.downsample is not None:
                module.downsample = _subsampled(*module.downsample)
    return model


def _subsampled(conv: nn.Conv2d, norm: nn.Module) -> nn.Module:
    """A shortcut's strided 1×1 as a subsampling and a 1×1: the same function and state dict."""
    stride, conv.stride = conv.stride, (1, 1)
    pool = nn.MaxPool2d(1, stride) if stride != (1, 1) else nn.Identity()
    return nn.Sequential(OrderedDict({"pool": pool, "0": conv, "1": norm}))


def _vgg16_bn(width: int, classes: int) -> nn.Module:
    vgg = torchvision().models.vgg
    channels = [c if c == "M" else c * width // 64 for c in vgg.cfgs["D"]]
    layers = {
        "features": vgg.make_layers(channels, batch_norm=True),
        "flatten": nn.Flatten(),  # five poolings have left one pixel
        "classifier": nn.Linear(8 * width, classes),
    }
    return nn.Sequential(OrderedDict(layers))


class _WideBlock(nn.Module):
    """Batch-norm and ReLU, then a 3×3, twice, and a shortcut (Zagoruyko & Komodakis, 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            if inputs < _NARROWEST:
                self.shortcut = _subsampled(self.shortcut, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        inner = self.conv2(F.relu(self.bn2(self.conv1(active))))
        # As published, the activation is shared with a shortcut that has a convolution.
        passed: Tensor = self.shortcut(x if isinstance(self.shortcut, nn.Identity) else active)
        return inner + passed


def _wide_resnet16_4(width: int, classes: int) -> nn.Module:
    stem = max(1, width // 4)
    layers: dict[str, nn.Module] = {"conv1": nn.Conv2d(3, stem, 3, padding=1, bias=False)}
    inputs = stem
    for stage, (outputs, stride) in enumerate(((width, 1), (2 * width, 2), (4 * width, 2)), 1):
        layers[f"layer{stage}"] = nn.Sequential(
            _WideBlock(inputs, outputs, stride), _WideBlock(outputs, outputs, 1)
        )
        inputs = outputs
    layers |= {
        "bn": nn.BatchNorm2d(inputs), "relu": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(), "fc": nn.Linear(inputs, classes),
    }  # fmt: skip
    return nn.Sequential(OrderedDict(layers))


def _mobilenet_v2(width: int, classes: int) -> nn.Module:
    # Expansion, channels, blocks, stride (Sandler et al., 2018, table 2), the first 2 made 1.
    stages = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
              (6, 160, 3, 2), (6, 320, 1, 1)]  # fmt: skip
    model: nn.Module = torchvision().models.MobileNetV2(
        classes, width / 64, [list(stage) for stage in stages], dropout=0.0
    )
    features: Any = model.features
    features[0][0].stride = (1, 1)
    return model


def _convnext_pico(width: int, classes: int) -> nn.Module:
    convnext = torchvision().models.convnext
    channels = [width, 2 * width, 4 * width, 8 * width, None]
    stages = [
        convnext.CNBlockConfig(*ends, blocks)
        for *ends, blocks in zip(channels, channels[1:], (2, 2, 6, 2), strict=False)
    ]
    model: nn.Module = convnext.ConvNeXt(stages, num_classes=classes)
    features: Any = model.features
    features[0][0] = nn.Conv2d(3, width, 2, 2)
    return model


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet18": partial(_resnet, "BasicBlock", (2, 2, 2, 2)),
    "resnet18_5x5": partial(_resnet, "BasicBlock", (2, 2, 2, 2), kernel=5),
    "resnet18_7x7": partial(_resnet, "BasicBlock", (2, 2, 2, 2), kernel=7),
    "resnet50": partial(_resnet, "Bottleneck", (3, 4, 6, 3)),
    "vgg16_bn": _vgg16_bn,
    "wide_resnet16_4": _wide_resnet16_4,
    "mobilenet_v2": _mobilenet_v2,
    "convnext_pico": _convnext_pico,
}


def initialise(model: nn.Module, seed: int) -> None:
    """Draw every layer's weights from a stream keyed by (seed, layer name).

    Networks that share a layer's name and shape share its initial weights, whatever the rest.
    """
    for name, module in model.named_modules():
        initialise_layer(module, generator(seed, "weights", name))


def initialise_layer(module: nn.Module, stream: torch.Generator) -> None:
    """Draw one layer's weights; modules without weights of their own are skipped.

    Convolutions as torchvision's ResNet does (He et al., 2015: variance 2 / (C_out · k²)), a
    basis layer so that its product has that variance, both with biases of zero, linear layers as
    PyTorch does.
    """
    if isinstance(module, nn.Conv2d):
        with torch.no_grad():
            module.weight.normal_(0, _he_std(module), generator=stream)
    elif isinstance(module, BasisConv2d):
        module.reset_parameters(std=_he_std(module), generator=stream)
    elif isinstance(module, nn.Linear):
        bound = module.in_features**-0.5
        with torch.no_grad():
            module.weight.uniform_(-bound, bound, generator=stream)
            module.bias.uniform_(-bound, bound, generator=stream)
    elif isinstance(module, nn.BatchNorm2d):
        module.reset_parameters()
    if isinstance(module, nn.Conv2d | BasisConv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _he_std(conv: nn.Conv2d | BasisConv2d) -> float:
    return math.sqrt(2 / (conv.out_channels // conv.groups * math.prod(conv.kernel_size)))

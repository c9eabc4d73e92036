"""A small network with a convolution of every kind, and pictures of models."""

from __future__ import annotations

import torch
from torch import nn


class Labelled(nn.Conv2d):
    """A subclass that leaves forward alone: as good as any nn.Conv2d."""


def network() -> nn.Module:
    """Stem, plain, strided, grouped, depthwise and 1×1 convolutions, with a shared module."""
    torch.manual_seed(0)
    body = nn.Sequential()
    body.plain = nn.Conv2d(8, 12, 3, padding=1, bias=False)
    body.norm = nn.BatchNorm2d(12)
    body.strided = Labelled(12, 16, 3, stride=2, padding=1)
    body.grouped = nn.Conv2d(16, 20, 3, padding=1, groups=4)
    body.depthwise = nn.Conv2d(20, 20, 3, padding=1, groups=20)
    body.pointwise = nn.Conv2d(20, 8, 1)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), body, nn.ReLU(), body.plain).eval()


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Frozen:
    """A picture of a model, to show that it was not touched: modules, values, modes."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.state = {n: (v, v.clone()) for n, v in model.state_dict(keep_vars=True).items()}
        self.text = repr(model)

    def same(self, model: nn.Module) -> bool:
        now = model.state_dict(keep_vars=True)
        return (
            self.modules == dict(model.named_modules(remove_duplicate=False))
            and self.text == repr(model)
            and now.keys() == self.state.keys()
            and all(now[n] is v and torch.equal(v, was) for n, (v, was) in self.state.items())
        )

"""The peers compute what they are said to, at the size that they are said to have."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

import basisconv as bc
from basisconv.study.timing import peers
from basisconv.study.timing.peers import cp, sequential, tucker

CONV = nn.Conv2d(12, 20, 3, stride=2, padding=1, bias=False)
X = torch.randn(2, 12, 9, 9)


@pytest.mark.parametrize("make", [sequential, tucker, cp])
def test_a_peer_has_the_layers_shape_and_gradients(make: peers.Peer) -> None:
    torch.manual_seed(0)
    layer = make(CONV, 5)
    assert layer(X).shape == CONV(X).shape
    layer(X).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)
    assert any(p.grad is not None for p in layer.parameters())


def test_sequential_and_tucker_are_of_the_basis_layers_rank() -> None:
    torch.manual_seed(0)
    basis = bc.BasisConv2d.from_conv2d(CONV, 5, form="full")
    counts = [sum(p.numel() for p in layer.parameters()) for layer in (sequential(CONV, 5), basis)]
    assert counts[0] == counts[1]
    for make in (sequential, tucker):
        weight = effective_kernel(make(CONV, 5))
        assert torch.linalg.matrix_rank(weight, rtol=1e-4) == 5


def effective_kernel(layer: nn.Module) -> torch.Tensor:
    """(20, 12 · 9): the kernel of a stride-2 layer, from images with a single pixel set."""
    columns = []
    for c in range(12):
        for i in range(3):
            for j in range(3):
                # Output (1, 1) looks at rows and columns 1 to 3.
                image = torch.zeros(1, 12, 5, 5)
                image[0, c, 1 + i, 1 + j] = 1
                columns.append(layer(image)[0, :, 1, 1].detach().double())
    return torch.stack(columns, dim=1)


def test_the_kernels_are_read_off_rightly() -> None:
    torch.testing.assert_close(
        effective_kernel(CONV), CONV.weight.detach().flatten(1).double(), rtol=1e-5, atol=1e-6
    )


def test_cp_has_the_subset_forms_parameters_to_within_a_rank() -> None:
    conv = nn.Conv2d(64, 64, 3, bias=False)
    subset = bc.BasisConv2d.from_conv2d(conv, 16)
    ours, theirs = (sum(p.numel() for p in layer.parameters()) for layer in (subset, cp(conv, 16)))
    assert ours == 16 * 64 * 9 + 48 * 16
    assert abs(theirs - ours) < 64 + 64 + 3 + 3 + 1 + 75  # and CP's own 74 weights


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tltorch", None)
    found, left_out = peers.peers()
    assert list(found) == ["conv, 1×1"]
    assert len(left_out) == 1 and "pip install tensorly-torch" in left_out[0]
    monkeypatch.undo()
    found, left_out = peers.peers()
    assert len(found) == 3 and not left_out

"""Batches, passes that change nothing, and moments of what layers compute."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basisconv.responses import moments as moments_module
from basisconv.responses.batches import forward_pass, take_batches
from basisconv.responses.followers import Followers, channel_weights
from basisconv.responses.moments import Moments

X = torch.randn(12, 3, 9, 7, generator=torch.Generator().manual_seed(1))


# Data.


def loader() -> Iterator[tuple[Tensor, Tensor]]:
    for i in range(10**9):
        yield torch.full((4, 3, 9, 7), float(i)), torch.zeros(4)


def test_an_endless_loader_is_cut_with_a_warning_and_one_batch_more_is_read() -> None:
    read: list[int] = []

    def counted() -> Iterator[Any]:
        for i, batch in enumerate(loader()):
            read.append(i)
            yield batch

    with pytest.warns(UserWarning, match="8 in 2 batches"):
        taken = take_batches(counted(), 8)
    assert [b.positional[0].mean().item() for b in taken] == [0.0, 1.0] and len(read) == 3


def test_a_batch_that_is_too_large_is_cut_or_left() -> None:
    with pytest.warns(UserWarning, match="10 in 3 batches"):
        taken = take_batches(loader(), 10)
    assert [len(b.positional[0]) for b in taken] == [4, 4, 2]
    with pytest.warns(UserWarning, match="8 in 1 batches"):
        (batch,) = take_batches(({"x": X[:8], "k": 1} for _ in range(3)), 10)
    assert batch.named["k"] == 1 and not batch.positional
    with pytest.warns(UserWarning, match="12 in 1 batches"):
        held = take_batches(([X], "more"), 12, lambda model, batch: model(batch[0]))[0]
    assert held[0] is X


def test_exactly_as_many_as_there_are_is_no_reason_to_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in (X, [X], [X[:6], (X[6:],)], {"x": X}, [[{"x": X}, 3]], iter([X])):
            taken = take_batches(data, 12)
            again = take_batches(taken, 12)  # what was taken may be given again
            assert taken and all(a is b for a, b in zip(again, taken, strict=True))


@pytest.mark.parametrize(
    ("data", "samples", "error", "match"),
    [
        ([], 4, ValueError, "no batch"),
        (None, 4, TypeError, "iterable"),
        ("text", 4, TypeError, "iterable"),
        ([3], 4, TypeError, "forward="),
        ([()], 4, TypeError, "forward="),
        ([{1: X}], 4, TypeError, "forward="),
        ([{"x": X}], 4, ValueError, "first batch has more"),
        ([X], 0, ValueError, "samples=0"),
        ([X], 2.5, ValueError, "samples=2.5"),
    ],
)
def test_data_of_no_use(data: Any, samples: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        take_batches(data, samples)


def test_taking_draws_nothing_from_the_random_streams() -> None:
    def draw() -> Iterator[Tensor]:
        random.random(), np.random.rand()
        yield torch.rand(2, 3, 4, 4)

    was = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    take_batches(draw(), 2)
    assert torch.equal(torch.get_rng_state(), was[0])
    assert random.getstate() == was[1] and np.random.get_state()[1].tolist() == was[2]


# Moments.


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("chunk", [1, 700, 2**26])
def test_moments_are_those_of_all_positions(
    groups: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments_module, "CHUNK", chunk)
    moments, seen = Moments(groups), []
    for n, h, w in ((3, 5, 4), (1, 7, 1), (2, 1, 1)):
        # Means a thousand times the deviation: sums of squares about zero lose digits here.
        y = (torch.randn(n, 6, h, w) + 1000).to(memory_format=torch.channels_last)
        pair = y, torch.randn(n, 6, h, w) + y
        moments.add(*pair)
        seen.append(torch.stack([s.double().transpose(0, 1).flatten(1) for s in pair]))
    moments.add(*(s.squeeze(0) for s in (y[:1], pair[1][:1])))  # a sample without a batch
    seen.append(seen[-1][:, :, :1])
    values = torch.cat(seen, 2)  # (2, 6, positions)
    torch.testing.assert_close(moments.mean(), values.mean(2), rtol=1e-12, atol=0)
    assert moments.count == values.shape[2]
    want = torch.cov(values.flatten(0, 1), correction=0).view(2, 6, 2, 6)
    got, c = moments.covariance(), 6 // groups
    for g in range(groups):
        block = slice(g * c, g * c + c)
        torch.testing.assert_close(
            got[:, :, g], want[:, block, :, block].permute(0, 2, 1, 3), rtol=1e-10, atol=1e-10
        )


def test_autocast_does_not_reach_the_moments() -> None:
    y, plain, mixed = torch.randn(4, 5, 6, 6), Moments(1), Moments(1)
    plain.add(y)
    with torch.autocast("cpu", torch.bfloat16):
        mixed.add(y)
    assert torch.equal(plain.covariance(), mixed.covariance())


# Passes.


class Noisy(nn.Module):
    """Draws, counts, writes to its input and catches what it can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x.mul_(2)
        try:
            y = self.conv(x + random.random() + float(np.random.rand()))
        except Exception:
            y = self.conv(x)
        return self.bn(y + torch.rand_like(y))


def test_a_pass_can_be_repeated_and_leaves_nothing_behind() -> None:
    model = Noisy().train()
    model.bn.eval()
    model.conv.register_forward_hook(lambda m, a, y: y + 1)
    was = {n: v.clone() for n, v in model.state_dict().items()}
    streams = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    (batch,) = take_batches(X, 12)
    x = X.clone()
    seen: list[Tensor] = []
    hooks = {model.conv: lambda args, output: seen.append(output)}
    with torch.inference_mode():
        one = forward_pass(model, batch, None, hooks, 3)
    two = forward_pass(model, X, lambda m, b: m(b), hooks, 3)
    assert torch.equal(one, two) and not one.is_inference()
    assert not torch.equal(one, forward_pass(model, batch, None, {}, 4))
    # Before the user's own hook, which adds one.
    torch.testing.assert_close(seen[0].mean(), seen[1].mean())
    assert torch.equal(X, x) and model.training and not model.bn.training and model.calls == 0
    assert all(torch.equal(v, was[n]) for n, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), streams[0]) and random.getstate() == streams[1]
    assert np.random.get_state()[1].tolist() == streams[2]
    assert len(model.conv._forward_hooks) == 1


# Followers and weights.


class Wired(nn.Module):
    """Which of its convolutions a batch-norm follows is in its forward pass alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.c, self.d, self.e = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.bn, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)
        self.batch = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.a(x))
        y = y + self.bn(F.relu(self.b(x), inplace=True))  # the same tensor with other values
        y = y + self.other(self.c(x)) + self.bn(self.c(x))
        return y + self.bn(self.d(x)) + self.d(x) + self.batch(self.e(x))


def test_followers_are_what_gets_the_output_itself() -> None:
    model = Wired()
    followers = Followers(model, {name: model.get_submodule(name) for name in "abcde"})
    forward_pass(model, X, None, followers.hooks())
    assert followers.of("a", 4) == [model.bn] and followers.of("c", 4) == [model.other, model.bn]
    assert all(followers.of(name, 4) == [] for name in "bde")


def test_weights_of_channels() -> None:
    one, two = nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False)
    one.weight.data = torch.tensor([-2.0, 1e-9, 1.0])
    one.running_var = torch.tensor([4.0, 1.0, 0.25])
    got = channel_weights([one], 3)
    torch.testing.assert_close(got, torch.tensor([1.0, 2e-3, 2.0]).double(), rtol=1e-4, atol=0)
    both = channel_weights([one, two], 3)
    want = torch.tensor([1.0, 0.5**0.5, 2.5**0.5]).double()
    torch.testing.assert_close(both, want, rtol=1e-4, atol=0)
    one.weight.data.zero_()
    assert channel_weights([one], 3).eq(1).all() and channel_weights([], 3).eq(1).all()

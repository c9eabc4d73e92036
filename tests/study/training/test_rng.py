from __future__ import annotations

import itertools

import torch

from basisconv.study.training.rng import generator


def draw(*key: str | int) -> tuple[int, ...]:
    seed, *purpose = key
    assert isinstance(seed, int)
    return tuple(torch.randint(2**31, (4,), generator=generator(seed, *purpose)).tolist())


def test_one_key_is_one_stream():
    assert draw(3, "order", 7) == draw(3, "order", 7)


def test_keys_that_read_alike_are_different_streams():
    keys = [
        (0,),
        (1,),
        (0, "order"),
        (0, "order", 1),
        (0, "order", "1"),
        (0, "order1"),
        (0, "order", 1, 1),
        (0, "order", 11),
        (0, '"order", 1'),
        (1, "order", 0),
        (0, "or", "der"),
        (0, ""),
        (0, "Ordnung", "größe"),
    ]
    for a, b in itertools.combinations(keys, 2):
        assert draw(*a) != draw(*b), (a, b)


def test_streams_of_neighbouring_seeds_are_uncorrelated():
    rows = torch.stack(
        [torch.randn(2000, generator=generator(seed, "order")) for seed in range(20)]
    )
    correlation = torch.corrcoef(rows) - torch.eye(20)
    assert correlation.abs().max() < 5 / 2000**0.5


def test_drawing_from_one_stream_shifts_no_other():
    first = draw(0, "b")
    torch.manual_seed(99)
    one = generator(0, "a")
    torch.rand(100, generator=one)
    assert draw(0, "b") == first


def test_streams_stay_what_published_records_were_made_with():
    assert draw(0, "order", 0) == GOLDEN


GOLDEN = (48050990, 1280237159, 1722104295, 503697079)

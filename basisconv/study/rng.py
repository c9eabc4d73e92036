"""Random streams by name: what is drawn for one purpose never shifts what another one gets."""

from __future__ import annotations

import hashlib
import json

import torch


def generator(
    seed: int, *purpose: str | int, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A generator keyed by a seed and a purpose, say `generator(0, "order", epoch)`.

    Two arms with one seed share every stream whose purpose they share, whatever else either of
    them draws, and so they are paired.

    Args:
        seed: the Run's seed.
        purpose: what the stream is for. 1 and "1" are two purposes.
        device: where the generator lives. Generators of two devices give different numbers.
    """
    key = json.dumps([seed, *purpose]).encode()
    return torch.Generator(device).manual_seed(
        int.from_bytes(hashlib.sha256(key).digest()[:8], "big")
    )

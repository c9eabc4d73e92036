"""Random streams by purpose: draws for one purpose never shift those for another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A generator keyed by a seed and a purpose, say `generator(0, "order", epoch)`.

    Two arms with the same seed have the same streams, whatever else they draw: they are paired.

    Args:
        seed: the Run's seed.
        purpose: what the stream is for. 1 and "1" are two purposes.
    """
    key = json.dumps([seed, *purpose]).encode()
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:8], "big"))


def seed_global_streams(seed: int) -> None:
    """Seed torch's own generators, which layers such as dropout use."""
    torch.manual_seed(generator(seed, "torch").initial_seed())


def global_streams() -> dict[str, Tensor]:
    """The states of torch's own generators by device type: the CPU's, and CUDA's current one."""
    streams = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        streams["cuda"] = torch.cuda.get_rng_state()
    return streams


def restore_global_streams(streams: Mapping[str, Tensor]) -> None:
    """Set torch's own generators, as far as this machine has them.

    Raises:
        ValueError: if one of them is not a state.
    """
    try:
        torch.set_rng_state(streams["cpu"])
        if torch.cuda.is_available() and "cuda" in streams:
            torch.cuda.set_rng_state(streams["cuda"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"These are not the states of generators: {error}.") from error

"""What every test stands on: no network, no display, the same examples at every run."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

os.environ["MPLBACKEND"] = "Agg"
# In the background of a script Ctrl-C is ignored, here and in every process that a test starts;
# those that test it would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The examples are a function of the test, so that a red run can be repeated. `explore` looks
# for new ones: pytest --hypothesis-profile=explore.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Training sets the Run's threads for the whole process."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that reaches beyond this machine fails, wherever it is run."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host not in ("localhost", "127.0.0.1", "::1"):
            raise AssertionError(f"A test tried to connect to {address}: fake the boundary.")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield


@pytest.fixture
def process_group() -> Iterator[None]:
    """A distributed process group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()

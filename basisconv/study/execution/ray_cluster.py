"""A connection to a Ray cluster: an existing one, or a new one on this machine alone."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from tempfile import TemporaryDirectory
from typing import Any

from basisconv.study.records.environment import ROOT, environment

# Records are some kilobytes; by default Ray reserves a third of the memory for results.
_OBJECT_STORE_BYTES = 100 * 2**20


def import_ray() -> Any:
    """The module `ray`.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    before = logging.root.manager.disable
    logging.disable(logging.INFO)  # imported in a notebook, Ray asks for widgets
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
            import ray.exceptions
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"executor='ray' needs Ray ({error}): pip install '.[ray]', or train with "
            "executor='local'."
        ) from error
    finally:
        logging.disable(before)
    return ray


@contextmanager
def ray_cluster(ray: Any) -> Iterator[None]:
    """A connection to a cluster: an existing one, the one at $RAY_ADDRESS, or a new one.

    A new one is of this machine alone, ends with the context, and writes to a temporary folder.

    Raises:
        ConnectionError: if there is no cluster at $RAY_ADDRESS.
        RuntimeError: if a new one does not start.
    """
    if ray.is_initialized():
        yield
        return
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get("RAY_ADDRESS") or "local"
    with ExitStack() as stack:
        # Ray prints what it says of restarted tasks.
        stack.enter_context(redirect_stdout(sys.stderr))
        with _sigterm_handler_kept():
            if address != "local":
                stack.callback(ray.shutdown)
                package = {
                    "py_modules": [str(ROOT / "basisconv")],
                    "env_vars": {"BASISCONV_COMMIT": environment()["commit"]},
                }
                ray.init(address, runtime_env=package, **quiet)
            else:
                # Without this, Ray keeps a token of its own making in the user's home.
                if "RAY_AUTH_TOKEN" not in os.environ:
                    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
                    stack.callback(os.environ.pop, "RAY_AUTH_TOKEN", None)
                folder = TemporaryDirectory(
                    prefix="ray-", dir=os.environ.get("RAY_TMPDIR"), ignore_cleanup_errors=True
                )
                _temp_dir = stack.enter_context(folder)
                # Its processes write there to their end.
                stack.callback(ray.shutdown, wait_for_processes=True)
                try:
                    ray.init(
                        "local", _temp_dir=_temp_dir, include_dashboard=False,
                        object_store_memory=_OBJECT_STORE_BYTES, **quiet,
                    )  # fmt: skip
                except Exception as error:  # Ray's own class, when a busy machine takes too long
                    raise RuntimeError(f"Ray did not start on this machine: {error}") from error
        yield


@contextmanager
def _sigterm_handler_kept() -> Iterator[None]:
    """Ray sets a handler of its own when it is started."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)

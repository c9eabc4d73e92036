"""Ray itself: loaded when it is asked for, and a cluster to work on that leaves nothing behind."""

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

# Records are some kilobytes; Ray would set a third of the memory aside for what its tasks return.
_OBJECT_STORE_BYTES = 100 * 2**20


def import_ray() -> Any:
    """The module `ray`.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    try:
        with _silenced():
            import ray
            import ray.exceptions
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"executor='ray' needs Ray ({error}): pip install '.[ray]', or train with "
            "executor='local'."
        ) from error
    return ray


@contextmanager
def ray_cluster(ray: Any) -> Iterator[None]:
    """A connection to a cluster: the one that there is, the one at $RAY_ADDRESS, or a new one.

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
        # What Ray has to say of tasks that it begins again, it prints.
        stack.enter_context(redirect_stdout(sys.stderr))
        with _sigterm_kept():
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
def _silenced() -> Iterator[None]:
    """As it is loaded in a notebook, Ray asks for widgets, which nothing here shows."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray sets a handler of its own when it is started."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)

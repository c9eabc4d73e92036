"""torchvision, even if it and torch were built for different devices.

PyPI's torchvision is built for CUDA. With a CPU build of torch its operators do not load, and its
import fails with "operator torchvision::nms does not exist". Models and datasets need none of the
operators, only their declarations. Nothing is done where the plain import succeeds.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from types import ModuleType

import torch

from basisconv.study.records.environment import UnsuitableMachine

# The operators that torchvision's import names. Calling one still fails.
_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_MISSING = re.compile(r"operator torchvision::\w+ does not exist")


class MissingTorchvision(UnsuitableMachine, ImportError):
    """torchvision is not installed, or does not fit the torch that is."""


@functools.cache
def torchvision() -> ModuleType:
    """The module torchvision, imported at the first call.

    Raises:
        MissingTorchvision: if it is not installed, or does not fit the torch that is; the sentence
            says what to install.
    """
    try:
        return _import()
    except ModuleNotFoundError as error:
        raise MissingTorchvision(
            f"No {error.name} here, which the study's networks and data need: "
            "pip install 'basisconv[study]'."
        ) from error
    except RuntimeError as error:
        if not _MISSING.search(str(error)):
            raise
    _declare()
    try:
        return _import()
    except RuntimeError as error:
        raise MissingTorchvision(
            f"torchvision does not fit torch {torch.__version__}: {error}. Install a matching "
            "pair: pip install 'basisconv[study]'."
        ) from error


def _import() -> ModuleType:
    try:
        return importlib.import_module("torchvision")
    except BaseException:
        # The next import would find what this one has left behind.
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        raise


@functools.cache
def _declare() -> torch.library.Library:
    """Declare the operators. Cached, for they are gone once the returned object is."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + schema)
    return library

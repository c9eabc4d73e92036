"""How long a network's forward pass takes, relative to the dense one: eager or in onnxruntime."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from basisconv.timing import compare

RuntimeName = Literal["eager", "onnxruntime"]


class Time(NamedTuple):
    """Time relative to dense: median over turns, and its quartiles."""

    median: float
    low: float
    high: float


def missing(packages: Iterable[str]) -> list[str]:
    """Those of some modules that are not installed."""
    return [name for name in packages if find_spec(name) is None]


def available(runtime: RuntimeName) -> RuntimeName:
    """The runtime, or eager where onnxruntime or what exports to it is not installed."""
    return "eager" if missing(("onnx", "onnxscript", "onnxruntime")) else runtime


class Stopwatch:
    """Times networks against the dense one, the two interleaved.

    Args:
        dense: the network that takes 1.
        images: a batch, (n, c, h, w).
        runtime: "eager", or "onnxruntime" for exported models.
        repeats: turns.
        threads: of onnxruntime; eager has torch's own.

    Raises:
        ImportError: if onnxruntime or what exports to it is not installed, and wanted.
    """

    def __init__(
        self, dense: nn.Module, images: Tensor, runtime: RuntimeName, repeats: int, threads: int
    ) -> None:
        self.images, self.runtime = images, runtime
        self._repeats, self._threads = repeats, threads
        self._dense = self._call(dense)

    def time(self, model: nn.Module) -> Time:
        """A network's time."""
        arms = {"dense": self._dense, "model": self._call(model)}
        with torch.inference_mode():
            timings = compare(arms, self._repeats)
        faster, low, high = timings["model"].speedup_over(timings["dense"])
        return Time(1 / faster, 1 / high, 1 / low)

    def _call(self, model: nn.Module) -> Callable[[], object]:
        model, images = model.eval(), self.images
        if self.runtime == "eager":
            return lambda: model(images)
        session = session_of(model, images, self._threads)
        given = {"images": images.contiguous().numpy()}
        return lambda: session.run(None, given)


def session_of(model: nn.Module, images: Tensor, threads: int) -> Any:
    """An onnxruntime session of a network, for batches of this shape.

    Raises:
        ImportError: as `Stopwatch`.
    """
    import onnxruntime

    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, (images,), input_names=["images"], dynamo=True)
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

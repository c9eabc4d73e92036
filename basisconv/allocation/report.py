"""How `search` came to a plan: what each layer costs, saves and loses, predicted and measured."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from basisconv.timing import Timing, duration


@dataclass(frozen=True)
class LayerChoice:
    """One candidate of a search.

    Attributes:
        name: the layer's name.
        filters: its outputs.
        n_basis: chosen; None for dense.
        dense: its cost dense, in the budget's unit.
        cost: its cost as chosen.
        loss: its predicted share of the plan's loss; 0 dense.
    """

    name: str
    filters: int
    n_basis: int | None
    dense: float
    cost: float
    loss: float


@dataclass(frozen=True)
class SearchReport:
    """Print it.

    Attributes:
        budget: what was asked for, as "time=0.6".
        layers: the candidates, in the model's order.
        dense: cost of the whole dense network: seconds of a forward pass, MACs or parameters.
        predicted: cost of the plan, in the same unit.
        ratio: measured time of the plan relative to dense; None where nothing was timed.
        timings: of a forward pass of dense and of the plan; None where they were not timed here.
        threads: of torch on the CPU, when the search ran.
        shape: of the input, its first tensor's; None where it has none.
        device: that the network is on, and its dtype.
        unfitted: how far the network's outputs change, relative to their variance, when the plan's
            layers are only cut to the directions of their responses with most energy, on batches
            held out of all else; None with one batch alone, or without outputs of real numbers. It
            compares plans. What is left after a fit is far less: `fit_report.output` of what
            `apply_plan(..., init="responses")` returns.
    """

    budget: str
    layers: tuple[LayerChoice, ...]
    dense: float
    predicted: float
    ratio: float | None
    timings: tuple[Timing, Timing] | None
    threads: int
    shape: tuple[int, ...] | None
    device: str
    unfitted: float | None

    def __str__(self) -> str:
        head = ("layer", "filters", "n_basis", "dense", "cost", "saved", "loss")
        rows = [
            (row.name, f"{row.filters}", "dense" if row.n_basis is None else f"{row.n_basis}",
             self._amount(row.dense), self._amount(row.cost),
             f"{1 - row.cost / row.dense:.0%}" if row.dense else "", f"{row.loss:.3g}")
            for row in self.layers
        ]  # fmt: skip
        loss = math.fsum(row.loss for row in self.layers)
        saved = f"{1 - self.predicted / self.dense:.0%}" if self.dense else ""
        total = ("network", "", "", self._amount(self.dense), self._amount(self.predicted), saved,
                 f"{loss:.3g}")  # fmt: skip
        table = [head, *rows, total]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [_line(row, widths) for row in table]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], *self._sentences()])

    def _sentences(self) -> Iterable[str]:
        yield f"budget {self.budget}, predicted {self.predicted / self.dense:.3f} of dense"
        if self.timings is not None:
            dense, plan = self.timings
            for name, timing in (("dense", dense), ("plan", plan)):
                low, high = map(duration, timing.quartiles)
                yield f"measured {name}: {duration(timing.median)} [{low}, {high}]"
        if self.ratio is not None:
            yield f"measured {self.ratio:.3f} of dense's time"
        shape = "" if self.shape is None else f", input {self.shape}"
        yield f"{self.device}, {self.threads} threads{shape}"
        if self.unfitted is not None:
            yield (
                f"held-out batches: before any fit the outputs change by {self.unfitted:.2%} of "
                f"their variance; fit_report has what is left after one"
            )

    def _amount(self, value: float) -> str:
        return duration(value) if self.budget.startswith("time") else f"{value:,.0f}"


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    first, *others = zip(row, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])

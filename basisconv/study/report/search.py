"""07_search: which layers hurt, estimated from all runs of a screening design at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from basisconv.effects import Effects, Estimate
from basisconv.study.experiments.search import screened_effects
from basisconv.study.records.run import Record, Section
from basisconv.study.report import search_methods, style, text
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.tables import count, interval, make_table, words


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """What each layer costs with its fewest filters, by the model of `basisconv.effects`."""
    found = screened_effects(list(section.arms), records)
    layers = layer_frame(found)
    facts = section.facts
    runs = [arm for arm in section.arms if arm.detail.get("part") == "screening"]
    levels = text.listed([text.share(level) for level in facts["levels"][1:]])
    design = (
        f"{len(runs)} networks trained for {text.epochs(facts['epochs'])}, each layer dense or "
        f"with {levels} of its filters, in {text.plural(facts['blocks'], 'block')} of a seed each"
    )
    report = Report(
        section.name,
        section.profile,
        tables={
            "search_layers": make_table(
                layers,
                [words("layer", "layer"), count("fewest filters", "n_basis"),
                 interval("rise of loss (%)", "rise", 1, True)],
                f"What a layer with the fewest filters costs by screening: {design}. Rise of the "
                "last-step validation cross-entropy with its 95 % interval; layers are shrunk to "
                "their common mean as far as the noise asks for.",
            )
        },
        figures={
            "search": Plot(
                _figure(layers, found), layers,
                f"Layers in forward order: the rise of validation loss with the fewest filters, "
                f"estimated from {design}; 95 % intervals, and the mean of all layers (line).",
            )
        },
        numbers={
            "values": _values(found, len(runs)), "headline": _headline(found, len(runs)),
        },
    )  # fmt: skip
    if "scores" in facts:
        _add_methods(report, section, records, found)
    return report


def _add_methods(
    report: Report, section: Section, records: Mapping[str, Record], found: Effects
) -> None:
    """Add what each way to score layers predicts and chooses, once these were trained."""
    seen = search_methods.subsets(section, records)
    limit = search_methods.ceiling(section, records, seen)
    table = search_methods.method_frame(section, records, found)
    report.tables["search_methods"] = search_methods.method_table(section, table, limit)
    report.figures["search_methods"] = search_methods.method_plot(table, limit)
    report.numbers["values"] |= search_methods.method_values(table, limit, len(seen.losses))


def layer_frame(found: Effects) -> pd.DataFrame:
    """One row a layer: the rise of loss in per cent, with its interval, at its fewest filters."""
    return pd.DataFrame(
        {"layer": name, "n_basis": min(found.shape[name]), "rise": _percent(e.value),
         "rise_low": _percent(e.low), "rise_high": _percent(e.high)}
        for name, e in found.layers.items()
    )  # fmt: skip


def _percent(rise: float) -> float:
    """A rise of log loss as per cent of the loss."""
    return 100 * math.expm1(rise)


def _figure(layers: pd.DataFrame, found: Effects) -> Figure:
    drawn = style.figure(6.9, 2.4)
    axes = drawn.add_subplot()
    places = range(len(layers))
    axes.axhline(0, color=style.INK, linewidth=0.6)
    axes.axhline(_percent(found.common.value), color=style.look("basis").colour, linewidth=0.8)
    style.intervals(
        axes, places, layers["rise"], layers["rise_low"], layers["rise_high"], "layer",
        line=False,
    )  # fmt: skip
    axes.set_xticks(list(places), layers["layer"], rotation=45, ha="right")
    axes.set_ylabel("rise of loss (%)")
    return drawn


def _headline(found: Effects, runs: int) -> str:
    most, e = max(found.layers.items(), key=lambda item: item[1].value)
    hurt = sum(e.low > 0 for e in found.layers.values())
    return (
        f"From {runs} networks, the interval of a layer's cost lies above none for "
        f"{text.amount(hurt)} of {len(found.layers)} layers; the largest rise of loss is that of "
        f"{most} ({_said(e)})."
    )


def _values(found: Effects, runs: int) -> dict[str, Any]:
    values = {
        "runs": text.count(runs),
        "common": _number(found.common, runs),
        "noise": text.number(100 * found.noise, n=runs, digits=1, unit=" %"),
        "spread": text.number(100 * found.spread, n=runs, digits=1, unit=" %"),
        "held out": text.number(100 * found.held_out, n=runs, digits=1, unit=" %"),
        "held out alike": text.number(100 * found.held_out_common, n=runs, digits=1, unit=" %"),
    }
    pairs = {kind: _number(e, runs) for kind, e in found.interactions.items()}
    return values | pairs


def _number(e: Estimate, runs: int) -> dict[str, Any]:
    ends = (_percent(e.value), _percent(e.low), _percent(e.high))
    return text.number(*ends, n=runs, digits=1, unit=" %", signed=True)


def _said(e: Estimate) -> str:
    return text.with_interval(
        _percent(e.value), _percent(e.low), _percent(e.high), 1, True, " %"
    )  # fmt: skip

"""00_method: what the decomposition is, whether it is exact, and what it should cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from basisconv.study.records.run import Record, Section
from basisconv.study.report import style, text
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.schematic import schematic
from basisconv.study.report.tables import cell, count, make_table, plain, words

_COUNTS = ("parameters", "macs")
_FORMS = ("dense", "subset", "full")


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """The schematic figure, each layer's cost, and how exact the decompositions are."""
    facts: dict[str, Any] = section.facts
    costs, exact = cost_frame(facts), pd.DataFrame(facts["exact"])
    ratio = float(facts["ratio"])
    where = f"{text.network(facts['network'])} of width {facts['width']} at f = {text.share(ratio)}"
    return Report(
        section.name,
        section.profile,
        tables={
            "method_costs": make_table(
                costs,
                [words("layer", "layer"), words("channels, output", "shape"),
                 plain("n_basis", "n_basis"), count("parameters", "parameters_dense"),
                 count("subset", "parameters_subset"), count("full", "parameters_full"),
                 cell("MACs (M)", "macs_dense", _millions),
                 cell("subset, by parameters", "macs_subset", _millions),
                 cell("executed", "macs_full", _millions)],
                f"Cost of one image in each layer of {where}. {text.MACS_BY_PARAMETERS}",
            ),
            "method_exactness": make_table(
                exact,
                [words("form", "form"), plain("n_basis", "n_basis"),
                 plain("rank of the kernel", "rank"),
                 cell("relative error", "relative_error", text.small),
                 cell("best possible", "best_relative_error", text.small)],
                "Relative error (Frobenius norm) of the kernel that the decomposition gives, "
                "and the least error that any kernel of that rank can have.",
            ),
        },
        figures={
            "method": Plot(
                schematic(), _ratios(),
                "The method. (a) A convolution has a filter for each output. (b) Its basis form "
                "trains m of them; a small matrix combines their outputs into all of the others. "
                "(c) The same as a product of matrices; in the subset form the basis filters are "
                "themselves outputs.",
            ),
            "method_costs": Plot(
                _cost_figure(costs), costs,
                f"What each layer of {where} holds and costs, dense and in the subset form: "
                "(a) parameters, (b) multiplications that are executed for one image, forward. "
                "A training step's ratio, as in the timings, is a little higher: the backward pass "
                "leaves out the gradient of the images.",
            ),
        },
        numbers=_numbers(facts, exact),
    )  # fmt: skip


def _millions(value: float) -> str:
    return f"{value / 1e6:.2f}"


def cost_frame(facts: Mapping[str, Any]) -> pd.DataFrame:
    """One row a layer in forward order, then the total of the whole network."""
    rows = []
    for layer in facts["layers"]:
        size = layer["output_size"]
        rows.append(
            {
                "layer": layer["name"],
                "shape": f"{layer['in_channels']}→{layer['out_channels']}, {size}×{size}",
                "n_basis": layer["n_basis"],
                **_flat(layer),
            }
        )
    rows.append({"layer": "network", "shape": "", "n_basis": None, **_flat(facts["totals"])})
    frame = pd.DataFrame(rows)
    frame["n_basis"] = frame["n_basis"].astype("Int64")
    return frame


def _flat(costs: Mapping[str, Any]) -> dict[str, int]:
    return {f"{what}_{form}": int(costs[what][form]) for what in _COUNTS for form in _FORMS}


def _ratios() -> pd.DataFrame:
    """What the schematic's formula gives for the shares of basis filters in use."""
    rows = [
        {
            "basis_share": f, "kernel_size": k,
            "macs_ratio_executed": f * (1 + 1 / k**2),
            "macs_ratio_by_parameters_subset": f + f * (1 - f) / k**2,
        }
        for k in (1, 3, 5)
        for f in (0.125, 0.25, 0.5)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _cost_figure(costs: pd.DataFrame) -> Figure:
    layers = costs[costs["layer"] != "network"]
    with style.drawing():
        made = style.figure(style.TWO_COLUMNS, 0.9 + 0.125 * len(layers))
        left, right = made.subplots(1, 2, sharey=True)
        _bars(left, layers, "parameters_dense", "parameters_subset", 1e6)
        _bars(right, layers, "macs_dense", "macs_full", 1e6)
        left.set_yticks(range(len(layers)), list(layers["layer"]))
        left.invert_yaxis()
        style.panel(left, "a", "parameters")
        style.panel(right, "b", "multiplications executed")
        left.set_xlabel("millions")
        right.set_xlabel("millions an image")
        style.legend_below(
            made,
            [
                Patch(facecolor="#D0D0D0", edgecolor="#8C8C8C", linewidth=0.6, label="dense"),
                Patch(facecolor=style.look("basis").colour, label="basis form"),
            ],
        )
    return made


def _bars(axes: Axes, layers: pd.DataFrame, dense: str, basis: str, unit: float) -> None:
    places = range(len(layers))
    axes.barh(
        places, layers[dense] / unit, height=0.78, color="#D0D0D0", edgecolor="#8C8C8C",
        linewidth=0.5,
    )  # fmt: skip
    changed = layers["n_basis"].notna()
    shown = [v / unit if c else 0.0 for v, c in zip(layers[basis], changed, strict=True)]
    axes.barh(places, shown, height=0.42, color=style.look("basis").colour)
    axes.grid(axis="y", visible=False)
    axes.margins(y=0.02)


def _numbers(facts: Mapping[str, Any], exact: pd.DataFrame) -> dict[str, Any]:
    totals = facts["totals"]
    ratio = {
        "parameters": totals["parameters"]["dense"] / totals["parameters"]["subset"],
        "macs": totals["macs"]["dense"] / totals["macs"]["full"],
    }
    values = {
        f"{what}_{form}": text.count(totals[what][form]) for what in _COUNTS for form in _FORMS
    }
    values |= {
        f"{what}_ratio": text.number(value, digits=2, unit="×") for what, value in ratio.items()
    }
    gap = float((exact["relative_error"] - exact["best_relative_error"]).abs().max())
    values["gap"] = {**text.number(gap, digits=2), "text": text.small(gap, 0)}
    where = f"{text.network(facts['network'])} of width {facts['width']}"
    headline = (
        f"At f = {text.share(facts['ratio'])} the basis form of {where} has "
        f"{values['parameters_ratio']['text']} fewer parameters and executes "
        f"{values['macs_ratio']['text']} fewer multiplications."
    )
    return {
        "values": values, "headline": headline, "notes": [],
        "where": where, "share": text.share(facts["ratio"]),
    }  # fmt: skip

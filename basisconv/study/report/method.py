"""00_method: what the decomposition is, whether it is exact, and what it should cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from basisconv.study.records.run import Record, Section
from basisconv.study.report import style, text
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.schematic import schematic
from basisconv.study.report.tables import cell, count, fixed, make_table, plain, words

_COUNTS = ("parameters", "macs")
_FORMS = ("dense", "subset", "full")


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """The schematic figure, each layer's cost, and how exact the decompositions are."""
    facts = section.facts
    costs, exact = cost_frame(facts), pd.DataFrame(facts["exact"])
    network = f"{text.network(facts['network'])} of width {facts['width']}"
    where = f"{network} at f = {text.share(facts['ratio'])}"
    return Report(
        section.name,
        section.profile,
        tables={
            "method_costs": make_table(
                costs,
                [words("layer", "layer"), words("channels, output", "shape"),
                 plain("n_basis", "n_basis"), count("parameters", "parameters_dense"),
                 count("subset", "parameters_subset"), count("full", "parameters_full"),
                 fixed("MACs (M)", lambda row: row.macs_dense / 1e6, 2),
                 fixed("subset, by parameters", lambda row: row.macs_subset / 1e6, 2),
                 fixed("executed", lambda row: row.macs_full / 1e6, 2)],
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
                "(a) parameters, (b) multiplications that are executed for one image, forward.",
            ),
        },
        numbers=_numbers(facts, exact, network),
    )  # fmt: skip


def cost_frame(facts: Mapping[str, Any]) -> pd.DataFrame:
    """One row a layer in forward order, then the total of the whole network."""
    rows = [
        {
            "layer": layer["name"],
            "shape": f"{layer['in_channels']}→{layer['out_channels']}, "
            f"{layer['output_size']}×{layer['output_size']}",
            "n_basis": layer["n_basis"], **_flat(layer),
        }
        for layer in facts["layers"]
    ]  # fmt: skip
    rows.append({"layer": "network", "shape": "", "n_basis": None, **_flat(facts["totals"])})
    return pd.DataFrame(rows).astype({"n_basis": "Int64"})


def _flat(costs: Mapping[str, Any]) -> dict[str, int]:
    return {f"{what}_{form}": int(costs[what][form]) for what in _COUNTS for form in _FORMS}


def _ratios() -> pd.DataFrame:
    """What the schematic's formula gives for the shares of basis filters in use."""
    rows = [
        (f, k, f * (1 + 1 / k**2), f + f * (1 - f) / k**2)
        for k in (1, 3, 5)
        for f in (0.125, 0.25, 0.5)
    ]
    columns = ["basis_share", "kernel_size", "macs_ratio_executed",
               "macs_ratio_by_parameters_subset"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _cost_figure(costs: pd.DataFrame) -> Figure:
    layers = costs[costs["layer"] != "network"]
    places = range(len(layers))
    made = style.figure(style.TWO_COLUMNS, 0.9 + 0.125 * len(layers))
    panels = made.subplots(1, 2, sharey=True)
    for axes, dense, basis in zip(
        panels, ("parameters_dense", "macs_dense"), ("parameters_subset", "macs_full"), strict=True
    ):
        changed = layers[basis].where(layers["n_basis"].notna(), 0)
        handles = [
            axes.barh(places, layers[dense] / 1e6, height=0.78, color="#D0D0D0",
                      edgecolor="#8C8C8C", linewidth=0.5, label="dense"),
            axes.barh(places, changed / 1e6, height=0.42, color=style.look("basis").colour,
                      label="basis form"),
        ]  # fmt: skip
        axes.grid(axis="y", visible=False)
        axes.margins(y=0.02)
    panels[0].set_yticks(places, list(layers["layer"]))
    panels[0].invert_yaxis()
    style.panel(panels[0], "a", "parameters")
    style.panel(panels[1], "b", "multiplications executed")
    panels[0].set_xlabel("millions")
    panels[1].set_xlabel("millions an image")
    style.legend_below(made, handles)
    return made


def _numbers(facts: Mapping[str, Any], exact: pd.DataFrame, network: str) -> dict[str, Any]:
    totals, share = facts["totals"], text.share(facts["ratio"])
    parameters, macs = totals["parameters"], totals["macs"]
    gap = float((exact["relative_error"] - exact["best_relative_error"]).abs().max())
    fewer, executed = (
        text.number(ratio, digits=2, unit="×")
        for ratio in (parameters["dense"] / parameters["subset"], macs["dense"] / macs["full"])
    )
    return {
        "values": {
            **{f"{k}_{form}": text.count(totals[k][form]) for k in _COUNTS for form in _FORMS},
            "parameters_ratio": fewer, "macs_ratio": executed,
            "gap": {**text.number(gap, digits=2), "text": text.small(gap, 0)},
        },
        "headline": f"At f = {share} the basis form of {network} has {fewer['text']} fewer "
        f"parameters and executes {executed['text']} fewer multiplications.",
        "where": network, "share": share,
    }  # fmt: skip

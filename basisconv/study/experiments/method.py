"""00: what is the decomposition, is it exact, and what should it cost?"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import nn

from basisconv.decompose import FORMS
from basisconv.layer import BasisConv2d
from basisconv.plan import Plan
from basisconv.study.experiments.parameters import Share, Strict
from basisconv.study.experiments.study import Study
from basisconv.study.training.rng import generator


class Parameters(Strict):
    """The cost of each layer at one ratio."""

    ratio: Share


def measure(study: Study, parameters: Parameters) -> dict[str, Any]:
    """The facts of section 00: parameters and MACs of each layer, and errors of the forms."""
    every = study.plan(parameters.ratio)
    plans = {"dense": Plan(), "subset": every, "full": Plan(every.layers, "full")}
    costs = {form: study.network_costs(plan) for form, plan in plans.items()}
    layers = []
    for row in costs["dense"].rows:
        if row.kind != "Conv2d":
            continue
        rows = {form: cost[row.name] for form, cost in costs.items()}
        layers.append(
            {
                "name": row.name, "in_channels": row.input_shape[1],
                "out_channels": row.output_shape[1], "output_size": row.output_shape[2],
                "n_basis": every.layers.get(row.name),
                "parameters": {form: r.parameters for form, r in rows.items()},
                "macs": {form: r.macs_by_parameters for form, r in rows.items()},
            }
        )  # fmt: skip
    totals = {
        "parameters": {form: cost.parameters for form, cost in costs.items()},
        "macs": {form: cost.macs_by_parameters for form, cost in costs.items()},
        "executed_macs": {form: cost.macs for form, cost in costs.items()},
    }
    return {
        "network": study.profile.network, "width": study.profile.width, "ratio": parameters.ratio,
        "layers": layers, "totals": totals, "exact": _errors(),
    }  # fmt: skip


def _errors() -> list[dict[str, Any]]:
    """Relative errors on a kernel of exact rank and on one of full rank, against the best.

    The best is what Eckart & Young's theorem allows: the root of the sum of the squares of the
    singular values cut off.
    """
    out_channels, in_channels, rank = 24, 8, 6
    stream = generator(0, "method")

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=stream, dtype=torch.float64)

    columns = in_channels * 9
    factors = normal(out_channels, rank)
    kernels = {rank: factors @ normal(rank, columns), out_channels: normal(out_channels, columns)}
    rows = []
    for kernel_rank, kernel in kernels.items():
        conv = nn.Conv2d(in_channels, out_channels, 3, bias=False, dtype=torch.float64)
        conv.weight.data.copy_(kernel.view_as(conv.weight))
        values = torch.linalg.svdvals(kernel)
        for form, n_basis in product(FORMS, (rank, out_channels // 2, out_channels)):
            layer = BasisConv2d.from_conv2d(conv, n_basis, form=form)
            error = (layer.weight - conv.weight).detach().norm() / kernel.norm()
            best = values[n_basis:].square().sum().sqrt() / kernel.norm()
            rows.append(
                {
                    "form": form, "rank": kernel_rank, "n_basis": n_basis,
                    "relative_error": float(error), "best_relative_error": float(best),
                }
            )  # fmt: skip
    return rows

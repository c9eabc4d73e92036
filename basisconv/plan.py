"""Plan: which layers are in basis form, and with how many basis filters.

plan = Plan({"layer3.0.conv1": 64, "layer3.0.conv2": 64}, form="full")
plan.save("plan.json")
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from basisconv.decompose import FORMS, Form
from basisconv.layer import MODES, Mode
from basisconv.surgery import Convolution, convolutions, untouchable
from basisconv.validity import check_basis, kernel_shape, whole


@dataclass(frozen=True)
class Plan:
    """`{layer name: n_basis}` and the form that those layers share. `Plan({})` is dense.

    Attributes:
        layers: basis filters of each layer in basis form.
        form: "subset" or "full".
        coef_groups: blocks of the coefficient matrix in each group of a convolution.
        coef_rank: channels, a block, that the coefficients pass through; a layer with fewer
            basis filters in a block has that many instead. None for a plain matrix.
        modes: the layers that do not run "factored", as `tune` sets them.
        report: how `search` found this plan, for printing. It is neither compared nor saved, and
            plans made from this one do not have it.
    """

    layers: Mapping[str, int] = field(default_factory=dict)
    form: Form = "subset"
    coef_groups: int = 1
    coef_rank: int | None = None
    modes: Mapping[str, Mode] = field(default_factory=dict)
    report: object | None = field(default=None, compare=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        for mapping in (self.layers, self.modes):
            if not isinstance(mapping, Mapping):
                raise ValueError(f"A plan maps layer names to values, and {mapping!r} does not.")
        for name, n_basis in self.layers.items():
            if not isinstance(name, str) or (whole(n_basis) or 0) < 1:
                raise ValueError(
                    f"A plan maps layer names to n_basis >= 1, not {name!r} to {n_basis!r}."
                )
        if self.form not in FORMS:
            raise ValueError(f"form={self.form!r} is unknown. Forms: {', '.join(FORMS)}.")
        for value in (self.coef_groups, 1 if self.coef_rank is None else self.coef_rank):
            if (whole(value) or 0) < 1:
                raise ValueError(
                    f"coef_groups and coef_rank are whole numbers >= 1, not {value!r}."
                )
        for name, mode in self.modes.items():
            if name not in self.layers or mode not in MODES:
                raise ValueError(
                    f"modes[{name!r}]={mode!r}: the name must be a layer of the plan and the mode "
                    f"one of {', '.join(MODES)}."
                )
        # Private copies, so that a plan cannot change under those who hold it; "factored" is
        # what an unnamed layer has, so that equal plans compare equal.
        object.__setattr__(self, "layers", {n: int(m) for n, m in self.layers.items()})
        object.__setattr__(self, "coef_groups", int(self.coef_groups))
        if self.coef_rank is not None:
            object.__setattr__(self, "coef_rank", int(self.coef_rank))
        object.__setattr__(self, "modes", {k: v for k, v in self.modes.items() if v != MODES[0]})

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict(), sort_keys=True))

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values; `from_dict` reads it back."""
        return {
            "layers": dict(self.layers),
            "form": self.form,
            "coef_groups": self.coef_groups,
            "coef_rank": self.coef_rank,
            "modes": dict(self.modes),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """The plan that `to_dict` wrote.

        Raises:
            ValueError: for an unknown key or a value out of its range.
        """
        known = cls().to_dict().keys()
        if not isinstance(values, Mapping) or not known >= values.keys():
            raise ValueError(f"A plan has the keys {', '.join(known)}, not {values!r}.")
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that `save` wrote.

        Raises:
            ValueError: if the file is not JSON or not a plan.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:  # the parser's, of brackets without end
            raise ValueError(f"{path} is not a plan: {error}") from error

    def only(self, names: str | Iterable[str]) -> Plan:
        """The plan restricted to some of its layers, by names and globs.

        Raises:
            ValueError: if one of them matches no layer of the plan.
        """
        patterns = [names] if isinstance(names, str) else list(names)
        matched = {p: {n for n in self.layers if matches(n, p)} for p in patterns}
        if unknown := [p for p in patterns if not matched[p]]:
            raise ValueError(f"{unknown} are not in the plan. It has: {', '.join(self.layers)}.")
        kept = set().union(*matched.values())
        return replace(
            self,
            layers={n: m for n, m in self.layers.items() if n in kept},
            modes={n: m for n, m in self.modes.items() if n in kept},
            report=None,
        )

    def __or__(self, other: Plan) -> Plan:
        """The layers of both plans; where both name one, the right plan's n_basis and mode.

        Raises:
            ValueError: if both have layers and they differ in form, coef_groups or coef_rank.
        """
        if not isinstance(other, Plan):
            return NotImplemented
        if not (self.layers and other.layers):
            return replace(other if other.layers or not self.layers else self, report=None)
        differ = [
            f"{name}={getattr(self, name)!r} and {getattr(other, name)!r}"
            for name in ("form", "coef_groups", "coef_rank")
            if getattr(self, name) != getattr(other, name)
        ]
        if differ:
            raise ValueError(f"Plans of different forms do not join: {', '.join(differ)}.")
        modes = {n: m for n, m in self.modes.items() if n not in other.layers}
        return replace(
            self,
            layers={**self.layers, **other.layers},
            modes={**modes, **other.modes},
            report=None,
        )


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern is a layer's name, or a glob that matches it."""
    return name == pattern or fnmatchcase(name, pattern)


def layers(model: nn.Module) -> dict[str, Convolution]:
    """The convolutions that a plan may name, dense or in basis form, in the model's order."""
    found = convolutions(model)
    barred = untouchable(model, found)
    return {name: conv for name, conv in found.items() if name not in barred}


def check_plan(model: nn.Module, plan: Plan) -> None:
    """Raise an error unless the plan's layers are the model's and have such basis forms.

    Raises:
        TypeError: for what is no plan.
        ValueError: for a plan of other layers, or of layers that have no such basis form.
    """
    if not isinstance(plan, Plan):
        raise TypeError(
            f"{plan!r} is not a Plan: make one with Plan({{name: n_basis}}) or with make_plan, or "
            f"read it with Plan.load."
        )
    found = convolutions(model)
    unknown = [name for name in plan.layers if name not in found]
    if unknown:
        raise ValueError(
            f"The plan names {', '.join(map(repr, unknown))}, which the model does not have. "
            f"Available: {', '.join(found) or 'none'}. See basisconv.layers(model)."
        )
    for name, why in untouchable(model, {name: found[name] for name in plan.layers}).items():
        raise ValueError(f"{name} cannot be put in basis form: {why}.")
    for name, m in plan.layers.items():
        check_layer(name, found[name], m, plan)


def check_layer(name: str, conv: Convolution, n_basis: int, plan: Plan) -> None:
    """Raise ValueError unless the layer has a basis form of the plan's kind with n_basis."""
    try:
        # A plan's coef_rank is an upper bound, cut to what each layer has: any fits.
        check_basis(conv, n_basis, plan.form, plan.coef_groups, None)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def warn_costly(model: nn.Module, plan: Plan, only_full: bool = False) -> None:
    """Warn of layers that cost at least what they cost dense.

    Args:
        model: the network.
        plan: its plan.
        only_full: warn only of those whose filters are all basis filters.
    """
    found, costly = convolutions(model), []
    for name, m in plan.layers.items():
        rows, *shape = kernel_shape(found[name])
        columns, blocks = math.prod(shape), found[name].groups * plan.coef_groups
        # Multiply-accumulates at each position, of both convolutions and of dense.
        now, dense = m * columns + rows * m // blocks, rows * columns
        if m == rows or (now >= dense and not only_full):
            costly.append(f"{name} (n_basis={m} of {rows}, {now / dense:.2f} times dense)")
    if costly:
        warnings.warn(
            f"In basis form these save no multiplications: {', '.join(costly)}.", stacklevel=3
        )

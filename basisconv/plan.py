"""Plan: which layers are in basis form, and with how many basis filters.

plan = make_plan(model, ratio=0.25, layers=["layer3.*"])
plan.save("plan.json")
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from basisconv.decompose import FORMS, Form
from basisconv.layer import MODES, Mode, check_basis
from basisconv.surgery import Convolution, convolutions, untouchable

Match = str | Sequence[str] | Callable[[str, Convolution], bool]


@dataclass(frozen=True)
class Plan:
    """`{layer name: n_basis}` and the form that those layers share. `Plan({})` is dense.

    Attributes:
        layers: basis filters of each layer in basis form.
        form: "subset" or "full".
        coef_groups: blocks of the coefficient matrix in each group of a convolution.
        coef_rank: channels, a block, that the coefficients pass through; a layer with fewer
            basis filters in a block has that many instead. None for a plain matrix.
        modes: the layers that run otherwise than "factored", as `tune` sets them.
    """

    layers: Mapping[str, int] = field(default_factory=dict)
    form: Form = "subset"
    coef_groups: int = 1
    coef_rank: int | None = None
    modes: Mapping[str, Mode] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for mapping in (self.layers, self.modes):
            if not isinstance(mapping, Mapping):
                raise ValueError(f"A plan maps layer names to values, and {mapping!r} does not.")
        for name, n_basis in self.layers.items():
            if not isinstance(name, str) or type(n_basis) is not int or n_basis < 1:
                raise ValueError(
                    f"A plan maps layer names to n_basis >= 1, not {name!r} to {n_basis!r}."
                )
        if self.form not in FORMS:
            raise ValueError(f"form={self.form!r} is unknown. Forms: {', '.join(FORMS)}.")
        for value in (self.coef_groups, 1 if self.coef_rank is None else self.coef_rank):
            if type(value) is not int or value < 1:
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
        object.__setattr__(self, "layers", dict(self.layers))
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

    def only(self, names: Sequence[str]) -> Plan:
        """The plan restricted to some of its layers.

        Raises:
            ValueError: if one of them is not in the plan.
        """
        unknown = [n for n in names if n not in self.layers]
        if unknown:
            raise ValueError(f"{unknown} are not in the plan. It has: {', '.join(self.layers)}.")
        return Plan(
            {n: m for n, m in self.layers.items() if n in names}, self.form, self.coef_groups,
            self.coef_rank, {n: m for n, m in self.modes.items() if n in names},
        )  # fmt: skip


def layers(model: nn.Module) -> dict[str, Convolution]:
    """The convolutions that a plan may name, dense or in basis form, in the model's order."""
    found = convolutions(model)
    barred = untouchable(model, found)
    return {name: conv for name, conv in found.items() if name not in barred}


def make_plan(
    model: nn.Module,
    ratio: float | None = None,
    n_basis: int | None = None,
    layers: Match | None = None,
    skip: Match | None = None,
    multiple_of: int = 1,
    form: Form = "subset",
    coef_groups: int = 1,
    coef_rank: int | None = None,
) -> Plan:
    """A plan for the layers that match.

    1×1 and depthwise convolutions and the stem (the first convolution) are left out unless
    named: by their exact name, or by a callable, which decides alone.

    Args:
        model: the network; it is only read.
        ratio: basis filters as a share of a layer's outputs, in (0, 1]:
            n_basis = max(1, round(ratio · C_out)), rounded up to a multiple of
            groups · coef_groups and of `multiple_of`, at most C_out. Give this or n_basis.
        n_basis: the same number for every layer, a multiple of groups · coef_groups; rounded
            up to a multiple of `multiple_of`, at most C_out.
        layers: globs and names, or `callable(name, conv) -> bool`; None for all.
        skip: the layers to leave out, in the same way.
        multiple_of: what the hardware likes the number of channels to be a multiple of.
        form: "subset" or "full".
        coef_groups: as in `Plan`.
        coef_rank: as in `Plan`.

    Raises:
        ValueError: if the ratio or n_basis does not fit, a pattern matches nothing, or no
            layer is left; the message lists what there is.
    """
    if (ratio is None) == (n_basis is None):
        raise ValueError(f"Give either ratio= or n_basis=, not {ratio=} and {n_basis=}.")
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"ratio={ratio} is outside (0, 1].")
    if type(multiple_of) is not int or multiple_of < 1:
        raise ValueError(f"multiple_of={multiple_of!r} is not a whole number >= 1.")
    if not (layers is None or isinstance(layers, str) or callable(layers)):
        layers = list(layers)  # read twice, which a generator is not
    empty = Plan({}, form, coef_groups, coef_rank)
    found = convolutions(model)
    wanted = _matching(found, layers, "layers") if layers is not None else set(found)
    named = _named(layers, wanted)
    stem = next(iter(found), None)
    wanted -= {n for n in wanted - named if n == stem or _is_trivial(found[n])}
    if skip is not None:
        wanted -= _matching(found, skip, "skip")
    barred = untouchable(model, {name: conv for name, conv in found.items() if name in wanted})
    for name, why in barred.items():
        if name in named and not callable(layers):
            raise ValueError(f"{name} cannot be put in basis form: {why}.")
    told = [f"{name}: {why}" for name, why in barred.items()]
    chosen = [name for name in found if name in wanted - barred.keys()]
    if barred and not chosen:
        more = f"; and {len(told) - 3} more" if len(told) > 3 else ""
        raise ValueError(
            f"None of the layers that match can be put in basis form. {'; '.join(told[:3])}{more}."
        )
    if barred:
        warnings.warn(f"Left dense: {'; '.join(told)}.", stacklevel=2)
    if not chosen:
        raise ValueError(
            f"No Conv2d is left for the plan (layers={layers!r}, skip={skip!r}): 1×1 and "
            f"depthwise convolutions and the stem count only when named. "
            f"Available: {', '.join(found) or 'none'}. See basisconv.layers(model)."
        )
    plan: dict[str, int] = {}
    for name in chosen:
        conv = found[name]
        if ratio is not None:
            m = basis_filters(conv.out_channels, ratio)
        elif n_basis is not None:
            check_layer(name, conv, n_basis, empty)  # before rounding up, which could hide an error
            m = n_basis
        step = math.lcm(conv.groups * coef_groups, multiple_of)
        plan[name] = min(-(-m // step) * step, conv.out_channels)
        check_layer(name, conv, plan[name], empty)
    _warn_wasted(found, plan, coef_groups)
    return replace(empty, layers=plan)


def basis_filters(out_channels: int, ratio: float) -> int:
    """How many basis filters a share of a layer's outputs is: rounded, and at least one."""
    return max(1, round(ratio * out_channels))


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


def _matching(found: Mapping[str, Convolution], match: Match, what: str) -> set[str]:
    if callable(match):
        return {name for name, conv in found.items() if match(name, conv)}
    chosen: set[str] = set()
    for pattern in [match] if isinstance(match, str) else match:
        names = {n for n in found if n == pattern or fnmatchcase(n, pattern)}
        if not names:
            raise ValueError(
                f"No Conv2d matches {what}=[{pattern!r}]. Available: "
                f"{', '.join(found) or 'none'}. See basisconv.layers(model)."
            )
        chosen |= names
    return chosen


def _named(match: Match | None, wanted: set[str]) -> set[str]:
    """The layers asked for one by one, which the default exclusions do not touch."""
    if match is None:
        return set()
    if callable(match):
        return set(wanted)
    return wanted & ({match} if isinstance(match, str) else set(match))


def _is_trivial(conv: Convolution) -> bool:
    depthwise = conv.groups > 1 and conv.groups == conv.in_channels
    return depthwise or tuple(conv.kernel_size) == (1, 1)


def _warn_wasted(
    found: Mapping[str, Convolution], plan: Mapping[str, int], coef_groups: int
) -> None:
    wasted = []
    for name, m in plan.items():
        conv = found[name]
        # Each block has filters of C_in/groups · kH · kW weights, so no more of them are of use.
        useful = conv.in_channels * coef_groups * math.prod(conv.kernel_size)
        if m > useful:
            wasted.append(f"{name} (n_basis={m}, of which {useful} can be independent)")
    if wasted:
        warnings.warn(f"Basis filters are wasted in {', '.join(wasted)}.", stacklevel=3)

"""make_plan: which layers a plan names, and how many basis filters each gets.

plan = make_plan(model, ratio=0.25, layers=["layer3.*"])
plan = make_plan(model, ratio={"layer3.*": 0.25, "layer4.*": 0.125})
plan = make_plan(model, macs=0.5, input_size=(1, 3, 224, 224))
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from basisconv.cost import counter
from basisconv.decompose import Form
from basisconv.observe import Input
from basisconv.plan import Plan, check_layer, matches, warn_costly
from basisconv.surgery import Convolution, convolutions, untouchable
from basisconv.validity import kernel_shape, whole

Match = str | Sequence[str] | Callable[[str, Convolution], bool]


def make_plan(
    model: nn.Module,
    ratio: float | Mapping[str, float] | None = None,
    n_basis: int | None = None,
    layers: Match | None = None,
    skip: Match | None = None,
    multiple_of: int = 1,
    form: Form = "subset",
    coef_groups: int = 1,
    coef_rank: int | None = None,
    macs: float | None = None,
    input_size: Input | None = None,
) -> Plan:
    """A plan for the layers that match.

    1×1 and depthwise convolutions and the stem (the first convolution) are left out unless
    named: by their exact name, or by a callable, which decides alone.

    Args:
        model: the network; it is only read.
        ratio: basis filters as a share of a layer's outputs, in (0, 1]:
            n_basis = max(1, round(ratio · C_out)), rounded up to a multiple of
            groups · coef_groups and of `multiple_of`, at most C_out. Or `{glob or name: ratio}`,
            which names the layers, too; an exact name counts before globs, of which the last that
            matches counts. A layer is left dense where a ratio below 1 is rounded to all of its
            filters. Give one of ratio, n_basis and macs.
        n_basis: the same number for every layer, a multiple of groups · coef_groups; rounded
            up to a multiple of `multiple_of`, at most C_out.
        layers: globs and names, or `callable(name, conv) -> bool`; None for all.
        skip: the layers to leave out, in the same way.
        multiple_of: what the hardware likes the number of channels to be a multiple of.
        form: "subset" or "full".
        coef_groups: as in `Plan`.
        coef_rank: as in `Plan`.
        macs: executed multiply-accumulates of the whole network's forward pass as a share of those
            of the dense network, in (0, 1): the layers get the largest common ratio with which it
            executes no more.
        input_size: for `macs`, what `summary` takes.

    Raises:
        ValueError: if ratio, n_basis or macs does not fit, a pattern matches nothing, or no
            layer is left; the message lists what there is.

    Warns:
        UserWarning: of layers that must stay dense, that save no multiplications in their basis
            form, or whose basis filters cannot be independent.
    """
    if sum(value is not None for value in (ratio, n_basis, macs)) != 1:
        raise ValueError(
            f"Give one of ratio=, n_basis= and macs=, not {ratio=}, {n_basis=}, {macs=}."
        )
    if (macs is None) != (input_size is None):
        raise ValueError("Give macs= and input_size= together.")
    ratios = ratio if isinstance(ratio, Mapping) else {} if ratio is None else {"*": ratio}
    ratios = {name: _share(name, value) for name, value in ratios.items()}
    if macs is not None and not 0 < macs < 1:
        raise ValueError(f"macs={macs} is outside (0, 1).")
    if isinstance(ratio, Mapping):
        if layers is not None:
            raise ValueError("The keys of ratio= name the layers: leave layers= out.")
        layers = list(ratio)
    if (whole(multiple_of) or 0) < 1:
        raise ValueError(f"multiple_of={multiple_of!r} is not a whole number >= 1.")
    if not (layers is None or isinstance(layers, str) or callable(layers)):
        layers = list(layers)  # read twice, which a generator is not
    empty = Plan({}, form, coef_groups, coef_rank)
    found = convolutions(model)
    wanted = matching(found, layers, "layers") if layers is not None else set(found)
    asked = named(layers, wanted)
    stem = next(iter(found), None)
    wanted -= {n for n in wanted - asked if n == stem or _is_trivial(found[n])}
    if skip is not None:
        wanted -= matching(found, skip, "skip")
    barred = untouchable(model, {name: conv for name, conv in found.items() if name in wanted})
    for name, why in barred.items():
        if name in asked and not callable(layers):
            raise ValueError(f"{name} cannot be put in basis form: {why}.")
    stay = [f"{name}: {why}" for name, why in barred.items()]
    chosen = {name: found[name] for name in found if name in wanted - barred.keys()}
    if barred and not chosen:
        more = f"; and {len(stay) - 3} more" if len(stay) > 3 else ""
        raise ValueError(
            f"None of the layers that match can be put in basis form. {'; '.join(stay[:3])}{more}."
        )
    if macs is not None and input_size is not None and chosen:
        count = counter(model, input_size)
        target = macs * count(Plan({})).macs

        def fits(common: float) -> bool:
            plan = replace(empty, layers=_filters(chosen, {"*": common}, None, multiple_of, empty))
            return bool(plan.layers) and count(plan).macs <= target

        ratios = {"*": _largest(fits, macs)}
    plan = replace(empty, layers=_filters(chosen, ratios, n_basis, multiple_of, empty))
    stay += [
        f"{name}: its n_basis is rounded to all of its {conv.out_channels} filters"
        for name, conv in chosen.items()
        if name not in plan.layers
    ]
    if chosen and not plan.layers:
        raise ValueError(f"No layer is left for the plan: {'; '.join(stay)}.")
    if stay:
        warnings.warn(f"Left dense: {'; '.join(stay)}.", stacklevel=2)
    if not chosen:
        raise ValueError(
            f"No Conv2d is left for the plan (layers={layers!r}, skip={skip!r}): 1×1 and "
            f"depthwise convolutions and the stem count only when named. "
            f"Available: {', '.join(found) or 'none'}. See basisconv.layers(model)."
        )
    _warn_wasted(found, plan.layers, coef_groups)
    warn_costly(model, plan)
    return plan


def _share(name: object, value: object) -> float:
    """A ratio of any kind of number, numpy's and tensors too; ValueError for all else."""
    try:
        share = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        share = math.nan
    if not 0 < share <= 1 or isinstance(value, str):
        raise ValueError(f"ratio={value!r} is outside (0, 1].")
    if not isinstance(name, str):
        raise ValueError(f"ratio= maps names and globs to ratios, not {name!r}.")
    return share


def _filters(
    chosen: Mapping[str, Convolution],
    ratios: Mapping[str, float],
    n_basis: int | None,
    multiple_of: int,
    empty: Plan,
) -> dict[str, int]:
    """n_basis of each layer, without those that a ratio below 1 gives all of their filters."""
    filters: dict[str, int] = {}
    for name, conv in chosen.items():
        rows, ratio = kernel_shape(conv)[0], 1.0
        if n_basis is not None:
            check_layer(name, conv, n_basis, empty)  # before rounding up, which could hide an error
            m = n_basis
        else:
            ratio = _ratio(name, ratios)
            m = basis_filters(rows, ratio)
        step = math.lcm(conv.groups * empty.coef_groups, multiple_of)
        m = min(-(-m // step) * step, rows)
        check_layer(name, conv, m, empty)
        if m < rows or ratio == 1:
            filters[name] = m
    return filters


def _ratio(name: str, ratios: Mapping[str, float]) -> float:
    """A layer's ratio: that of its name, or of the last glob that matches it."""
    return ratios.get(name, [r for glob, r in ratios.items() if matches(name, glob)][-1])


def _largest(fits: Callable[[float], bool], macs: float) -> float:
    """The largest ratio in (0, 1) that fits, by bisection."""
    low, high = 1e-9, 1.0
    if not fits(low):
        raise ValueError(
            f"macs={macs} is out of reach: one basis filter in each of these layers costs more. "
            f"Add layers, as 1×1 convolutions or the stem by their names."
        )
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def basis_filters(out_channels: int, ratio: float) -> int:
    """How many basis filters a share of a layer's outputs is: rounded, and at least one."""
    return max(1, round(ratio * out_channels))


def matching(found: Mapping[str, Convolution], match: Match, what: str) -> set[str]:
    """The layers that match.

    Raises:
        ValueError: for a pattern, of the argument `what`, that matches none.
    """
    if callable(match):
        return {name for name, conv in found.items() if match(name, conv)}
    chosen: set[str] = set()
    for pattern in [match] if isinstance(match, str) else match:
        names = {n for n in found if matches(n, pattern)}
        if not names:
            raise ValueError(
                f"No Conv2d matches {what}=[{pattern!r}]. Available: "
                f"{', '.join(found) or 'none'}. See basisconv.layers(model)."
            )
        chosen |= names
    return chosen


def named(match: Match | None, wanted: set[str]) -> set[str]:
    """The layers asked for one by one, which the default exclusions do not touch."""
    if match is None:
        return set()
    if callable(match):
        return set(wanted)
    return wanted & ({match} if isinstance(match, str) else set(match))


def _is_trivial(conv: Convolution) -> bool:
    depthwise = conv.groups > 1 and conv.groups == conv.in_channels
    return depthwise or kernel_shape(conv)[2:] == (1, 1)


def _warn_wasted(
    found: Mapping[str, Convolution], plan: Mapping[str, int], coef_groups: int
) -> None:
    wasted = []
    for name, m in plan.items():
        conv = found[name]
        # Each block has filters of C_in/groups · kH · kW weights, so no more of them are of use.
        useful = conv.in_channels * coef_groups * math.prod(kernel_shape(conv)[2:])
        if m > useful:
            wasted.append(f"{name} (n_basis={m}, of which {useful} can be independent)")
    if wasted:
        warnings.warn(f"Basis filters are wasted in {', '.join(wasted)}.", stacklevel=3)

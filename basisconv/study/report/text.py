"""Numbers as a reader meets them: rounded, with interval and n."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from basisconv.study.report.statistics.stats import NAN

NOTHING = "–"
"""What a table shows where there is no number."""

VERDICT_WORDS = {"above": "better", "below": "worse", "equal": "equal", "open": "undecided",
            "untested": "one run", "": NOTHING}  # fmt: skip
"""What a table says of the verdicts of `arms.verdict`."""

VERDICT_WORDS_ON_DENSE = VERDICT_WORDS | {
    "above": "beats dense", "below": "loses to dense", "equal": "equals dense",
}  # fmt: skip

MACS_BY_PARAMETERS = (
    "MACs by parameters: the multiplications that the parameters need, in basis layers those of "
    "the subset form, which has fewer coefficients than are executed."
)
"""What captions say of them: see `basisconv.cost`."""


def fixed(value: float, digits: int, signed: bool = False) -> str:
    """A number with so many decimals and a true minus sign; `NOTHING` for NaN."""
    if math.isnan(value):
        return NOTHING
    rounded = round(value, digits) + 0.0  # never "−0.0"
    return f"{rounded:{'+' if signed and rounded else ''}.{digits}f}".replace("-", "−")


def significant(value: float, digits: int) -> str:
    """A positive number with so many significant digits, and all those before its point."""
    return fixed(value, max(0, digits - 1 - math.floor(math.log10(value))))


def with_interval(
    value: float, low: float, high: float, digits: int, signed: bool = False, unit: str = ""
) -> str:
    """As in "84.0 % [83.6, 84.4]", or the value alone where there is no interval."""
    if math.isnan(value):
        return NOTHING
    text = fixed(value, digits, signed) + unit
    if math.isnan(low) or math.isnan(high):
        return text
    return f"{text} [{fixed(low, digits, signed)}, {fixed(high, digits, signed)}]"


def gain(row: Any) -> str:
    """As in "+0.42 points [+0.10, +0.74]": the difference of a table's row, or of a comparison."""
    printed: str = points(row.difference, row.difference_low, row.difference_high)["text"]
    return printed


def number(
    value: float, low: float = NAN, high: float = NAN, n: int = 1, *, digits: int, unit: str = "",
    signed: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """A number of the paper: what was measured, and the text that is printed for it."""
    text = with_interval(value, low, high, digits, signed, unit)
    return {"value": value, "low": low, "high": high, "n": n, "text": text}


def points(value: float, low: float = NAN, high: float = NAN, n: int = 1) -> dict[str, Any]:
    """A difference in percentage points."""
    return number(value, low, high, n, digits=2, unit=" points", signed=True)


def count(value: int) -> dict[str, Any]:
    """An exact number, printed with thousands apart."""
    return {"value": value, "low": None, "high": None, "n": None, "text": f"{value:,}"}


def said(words: str) -> dict[str, Any]:
    """What is printed as it is, such as a name."""
    return {"text": words}


def millions(value: float) -> str:
    """As in "11.17 M"."""
    return f"{fixed(value / 1e6, 2)} M"


def small(value: float, digits: int = 1) -> str:
    """As in "0.51", and "6.8 × 10⁻¹⁶" for what decimals would not show; "0" for zero."""
    if value == 0:
        return "0"
    if abs(value) >= 0.001:
        return fixed(value, 2)
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} × 10{raised}"


def whole(value: float) -> str:
    """A whole number, "∞" for infinity."""
    return "∞" if math.isinf(value) else f"{value:.0f}"


def network(name: str) -> str:
    """A network as people write it: "ResNet-18" for "resnet18", "VGG-16-BN" for "vgg16_bn"."""
    return _NETWORKS.get(name, name)


_NETWORKS = {
    "resnet18": "ResNet-18", "resnet50": "ResNet-50", "vgg16_bn": "VGG-16-BN",
    "wide_resnet16_4": "WideResNet-16-4", "mobilenet_v2": "MobileNetV2",
    "convnext_pico": "ConvNeXt-Pico", "resnet18_5x5": "ResNet-18 of 5×5 kernels",
    "resnet18_7x7": "ResNet-18 of 7×7 kernels",
}  # fmt: skip


def p_value(p: float) -> str:
    """Three decimals, or that it is smaller; more where it would read as 0.05 and is not."""
    if math.isnan(p):
        return NOTHING
    if p < 0.001:
        return "<0.001"
    digits = 3
    while round(p, digits) == 0.05 != round(p, 9):
        digits += 1
    return f"{p:.{digits}f}"


def seeds(n: int, lost: int = 0) -> str:
    """As in "3", or "2 (1 lost)" where a run failed or diverged: leaving that out would flatter."""
    return f"{n} ({lost} lost)" if lost else str(n)


def listed(items: Sequence[str]) -> str:
    """As in "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def plural(n: int, noun: str) -> str:
    """As in "1 layer", "3 layers"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def amount(n: int) -> str:
    """A count inside a sentence: "none" for 0."""
    return str(n) if n else "none"


def share(ratio: float) -> str:
    """A share of basis filters as people write it: "1/4", else "0.3"."""
    inverse = 1 / ratio
    return f"1/{round(inverse)}" if abs(inverse - round(inverse)) < 1e-9 else f"{ratio:g}"


def at_budget(row: Any) -> str:
    """The arm of a table's row, or an arm, at its budget: as in "“all layers, f = 0.25” at 2"."""
    return f"“{row.label}” at {row.budget:g}"


def epochs(number_of: float) -> str:
    """As in "1 epoch", "2.5 epochs"."""
    return "1 epoch" if number_of == 1 else f"{number_of:g} epochs"

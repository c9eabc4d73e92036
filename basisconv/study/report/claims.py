"""10_claims: what the paper says, in the words of its description, beside what we found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, estimates, style, text
from basisconv.study.report.evidence import PAPER_SPEEDUP, UNMEASURED, VERDICTS, Estimate, Evidence
from basisconv.study.report.output import Report, Table

NAME = "10_claims"


@dataclass(frozen=True)
class Claim:
    """One claim of the paper.

    Attributes:
        key: a short name.
        kind: what sort of statement it is.
        quote: word for word.
        sections: what is needed to judge it.
        rule: when it counts as reproduced, partly or not.
        estimate: our side.
    """

    key: str
    kind: str
    quote: str
    sections: tuple[str, ...]
    rule: str
    estimate: Callable[[Evidence], Estimate]


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "speedup", "key result",
        "Achieved up to 15% training speedup on ResNet18 with negligible accuracy drop",
        ("02_all_layers",),
        f"Reproduced if an arm beats dense trained at least {PAPER_SPEEDUP:g} times as long, "
        "partly if it beats dense of the same time, not if every comparison is decided and none "
        "is won.",
        estimates.speedup,
    ),
    Claim(
        "compression", "key result",
        "Demonstrated model compression through reduced parameter count via basis decomposition",
        ("00_method",),
        "Reproduced if the network with all layers in basis form has fewer parameters.",
        estimates.compression,
    ),
    Claim(
        "identified", "key result",
        "Successfully identified layer-specific sensitivity to basis convolution application",
        ("03_sensitivity",),
        "Reproduced if some layer differs from dense (Holm) and the ranking's reliability is at "
        f"least {arms.TRUSTED:g}, partly if one of the two holds.",
        estimates.identified,
    ),
    Claim(
        "effectiveness", "key result",
        "Validated effectiveness on CIFAR-10 dataset with ResNet18 architecture",
        ("02_all_layers",),
        "Reproduced if some arm beats dense of the same time at every budget, partly if at some, "
        "not if at none and all is decided.",
        estimates.effectiveness,
    ),
    Claim(
        "performance", "mechanism",
        "Training only basis convolutions and representing others as linear combinations reduces "
        "model size while maintaining performance.",
        ("02_all_layers",),
        "With all layers in basis form: reproduced if above dense of the same time, or within "
        f"{arms.MARGIN:g} points of it, at every budget; partly if at some; not if below at every "
        "one.",
        estimates.performance,
    ),
    Claim(
        "selection", "mechanism",
        "Selective application of basis convolutions to less sensitive layers accelerates "
        "training without degrading model quality.",
        ("04_selection",),
        "Reproduced if the selected subset is above dense of the same time, or within "
        f"{arms.MARGIN:g} points, and above random subsets of equal step time; partly without the "
        "latter; not if below dense.",
        estimates.selected,
    ),
    Claim(
        "computation", "mechanism",
        "Modified forward pass using basis convolutions before coefficient matrix application "
        "reduces computation.",
        ("06_timing",),
        "Reproduced if the forward pass of every layer timed is faster than dense (lower "
        "quartile above 1), partly if of some, not if of none and some are slower (upper "
        "quartile below 1).",
        estimates.computation,
    ),
    Claim(
        "too few", "break condition",
        "Too few basis convolutions causes accuracy degradation",
        ("02_all_layers",),
        "Reproduced if, trained for as many steps, the smallest share of basis filters is below "
        f"the largest, not if above or within {arms.MARGIN:g} points.",
        estimates.too_few,
    ),
    Claim(
        "uncompressed", "break condition",
        "insufficient coefficient matrix compression provides no training time improvement",
        ("06_timing",),
        "Reproduced if no training step with an uncompressed coefficient matrix is faster than "
        "dense (lower quartile above 1) and some are slower (upper quartile below 1), partly if "
        "some are faster and some slower, not reproduced if some are faster and none is slower.",
        estimates.uncompressed,
    ),
    Claim(
        "misjudged", "break condition",
        "Inaccurate sensitivity analysis leads to applying basis convolutions to sensitive layers "
        "causing accuracy loss",
        ("04_selection",),
        "Reproduced if the selected subset is above the inverted one of equal step time, not if "
        f"below or within {arms.MARGIN:g} points.",
        estimates.misjudged,
    ),
    Claim(
        "few layers", "break condition",
        "too few selected layers provide minimal speed gains",
        ("03_sensitivity",),
        f"Reproduced if no single layer alone makes a step {PAPER_SPEEDUP:g} times as fast.",
        estimates.few_layers,
    ),
    Claim(
        "bottleneck", "break condition",
        "Coefficient matrix application becomes bottleneck or backward pass complexity increases "
        "significantly, negating training speed improvements.",
        ("06_timing",),
        "Reproduced if every layer timed is slower than dense (upper quartile below 1) though it "
        "executes fewer multiplications, partly if some are, not if none is and some are faster "
        "(lower quartile above 1).",
        estimates.bottleneck,
    ),
    Claim(
        "larger", "failure signature",
        "Model size doesn't reduce → coefficient matrix too large or basis convolutions not "
        "properly compressed",
        ("00_method",),
        "Reproduced if every layer in basis form holds as many parameters as dense or more, "
        "partly if some do, not if none does.",
        estimates.larger,
    ),
    Claim(
        "skip", "method",
        'A "skip" training strategy is employed where models are first trained with basis '
        "convolutions for initial epochs, then reinitialized and trained normally to recover full "
        "accuracy.",
        ("05_skip_training",),
        "Reproduced if at every switch point the arm is above dense of the same time, or within "
        f"{arms.MARGIN:g} points of it (Holm over these); partly if at some; not if below at "
        "every one.",
        estimates.reinitialised,
    ),
    Claim(
        "early switch", "design trade-off",
        "Skipping basis convolutions early → less speedup but better final accuracy",
        ("05_skip_training",),
        "Reproduced if the earliest switch to dense is above basis throughout at equal time, not "
        f"if below or within {arms.MARGIN:g} points.",
        estimates.early_switch,
    ),
)  # fmt: skip


def build_claims(
    sections: Mapping[str, Section],
    records: Mapping[str, Record],
    profile: str,
    unmeasured_at: tuple[str, ...] = style.TRIAL_PROFILES,
) -> Report:
    """The claims table.

    Args:
        sections: the profile's sections, by name; those that are missing leave their claims
            "not yet measured".
        records: of their runs.
        profile: whose sections they are; told beside every verdict.
        unmeasured_at: profiles that are too small to settle anything: whatever they show, their
            verdicts are "not yet measured".
    """
    table = claim_frame(sections, records, profile, unmeasured_at)
    return Report(
        NAME,
        profile,
        tables={
            "claims": Table(
                table, _shown(table),
                f"The paper's claims, quoted from its description, and what we found at {profile} "
                "scale: estimate with 95 % interval, n, and the verdict.",
            ),
            "claims_rules": Table(
                table[["claim", "quote", "rule"]],
                pd.DataFrame({"the claim": [f"“{c.quote}”" for c in CLAIMS],
                              "verdict": [c.rule for c in CLAIMS]}),
                "When a claim counts as reproduced, partly or not reproduced; whatever is none of "
                "these is undecided, or not yet measured where there is nothing to judge it by.",
            ),
        },
        numbers=_numbers(table, profile, profile in unmeasured_at),
    )  # fmt: skip


def claim_frame(
    sections: Mapping[str, Section],
    records: Mapping[str, Record],
    profile: str,
    unmeasured_at: tuple[str, ...],
) -> pd.DataFrame:
    """One row a claim: its words, our estimate, and the verdict."""
    found = Evidence(sections, records)
    rows = []
    for claim in CLAIMS:
        missing = [name for name in claim.sections if name not in sections]
        ours = (
            Estimate(f"needs {text.listed(missing)}", UNMEASURED)
            if missing
            else claim.estimate(found)
        )
        verdict = UNMEASURED if profile in unmeasured_at else ours.verdict
        rows.append(
            {
                "claim": claim.key, "kind": claim.kind, "quote": claim.quote,
                "sections": " ".join(claim.sections), "estimate": ours.said, "value": ours.value,
                "low": ours.low, "high": ours.high, "unit": ours.unit, "n": ours.n,
                "of": ours.of,
                "verdict": verdict, "rule": claim.rule,
            }
        )  # fmt: skip
    table = pd.DataFrame(rows)
    table["n"] = table["n"].astype("Int64")
    return table


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "the paper's claim, as described": [f"“{quote}”" for quote in table["quote"]],
            "kind": table["kind"],
            "our estimate": table["estimate"],
            "n": [
                text.NOTHING if pd.isna(n) else f"{n} {of}"
                for n, of in zip(table["n"], table["of"], strict=True)
            ],
            "verdict": table["verdict"],
        }
    )


def _numbers(table: pd.DataFrame, profile: str, trial: bool) -> dict[str, Any]:
    counts = {verdict: int((table["verdict"] == verdict).sum()) for verdict in VERDICTS}
    if trial:
        headline = (
            f"At {profile} scale every claim counts as not yet measured: its runs show that the "
            "study works, not what is true."
        )
    else:
        told = [f"{n} {verdict}" for verdict, n in counts.items() if n]
        headline = (
            f"Of the {len(table)} claims, judged at {profile} scale: {text.listed(told)}."
        )  # fmt: skip
    values = {verdict: text.count(n) for verdict, n in counts.items()}
    return {"values": values, "headline": headline, "findings": [headline], "notes": []}

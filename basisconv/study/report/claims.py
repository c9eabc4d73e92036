"""10_claims: what the paper says, in the words of its description, against what we found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pandas as pd
import yaml

from basisconv.study.records.environment import ROOT
from basisconv.study.records.run import Record, Section
from basisconv.study.report import estimates, style, text
from basisconv.study.report.evidence import UNMEASURED, VERDICTS, Estimate, Evidence
from basisconv.study.report.output import Report
from basisconv.study.report.tables import Column, make_table, words

NAME = "10_claims"


class Claim(NamedTuple):
    """One claim of the paper.

    Attributes:
        key: a short name, that of its function in `estimates`.
        kind: what sort of statement it is.
        sections: what is needed to judge it.
        quote: word for word.
        rule: when it counts as reproduced, partly or not.
    """

    key: str
    kind: str
    sections: list[str]
    quote: str
    rule: str

    def estimate(self, found: Evidence) -> Estimate:
        """Our side, from the sections at hand."""
        missing = [name for name in self.sections if name not in found.sections]
        if missing:
            return Estimate(f"needs {text.listed(missing)}", UNMEASURED)
        judge: Callable[[Evidence], Estimate] = getattr(estimates, self.key.replace(" ", "_"))
        return judge(found)


CLAIMS: tuple[Claim, ...] = tuple(
    Claim(**claim)
    for claim in yaml.safe_load((ROOT / "paper" / "claims.yaml").read_text(encoding="utf-8"))
)
"""As `paper/claims.yaml` has them."""


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
        profile: whose sections they are.
        unmeasured_at: profiles that are too small to settle anything: whatever they show, their
            verdicts are "not yet measured".
    """
    table = claim_frame(sections, records, profile, unmeasured_at)

    def quote(title: str) -> Column:
        return words(title, lambda row: f"“{row.quote}”")

    return Report(
        NAME,
        profile,
        tables={
            "claims": make_table(
                table,
                [quote("the paper's claim, as described"), words("kind", "kind"),
                 words("our estimate", "estimate"),
                 words("n", lambda r: None if pd.isna(r.n) else f"{r.n} {r.of}"),
                 words("verdict", "verdict")],
                f"The paper's claims, quoted from its description, and what we found at {profile} "
                "scale: estimate with 95 % interval, n, and the verdict.",
            ),
            "claims_rules": make_table(
                table[["claim", "quote", "rule"]],
                [quote("the claim"), words("verdict", "rule")],
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
        ours = claim.estimate(found)
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


def _numbers(table: pd.DataFrame, profile: str, trial: bool) -> dict[str, Any]:
    counts = {verdict: int((table["verdict"] == verdict).sum()) for verdict in VERDICTS}
    if trial:
        headline = (
            f"At {profile} scale every claim counts as not yet measured: its runs show that the "
            "study works, not what is true."
        )
    else:
        counted = [f"{n} {verdict}" for verdict, n in counts.items() if n]
        headline = (
            f"Of the {len(table)} claims, judged at {profile} scale: {text.listed(counted)}."
        )  # fmt: skip
    values = {verdict: text.count(n) for verdict, n in counts.items()}
    return {"values": values, "headline": headline, "notes": []}

"""10_claims: what the paper says, in the words of its description, against what we found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd
import yaml

from basisconv.study.experiments.profiles import load_profile
from basisconv.study.records.environment import ROOT
from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, estimates, places, text
from basisconv.study.report.estimates import OURS
from basisconv.study.report.frontier import frontier
from basisconv.study.report.output import Report
from basisconv.study.report.selection import pooled, rival_frame
from basisconv.study.report.tables import Column, make_table, words
from basisconv.study.report.timing import network_frame, training_steps
from basisconv.study.report.timing_layers import layer_frame
from basisconv.study.report.verdicts import UNMEASURED, VERDICTS, Estimate

NAME = "10_claims"


class Evidence:
    """The sections at hand and the tables that claims are judged by, each made once."""

    def __init__(self, sections: Mapping[str, Section], records: Mapping[str, Record]) -> None:
        self.sections, self.records = sections, records

    def facts(self, name: str) -> dict[str, Any]:
        """A section's facts."""
        return self.sections[name].facts

    def measured(self, name: str) -> list[arms.Measured]:
        """A section's arms."""
        return arms.measure(self.sections[name], self.records)

    @cached_property
    def frontier(self) -> pd.DataFrame:
        """02, one row for each arm at each budget."""
        return frontier(self.sections["02_all_layers"], self.records)

    @cached_property
    def ours(self) -> pd.DataFrame:
        """Rows of the frontier to be compared with dense: those too that lost their runs.

        An arm that diverged at a budget must not make "at every budget" easier to reach.
        """
        table = self.frontier
        rivals = table[table["method"] == "dense"]["budget"]
        return table[table["method"].isin(OURS) & table["budget"].isin(rivals)]

    @cached_property
    def rivals(self) -> pd.DataFrame:
        """04, the selected subset against each rival."""
        table = rival_frame(pooled(self.measured("04_selection")))
        return table.set_index("rival").rename(columns={"n_selected": "n"})

    @cached_property
    def layers(self) -> pd.DataFrame:
        """06, layers in the method's two forms."""
        table = layer_frame(self.facts("06_timing")["devices"])
        return table[table["arm"].isin(places.FORMS)]

    @cached_property
    def networks(self) -> pd.DataFrame:
        """06, whole training steps."""
        return training_steps(network_frame(self.facts("06_timing")["devices"]))

    def turns(self, setting: str) -> int:
        """Interleaved turns behind each timing in 06, at least."""
        return min(int(d["settings"][setting]) for d in self.facts("06_timing")["devices"])


class Claim(NamedTuple):
    """One claim of the paper, word for word, and when it counts as reproduced, partly or not.

    Its key names its function in `estimates`, which needs its sections.
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
    preliminary: bool | None = None,
) -> Report:
    """The claims table.

    Args:
        sections: the profile's sections, by name; those that are missing leave their claims
            "not yet measured".
        records: of their runs.
        profile: whose sections they are.
        preliminary: the profile is too small to settle anything: whatever it shows, its verdicts
            are "not yet measured"; by default as the profile says.
    """
    trial = load_profile(profile).preliminary if preliminary is None else preliminary
    table = claim_frame(sections, records, trial)
    counts = {verdict: int((table["verdict"] == verdict).sum()) for verdict in VERDICTS}
    counted = text.listed([f"{n} {verdict}" for verdict, n in counts.items() if n])
    headline = f"Of the {len(table)} claims, judged at {profile} scale: {counted}."
    if trial:
        headline = (
            f"At {profile} scale every claim counts as not yet measured: its runs show that the "
            "study works, not what is true."
        )

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
                "The paper's claims, quoted from its description, and what we found at "
                f"{profile} scale: estimate with 95 % interval, n, and the verdict.",
            ),
            "claims_rules": make_table(
                table[["claim", "quote", "rule"]],
                [quote("the claim"), words("verdict", "rule")],
                "When a claim counts as reproduced, partly or not; whatever is none of these is "
                "undecided, or not yet measured.",
            ),
        },
        numbers={
            "values": {verdict: text.count(n) for verdict, n in counts.items()},
            "headline": headline, "notes": [],
        },
    )  # fmt: skip


def claim_frame(
    sections: Mapping[str, Section], records: Mapping[str, Record], trial: bool
) -> pd.DataFrame:
    """One row a claim: its words, our estimate, and the verdict, which a trial does not give."""
    found = Evidence(sections, records)
    rows = [
        {
            "claim": claim.key, "kind": claim.kind, "quote": claim.quote,
            "sections": " ".join(claim.sections), "estimate": ours.said, "value": ours.value,
            "low": ours.low, "high": ours.high, "unit": ours.unit, "n": ours.n, "of": ours.of,
            "verdict": UNMEASURED if trial else ours.verdict, "rule": claim.rule,
        }
        for claim, ours in ((claim, claim.estimate(found)) for claim in CLAIMS)
    ]  # fmt: skip
    return pd.DataFrame(rows).astype({"n": "Int64"})

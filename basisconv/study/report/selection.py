"""04_selection: the selected subset against all layers, none, random and inverted ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import Any

import pandas as pd

from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, text
from basisconv.study.report.arms import Comparison, Measured
from basisconv.study.report.output import Plot, Report, Table
from basisconv.study.report.selection_figure import figure
from basisconv.study.report.statistics import stats

RIVALS = {"dense": "dense", "basis": "all layers", "random": "random subsets of equal time",
          "inverted": "the inverted subset of equal time",
          "threshold": "the threshold's subset", "first_five": "the first five layers"}  # fmt: skip
"""What the selected subset is held against: method -> words."""
_MAIN = ("dense", "basis", "random")  # of these, what the headline tells

MEANS = ("predicted_time", "parameters", "macs")
VALUES = ("seeds", "accuracy", "val_accuracy", "val_loss")


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """Accuracy of each subset at one budget of training time, and the selected one's tests."""
    outcome, every = arms.outcome(section, records), arms.measure(section, records)
    found, draws = pooled(every), draw_frame(every)
    table, tests = subset_frame(found), rival_frame(found)
    unit = str(section.facts.get("unit", "the cost source"))
    budget = text.epochs(float(section.facts["budget"]))  # type: ignore[arg-type]
    return Report(
        section.name,
        section.profile,
        tables={
            "selection": Table(
                table, _shown(table, outcome),
                f"Subsets of layers in basis form, each trained for the time of {budget} of dense: "
                f"{outcome} accuracy with its 95 % interval. Step time relative to dense, by "
                f"{unit}.",
            ),
            "selection_tests": Table(
                tests, _shown_tests(tests),
                "The selected subset's accuracy minus that of its rivals (Welch, p by Holm). "
                "Each random subset is drawn anew and trained once.",
            ),
            "selection_draws": Table(
                draws, _shown_draws(draws, outcome),
                "The random subsets of the selected one's step time, a run each.",
            ),
        },
        figures={
            "selection": Plot(
                figure(table, draws, outcome), table,
                f"(a) {text.capital(outcome)} accuracy after the time of {budget} of dense, "
                f"against the step time by {unit}: {arms.shown_as(found)}; points of nearly equal "
                "time are set apart sideways. (b) Which layers each subset has in basis form; of "
                "the random ones, a square's area is the share of draws with that layer.",
            )
        },
        numbers=_numbers(section, found, tests, outcome),
    )  # fmt: skip


def pooled(found: Sequence[Measured]) -> list[Measured]:
    """The arms with the random subsets as one, of as many runs as there are draws.

    The question is how subsets drawn at random do, and not how one of them does.
    """
    draws = [m for m in found if m.arm.method == "random"]
    if not draws:
        return list(found)
    details = [_detail(m) for m in draws]
    detail: dict[str, Any] = {key: fmean(d[key] for d in details) for key in MEANS}
    detail["layers"] = list(dict.fromkeys(name for d in details for name in d["layers"]))
    detail["layer_count"] = fmean(len(d["layers"]) for d in details)
    arm = draws[0].arm.model_copy(
        update={
            "label": f"random, {text.plural(len(draws), 'draw')}", "detail": detail,
            "run_ids": tuple(run_id for m in draws for run_id in m.arm.run_ids),
        }
    )  # fmt: skip
    values = {name: tuple(chain.from_iterable(getattr(m, name) for m in draws)) for name in VALUES}
    one = Measured(arm, **values, lost=sum(m.lost for m in draws))
    at = found.index(draws[0])
    return [*found[:at], one, *(m for m in found[at:] if m not in draws)]


def _detail(m: Measured) -> dict[str, Any]:
    """What the draft keeps beside an arm, of types that its experiment alone knows."""
    return dict(m.arm.detail)


def draw_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row a random subset: its layers and what it reached."""
    rows = [
        {
            "label": m.arm.label, "layers": " ".join(detail["layers"]),
            "predicted_time": detail["predicted_time"], "accuracy": m.interval.mean,
        }
        for m, detail in ((m, _detail(m)) for m in found)
        if m.arm.method == "random"
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["label", "layers", "predicted_time", "accuracy"])


def subset_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row a subset: what it predicts, what it reached and how it compares with dense."""
    dense = arms.first(found, "dense")
    rows = []
    for m in found:
        other = [] if dense is None or m is dense else dense.accuracy
        gain = arms.compare_values(m.accuracy, other).difference
        detail, mean = _detail(m), m.interval
        layers = detail["layers"]
        rows.append(
            {
                "label": m.arm.label, "method": m.arm.method, "n": m.n, "lost": m.lost,
                "layers": " ".join(layers),
                "layer_count": detail.get("layer_count", len(layers)),  # the pooled draws' mean
                "predicted_time": detail["predicted_time"], "parameters": detail["parameters"],
                "macs": detail["macs"], "accuracy": mean.mean, "low": mean.low, "high": mean.high,
                "sd": mean.sd, "difference": gain.estimate, "difference_low": gain.low,
                "difference_high": gain.high,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def rival_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """The selected subset against each rival that there is, with Holm's correction."""
    tests = [(words, against(found, method)) for method, words in RIVALS.items()]
    rows = [
        {
            "rival": words, "difference": c.difference.estimate, "low": c.difference.low,
            "high": c.difference.high, "p": c.difference.p, "equivalence_p": c.equivalence,
            "smallest_margin": c.margin, "n_selected": c.difference.n_a,
            "n_rival": c.difference.n_b,
        }
        for words, c in tests
        if c is not None
    ]  # fmt: skip
    columns = ["rival", "difference", "low", "high", "p", "equivalence_p", "smallest_margin",
               "n_selected", "n_rival"]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns)
    table["p_holm"] = stats.holm(list(table["p"]))
    table["verdict"] = [
        arms.verdict(r.difference, r.equivalence_p, r.p_holm) for r in table.itertuples()
    ]
    return table


def against(found: Sequence[Measured], method: str) -> Comparison | None:
    """The selected subset minus a rival; None where one of them is missing or has no runs."""
    selected, rival = arms.first(found, "selected"), arms.first(found, method)
    if selected is None or rival is None or not (selected.n and rival.n):
        return None
    return arms.compare(selected, rival)


def _shown(table: pd.DataFrame, outcome: str) -> pd.DataFrame:
    rows = [
        {
            "subset": r.label,
            "layers": f"{r.layer_count:.3g}",
            "step time": f"{100 * r.predicted_time:.0f} %",
            "parameters": f"{int(r.parameters):,}",
            "n": text.seeds(r.n, r.lost),
            f"{outcome} accuracy (%)": text.with_interval(r.accuracy, r.low, r.high, 1),
            "minus dense": text.with_interval(
                r.difference, r.difference_low, r.difference_high, 2, True
            ),
        }
        for r in table.itertuples()
    ]
    return pd.DataFrame(rows)


def _shown_tests(tests: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {
            "selected against": r.rival,
            "difference (points)": text.with_interval(r.difference, r.low, r.high, 2, True),
            "n": f"{r.n_selected} and {r.n_rival}",
            "p (Holm)": text.p_value(r.p_holm),
            "verdict": text.VERDICT_WORDS[r.verdict],
        }
        for r in tests.itertuples()
    ]
    columns = ["selected against", "difference (points)", "n", "p (Holm)", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def _shown_draws(draws: pd.DataFrame, outcome: str) -> pd.DataFrame:
    rows = [
        {
            "subset": r.label,
            "step time": f"{100 * r.predicted_time:.0f} %",
            f"{outcome} accuracy (%)": text.fixed(r.accuracy, 1),
            "layers": r.layers.replace(" ", ", "),
        }
        for r in draws.itertuples()
    ]
    columns = ["subset", "step time", f"{outcome} accuracy (%)", "layers"]
    return pd.DataFrame(rows, columns=columns)


def _numbers(
    section: Section, found: Sequence[Measured], tests: pd.DataFrame, outcome: str
) -> dict[str, Any]:
    selected = arms.first(found, "selected")
    values: dict[str, Any] = {}
    if selected is None or not selected.n:
        headline = "No run of a selected subset is done."
    else:
        i = selected.interval
        values["accuracy"] = text.number(i.mean, i.low, i.high, i.n, digits=1, unit=" %")
        time = 100 * float(selected.arm.detail["predicted_time"])  # type: ignore[arg-type]
        values["predicted_time"] = text.number(time, digits=0, unit=" %")
        headline = (
            f"The selected subset ({text.plural(len(selected.arm.detail['layers']), 'layer')}, "  # type: ignore[arg-type]
            f"a predicted {values['predicted_time']['text']} of the dense step's time) reaches "
            f"{values['accuracy']['text']} {outcome} accuracy"
        )
        # What it gains on dense is worth no more than what it gains on chance.
        main = [told for rival in _MAIN if (told := _told(tests, rival))]
        headline += f": {text.listed(main)}." if main else "."
    findings = [headline]
    others = [told for r in RIVALS if r not in _MAIN and (told := _told(tests, r))]
    if others:
        findings.append(f"It is {'; '.join(others)}.")
    if not section.facts.get("controls", True):
        findings.append(
            "The selection took all layers or none, so that there are no other subsets of its "
            "time to hold it against."
        )
    return {
        "values": values, "outcome": outcome, "headline": headline, "findings": findings,
        "notes": arms.lost_note(found), "rules": _rules(section.facts),
    }  # fmt: skip


def _rules(facts: Mapping[str, Any]) -> str:
    """What we chose for the source's rule and for ours, which it leaves open."""
    return (
        f"Two numbers are our choices: the budget of predicted loss, {100 * facts['loss_share']:g} "
        "% of the sum of all positive sensitivities, and the threshold of the source's rule, "
        f"{facts['threshold']:g}."
    )


def _told(tests: pd.DataFrame, rival: str) -> str:
    """As in "better than dense (+0.6 points [+0.2, +1.0])"; nothing without that rival.

    Args:
        tests: of `rival_frame`.
        rival: a key of `RIVALS`.
    """
    rows = tests[tests["rival"] == RIVALS[rival]]
    if rows.empty:
        return ""
    r = rows.iloc[0]
    words = {
        "above": "better than", "below": "worse than", "equal": "equal to",
        "open": "undecided against", "untested": "measured once beside",
    }  # fmt: skip
    difference = text.with_interval(r.difference, r.low, r.high, 2, True, " points")
    return f"{words[r.verdict]} {RIVALS[rival]} ({difference})"

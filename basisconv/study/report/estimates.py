"""Our side of each claim, one function each, from the evidence at hand to an estimate."""

from __future__ import annotations

from typing import Any

import pandas as pd

from basisconv.study.report import arms, method, sensitivity, text
from basisconv.study.report.equal_steps import at_equal_steps, ratio
from basisconv.study.report.evidence import (
    NOT,
    PAPER_SPEEDUP,
    PARTLY,
    REPRODUCED,
    UNDECIDED,
    Estimate,
    Evidence,
    absent,
    by_share,
    kept,
    lost,
    of_difference,
    of_row,
    tally,
    untested,
    unwon,
    won,
)
from basisconv.study.report.places import outcomes
from basisconv.study.report.selection import RIVALS
from basisconv.study.report.speedup import bracket_text, fastest, lead
from basisconv.study.report.statistics.rankings import reliability_interval


def speedup(e: Evidence) -> Estimate:
    """Largest measured bracket of a speed-up at equal accuracy."""
    rows = arms.tested(e.ours)
    if rows.empty:
        return untested()
    above = rows[rows["verdict"] == "above"]
    if above.empty:
        best = rows.loc[rows["difference"].idxmax()]
        said = (
            f"no arm beats dense of the same time (Holm); nearest {text.at_budget(best)}: "
            f"{text.gain(best)}"
        )
        return Estimate(said, unwon(e.ours["verdict"]), n=int(best.n))  # fmt: skip
    best = fastest(above).iloc[0]
    bracket = bracket_text(best.speedup_at_least, best.speedup_below)
    faster = above[above["speedup_at_least"] >= PAPER_SPEEDUP]
    said = f"{text.at_budget(best)}: {bracket} at equal accuracy"
    if len(faster):
        # Budgets that dense trained beyond by as much as the paper claims.
        longest = e.frontier.loc[e.frontier["method"] == "dense", "budget"].max()
        able = sum(PAPER_SPEEDUP * budget <= longest for budget in set(e.ours["budget"]))
        said += (
            f" (ahead of dense trained that long by {lead(best)}); ≥ {PAPER_SPEEDUP:g}× at "
            f"{faster['budget'].nunique()} of {text.plural(able, 'budget')} that could "
            "show it"
        )
    return Estimate(
        said,
        REPRODUCED if best.speedup_at_least >= PAPER_SPEEDUP else PARTLY,
        best.speedup_at_least, best.speedup_at_least, best.speedup_below, int(best.n), "×",
    )  # fmt: skip


def compression(e: Evidence) -> Estimate:
    """Parameters of dense over those with all layers in basis form, a count."""
    totals: Any = e.sections["00_method"].facts["totals"]
    ratio = totals["parameters"]["dense"] / totals["parameters"]["subset"]
    share = text.share(float(e.sections["00_method"].facts["ratio"]))  # type: ignore[arg-type]
    return Estimate(
        f"{ratio:.2f}× fewer parameters with all layers at f = {share} (a count)",
        REPRODUCED if ratio > 1 else NOT, ratio, unit="×",
    )  # fmt: skip


def identified(e: Evidence) -> Estimate:
    """Whether layers differ, and whether the sweep would give the same ranking again."""
    section = e.sections["03_sensitivity"]
    scores = sensitivity.score_matrix(section, e.records)
    seeds = len(scores)
    if seeds < 2:
        return untested()
    trust, low, high = reliability_interval(scores)
    table = sensitivity.layer_frame(section, e.records)
    decided = int((table["p_holm"] < arms.ALPHA).sum())
    held = (decided > 0, trust >= arms.TRUSTED)
    verdict = REPRODUCED if all(held) else PARTLY if any(held) else UNDECIDED
    said = (
        f"reliability of the ranking {text.with_interval(trust, low, high, 2)}; {decided} of "
        f"{len(table)} layers told from dense (Holm)"
    )
    return Estimate(said, verdict, trust, low, high, n=seeds)


def effectiveness(e: Evidence) -> Estimate:
    """At how many budgets some arm of ours beats dense trained for the same time."""
    rows = arms.tested(e.ours)
    if rows.empty:
        return untested()
    budgets = sorted(set(e.ours["budget"]))
    at = [b for b in budgets if (rows[rows["budget"] == b]["verdict"] == "above").any()]
    verdict = PARTLY if at else unwon(e.ours["verdict"])
    if len(at) == len(budgets):
        verdict = REPRODUCED
    best = rows.loc[rows["difference"].idxmax()]
    return of_row(
        f"dense of the same time is beaten at {len(at)} of {text.plural(len(budgets), 'budget')} "
        f"(Holm); largest gain {text.at_budget(best)}: {text.gain(best)}",
        verdict,
        best,
    )


def performance(e: Evidence) -> Estimate:
    """All layers in basis form against dense trained for the same time, at every budget."""
    share = e.sections["02_all_layers"].facts["ratio"]
    rows = e.ours[(e.ours["method"] == "basis") & (e.ours["ratio"] == share)]
    tested = arms.tested(rows)
    if tested.empty:
        return untested()
    last = tested.loc[tested["budget"].idxmax()]
    steps = [
        f"; for as many steps {text.gain(row)}"
        for row in e.equal_steps[e.equal_steps["ratio"] == share].itertuples()
    ]
    return of_row(
        f"{text.at_budget(last)}: {text.gain(last)} against dense of the same time; "
        f"{tally(rows['verdict'])}{''.join(steps)}",
        kept(rows["verdict"]),
        last,
    )


def selection(e: Evidence) -> Estimate:
    """The selected subset against dense of the same time, and against random subsets."""
    if RIVALS["dense"] not in e.rivals.index:
        return absent("the selected subset or dense")
    row = e.rivals.loc[RIVALS["dense"]]
    if row.verdict == "untested":
        return untested()
    random = e.rivals.loc[RIVALS["random"]] if RIVALS["random"] in e.rivals.index else None
    useful = random is not None and random.verdict == "above"
    verdict = kept([row.verdict])
    if verdict == REPRODUCED and not useful:
        verdict = PARTLY
    said = f"selected minus dense of the same time: {text.gain(row)}"
    if random is not None:
        said += f"; minus random subsets: {text.gain(random)}"
    return of_row(said, verdict, row)


def computation(e: Evidence) -> Estimate:
    """Forward speed-ups of single layers and the training step's."""
    found, median = outcomes(e.layers, "forward_"), float(e.layers["forward_speedup"].median())
    return by_share(
        found.faster, len(e.layers),
        f"forward pass: {_counted(e.layers, 'timing', ' of single layers', 'forward_')}; median "
        f"{median:.2f}×",
        median, e.layer_turns, found.undecided,
    )  # fmt: skip


def too_few(e: Evidence) -> Estimate:
    """The smallest share of basis filters against the largest, trained for as many steps."""
    measured = arms.measure(e.sections["02_all_layers"], e.records)
    found = at_equal_steps(measured)
    if len({ratio(m) for m in found}) < 2:
        return absent("two shares of basis filters that trained for as many steps")
    few, *_, many = found
    return of_difference(
        f"f = {text.share(ratio(few))} minus f = {text.share(ratio(many))}, both for dense's steps "
        f"in {text.epochs(few.arm.budget or 0.0)}",
        lost,
        arms.compare(few, many),
    )


def uncompressed(e: Evidence) -> Estimate:
    """Training steps whose coefficient matrix is not compressed: does time improve after all?"""
    found, best = outcomes(e.networks), float(e.networks["speedup"].max())
    # A step that does not differ from dense speaks for neither side.
    with_some = {(True, True): PARTLY, (True, False): NOT, (False, True): REPRODUCED}
    verdict = with_some.get((found.faster > 0, found.slower > 0), UNDECIDED)
    counted = _counted(e.networks, "training step")
    said = f"coefficient matrix as it is: {counted}; best {best:.2f}×"
    return Estimate(said, verdict, best, n=e.network_turns, of="turns")


def misjudged(e: Evidence) -> Estimate:
    """Selected minus inverted: what choosing the sensitive layers costs."""
    name = RIVALS["inverted"]
    if name not in e.rivals.index:
        return absent("an inverted subset")
    row = e.rivals.loc[name]
    if row.verdict == "untested":
        return untested()
    said = f"selected minus inverted subset of the same time: {text.gain(row)}"
    return of_row(said, won(row.verdict), row)


def few_layers(e: Evidence) -> Estimate:
    """The most time that one layer alone saves, by the profile's costs."""
    table = sensitivity.layer_frame(e.sections["03_sensitivity"], e.records)
    most = table.loc[table["time_saved"].idxmax()]
    gain = 1 / (1 - most.time_saved)
    unit = e.sections["03_sensitivity"].facts.get("unit", "the cost source")
    return Estimate(
        f"one layer alone saves at most {100 * most.time_saved:.1f} % of a step "
        f"({most.layer}, by {unit})",
        REPRODUCED if gain < PAPER_SPEEDUP else NOT, gain, unit="×",
    )  # fmt: skip


def bottleneck(e: Evidence) -> Estimate:
    """Layers that are slower than dense although they execute fewer multiplications."""
    fewer = e.layers[e.layers["macs_ratio"] > 1]
    found = outcomes(fewer)
    return by_share(
        found.slower, len(fewer),
        "forward and backward, with fewer multiplications: "
        f"{_counted(fewer, 'timing', ' of single layers')}",
        float(fewer["speedup"].min()), e.layer_turns, found.undecided,
    )  # fmt: skip


def larger(e: Evidence) -> Estimate:
    """Layers whose basis form holds no fewer parameters than the dense one."""
    costs = method.cost_frame(e.sections["00_method"].facts)
    basis = costs[costs["n_basis"].notna() & (costs["layer"] != "network")]
    grown = int((basis["parameters_subset"] >= basis["parameters_dense"]).sum())
    return by_share(
        grown, len(basis),
        f"{grown} of {text.plural(len(basis), 'layer')} in basis form hold as many parameters as "
        "dense or more (a count)",
        float(grown), None,
    )  # fmt: skip


def skip(e: Evidence) -> Estimate:
    """Basis, then re-initialised and trained as dense: against dense of the same time."""
    rows = e.skips[(e.skips["direction"] == "basis→dense") & (e.skips["carry"] == "reinit")]
    if rows.empty:
        return absent("a skip arm that is re-initialised")
    # Adjusted over the arms that the claim is about alone.
    rows = arms.decided(rows)
    tested = arms.tested(rows)
    if tested.empty:
        return untested()
    best = tested.loc[tested["difference"].idxmax()]
    worst = tested.loc[tested["difference"].idxmin()]
    said = (
        f"minus dense of the same time, best of {text.plural(len(rows), 'switch point')} "
        f"({100 * best.switch:.0f} % of the time): {text.gain(best)}"
    )
    if best.switch != worst.switch:
        said += f"; worst ({100 * worst.switch:.0f} %): {text.gain(worst)}"
    return of_row(f"{said}; {tally(rows['verdict'])}", kept(rows["verdict"]), best)


def early_switch(e: Evidence) -> Estimate:
    """The earliest switch to dense against basis throughout, at equal time."""
    found = arms.measure(e.sections["05_skip_training"], e.records)
    basis = arms.first(found, "basis")
    exact = [
        m
        for m in found
        if m.arm.detail.get("direction") == "basis→dense" and m.arm.detail.get("carry") == "exact"
    ]
    if basis is None or not exact:
        return absent("basis throughout, or a switch that keeps the function")
    early = min(exact, key=_switch)
    return of_difference(
        f"switch at {100 * _switch(early):.0f} % of the time minus basis throughout, equal time",
        won,
        arms.compare(early, basis),
    )


def _switch(m: arms.Measured) -> float:
    detail: dict[str, Any] = m.arm.detail
    return float(detail["switch"])


def _counted(timings: pd.DataFrame, noun: str, of: str = "", prefix: str = "") -> str:
    """As in "84 of 90 training steps faster, 0 slower, 6 undecided (quartiles clear of 1)".

    What is faster on each of several devices follows it.
    """
    found = outcomes(timings, prefix)
    devices = {name: outcomes(rows, prefix) for name, rows in timings.groupby("device", sort=False)}
    each = [f"{part.faster} of {sum(part)} on {name}" for name, part in devices.items()]
    return (
        f"{found.faster} of {text.plural(sum(found), noun)}{of} faster"
        f"{f' ({text.listed(each)})' if len(each) > 1 else ''}, {found.slower} slower, "
        f"{found.undecided} undecided (quartiles clear of 1)"
    )
